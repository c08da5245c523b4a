"""What a puzzle is: `Task` has all members that the rest of the project uses of a task.

A task is a class derived from `Task`, a dataclass of settings, and a YAML in conf/data. `task: NAME` there is a folder NAME beside
this file, with the class in task.py and its settings in settings.py; `task: MODULE:CLASS` is a class outside the package.
Shapes: N rows, L = rows * columns cells, V tokens, P base puzzles.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from trm.config import EXACT, PLACE, Config, DataConfig, check_widths, imported_task, keys_of, register_check, role, task_settings
from trm.errors import ConfigError, DataError
from trm.ground.hashing import Stream, hash64

Tokens = NDArray[np.integer]  # [L] of one grid, or [N, L]
Flags = NDArray[np.bool_]  # [L] of one grid, or [N]
Scores = dict[str, NDArray[np.bool_]]  # [N] by name
Split = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # questions and answers [P, L]
# How many sixteenths of all generated puzzles belong to each split. A puzzle and its copies always belong to one split, whatever
# the seed and the counts, so generated sets only grow at their ends and never meet.
SIXTEENTHS = {"train": 8, "test": 5, "selection": 3}
# Added to data.seed where splits are generated.
SPLIT_SEEDS = 2**31


def split_of(classes: NDArray[np.uint64]) -> NDArray[np.str_]:
    """The split [N] to which each class of puzzles belongs; a class is a word that the copies of a puzzle share."""
    owners = np.repeat(list(SIXTEENTHS), list(SIXTEENTHS.values()))
    found: NDArray[np.str_] = owners[hash64(Stream.SPLIT, classes) >> np.uint64(60)]
    return found


def first_seen(keys: Iterable[Hashable], seen: set[Hashable]) -> list[int]:
    """The places of the keys that are not in `seen`, the first place of equal keys; adds the keys to `seen`."""
    new = []
    for place, key in enumerate(keys):
        if key not in seen:
            seen.add(key)
            new.append(place)
    return new


def candidates_for(counts: Mapping[str, int]) -> int:
    """How many generated puzzles have so many of each split, on average."""
    return max(-(-16 * count // SIXTEENTHS[split]) for split, count in counts.items())


@dataclass(frozen=True)
class TaskFacts:
    """The sizes of the network and of the dataset folder."""

    seq_len: int  # L
    vocab_size: int  # V, padding included
    num_identifiers: int = 1
    pad: int = 0  # token of cells that do not exist
    ignored_label: int = 0  # label of cells that do not count
    # Where a puzzle has several rows, about: training rows of a puzzle, and test rows of all test puzzles in one variant
    rows_of_puzzle: float = 1.0
    test_rows: int | None = None
    test_puzzles: int | None = None  # the number of these puzzles

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments of `trm.core.architecture.architecture`."""
        return {"seq_len": self.seq_len, "vocab_size": self.vocab_size, "num_puzzle_identifiers": self.num_identifiers}


class Hub(NamedTuple):
    """The place of a task's train.csv and test.csv on the Hugging Face hub."""

    repository: str
    revision: str  # a full commit, or a branch where `sha256` has its files
    test_puzzles: int  # in test.csv
    instead: str  # an option of data= that needs no download
    sha256: Mapping[str, str] = {}  # by file name


@dataclass(frozen=True)
class GridView:
    """How a grid of tokens is shown: in text, in pictures and on pages."""

    rows: int
    columns: int
    symbols: tuple[str, ...]  # one character for each token [V]
    heavy_rows: tuple[int, ...] = ()  # a heavy line is drawn before these rows and columns (from 1)
    heavy_columns: tuple[int, ...] = ()
    colours: Mapping[int, str] | None = None  # background of a cell by its token, #rrggbb; None = plain
    line: tuple[int, ...] = ()  # a line joins neighbouring cells with these tokens: a path with its ends
    gap: str = " "  # between the cells of a row in text

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """First column and the column after the last, of each part between heavy lines."""
        return list(zip((0, *self.heavy_columns), (*self.heavy_columns, self.columns), strict=True))

    def text(self, tokens: Tokens) -> str:
        """One line of L characters; cells that are not known (labels below 0) have the symbol of padding, the first."""
        return "".join(self.symbols[max(token, 0)] for token in tokens.tolist())

    def grid(self, tokens: Tokens) -> str:
        """Several lines of text, with `|` and `-` for heavy lines."""
        return "\n".join(self.lines(self.text(tokens), 1, self.gap, " | "))

    def lines(self, cells: Sequence[str], width: int, gap: str = "", bar: str = "|") -> list[str]:
        """Lines of cells [L], each `width` characters wide, with a `bar` or a line of `-` for heavy lines."""
        cross = bar.replace(" ", "-").replace("|", "+")
        rule = cross.join("-" * ((width + len(gap)) * (stop - start) - len(gap)) for start, stop in self.pieces)
        lines = []
        for row in range(self.rows):
            lines += [rule] if row in self.heavy_rows else []
            line = cells[row * self.columns : (row + 1) * self.columns]
            lines.append(bar.join(gap.join(line[start:stop]) for start, stop in self.pieces))
        return lines


@dataclass(frozen=True)
class Drawn:
    """Symmetries of N rows: cell c of a row shows cell `source[c]` of its base puzzle, with its token replaced by `relabel`."""

    source: NDArray[np.int64]  # [N, L]
    relabel: NDArray[np.uint8]  # [N, V], a permutation of the tokens


class Symmetry(Protocol):
    """The symmetries of a task: variant k of puzzle p is a pure function of (seed, p, k), and variant 0 is the puzzle itself.

    Where a puzzle has few copies, all of them the variants 0 to `order` - 1, there is an attribute `order`.
    """

    @property
    def words(self) -> str:
        """A description."""

    def draw(self, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]) -> Drawn:
        """The symmetries of the given variants [N] of the base puzzles [N]."""

    def signature(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """A word for each puzzle [N] that no symmetry changes: puzzles with different words are not copies of each other."""


class Task(ABC):
    """One kind of puzzle. A task defines the abstract members; the others have defaults."""

    settings: ClassVar[type[DataConfig]] = DataConfig  # a derived dataclass with the keys of data that only this task has
    variants_vote: ClassVar[bool] = False  # whether the variants of a puzzle vote on its answer (`PairsTask`)

    @classmethod
    @abstractmethod
    def make(cls, data: Any) -> Self:
        """The task in the size of its settings."""

    @classmethod  # noqa: B027 - a task may have nothing to check
    def check(cls, data: Any) -> None:
        """Raise ConfigError where settings, each within its range, do not fit each other."""

    # ------------------------------------------------------------------------------------------------------------ what it is

    @property
    def keys(self) -> tuple[str, ...]:
        """The task's own keys of the data settings that decide which puzzles they are: all but places of files."""
        own = keys_of(self.settings).keys() - keys_of(DataConfig, known=False).keys()
        return tuple(key for key in keys_of(self.settings) if key in own and role(f"data.{key}") != PLACE)

    @property
    @abstractmethod
    def title(self) -> str:
        """The kind of puzzle in words, with its size: "9x9 grid of numbers"."""

    @property
    @abstractmethod
    def facts(self) -> TaskFacts:
        """Sizes and special tokens."""

    @property
    @abstractmethod
    def view(self) -> GridView:
        """How a grid is shown."""

    @property
    def symmetry(self) -> Symmetry | None:
        """The symmetries; None where they are not known."""
        return None

    # ---------------------------------------------------------------------------------------------------------- where from

    @property
    def hub(self) -> Hub | None:
        """The place from which csv files are downloaded; None = no such place."""
        return None

    @property
    def has_classes(self) -> bool:
        """Whether symmetric copies never meet across generated sets; False where there are too few puzzles for that."""
        return True

    def generate(self, count: int, seed: int) -> Split:
        """Make `count` puzzles, no two alike; a larger count begins with the same puzzles. Raises DataError where it cannot."""
        raise DataError(f"data.source=generated: {self.title} cannot be generated: set data.source=csv")

    def generate_splits(self, counts: Mapping[str, int], seed: int) -> dict[str, Split]:
        """Make so many puzzles of each split; `split_of` says to which split a puzzle belongs."""
        most = candidates_for(counts)
        while True:
            most += most // 16 + 64  # the splits have their shares only on average
            questions, answers = self.generate(most, seed + SPLIT_SEEDS)
            owners = split_of(self.classes(questions, answers))
            rows = {split: np.flatnonzero(owners == split)[:count] for split, count in counts.items()}
            if all(len(rows[split]) == count for split, count in counts.items()):
                return {split: (questions[chosen], answers[chosen]) for split, chosen in rows.items()}

    def classes(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """A word for each generated puzzle [N]: different words are different puzzles, and no copies where `has_classes` is set."""
        if self.symmetry is not None and self.has_classes:
            return self.symmetry.signature(questions, answers)
        cells = hash64(np.arange(questions.shape[1]), questions.astype(np.uint64))
        words: NDArray[np.uint64] = cells.sum(axis=1, dtype=np.uint64)
        return words

    @property
    def token_of_byte(self) -> NDArray[np.uint8]:
        """The token of every byte of csv text [256]; `facts.pad` where the byte is not a cell."""
        table = np.full(256, self.facts.pad, np.uint8)
        for token, symbol in enumerate(self.view.symbols):
            if token != self.facts.pad:
                table[ord(symbol)] = token
        return table

    def parse(self, text: str) -> NDArray[np.uint8]:
        """Tokens [L] of a question as a person writes it: all cells in one line, or one line for each row.

        Spaces at the end of a row, which an editor may cut, are put back as open cells. Raises DataError with line and column.
        """
        view, lines, first = self.view, text.splitlines(), 0
        inner = [i for i, line in enumerate(lines) if line.strip()]
        if inner and (len(inner) == 1 != len(lines) != view.rows or inner[-1] - inner[0] + 1 == view.rows):
            first = inner[0]  # else blank lines are rows of open cells
            lines = lines[first : inner[-1] + 1]
        grid = len(lines) > 1 and view.rows > 1
        if grid:
            wrong = next((i for i, line in enumerate(lines) if len(line) > view.columns), None)
            if len(lines) != view.rows or wrong is not None:
                found = f"{len(lines)} lines" if wrong is None else f"line {first + wrong + 1} has {len(lines[wrong])} characters"
                raise DataError(f"{found}, but {self.title} has {view.rows} lines of {view.columns}")
            lines = [line.ljust(view.columns) for line in lines]
        text = "".join(lines)
        tokens = self.token_of_byte[[ord(char) if ord(char) < 256 else 0 for char in text]].astype(np.uint8)
        for place in np.flatnonzero(tokens == self.facts.pad)[:1].tolist():
            line, column = divmod(place, view.columns if grid else len(text))
            cells = " ".join(repr(symbol) for token, symbol in enumerate(view.symbols) if token != self.facts.pad)
            raise DataError(f"line {first + line + 1} column {column + 1}: {text[place]!r} is not one of the cells {cells}")
        if len(tokens) != self.facts.seq_len:
            raise DataError(f"{len(tokens)} cells, but {self.title} has {self.facts.seq_len}")
        return tokens

    def check_rows(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> Flags:
        """Which rows [N] are sound: their tokens are cells, and the answer has no `violations`."""
        cells = [((rows != self.facts.pad) & (rows < self.facts.vocab_size)).all(axis=1) for rows in (questions, answers)]
        solved = [not self.violations(*row) for row in zip(questions, answers, strict=True)]
        sound: Flags = cells[0] & cells[1] & np.array(solved, bool)
        return sound

    def solved(self, questions: NDArray[np.uint8], *, quick: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.integer]] | None:
        """Answers [N, L] to questions [N, L], and how many each question has: 0, 1, 2 for several, or -1 after too long a search.

        `quick`: search for less long. None where the task does not find answers.
        """
        return None

    def remarks(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> list[str]:
        """Remarks on a set of puzzles [N, L], one line each."""
        return []

    # --------------------------------------------------------------------------------------------------- how answers are judged

    @abstractmethod
    def violations(self, question: Tokens, answer: Tokens) -> list[str]:
        """What is wrong with an answer to a question, in words; empty for a solution."""

    def verdict(self, question: Tokens, answer: Tokens) -> str:
        """The judgement on an answer in one line."""
        problems = self.violations(question, answer)
        return "valid solution" if not problems else f"NOT a solution: {'; '.join(problems)}"

    def contradictions(self, question: Tokens) -> list[str]:
        """Why a question has no solution, in words; empty where that is not visible at once."""
        return []

    @abstractmethod
    def given(self, question: Tokens) -> Flags:
        """The cells [L] that the question gives."""

    def blank(self, answer: Tokens) -> Flags:
        """The cells [L] of an answer that are left open."""
        blank: Flags = answer <= self.facts.pad  # labels that do not count are negative
        return blank

    def conflicts(self, answer: Tokens) -> Flags:
        """The cells [L] of an answer that together break a rule."""
        return np.zeros(answer.shape, bool)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The task's own scores of answers, most important first, besides equality with the known answer ("exact")."""
        return ()

    def scores(self, questions: NDArray[np.integer], answers: NDArray[np.integer], predictions: NDArray[np.integer]) -> Scores:
        """For each of `score_names`, which predictions [N] have it. `answers` are known solutions; all are tokens [N, L]."""
        return {}

    @property
    def difficulty_words(self) -> str | None:
        """The meaning and the unit of `difficulty`, in words; None where the task has no such measure."""
        return None

    def difficulty(self, questions: NDArray[np.integer], answers: NDArray[np.integer]) -> NDArray[np.integer]:
        """How hard each puzzle [N] is, for a task that has `difficulty_words`."""
        raise NotImplementedError


def task_of(data: DataConfig) -> Task:
    """The task of the settings, in its size. Raises ConfigError for an unknown name."""
    return _class(data).make(data)


def _class(data: DataConfig) -> type[Task]:
    task_settings(data.task)  # raises ConfigError for an unknown name
    if ":" in data.task:
        outside: type[Task] = imported_task(data.task)
        return outside
    module = importlib.import_module(f"trm.tasks.{data.task}.task")
    return next(
        each
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == module.__name__ and issubclass(each, Task)
    )


@register_check
def check_task(cfg: Config) -> None:
    """Raise ConfigError for an unknown task, a size that it does not have, or a network that is too narrow for its puzzles."""
    _class(cfg.data).check(cfg.data)
    task = task_of(cfg.data)
    check_widths(cfg, task.facts.seq_len)
    way = cfg.inference
    several = way.candidates > 1 or way.is_random or way.selection == "halt_first"
    if task.variants_vote and (several or way.early_exit):
        key = "inference.early_exit" if way.early_exit else f"inference={way.name}"
        raise ConfigError(
            f"{key}: the variants of an {task.title} vote (evaluate.max_variants), each with its answer after all supervision "
            "steps: leave it out; inference.supervision_steps says how many"
        )
    names = (EXACT, *task.score_names)
    if cfg.evaluate.best_by not in names:
        raise ConfigError(f"evaluate.best_by={cfg.evaluate.best_by} is not a score of {task.title}: choose {', '.join(names)}")
    copies, symmetry = way.copies, task.symmetry
    if copies > 1 and symmetry is None:
        raise ConfigError(
            f"inference.copies={copies}: the symmetries of {task.title} are not known, so it has no copies that could answer: set "
            "inference.copies=1"
        )
    most = getattr(symmetry, "order", None)
    if symmetry is not None and most is not None and copies > most:
        raise ConfigError(
            f"inference.copies={copies}: a {task.title} has {most} symmetric copies ({symmetry.words}), and a copy may not vote "
            f"twice: set inference.copies={most}"
        )
