"""The settings that only mazes have."""

from dataclasses import dataclass

from trm.config import DataConfig, key


@dataclass
class Settings(DataConfig):
    """The size of the grid, and the lengths of the paths of generated mazes."""

    canvas: int = key(30, "cells along a side of the square canvas", low=2, high=64)
    path_min: int = key(1, "smallest number of steps of the path of a generated maze", low=1)
    path_max: int | None = key(None, "largest number of steps of such a path; null = no limit", low=1)
