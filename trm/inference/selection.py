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
    """Which candidate answers each of N puzzles after a supervision step (from 0).

    Args:
        rows: predictions of all supervision steps [S, N * K, ...], of whole puzzles.
        way: says how many candidates K there are, and how one is selected.
        step: the last supervision step that counts.
        first: the number of candidates that take part (None = all).

    Returns:
        The winners [N], the steps [N] (from 0) whose predictions they are selected by, and the candidates' predictions [N, K, ...]
        of those steps.
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
    winners = SELECTIONS[way.selection](then) if way.candidates > 1 else np.zeros(num_puzzles, np.intp)
    return winners, at, then


def over(function: Callable[..., Any], *predictions: Predictions) -> Predictions:
    """The function of every field that predictions have."""
    result: Predictions = pytree.tree_map(lambda *fields: None if fields[0] is None else function(*fields), *predictions)
    return result


def last(candidates: Predictions) -> Winners:
    """The only candidate, as the paper's released code evaluates."""
    return np.zeros(len(candidates.q_halt), np.intp)


def vote(candidates: Predictions) -> Winners:
    """The grid that most candidates gave, and among equals the one with the highest halting logit.

    The vote is for whole grids. A puzzle is solved only in every cell. Candidates that solve it give the same grid, since its
    solution is unique, while candidates that fail do so in different ways; a vote cell by cell could mix grids into one that none
    gave, and many unsure candidates would outvote one that is right. (The released code votes for whole grids on ARC too.)
    """
    return best(candidates.q_halt, _most(candidates))


def mode(candidates: Predictions) -> Winners:
    """The grid that most candidates gave, and among equals the first: the model's own estimates take no part (PTRM's mode)."""
    first: Winners = _most(candidates).argmax(axis=1)
    return first


def best_q(candidates: Predictions) -> Winners:
    """The largest halting logit, the model's own estimate that the grid is right (PTRM)."""
    return best(candidates.q_halt)


def residual(candidates: Predictions) -> Winners:
    """The least change of the logits in the last supervision steps (EqR), which `change` has here."""
    least: Winners = candidates.change.argmin(axis=1)
    return least


def halt_first(candidates: Predictions) -> Winners:
    """The first that halted, by predictions of the step at which the race ended. The surest of several, or where none halted."""
    halts = candidates.halting > 0
    return best(candidates.q_halt, halts | ~halts.any(axis=1, keepdims=True))


SELECTIONS: dict[str, Callable[[Predictions], Winners]] = {
    "last": last,
    "vote": vote,
    "mode": mode,
    "best_q": best_q,
    "residual": residual,
    "halt_first": halt_first,
    "resample": best_q,  # of what resampling left
}


def best(values: NDArray[np.floating], among: NDArray[np.bool_] | None = None) -> Winners:
    """The largest value [N, K] of each puzzle, the first of equals, among the candidates that are named."""
    winner: Winners = (values if among is None else np.where(among, values, -np.inf)).argmax(axis=1)
    return winner


def votes(candidates: Predictions) -> NDArray[np.intp]:
    """How many candidates gave the same grid as each one [N, K], itself included."""
    grids = grid_words(candidates.answers)
    same: NDArray[np.intp] = (grids[:, :, None] == grids[:, None, :]).sum(axis=-1)
    return same


def _most(candidates: Predictions) -> NDArray[np.bool_]:
    """The candidates [N, K] whose grid most gave."""
    counts = votes(candidates)
    most: NDArray[np.bool_] = counts == counts.max(axis=1, keepdims=True)
    return most


def grid_words(answers: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A word for each answer [..., C], equal where answers are; of different ones with a probability of about 2^-60."""
    weights = hash64(np.arange(answers.shape[-1])) | np.uint64(1)
    words: NDArray[np.uint64] = (answers.astype(np.uint64) * weights).sum(axis=-1, dtype=np.uint64)
    return words


def residuals(change: NDArray[np.floating], step: int, window: int) -> NDArray[np.floating]:
    """Mean change of the logits over the last `window` of the steps up to `step` (from 0), from those of all steps [S, ...].

    The first step has nothing that it could have changed: where only it is done all are alike.
    """
    first = max(1, step - window + 1)
    mean: NDArray[np.floating] = change[first : step + 1].mean(axis=0) if step else np.zeros_like(change[0])
    return mean
