"""Who of a puzzle's candidates answers: a function of what they said, without a label, for each of `inference.selection`.

Shape legend: N puzzles, K candidates of each, C cells, S supervision steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trm.ground.hashing import hash64

Winners = NDArray[np.intp]  # [N], a candidate of each puzzle


class Said(NamedTuple):
    """What candidates said in the end."""

    grids: NDArray[np.uint64]  # [N, K] a word for each answer, equal where answers are
    q_halt: NDArray[np.floating]  # [N, K] the halting logit
    halts: NDArray[np.bool_]  # [N, K] whether the model wants to stop
    residual: NDArray[np.floating] | None = None  # [N, K] `residuals`


def last(said: Said) -> Winners:
    """The only candidate, as the paper's released code evaluates."""
    return np.zeros(len(said.q_halt), np.intp)


def vote(said: Said) -> Winners:
    """The grid that most candidates gave, and among equals the one with the highest halting logit.

    The vote is for whole grids. A puzzle is solved only in every cell. Candidates that solve it give the same grid, since its
    solution is unique, while candidates that fail do so in different ways; a vote cell by cell could mix grids into one that none
    gave, and many unsure candidates would outvote one that is right. (The released code votes for whole grids on ARC too.)
    """
    return best(said.q_halt, _most(said))


def mode(said: Said) -> Winners:
    """The grid that most candidates gave, and among equals the first: the model's own estimates take no part (PTRM's mode)."""
    first: Winners = _most(said).argmax(axis=1)
    return first


def best_q(said: Said) -> Winners:
    """The largest halting logit, the model's own estimate that the grid is right (PTRM)."""
    return best(said.q_halt)


def residual(said: Said) -> Winners:
    """The least change of the logits in the last supervision steps (EqR)."""
    assert said.residual is not None
    least: Winners = said.residual.argmin(axis=1)
    return least


def halt_first(said: Said) -> Winners:
    """The first that halted; what is said is of the step at which the race ended. The surest of several, or where none halted."""
    return best(said.q_halt, said.halts | ~said.halts.any(axis=1, keepdims=True))


SELECTIONS: dict[str, Callable[[Said], Winners]] = {
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


def _most(said: Said) -> NDArray[np.bool_]:
    """The candidates [N, K] whose grid most gave."""
    votes = (said.grids[:, :, None] == said.grids[:, None, :]).sum(axis=-1)
    most: NDArray[np.bool_] = votes == votes.max(axis=1, keepdims=True)
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
