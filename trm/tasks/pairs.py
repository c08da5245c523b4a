"""Puzzles of several rows each, which belong together, and whose variants have identifiers of their own.

Shapes: N rows, L cells, R base rows, G puzzles, I identifiers, D numbers of a draw.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trm.tasks.base import Split, Task, Tokens

ANSWERS_FILE = "answers.json"  # of a run whose puzzles are judged by votes: some of them with their answers


@dataclass(frozen=True)
class Catalogue:
    """What each of the I puzzle identifiers stands for, and the test puzzles as in their files."""

    names: list[str]  # of the base puzzles
    puzzles: NDArray[np.int32]  # [I], places in `names`; -1 = none (blank)
    draws: NDArray[np.uint8]  # [I, D], what makes the variant from its puzzle, in the task's own form
    tests: dict[str, Any]  # by name
    blank: int = 0
    left_out: int = 0  # test puzzles that an evaluation does not take

    def variant(self, identifier: int) -> tuple[str, NDArray[np.uint8]]:
        """The puzzle's name and the draw of an identifier that is not blank."""
        return self.names[self.puzzles[identifier]], self.draws[identifier]

    def identifiers_of(self, name: str) -> NDArray[np.int64]:
        """The identifiers of a puzzle's variants, itself first; empty for an unknown name."""
        return np.flatnonzero(self.puzzles == self.names.index(name)) if name in self.names else np.empty(0, np.int64)


class Ballots(Protocol):
    """Counts the answers of variants and makes the scores of their puzzles. N rows of L cells."""

    def add(self, identifiers: Tokens, questions: Tokens, answers: Tokens, confidence: NDArray[np.float64]) -> None:
        """Count answers [N, L] to questions [N, L] of variants [N], each with the model's confidence 0..1 [N]."""

    def scores(self) -> dict[str, float]:
        """The scores of the answers so far."""

    def documents(self) -> dict[str, str]:
        """The files to write beside the scores: text by file name."""

    def remark(self) -> str | None:
        """A line on these documents, where they answer only a part of the puzzles."""

    def shown(self, name: str) -> dict[str, Any]:
        """A puzzle with its answers, ready for JSON and trm/show/pairs.html.

        `name`, `colours` of the numbers in grids, `train` (pairs of `input` and `output`, rows of numbers each), `tests`: `input`,
        `output` (None = not known) and `answers`, best first, each with its `grid`, `votes` and `confidence`.
        """

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All votes, for a checkpoint."""

    def take(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Continue from the votes of a checkpoint."""


class PairRows(NamedTuple):
    """The rows of one split: those of puzzle g are first_row[g] to first_row[g + 1]."""

    puzzles: list[int]  # of each group, its place in the catalogue's names
    questions: NDArray[np.uint8]  # [R, L]
    answers: NDArray[np.uint8]  # [R, L]; all padding where the answer is not known
    first_row: NDArray[np.int64]  # [G + 1]


class Collection(NamedTuple):
    """Puzzles of several rows each, with their variants: the identifiers of a puzzle follow each other, itself first."""

    catalogue: Catalogue
    splits: dict[str, PairRows]
    sha256: dict[str, str]  # of the source files
    remarks: list[str]


class PairsTask(Task):
    """A task whose puzzles have several rows each, which belong together, and whose variants have identifiers of their own."""

    has_classes = False
    variants_vote = True

    @abstractmethod
    def collect(self, data: Any) -> Collection:
        """The puzzles that the settings name. Raises DataError."""

    @abstractmethod
    def vary(self, rows: Split, chosen: NDArray[np.int64], draws: NDArray[np.uint8], places: NDArray[np.float64] | None) -> Split:
        """The `chosen` ones [N] of base rows [R, L] in the variants `draws` [N, D].

        `places` [N, 2] in [0, 1) are their places in the free room of the canvas; None = in the corner.
        """

    @abstractmethod
    def identifier_name(self, name: str, draw: NDArray[np.uint8]) -> str:
        """The name of a puzzle's variant."""

    @abstractmethod
    def read_identifier(self, text: str) -> tuple[str, NDArray[np.uint8]]:
        """The puzzle's name and the draw from the name of a variant. Raises ValueError."""

    @abstractmethod
    def ballots(self, catalogue: Catalogue) -> Ballots:
        """The counter of answers to the test puzzles of a catalogue."""

    @abstractmethod
    def read(self, plain: Any, name: str, where: str) -> tuple[dict[str, Any], Split]:
        """A puzzle from its JSON, checked, and its test rows. Raises DataError, which begins with `where`."""

    @abstractmethod
    def framed(self, answer: Tokens) -> Tokens:
        """The part of an answer that counts, without what the model wrote around it."""
