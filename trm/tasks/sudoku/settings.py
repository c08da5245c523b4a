"""The settings that only Sudoku has."""

from dataclasses import dataclass

from trm.config import DataConfig, key


@dataclass
class Settings(DataConfig):
    """The size of the boxes. A side of the grid has box_rows*box_cols cells."""

    box_rows: int = key(3, "rows of a box of the grid", low=1, high=5)
    box_cols: int = key(3, "columns of a box of the grid", low=1, high=5)
