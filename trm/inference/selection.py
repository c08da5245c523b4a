"""Which of a puzzle's candidates answers: a function of their predictions, without a label, for each of `inference.selection`.

Shape legend: N puzzles, K candidates of each, C cells, S supervision steps.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch.utils._pytree as pytree
from numpy.typing import NDArray

from trm.config import InferenceConfig
from trm.core.metrics import Predictions
from trm.ground.hashing import hash64

Winners = NDArray[np.intp]  # [N], a candidate of each puzzle


def select(
    rows: Predictions, way: InferenceConfig, step: int, first: int | None = None
) -> tuple[Winners, NDArray[np.intp], Predictions]:
    """Which candidate answers each of N puzzles after a supervision step (from 0), the last one that counts.

    `rows` are the predictions [S, N * K, ...] of all steps; the `first` so many candidates take part (None = all). Returns the
    winners [N], the steps [N] (from 0) by whose predictions they are selected, and the candidates' predictions [N, K, ...] of then.
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
    """The function of every field that predictions have."""
    result: Predictions = pytree.tree_map(lambda *fields: None if fields[0] is None else function(*fields), *predictions)
    return result


def best(values: NDArray[np.floating], among: NDArray[np.bool_] | None = None) -> Winners:
    """The largest value [N, K] of each puzzle, the first of equals, among the candidates that are named."""
    winner: Winners = (values if among is None else np.where(among, values, -np.inf)).argmax(axis=1)
    return winner


def votes(candidates: Predictions) -> NDArray[np.intp]:
    """How many candidates gave the same grid as each one [N, K], itself included."""
    # a word for each grid, equal where grids are; of different ones with a probability of about 2^-60
    weights = hash64(np.arange(candidates.answers.shape[-1])) | np.uint64(1)
    grids = (candidates.answers.astype(np.uint64) * weights).sum(axis=-1, dtype=np.uint64)
    same: NDArray[np.intp] = (grids[:, :, None] == grids[:, None, :]).sum(axis=-1)
    return same


def _most(candidates: Predictions) -> NDArray[np.bool_]:
    counts = votes(candidates)
    most: NDArray[np.bool_] = counts == counts.max(axis=1, keepdims=True)
    return most


def _halted(candidates: Predictions) -> NDArray[np.bool_]:
    halts = candidates.halting > 0
    halted: NDArray[np.bool_] = halts | ~halts.any(axis=1, keepdims=True)
    return halted


# Who answers among several candidates; "last" is for the only one
SELECTIONS: dict[str, Callable[[Predictions], Winners]] = {
    # The grid that most candidates gave, and among equals the one with the highest halting logit. The vote is for whole grids, as
    # in the released code: candidates that solve a puzzle give the same grid, while those that fail do so in different ways; a vote
    # cell by cell could mix grids into one that none gave.
    "vote": lambda found: best(found.q_halt, _most(found)),
    # The same, and among equals the first: the model's own estimates take no part (PTRM)
    "mode": lambda found: _most(found).argmax(axis=1),
    # The largest halting logit, the model's own estimate that the grid is right (PTRM)
    "best_q": lambda found: best(found.q_halt),
    # The least change of the logits in the last supervision steps (EqR), which `change` has here
    "residual": lambda found: found.change.argmin(axis=1),
    # The first that halted, by predictions of the step at which the race ended. The surest of several, or where none halted
    "halt_first": lambda found: best(found.q_halt, _halted(found)),
    # Of what resampling left
    "resample": lambda found: best(found.q_halt),
}


def residuals(change: NDArray[np.floating], step: int, window: int) -> NDArray[np.floating]:
    """Mean change of the logits over the last `window` of the steps up to `step` (from 0), from those of all steps [S, ...]."""
    first = max(1, step - window + 1)  # the first step has nothing that it could have changed
    mean: NDArray[np.floating] = change[first : step + 1].mean(axis=0) if step else np.zeros_like(change[0])
    return mean
