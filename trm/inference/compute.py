"""Ways of inference compared, and which puzzles are hard: pure functions of arrays.

Shape legend: S seeds, N puzzles.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_LEVELS = 10
ROUNDING = 1e-9  # below which a spread of shares is none


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

    def beaten(row: dict[str, Any]) -> bool:
        return any(
            (other["exact_accuracy"], -other["flops_per_puzzle"]) != (row["exact_accuracy"], -row["flops_per_puzzle"])
            and other["exact_accuracy"] >= row["exact_accuracy"]
            and other["flops_per_puzzle"] <= row["flops_per_puzzle"]
            for other in rows
        )

    ordered = sorted(rows, key=lambda row: (row["flops_per_puzzle"], -row["exact_accuracy"]))
    return [{**row, "pareto": not beaten(row)} for row in ordered]


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


@dataclass(frozen=True)
class Interval:
    """A mean with half the width of its 95 % interval and the p value of a true mean of 0; None without a spread."""

    mean: float
    half_width: float | None
    p: float | None


def interval(values: NDArray[np.floating]) -> Interval:
    """Of values [S, N] of S seeds on the same N puzzles: both are drawn, crossed, so that the interval is over other seeds and
    other puzzles (random effects by the analysis of variance). Of one seed it is over puzzles alone.

    Student's t with the seeds' degrees of freedom, which is wide where it is the puzzles that differ, and never too narrow for it.
    """
    from scipy import stats  # which takes a second to import

    seeds, puzzles = values.shape
    by_puzzle = values.mean(axis=0).var(ddof=1) / puzzles if puzzles > 1 else 0.0
    variance, freedom = by_puzzle, puzzles - 1
    if seeds > 1:
        by_seed = values.mean(axis=1).var(ddof=1) / seeds
        rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
        both = (rest**2).sum() / max((seeds - 1) * (puzzles - 1), 1) / values.size  # is in each of the two: once too often
        variance, freedom = max(by_seed + by_puzzle - both, by_seed, by_puzzle), seeds - 1
    mean, error = float(values.mean()), float(np.sqrt(variance))
    if error < ROUNDING:
        return Interval(mean, None, None)
    return Interval(mean, float(stats.t.ppf(0.975, freedom)) * error, float(2 * stats.t.sf(abs(mean) / error, freedom)))
