"""`python -m trm.report DIR... --records`: is one variant a new record of the time to an accuracy? docs/records.md keeps them.

A record is a shorter mean of the seconds of training to the target: with enough seeds on each side, on one machine, and so
unlikely for equal means that it is not luck (Welch's t-test, one-sided). All seeds of the new one reach the target; one of the
standing record that does not counts with its whole training, which is less than it needs.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from trm.report.target import reached, seconds_until
from trm.report.variants import Comparison, Variant

TARGET = 0.99
LEAST_SEEDS = 5  # on each side
MOST_LUCK = 0.01  # p, from which on a difference is none
MACHINE = ("hardware.backend", "hardware.platform", "hardware.devices_per_host", "hardware.num_hosts")


def welch(shorter: Sequence[float], longer: Sequence[float]) -> float:
    """The chance of a difference of the means at least as large where the first is not shorter: Welch's t-test, one-sided."""
    a, b = (np.asarray(sample, dtype=np.float64) for sample in (shorter, longer))
    parts = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    if sum(parts) == 0:
        return 0.0 if a.mean() < b.mean() else 1.0
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (a.size - 1) + parts[1] ** 2 / (b.size - 1))
    return float(special.stdtr(freedom, (a.mean() - b.mean()) / math.sqrt(sum(parts))))


@dataclass(frozen=True)
class Claim:
    """One variant's seconds to the target against another's, and why that is no record; empty where it is."""

    challenger: str
    standing: str
    seconds: tuple[float, float]  # means over the seeds
    p: float | None
    short_of: int  # seeds of the standing one that never reached it
    refused: tuple[str, ...]

    @property
    def words(self) -> str:
        """The claim in a line."""
        chance = "" if self.p is None else f", p = {self.p:.2g}"
        verdict = f"no record: {'; '.join(self.refused)}" if self.refused else "a record"
        never = f" ({self.short_of} seed(s) never reached it: their whole training counts)" if self.short_of else ""
        long = f"{self.standing} {self.seconds[1]:,.1f} s{never}"
        return f"{self.challenger} {self.seconds[0]:,.1f} s against {long}{chance}: {verdict}"


def claims(comparison: Comparison, target: float = TARGET) -> list[Claim]:
    """The variants of which a seed reached the target, by their seconds to it, each against the next slower one."""
    found = [(variant, _seconds(variant, target)) for variant in comparison.variants if _reached(variant, target)]
    order = sorted((pair for pair in found if pair[1]), key=lambda pair: float(np.mean(pair[1])))
    return [_claim(*fast, *slow, target) for fast, slow in itertools.pairwise(order)]


def _reached(variant: Variant, target: float) -> int:
    return sum(reached(run, target) is not None for run in variant.counted)


def _seconds(variant: Variant, target: float) -> list[float]:
    """Of each run that timed its steps: the seconds to the target, or of its whole training where it did not reach it.

    A run without a readable evaluation says neither.
    """
    times = []
    for run in variant.counted:
        if run.evaluations:
            at = reached(run, target)
            times.append(at.seconds if at is not None else seconds_until(run.step_times, run.evaluations[-1][0]))
    return [seconds for seconds in times if seconds is not None]


def _claim(fast: Variant, short: list[float], slow: Variant, long: list[float], target: float) -> Claim:
    refused = []
    if missed := len(fast.counted) - _reached(fast, target):
        refused.append(f"{missed} of {fast.label}'s seeds did not reach {100 * target:g} %")
    for variant, seconds in ((fast, short), (slow, long)):
        if len(seconds) < LEAST_SEEDS:
            refused.append(f"{variant.label} has {len(seconds)} seeds, of {LEAST_SEEDS}")
    machines = {tuple(run.settings.get(key) for key in MACHINE) for variant in (fast, slow) for run in variant.counted}
    if len(machines) > 1:
        refused.append("the two ran on other machines or backends")
    p = welch(short, long) if min(len(short), len(long)) > 1 else None
    if p is not None and p >= MOST_LUCK:
        refused.append(f"p is not below {MOST_LUCK:g}")
    short_of = len(slow.counted) - _reached(slow, target)
    return Claim(fast.label, slow.label, (float(np.mean(short)), float(np.mean(long))), p, short_of, tuple(refused))


def text(comparison: Comparison, target: float = TARGET) -> str:
    """What the command prints."""
    found = claims(comparison, target)
    if not found:
        return f"records: fewer than two variants reached {100 * target:g} %"
    rule = (
        f"at least {LEAST_SEEDS} seeds a side, all of the new one reach it, p < {MOST_LUCK:g} by Welch's one-sided test, in turns: "
        "docs/records.md"
    )
    return "\n".join([f"records: seconds of training to {100 * target:g} % ({rule})", *(f"  {claim.words}" for claim in found)])
