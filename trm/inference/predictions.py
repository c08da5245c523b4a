"""Folds over the predictions of an evaluation: metrics after each supervision step, and candidates that end at different steps.

Shape legend: S supervision steps, R rows, N puzzles, K candidates of each, C cells.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.config import IGNORE_LABEL, InferenceConfig
from trm.core.metrics import Predictions
from trm.data.loader import Batch
from trm.inference.selection import over, select

Judge = Callable[[NDArray[np.integer], Batch], Mapping[str, NDArray[np.bool_]]]  # of answers [N, C] to these puzzles


class Metrics:
    """Means over the puzzles of an evaluation, after each of S supervision steps.

    Of several candidates they are the selected one's, and beside them oracle_exact_accuracy, the share of puzzles that any
    candidate solves (pass@K), and single_exact_accuracy, the mean over the candidates, each by itself.
    """

    def __init__(self, way: InferenceConfig, num_steps: int, judge: Judge | None) -> None:
        """`judge` finds the task's own scores."""
        self._way, self._judge = way, judge
        self._sums: list[dict[str, float]] = [{"count": 0} for _ in range(num_steps)]
        self.row_steps = [0] * num_steps  # supervision steps that all candidates together have done after each of the S steps

    def add(self, rows: Predictions, puzzles: Batch) -> None:
        """Predictions [S, N * K, ...] of whole puzzles; those without labels count nowhere, but for what they cost."""
        steps, counted = rows.values["steps"], (puzzles["labels"] != IGNORE_LABEL).any(axis=1)
        every = np.arange(len(counted))
        for step, sums in enumerate(self._sums):
            self.row_steps[step] += int(steps[step].sum())
            winner, _, then = select(rows, self._way, step)
            found = {name: values[every, winner] for name, values in then.values.items()}
            if self._way.candidates > 1:
                exact = then.values["exact_accuracy"]
                found |= {"oracle_exact_accuracy": exact.any(axis=1), "single_exact_accuracy": exact.mean(axis=1)}
            if self._judge is not None:
                found |= self._judge(then.answers[every, winner], puzzles)
            sums["count"] += int(counted.sum())
            for name, values in found.items():
                sums[name] = sums.get(name, 0.0) + float(np.asarray(values, np.float64)[counted].sum())

    def means(self) -> list[dict[str, float]]:
        """After each supervision step; `count` are the puzzles."""
        return [
            {name: value if name == "count" else value / max(sums["count"], 1) for name, value in sums.items()}
            for sums in self._sums
        ]


def whole_puzzles(stream: Iterable[Predictions], candidates: int) -> Iterator[Predictions]:
    """Rows [S, R, ...] in order, given on as those [S, N * K, ...] of the puzzles of K candidates that are complete."""
    left: Predictions | None = None  # of a puzzle that is not complete yet
    for new in stream:
        rows = new if left is None else over(lambda *both: np.concatenate(both, axis=1), left, new)
        there = rows.q_halt.shape[1]
        whole = there // candidates * candidates
        left = over(itemgetter(np.s_[:, whole:]), rows) if whole < there else None
        if whole:
            yield over(itemgetter(np.s_[:, :whole]), rows)


class EndedRows:
    """Candidates whose rows end at different supervision steps, as predictions of all S steps.

    A candidate keeps its last prediction from the step on at which it halted. Those that are complete, with all before them, are
    given on in order, so that memory is for the candidates under way alone.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps, self._first = num_steps, 0  # the first candidate that is not given on yet
        self._rows: Predictions | None = None  # [S, room, ...]
        self._ended = np.zeros(0, np.bool_)  # [room]

    def add(self, rows: Predictions) -> None:
        """Predictions [R, ...] of one supervision step of each of R candidates that are under way."""
        if not len(rows.candidate):
            return
        at, halted, step = rows.candidate - self._first, rows.halted > 0, rows.values["steps"] - 1
        rows = rows._replace(candidate=None, halted=None)
        if (missing := int(at.max()) + 1 - len(self._ended)) > 0:
            missing = max(missing, len(self._ended))  # so that room is seldom made
            empty = over(lambda values: np.zeros((self._num_steps, missing, *values.shape[1:]), values.dtype), rows)
            self._rows = empty if self._rows is None else over(lambda *both: np.concatenate(both, axis=1), self._rows, empty)
            self._ended = np.concatenate([self._ended, np.zeros(missing, np.bool_)])
        later = halted & (np.arange(self._num_steps)[:, None] >= step)  # [S, R]
        later[step, np.arange(len(step))] = True
        s, r = np.nonzero(later)

        def put(room: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
            room[s, at[r]] = values[r]
            return room

        assert self._rows is not None
        over(put, self._rows, rows)
        self._ended[at[halted]] = True

    def take(self) -> Predictions | None:
        """The predictions [S, R, ...] of the candidates, in order, that have become complete; None where there are none."""
        ready = len(self._ended) if self._ended.all() else int(self._ended.argmin())
        if not ready or self._rows is None:
            return None
        taken = over(lambda values: values[:, :ready], self._rows)
        self._rows = over(lambda values: values[:, ready:], self._rows)
        self._ended, self._first = self._ended[ready:], self._first + ready
        return taken
