"""Candidates on the host: rows of batches become the K candidates of whole puzzles, one of which answers.

Shape legend: S supervision steps, R rows, N puzzles, K candidates of each, C cells.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch.utils._pytree as pytree
from numpy.typing import NDArray

from trm.config import InferenceConfig
from trm.inference.selection import SELECTIONS, Said, Winners, grid_words, residuals

Judge = Callable[[NDArray[np.integer], int], Mapping[str, NDArray[np.bool_]]]  # of answers [N, C] to the puzzles from a place on


class Rows(NamedTuple):
    """What rows said after each supervision step, in the puzzles' own cells and tokens."""

    answers: NDArray[np.integer]  # [S, R, C]
    values: dict[str, NDArray[Any]]  # [S, R] each, by METRICS
    halts: NDArray[np.bool_]  # [S, R]
    q_halt: NDArray[np.floating]  # [S, R]
    change: NDArray[np.floating] | None  # [S, R]


def each(function: Callable[..., NDArray[Any]], *rows: Rows) -> Rows:
    """The function of every array of rows that have it."""
    result: Rows = pytree.tree_map(lambda *arrays: None if arrays[0] is None else function(*arrays), *rows)
    return result


class Chosen(NamedTuple):
    """What was chosen of N puzzles after a supervision step."""

    winner: Winners  # [N]
    answers: NDArray[np.integer]  # [N, C]
    step: NDArray[np.intp]  # [N] the step (from 0) whose answers are taken
    steps: NDArray[np.integer]  # [N] supervision steps that the winner has done then
    votes: NDArray[np.intp]  # [N] candidates that gave the same answer, this one included


def choose(rows: Rows, way: InferenceConfig, count: int, step: int, first: int | None = None) -> Chosen:
    """Who of the first `first` (None = all) of `count` candidates of each puzzle answers after a step (from 0)."""
    shape = (-1, count)
    steps, puzzles = len(rows.q_halt), rows.q_halt.shape[1] // count
    at, every = np.full(puzzles, step), np.arange(puzzles)

    def of(values: NDArray[Any]) -> NDArray[Any]:  # [S, R, ...] -> [N, first]
        return values.reshape(steps, *shape, *values.shape[2:])[at, every][:, :first]

    if way.selection == "halt_first":  # the race ends where the first one halts
        halted = rows.halts.reshape(steps, *shape)[: step + 1, :, :first].any(axis=2)
        at = np.where(halted.any(axis=0), halted.argmax(axis=0), step)
    left = None
    if way.selection == "residual":
        assert rows.change is not None
        left = residuals(rows.change, step, way.window).reshape(shape)[:, :first]
    answers = of(rows.answers)
    words = grid_words(answers)
    said = Said(words, of(rows.q_halt), of(rows.halts), left)
    winner = SELECTIONS[way.selection](said)
    steps_done = of(rows.values["steps"]).astype(np.intp)[every, winner]
    return Chosen(winner, answers[every, winner], at, steps_done, (words == words[every, winner][:, None]).sum(axis=1))


@dataclass
class Pool:
    """The results of a pass over candidates, as its rows come in."""

    way: InferenceConfig
    labelled: NDArray[np.bool_]  # [N] puzzles that count
    judge: Judge | None  # the task's own scores
    keep: bool = False  # what was chosen in the end, in `chosen`
    see: Callable[[Rows], None] | None = None  # is shown the rows of whole puzzles, in order
    by_step: list[dict[str, float]] = field(default_factory=list)  # sums over the puzzles that count
    chosen: list[Chosen] = field(default_factory=list)
    done: int = 0  # puzzles
    _left: Rows | None = None  # of a puzzle that is not whole yet

    def add(self, rows: Rows) -> None:
        """Rows that come after those before."""
        if self._left is not None:
            rows = each(lambda *both: np.concatenate(both, axis=1), self._left, rows)
        count = self.way.candidates
        whole = rows.q_halt.shape[1] // count * count
        self._left = each(lambda values: values[:, whole:], rows)
        if whole:
            self._take(each(lambda values: values[:, :whole], rows))

    def _take(self, rows: Rows) -> None:
        if self.see is not None:
            self.see(rows)
        steps, count = len(rows.q_halt), self.way.candidates
        puzzles = rows.q_halt.shape[1] // count
        counted, every = self.labelled[self.done : self.done + puzzles], np.arange(puzzles)
        self.by_step = self.by_step or [{} for _ in range(steps)]
        for step, sums in enumerate(self.by_step):
            chosen = choose(rows, self.way, count, step)

            def of_winner(values: NDArray[Any], chosen: Chosen = chosen) -> NDArray[Any]:
                return values.reshape(steps, puzzles, count)[chosen.step, every, chosen.winner]

            exact = rows.values["exact_accuracy"].reshape(steps, puzzles, count)[chosen.step, every]
            found = {
                "count": np.ones(puzzles),
                **{name: of_winner(values) for name, values in rows.values.items()},
                "oracle_exact_accuracy": exact.any(axis=1),
                "single_exact_accuracy": exact.mean(axis=1),
                **(self.judge(chosen.answers, self.done) if self.judge else {}),
            }
            for name, values in found.items():
                sums[name] = sums.get(name, 0.0) + float(np.asarray(values, np.float64)[counted].sum())
        if self.keep:
            self.chosen.append(chosen)
        self.done += puzzles

    @property
    def answered(self) -> Chosen | None:
        """What was chosen of all puzzles in the end, where it is kept."""
        fields: list[Any] = [np.concatenate(values) for values in zip(*self.chosen, strict=True)]
        return Chosen(*fields) if fields else None

    def means(self) -> list[dict[str, float]]:
        """Means over the puzzles that count, after each supervision step."""
        return [
            {name: int(value) if name == "count" else value / max(sums["count"], 1) for name, value in sums.items()}
            for sums in self.by_step
        ]
