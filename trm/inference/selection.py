"""Which of a puzzle's candidates answers, and the metrics of the answers.

Each `inference.selection` is a function of the candidates' predictions, which sees no label. Shape legend: N puzzles, K candidates
of each, C cells, S supervision steps, R rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import torch.utils._pytree as pytree
from numpy.typing import NDArray

from trm.config import IGNORE_LABEL, InferenceConfig
from trm.core.metrics import Predictions
from trm.data.loader import Batch
from trm.ground.hashing import hash64

Winners = NDArray[np.intp]  # [N], a candidate of each puzzle
Judge = Callable[[NDArray[np.integer], Batch], Mapping[str, NDArray[np.bool_]]]  # of answers [N, C] to these puzzles


def select(
    rows: Predictions, way: InferenceConfig, step: int, first: int | None = None
) -> tuple[Winners, NDArray[np.intp], Predictions]:
    """Select the candidate that answers each of N puzzles from the predictions up to a supervision step (from 0).

    `rows` are the predictions [S, N * K, ...] of all steps. Only the `first` candidates of each puzzle take part (None = all).
    Returns the winners [N], the steps [N] (from 0) whose predictions decided, and the predictions [N, K, ...] of these steps.
    """
    num_steps, num_puzzles = len(rows.q_halt), rows.q_halt.shape[1] // way.candidates
    at, every = np.full(num_puzzles, step), np.arange(num_puzzles)

    def candidates(values: Any) -> Any:  # [S, N * K, ...] -> [S, N, K, ...], of the first ones
        return values.reshape(num_steps, num_puzzles, way.candidates, *values.shape[2:])[:, :, :first]

    if way.selection == "halt_first":  # the race ends where the first one halts
        halted = (candidates(rows.halting) > 0)[: step + 1].any(axis=2)
        at = np.where(halted.any(axis=0), halted.argmax(axis=0), step)
    change = None if rows.change is None else residuals(candidates(rows.change), step, way.window)
    then = over(lambda values: candidates(values)[at, every], rows._replace(change=None))._replace(change=change)
    winners = np.zeros(num_puzzles, np.intp) if 1 in (way.candidates, first) else SELECTIONS[way.selection](then)
    return winners, at, then


def over(function: Callable[..., Any], *predictions: Predictions) -> Predictions:
    """Apply a function to every field that the predictions have."""
    result: Predictions = pytree.tree_map(lambda *fields: None if fields[0] is None else function(*fields), *predictions)
    return result


def best(values: NDArray[np.floating], among: NDArray[np.bool_] | None = None) -> Winners:
    """The candidate with the largest value [N, K], the first of equals; `among` says which candidates take part."""
    winner: Winners = (values if among is None else np.where(among, values, -np.inf)).argmax(axis=1)
    return winner


def votes(candidates: Predictions) -> NDArray[np.intp]:
    """The number of candidates that gave the same grid as each candidate [N, K], itself included."""
    # a hash of each grid: different grids have the same one with a probability of about 2^-60
    weights = hash64(np.arange(candidates.answers.shape[-1])) | np.uint64(1)
    grids = (candidates.answers.astype(np.uint64) * weights).sum(axis=-1, dtype=np.uint64)
    same: NDArray[np.intp] = (grids[:, :, None] == grids[:, None, :]).sum(axis=-1)
    return same


def _most(candidates: Predictions) -> NDArray[np.bool_]:
    counts = votes(candidates)
    most: NDArray[np.bool_] = counts == counts.max(axis=1, keepdims=True)
    return most


# Who answers among several candidates; "last" is for the only one
SELECTIONS: dict[str, Callable[[Predictions], Winners]] = {
    # The grid that most candidates gave; in a tie, the one with the highest halting logit. Candidates vote for whole grids, as in
    # the released code: those that solve a puzzle give the same grid, those that fail give different ones. A vote on each cell
    # could mix grids into one that no candidate gave.
    "vote": lambda found: best(found.q_halt, _most(found)),
    # The same; in a tie, the first candidate: the halting logits are not used (PTRM)
    "mode": lambda found: _most(found).argmax(axis=1),
    # The largest halting logit, the model's own estimate that the grid is right (PTRM)
    "best_q": lambda found: best(found.q_halt),
    # The least change of the logits in the last supervision steps (EqR); `select` put it into `change`
    "residual": lambda found: found.change.argmin(axis=1),
    # The first that halted; of several, or if none halted, the one with the highest halting logit when the race ended
    "halt_first": lambda found: best(found.q_halt, (halted := found.halting > 0) | ~halted.any(axis=1, keepdims=True)),
    # best_q among the candidates that resampling left
    "resample": lambda found: best(found.q_halt),
}


def residuals(change: NDArray[np.floating], step: int, window: int) -> NDArray[np.floating]:
    """The mean change of the logits over the last `window` steps up to `step` (from 0); `change` [S, ...] is that of each step."""
    first = max(1, step - window + 1)  # step 0 has no step before it
    mean: NDArray[np.floating] = change[first : step + 1].mean(axis=0) if step else np.zeros_like(change[0])
    return mean


class Metrics:
    """Means over the puzzles of an evaluation, after each of S supervision steps.

    If puzzles have several candidates, the metrics are those of the selected one. There are two more then: oracle_exact_accuracy,
    the share of puzzles that any candidate solves (pass@K), and single_exact_accuracy, the mean over all candidates.
    """

    def __init__(self, way: InferenceConfig, num_steps: int, judge: Judge | None) -> None:
        """`judge` gives the task's own scores."""
        self._way, self._judge = way, judge
        self._sums: list[dict[str, float]] = [{"count": 0} for _ in range(num_steps)]
        self.row_steps = [0] * num_steps  # supervision steps that all candidates have done, summed, after each of the S steps

    def add(self, rows: Predictions, puzzles: Batch) -> None:
        """Add predictions [S, N * K, ...] of whole puzzles. Puzzles without labels add only to the cost."""
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
        """The metrics after each supervision step; `count` is the number of puzzles."""
        return [
            {name: value if name == "count" else value / max(sums["count"], 1) for name, value in sums.items()}
            for sums in self._sums
        ]


def whole_puzzles(stream: Iterable[Predictions], candidates: int) -> Iterator[Predictions]:
    """Regroup rows [S, R, ...] into whole puzzles [S, N * K, ...] of K candidates, in order."""
    left: Predictions | None = None  # of a puzzle that is not complete yet
    for new in stream:
        rows = new if left is None else over(lambda *both: np.concatenate(both, axis=1), left, new)
        there = rows.q_halt.shape[1]
        whole = there // candidates * candidates
        left = over(itemgetter(np.s_[:, whole:]), rows) if whole < there else None
        if whole:
            yield over(itemgetter(np.s_[:, :whole]), rows)
