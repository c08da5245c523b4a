"""What a puzzle is: the members through which the rest of the project knows a task, and nothing else of it.

A task is a class derived from `Task`, a dataclass of its settings, and one YAML in conf/data. `task: NAME` there is a folder NAME
beside this file, with the class in task.py and its settings in settings.py; `task: MODULE:CLASS` is a class outside the package.
Shapes: N rows, L = rows * columns cells, V tokens, P base puzzles.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
# Of sixteen parts of all generated puzzles, how many are each split's own: a puzzle and its copies are of one split for ever,
# whatever the seed and the counts, so that generated sets only grow at their ends and never meet.
SIXTEENTHS = {"train": 8, "test": 5, "selection": 3}
# Added to data.seed where splits are generated. Sets of format version 1 were cut from the puzzles of data.seed itself.
SPLIT_SEEDS = 2**31


def split_of(classes: NDArray[np.uint64]) -> NDArray[np.str_]:
    """The split [N] that owns each class of puzzles, which is a word that copies of a puzzle share."""
    owners = np.repeat(list(SIXTEENTHS), list(SIXTEENTHS.values()))
    found: NDArray[np.str_] = owners[hash64(Stream.SPLIT, classes) >> np.uint64(60)]
    return found


def first_seen(keys: Iterable[Hashable], seen: set[Hashable]) -> list[int]:
    """The places of the keys that are not among those `seen`, of equal ones the first; adds them."""
    new = []
    for place, key in enumerate(keys):
        if key not in seen:
            seen.add(key)
            new.append(place)
    return new


def candidates_for(counts: Mapping[str, int]) -> int:
    """How many puzzles hold so many of each split, on average."""
    return max(-(-16 * count // SIXTEENTHS[split]) for split, count in counts.items())


@dataclass(frozen=True)
class TaskFacts:
    """The sizes that the network and the dataset folder are made for."""

    seq_len: int  # L
    vocab_size: int  # V, padding included
    num_identifiers: int = 1
    pad: int = 0  # token of cells that do not exist
    ignored_label: int = 0  # label of cells that do not count
    # about, where a puzzle has several rows: training rows of a puzzle, and test rows of all test puzzles in one variant
    rows_of_puzzle: float = 1.0
    test_rows: int | None = None
    test_puzzles: int | None = None  # that these are of

    @property
    def sizes(self) -> dict[str, int]:
        """What `trm.core.architecture.architecture` takes."""
        return {"seq_len": self.seq_len, "vocab_size": self.vocab_size, "num_puzzle_identifiers": self.num_identifiers}


class Hub(NamedTuple):
    """Where train.csv and test.csv of a task are on the Hugging Face hub."""

    repository: str
    revision: str  # a full commit; a branch only where `sha256` says what its files hold
    test_puzzles: int  # in test.csv
    instead: str  # the option of data= that needs no download
    sha256: Mapping[str, str] = {}  # of the files, by name


@dataclass(frozen=True)
class GridView:
    """How a grid of tokens is shown: in text, in pictures and on pages."""

    rows: int
    columns: int
    symbols: tuple[str, ...]  # of every token [V], one character each
    heavy_rows: tuple[int, ...] = ()  # rows and columns before which a heavy line is drawn, from 1
    heavy_columns: tuple[int, ...] = ()
    colours: Mapping[int, str] | None = None  # of a cell's ground, by token, #rrggbb; None = plain
    line: tuple[int, ...] = ()  # tokens that a line joins from cell to neighbouring cell: a path with its ends
    gap: str = " "  # between the cells of a row in text; "" where rows are read as they are written

    @cached_property
    def _symbols(self) -> NDArray[np.str_]:
        return np.array(self.symbols)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """First column and the one after the last, of what lies between heavy lines."""
        return list(zip((0, *self.heavy_columns), (*self.heavy_columns, self.columns), strict=True))

    def text(self, tokens: Tokens) -> str:
        """One line of L characters; of cells that are not known (labels below 0) the first token's, which pads."""
        return "".join(self._symbols[np.maximum(tokens, 0)])

    def grid(self, tokens: Tokens) -> str:
        """Several lines of text, with `|` and `-` where heavy lines are."""
        return "\n".join(self.lines(self.text(tokens), 1, self.gap, " | "))

    def lines(self, cells: Sequence[str], width: int, gap: str = "", bar: str = "|") -> list[str]:
        """Rows of cells [L] that are `width` characters wide, with a `bar` or a line of `-` where heavy lines are."""
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
    """Symmetries drawn for N rows: cell c of a row shows cell `source[c]` of its base puzzle, in tokens as `relabel` has them."""

    source: NDArray[np.int64]  # [N, L]
    relabel: NDArray[np.uint8]  # [N, V], a permutation of the tokens


class Symmetry(Protocol):
    """The symmetries of a task: variant k of puzzle p is a pure function of (seed, p, k), and variant 0 is the puzzle itself.

    Those of which a puzzle has few, all of them variants 0 to `order` - 1, say so.
    """

    @property
    def words(self) -> str:
        """What they are, in words."""

    def draw(self, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]) -> Drawn:
        """The symmetries of the given variants [N] of the base puzzles [N]."""

    def signature(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """One word a puzzle [N] that no symmetry changes: puzzles with different words are no copies of one another."""


class Task(ABC):
    """One kind of puzzle. What is abstract a task has to say; the rest has a default that it may keep."""

    settings: ClassVar[type[DataConfig]] = DataConfig  # a dataclass derived from it, with the keys of data that this task alone has
    variants_vote: ClassVar[bool] = False  # whether a puzzle is answered by the votes of its variants (`PairsTask`)

    @classmethod
    @abstractmethod
    def make(cls, data: Any) -> Self:
        """The task in the size that its settings name."""

    @classmethod  # noqa: B027 - a task may have nothing to check
    def check(cls, data: Any) -> None:
        """Raise ConfigError where its settings, each within its range, do not go together."""

    # ------------------------------------------------------------------------------------------------------------ what it is

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the data settings that say which puzzles of this task they are: its own ones, but for places of files."""
        own = keys_of(self.settings).keys() - keys_of(DataConfig, known=False).keys()
        return tuple(key for key in keys_of(self.settings) if key in own and role(f"data.{key}") != PLACE)

    @property
    @abstractmethod
    def title(self) -> str:
        """The kind in words, with its size: "9x9 grid of numbers"."""

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
        """The symmetries, None where a puzzle has none."""
        return None

    # ---------------------------------------------------------------------------------------------------------- where from

    @property
    def hub(self) -> Hub | None:
        """Where its csv files can be downloaded; None = nowhere."""
        return None

    @property
    def has_classes(self) -> bool:
        """Whether generated sets are kept apart under the symmetries; False where there are too few puzzles for that."""
        return True

    def generate(self, count: int, seed: int) -> Split:
        """So many puzzles made here, no two alike; a larger count begins with the same ones.

        Raises DataError where the task cannot make them.
        """
        raise DataError(f"data.source=generated: {self.title} is not made here: set data.source=csv")

    def generate_splits(self, counts: Mapping[str, int], seed: int) -> dict[str, Split]:
        """So many puzzles of each split made here, each split from the puzzles that are its own (`split_of`)."""
        most = candidates_for(counts)
        while True:
            most += most // 16 + 64  # since the splits have their shares on average only
            questions, answers = self.generate(most, seed + SPLIT_SEEDS)
            owners = split_of(self.classes(questions, answers))
            rows = {split: np.flatnonzero(owners == split)[:count] for split, count in counts.items()}
            if all(len(rows[split]) == count for split, count in counts.items()):
                return {split: (questions[chosen], answers[chosen]) for split, chosen in rows.items()}

    def classes(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """A word for each generated puzzle [N]: what has another word is another puzzle, and no copy where `has_classes` is set."""
        if self.symmetry is not None and self.has_classes:
            return self.symmetry.signature(questions, answers)
        cells = hash64(np.arange(questions.shape[1]), questions.astype(np.uint64))
        words: NDArray[np.uint64] = cells.sum(axis=1, dtype=np.uint64)
        return words

    def generated_before(self, rows: Split, first: int, stop: int, seed: int) -> Flags:
        """Which puzzles [P] are among those that `generate` makes from number `first` to `stop`, or copies of such (`classes`)."""
        made = [part[first:] for part in self.generate(stop, seed)]
        found: Flags = np.isin(self.classes(*rows), self.classes(*made))
        return found

    @property
    def token_of_byte(self) -> NDArray[np.uint8]:
        """Token of every byte of csv text [256]; `facts.pad` where the byte is no cell."""
        table = np.full(256, self.facts.pad, np.uint8)
        for token, symbol in enumerate(self.view.symbols):
            if token != self.facts.pad:
                table[ord(symbol)] = token
        return table

    def parse(self, text: str) -> NDArray[np.uint8]:
        """Tokens [L] of a question as a person writes it: all cells in a line, or a line for each row.

        What an editor may cut, open cells at the end of a row that are written as spaces, is put back. Raises DataError naming line
        and column.
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
            raise DataError(f"line {first + line + 1} column {column + 1}: {text[place]!r} is none of the cells {cells}")
        if len(tokens) != self.facts.seq_len:
            raise DataError(f"{len(tokens)} cells, but {self.title} has {self.facts.seq_len}")
        return tokens

    def check_rows(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> Flags:
        """Which rows [N] are sound: tokens are cells, and the answer solves the question: it has no `violations`."""
        cells = [((rows != self.facts.pad) & (rows < self.facts.vocab_size)).all(axis=1) for rows in (questions, answers)]
        solved = [not self.violations(*row) for row in zip(questions, answers, strict=True)]
        sound: Flags = cells[0] & cells[1] & np.array(solved, bool)
        return sound

    def solved(self, questions: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """Answers [N, L] to questions [N, L], and how many each has: 0, 1, 2 for several, or -1 where that takes too long to tell.

        Raises DataError where the task does not find answers.
        """
        raise DataError(f"a puzzle has no answer, and those of {self.title} are not found here: give a column of answers")

    def several_solutions(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> Flags:
        """Which sound rows [N] are found to have a solution beside their answer; a limited search, so False proves nothing."""
        return np.zeros(len(questions), bool)

    def remarks(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> list[str]:
        """What there is to say of a set of puzzles [N, L], a line each, beside how many they are."""
        return []

    # --------------------------------------------------------------------------------------------------- how answers are judged

    @abstractmethod
    def violations(self, question: Tokens, answer: Tokens) -> list[str]:
        """What is wrong with an answer to a question, in words; empty where it solves it."""

    def verdict(self, question: Tokens, answer: Tokens) -> str:
        """The same in one line."""
        problems = self.violations(question, answer)
        return "valid solution" if not problems else f"NOT a solution: {'; '.join(problems)}"

    def contradictions(self, question: Tokens) -> list[str]:
        """Why nothing solves a question, in words; empty where that is not seen at once."""
        return []

    @abstractmethod
    def given(self, question: Tokens) -> Flags:
        """The cells [L] that the question fixes."""

    def blank(self, answer: Tokens) -> Flags:
        """The cells [L] of an answer that answer nothing."""
        blank: Flags = answer <= self.facts.pad  # labels that do not count are negative
        return blank

    def conflicts(self, answer: Tokens) -> Flags:
        """The cells [L] of an answer that break a rule with one another."""
        return np.zeros(answer.shape, bool)

    @property
    def score_names(self) -> tuple[str, ...]:
        """What answers are judged by beside being equal to the known one in every cell ("exact"), most telling first."""
        return ()

    def scores(self, questions: NDArray[np.integer], answers: NDArray[np.integer], predictions: NDArray[np.integer]) -> Scores:
        """For each of `score_names` which predictions [N] have it; `answers` are known solutions. All are tokens [N, L]."""
        return {}

    @property
    def difficulty_words(self) -> str | None:
        """What `difficulty` measures and its unit, in words; None where there is no such measure."""
        return None

    def difficulty(self, questions: NDArray[np.integer], answers: NDArray[np.integer]) -> NDArray[np.integer]:
        """A number that says how hard each puzzle [N] is, of a task that has `difficulty_words`."""
        raise NotImplementedError


def task_of(data: DataConfig) -> Task:
    """The task that the settings name, in its size. Raises ConfigError where there is none of that name."""
    return _class(data).make(data)


def _class(data: DataConfig) -> type[Task]:
    task_settings(data.task)  # which refuses a name that there is not
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
    """Raise ConfigError for an unknown task, a size that it does not have, or a network that its puzzles leave no width."""
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
        raise ConfigError(f"evaluate.best_by={cfg.evaluate.best_by} is no score of {task.title}: choose one of {', '.join(names)}")
    copies, symmetry = way.copies, task.symmetry
    if copies > 1 and symmetry is None:
        raise ConfigError(
            f"inference.copies={copies}: no symmetries of a {task.title} are known, so it has no copies that could answer: set "
            "inference.copies=1"
        )
    most = getattr(symmetry, "order", None)
    if symmetry is not None and most is not None and copies > most:
        raise ConfigError(
            f"inference.copies={copies}: a {task.title} has {most} symmetric copies ({symmetry.words}), and a copy may not vote "
            f"twice: set inference.copies={most}"
        )
