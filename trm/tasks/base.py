"""What a puzzle is: the members through which the rest of the project knows a task, and nothing else of it.

A task is one folder beside this file, an entry in TASKS, and one YAML in conf/data that names it (`data.task`).
Shapes: N rows, L = rows * columns cells, V tokens, P base puzzles.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trm.config import Config, DataConfig, check_widths, register_check
from trm.errors import ConfigError

Tokens = NDArray[np.integer]  # [L] of one grid, or [N, L]
Flags = NDArray[np.bool_]  # [L]
Split = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # questions and answers [P, L]


@dataclass(frozen=True)
class TaskFacts:
    """The sizes that the network and the dataset folder are made for."""

    seq_len: int  # L
    vocab_size: int  # V, padding included
    num_identifiers: int = 1
    pad: int = 0  # token of cells that do not exist
    ignored_label: int = 0  # label of cells that do not count

    @property
    def sizes(self) -> dict[str, int]:
        """What `trm.core.model.architecture` takes."""
        return {"seq_len": self.seq_len, "vocab_size": self.vocab_size, "num_puzzle_identifiers": self.num_identifiers}


class Hub(NamedTuple):
    """Where train.csv and test.csv of a task are on the Hugging Face hub."""

    repository: str
    revision: str  # a full commit
    test_puzzles: int  # in test.csv
    instead: str  # the option of data= that needs no download


@dataclass(frozen=True)
class GridView:
    """How a grid of tokens is shown: in text, in pictures and on pages."""

    rows: int
    columns: int
    symbols: tuple[str, ...]  # of every token [V], one character each
    heavy_rows: tuple[int, ...] = ()  # rows and columns before which a heavy line is drawn, from 1
    heavy_columns: tuple[int, ...] = ()
    colours: Mapping[int, str] | None = None  # of a cell's ground, by token, #rrggbb; None = plain

    @cached_property
    def _symbols(self) -> NDArray[np.str_]:
        return np.array(self.symbols)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """First column and the one after the last, of what lies between heavy lines."""
        return list(zip((0, *self.heavy_columns), (*self.heavy_columns, self.columns), strict=True))

    def text(self, tokens: Tokens) -> str:
        """One line of L characters."""
        return "".join(self._symbols[tokens])

    def grid(self, tokens: Tokens) -> str:
        """Several lines of text, with `|` and `-` where heavy lines are."""
        text, lines, pieces = self.text(tokens), [], self.pieces
        rule = "-+-".join("-" * (2 * (stop - start) - 1) for start, stop in pieces)
        for row in range(self.rows):
            if row in self.heavy_rows:
                lines.append(rule)
            line = text[row * self.columns : (row + 1) * self.columns]
            lines.append(" | ".join(" ".join(line[start:stop]) for start, stop in pieces))
        return "\n".join(lines)


@dataclass(frozen=True)
class Drawn:
    """Symmetries drawn for N rows: cell c of a row shows cell `source[c]` of its base puzzle, in tokens as `relabel` has them."""

    source: NDArray[np.int64]  # [N, L]
    relabel: NDArray[np.uint8]  # [N, V], a permutation of the tokens


class Symmetry(Protocol):
    """The symmetries of a task: variant k of puzzle p is a pure function of (seed, p, k), and variant 0 is the puzzle itself."""

    @property
    def words(self) -> str:
        """What they are, in words."""

    def draw(self, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]) -> Drawn:
        """The symmetries of the given variants [N] of the base puzzles [N]."""

    def signature(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """One word a puzzle [N] that no symmetry changes: puzzles with different words are no copies of one another."""


class Task(Protocol):
    """One kind of puzzle."""

    @property
    def name(self) -> str:
        """What data.task calls it."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the data settings that are this task's own."""

    @property
    def title(self) -> str:
        """The kind in words, with its size: "9x9 Sudoku"."""

    @property
    def facts(self) -> TaskFacts:
        """Sizes and special tokens."""

    @property
    def view(self) -> GridView:
        """How a grid is shown."""

    @property
    def symmetry(self) -> Symmetry | None:
        """The symmetries, None where a puzzle has none."""

    @property
    def hub(self) -> Hub | None:
        """Where its csv files can be downloaded; None = nowhere."""

    @property
    def has_classes(self) -> bool:
        """Whether generated sets are kept apart under the symmetries; False where there are too few puzzles for that."""

    def generate(self, count: int, seed: int) -> Split:
        """So many puzzles made here, no two alike; raises DataError where the task cannot make them."""

    def parse(self, text: str) -> NDArray[np.uint8]:
        """Tokens [L] of a question as a person writes it. Raises DataError naming the position."""

    @property
    def token_of_byte(self) -> NDArray[np.uint8]:
        """Token of every byte of csv text [256]; `facts.pad` where the byte is no cell."""

    def check_rows(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> Flags:
        """Which rows [N] are sound: tokens are cells, and the answer solves the question."""

    def several_solutions(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> Flags:
        """Which sound rows [N] are found to have a solution beside their answer; a limited search, so False proves nothing."""

    def violations(self, question: Tokens, answer: Tokens) -> list[str]:
        """What is wrong with an answer to a question, in words; empty where it solves it."""

    def contradictions(self, question: Tokens) -> list[str]:
        """Why nothing solves a question, in words; empty where that is not seen at once."""

    def conflicts(self, answer: Tokens) -> Flags:
        """The cells [L] of an answer that break a rule with one another."""

    def given(self, question: Tokens) -> Flags:
        """The cells [L] that the question fixes."""

    def blank(self, answer: Tokens) -> Flags:
        """The cells [L] of an answer that answer nothing."""


# Where each task is: a module with `make(data) -> Task` and `check(data)`, which is imported when it is asked for.
TASKS = {"sudoku": "trm.tasks.sudoku.task"}


def task_of(data: DataConfig) -> Task:
    """The task that the settings name, in its size. Raises ConfigError where there is none of that name."""
    task: Task = _module(data).make(data)
    return task


def _module(data: DataConfig) -> ModuleType:
    if data.task not in TASKS:
        raise ConfigError(f"data.task={data.task} is unknown: choose one of {', '.join(sorted(TASKS))}")
    return importlib.import_module(TASKS[data.task])


@register_check
def check_task(cfg: Config) -> None:
    """Raise ConfigError for an unknown task, a size that it does not have, or a network that its puzzles leave no width."""
    _module(cfg.data).check(cfg.data)
    check_widths(cfg, task_of(cfg.data).facts.seq_len)


# ------------------------------------------------------------------------------------------------- symmetries, applied and undone


def augment(
    task: Task,
    questions: NDArray[np.uint8],
    answers: NDArray[np.uint8],
    *,
    seed: int,
    puzzles: NDArray[np.integer],
    variants: NDArray[np.integer],
) -> Split:
    """Questions and answers [N, L] of the given variants [N] of the base puzzles [N], from all base rows [P, L].

    Stored and on-the-fly augmentation give the same rows however the work is split. `seed` is data.seed.
    """
    drawn = _drawn(task, seed, puzzles, variants)
    cells, vocab = drawn.source.shape[1], drawn.relabel.shape[1]
    source = drawn.source + (puzzles * cells)[:, None]
    offset = (np.arange(len(puzzles)) * vocab)[:, None]
    return drawn.relabel.take(questions.take(source) + offset), drawn.relabel.take(answers.take(source) + offset)


def undo(
    task: Task, cells: NDArray[np.integer], *, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Cells [N, L] of the given variants as cells of the base puzzles: what `augment` did, done backwards."""
    drawn = _drawn(task, seed, puzzles, variants)
    base = np.empty(cells.shape, np.int64)
    tokens = np.take_along_axis(np.argsort(drawn.relabel, axis=1), cells.astype(np.intp), axis=1)
    np.put_along_axis(base, drawn.source, tokens, axis=1)
    return base


def _drawn(task: Task, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]) -> Drawn:
    if task.symmetry is not None:
        return task.symmetry.draw(seed, puzzles, variants)
    if variants.any():
        raise ConfigError(
            f"{task.title} has no symmetries that are known: set data.num_aug=0, data.on_the_fly_aug=0 and evaluate.augmentations=1"
        )
    same = (np.arange(size) for size in (task.facts.seq_len, task.facts.vocab_size))
    source, relabel = (np.tile(row, (len(puzzles), 1)) for row in same)
    return Drawn(source, relabel.astype(np.uint8))
