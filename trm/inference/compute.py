"""Tables of evaluations: by difficulty, the Pareto front, intervals. Pure functions of arrays."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_LEVELS = 10


def by_difficulty(difficulty: NDArray[np.integer], scores: Mapping[str, NDArray[np.bool_]]) -> list[dict[str, float]]:
    """The mean of each score [N] in ranges of `difficulty` [N].

    There are at most MOST_LEVELS ranges with about the same number of puzzles; puzzles of equal difficulty are in one range.
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
    """The rows, sorted by FLOPs; `pareto` says that no other row is at least as good in FLOPs and accuracy and better in one."""
    ordered = sorted(rows, key=lambda row: (row["flops_per_puzzle"], -row["exact_accuracy"]))
    at = np.array([(row["flops_per_puzzle"], -row["exact_accuracy"]) for row in ordered])
    beaten = [bool(((at <= own).all(axis=1) & (at < own).any(axis=1)).any()) for own in at]
    return [{**row, "pareto": not is_beaten} for row, is_beaten in zip(ordered, beaten, strict=True)]


def with_intervals(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with Wilson's 95 % interval of the exact accuracy (over puzzles, not over seeds) where they have none."""
    from scipy import stats  # which takes a second to import

    found = []
    for row in rows:
        if "exact_accuracy_low" in row:
            found.append(row)
            continue
        ends = stats.binomtest(round(row["exact_accuracy"] * row["count"]), int(row["count"])).proportion_ci(method="wilson")
        found.append({**row, "exact_accuracy_low": float(ends.low), "exact_accuracy_high": float(ends.high)})
    return found
