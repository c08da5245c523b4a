"""Ways of inference compared, and which puzzles are hard: pure functions of arrays."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_LEVELS = 10


def by_difficulty(difficulty: NDArray[np.integer], scores: Mapping[str, NDArray[np.bool_]]) -> list[dict[str, float]]:
    """The share of puzzles with each score among those that are alike hard, from `difficulty` [N] and the scores [N].

    A row for each of at most MOST_LEVELS ranges of it, of about as many puzzles each; equal ones are in one range.
    """
    ends = np.quantile(difficulty, np.linspace(0, 1, MOST_LEVELS + 1)[1:], method="higher")
    rows, below = [], -np.inf
    for end in np.unique(ends).tolist():
        here = (difficulty > below) & (difficulty <= end)
        row = {"from": int(difficulty[here].min()), "to": int(difficulty[here].max()), "count": int(here.sum())}
        rows.append(
            row | {"mean": float(difficulty[here].mean())} | {name: float(has[here].mean()) for name, has in scores.items()}
        )
        below = end
    return rows


def pareto(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows by their FLOPs, and whether each is on the Pareto front: no other is as good in both and better in one."""
    ordered = sorted(rows, key=lambda row: (row["flops_per_puzzle"], -row["exact_accuracy"]))
    at = np.array([(row["flops_per_puzzle"], -row["exact_accuracy"]) for row in ordered])
    beaten = [bool(((at <= own).all(axis=1) & (at < own).any(axis=1)).any()) for own in at]
    return [{**row, "pareto": not is_beaten} for row, is_beaten in zip(ordered, beaten, strict=True)]


def with_intervals(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, where they have no interval with Wilson's 95 % one of the exact accuracy, which is over puzzles and says nothing of
    other seeds.
    """
    from scipy import stats  # which takes a second to import

    found = []
    for row in rows:
        if "exact_accuracy_low" in row:
            found.append(row)
            continue
        ends = stats.binomtest(round(row["exact_accuracy"] * row["count"]), int(row["count"])).proportion_ci(method="wilson")
        found.append({**row, "exact_accuracy_low": float(ends.low), "exact_accuracy_high": float(ends.high)})
    return found
