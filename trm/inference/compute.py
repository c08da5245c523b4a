"""What more compute at test time gives: longer supervision, halting, votes of symmetric copies, ways of inference compared; and
which puzzles are hard.

Pure functions of arrays.

Shape legend: S supervision steps, N puzzles, A copies of each puzzle, C cells.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from trm.inference.selection import Said, grid_words, vote


@dataclass(frozen=True)
class ComputePoint:
    """The accuracy that a number of supervision steps gives."""

    supervision_steps: int
    exact_accuracy: float  # of the answers after so many steps, 0..1
    flops_per_puzzle: int
    halting_exact_accuracy: float  # with halting on: a puzzle stops where the model first wants to, or here
    halting_mean_steps: float
    halting_flops_per_puzzle: float


def compute_curve(
    exact: NDArray[np.bool_], halts: NDArray[np.bool_], supervision_steps: list[int], flops_per_step: int
) -> list[ComputePoint]:
    """Accuracy against compute, from what was right [S, N] and where the model wanted to halt [S, N] after each step.

    Each of `supervision_steps` is 1 to S; `flops_per_step` are those of one puzzle.
    """
    never = len(halts)
    first_halt = np.where(halts.any(axis=0), halts.argmax(axis=0), never)  # index of the step
    points = []
    for steps in supervision_steps:
        stop = np.minimum(first_halt, steps - 1)
        mean_steps = float(stop.mean()) + 1
        points.append(
            ComputePoint(
                supervision_steps=steps,
                exact_accuracy=float(exact[steps - 1].mean()),
                flops_per_puzzle=steps * flops_per_step,
                halting_exact_accuracy=float(exact[stop, np.arange(exact.shape[1])].mean()),
                halting_mean_steps=mean_steps,
                halting_flops_per_puzzle=mean_steps * flops_per_step,
            )
        )
    return points


@dataclass(frozen=True)
class VoteResult:
    """What the vote of so many copies gives; 1 copy is the puzzle itself, without a vote."""

    copies: int
    exact_accuracy: float  # of the elected answers, 0..1
    accuracy: float  # share of right cells
    single_exact_accuracy: float  # mean over the copies, each by itself
    flops_per_puzzle: int
    scores: dict[str, float]  # of the elected answers, the task's own


def votes(
    answers: NDArray[np.integer],
    q_halt: NDArray[np.floating],
    labels: NDArray[np.integer],
    ignore_label: int,
    flops_per_copy: int,
    judge: Callable[[NDArray[np.integer]], Mapping[str, NDArray[np.bool_]]] = lambda answers: {},
) -> list[VoteResult]:
    """Results of the first 1, 2, 4, ... and all of the copies. The first copy is the puzzle itself; labels are [N, C].

    `judge` finds scores [N] of answers [N, C] beside being equal to the labels.
    """
    labelled = labels != ignore_label
    right = (answers == labels[:, None]) | ~labelled[:, None]  # [N, A, C]
    exact = right.all(axis=-1)
    total = answers.shape[1]
    words, halts = grid_words(answers), q_halt > 0
    results = []
    for copies in [*(2**i for i in range(total.bit_length()) if 2**i < total), total]:
        winner = vote(Said(words[:, :copies], q_halt[:, :copies], halts[:, :copies]))
        every = np.arange(len(answers))
        cells = (right[every, winner] & labelled).sum(axis=-1) / labelled.sum(axis=-1)
        results.append(
            VoteResult(
                copies=copies,
                exact_accuracy=float(exact[every, winner].mean()),
                accuracy=float(cells.mean()),
                single_exact_accuracy=float(exact[:, :copies].mean()),
                flops_per_puzzle=copies * flops_per_copy,
                scores={name: float(has.mean()) for name, has in judge(answers[every, winner]).items()},
            )
        )
    return results


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
        row = {"from": int(difficulty[here].min()), "to": int(difficulty[here].max()), "puzzles": int(here.sum())}
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

    return [{**row, "pareto": not beaten(row)} for row in sorted(rows, key=lambda row: row["flops_per_puzzle"])]


def with_intervals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with Wilson's 95 % interval of the exact accuracy, which is over puzzles and says nothing of other seeds."""
    found = []
    for row in rows:
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
