"""Sudoku as a task: rules, symmetries and generator as the members of `Task`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trm.errors import ConfigError
from trm.tasks.base import SPLIT_SEEDS, Flags, GridView, Hub, Split, Task, TaskFacts, Tokens
from trm.tasks.sudoku import generate as generator
from trm.tasks.sudoku.rules import BLANK, PAD, Sudoku, SudokuSymmetry
from trm.tasks.sudoku.settings import Settings

# 3,831,994 rows of train.csv and 422,786 of test.csv
HUB = Hub("sapientinc/sudoku-extreme", "58942f96baeb572ca3127e2a9e9c70f330783d6b", 422_786, instead="sudoku_9x9")


@dataclass(frozen=True)
class SudokuTask(Sudoku, Task):
    """One size of Sudoku; trm/tasks/base.py documents the members."""

    difficulty_words = "blank cells"
    settings = Settings

    @classmethod
    def make(cls, data: Settings) -> Self:
        return cls(data.box_rows, data.box_cols)

    @classmethod
    def check(cls, data: Settings) -> None:
        """Raise ConfigError for a size that cannot be written, since there are 25 digits."""
        if not 2 <= cls.make(data).side <= 25:
            raise ConfigError(f"data.box_rows*data.box_cols={cls.make(data).side}: the grid's side must be 2 to 25")

    @property
    def title(self) -> str:
        return f"{self.side}x{self.side} Sudoku"

    @property
    def facts(self) -> TaskFacts:
        return TaskFacts(self.num_cells, self.vocab_size, pad=PAD, ignored_label=PAD)

    @cached_property
    def view(self) -> GridView:
        rows, columns = (tuple(range(box, self.side, box)) for box in (self.box_rows, self.box_cols))
        return GridView(self.side, self.side, tuple(self.text(np.arange(self.vocab_size))), rows, columns)

    @cached_property
    def symmetry(self) -> SudokuSymmetry:
        return SudokuSymmetry(self)

    @property
    def hub(self) -> Hub | None:
        return HUB if (self.box_rows, self.box_cols) == (3, 3) else None

    @property
    def has_classes(self) -> bool:
        return self.side >= generator.SMALLEST_SIDE_WITH_CLASSES

    def generate(self, count: int, seed: int) -> Split:
        """Puzzles with one solution each and without a clue to spare."""
        return generator.generate(self, count, seed)

    def generate_splits(self, counts: Mapping[str, int], seed: int) -> dict[str, Split]:
        if self.side < generator.SMALLEST_SIDE_SPLIT_BY_SOLUTION:
            return super().generate_splits(counts, seed)
        return {split: generator.generate(self, count, seed + SPLIT_SEEDS, split) for split, count in counts.items()}

    def solved(self, questions: NDArray[np.uint8], *, quick: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        return generator.solved(self, questions, generator.FEW_GUESSES if quick else generator.MOST_GUESSES)

    def given(self, question: Tokens) -> Flags:
        return question > BLANK

    def blank(self, answer: Tokens) -> Flags:
        return answer <= BLANK

    def difficulty(self, questions: NDArray[np.integer], answers: NDArray[np.integer]) -> NDArray[np.integer]:
        blank: NDArray[np.integer] = (questions <= BLANK).sum(axis=1)
        return blank
