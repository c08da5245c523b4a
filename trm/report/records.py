"""`python -m trm.report DIR... --records`: is one variant a new record of the time to an accuracy?

The rule is in docs/results/records.md.

A run is as long as its settings say, and its last evaluation decides: no run and no evaluation is chosen. The mean of a side's
ten seeds, which are named before the run and which no search has used, has to be above the target beyond doubt (one-sided
t-test); then a shorter mean of the seconds of training is a record, where it is so by more than luck (Welch's, one-sided).
"""

import itertools
from dataclasses import dataclass

import numpy as np

from trm.report.baseline import ROUNDING, student
from trm.report.comparable import DECIDE_TRAIN, TRAIN, facts, misfits
from trm.report.target import seconds_until
from trm.report.variants import Comparison, Variant

TARGET = 0.99
SEEDS = 10  # on each side: a block such as 100 to 109
FIRST_SEED = 100  # those below are for searches
LEAST_PUZZLES = 1000  # held out
MOST_LUCK = 0.01  # p, from which on a claim is none
MACHINE = tuple(f"hardware.{key}" for key in ("backend", "platform", "devices_per_host", "num_devices", "num_hosts"))


@dataclass(frozen=True)
class Entry:
    """A variant as the rule sees it: of each counted run the last evaluation, and the seconds of training until then."""

    variant: Variant
    accuracies: list[float]
    seconds: list[float]  # of the runs that timed their steps
    p: float | None  # that the mean accuracy is above the target; None where there is no telling
    refused: tuple[str, ...]  # why it is no entry of the table

    @property
    def words(self) -> str:
        """The entry in a line."""
        chance = "no p without a spread" if self.p is None else f"p = {self.p:.2g}"
        time = f"{np.mean(self.seconds):,.1f} s" if self.seconds else "no seconds"
        told = f"{self.variant.label}: {time} to {100 * np.mean(self.accuracies):.2f} % (mean of {len(self.accuracies)}, {chance})"
        return f"{told}: {'; '.join(self.refused) or 'meets the rule'}"


def entry(variant: Variant, target: float = TARGET) -> Entry:
    """What the rule says of a variant by itself."""
    runs = variant.counted
    accuracies = [run.exact_accuracy for run in runs if run.exact_accuracy is not None]
    seconds = [s for run in runs if (s := seconds_until(run.step_times, run.evaluated_step or 0)) is not None]
    seeds, refused = sorted(run.seed for run in runs if run.seed is not None), []
    first = seeds[0] if seeds else 0
    if seeds != list(range(first, first + SEEDS)) or first % SEEDS or first < FIRST_SEED:
        refused.append(
            f"its seeds are {', '.join(map(str, seeds)) or 'unknown'}, not a block of {SEEDS} that no search has used, such as "
            f"{FIRST_SEED} to {FIRST_SEED + SEEDS - 1}"
        )
    if len(runs) < variant.planned:
        refused.append(f"{variant.planned - len(runs)} of its {variant.planned} jobs are not counted")
    if any((run.evaluated_puzzles or 0) < LEAST_PUZZLES for run in runs):
        refused.append(f"fewer than {LEAST_PUZZLES:,} held-out puzzles")
    if len(seconds) < len(runs):
        refused.append(f"{len(runs) - len(seconds)} of its runs did not time their steps")
    p = student(accuracies, target, "greater")
    if float(np.mean(accuracies)) < target:
        refused.append(f"its mean is below {100 * target:g} %")
    elif p is None or p >= MOST_LUCK:
        refused.append(f"that its mean is above {100 * target:g} % is not beyond doubt (p < {MOST_LUCK:g})")
    return Entry(variant, accuracies, seconds, p, tuple(refused))


def welch(shorter: list[float], longer: list[float]) -> float | None:
    """The chance of a difference of the means at least as large where the first is not shorter: Welch's t-test, one-sided.

    None of fewer than two on a side, or without a spread.
    """
    if min(len(shorter), len(longer)) < 2 or max(np.ptp(shorter), np.ptp(longer)) < ROUNDING:
        return None
    from scipy import stats

    return float(stats.ttest_ind(shorter, longer, equal_var=False, alternative="less").pvalue)


def text(comparison: Comparison, target: float = TARGET) -> str:
    """What the command prints: each variant by itself, what may not be compared, and each entry against the next slower one."""
    found = [entry(variant, target) for variant in comparison.variants if variant.counted]
    measured = [facts(each.variant.counted[0]) for each in found]
    reasons = misfits(measured, race=True)
    usual = next((fact for fact, why in zip(measured, reasons, strict=True) if not why), {})
    for i, fact in enumerate(measured):  # beside what may be compared at all, a record has its training puzzles given
        if not reasons[i] and any(fact[key] != usual[key] for key in (TRAIN, *DECIDE_TRAIN)):
            reasons[i] = "other training puzzles"
    lines = [f"  {each.words}" for each in found]
    lines += [f"  not counted: {each.variant.label}: {why}" for each, why in zip(found, reasons, strict=True) if why]
    kept = [each for each, why in zip(found, reasons, strict=True) if not why and each.seconds]
    for fast, slow in itertools.pairwise(sorted(kept, key=lambda each: float(np.mean(each.seconds)))):
        lines.append(f"  {_claim(fast, slow)}")
    rule = (
        f"whole training of {SEEDS} seeds named before; the mean of the last evaluations, of {LEAST_PUZZLES:,} puzzles or more, "
        f"is above {100 * target:g} % and the time shorter than before, each with p < {MOST_LUCK:g}, in turns; "
        "docs/results/records.md has the rule"
    )
    return "\n".join([f"records: seconds of training to a mean of {100 * target:g} % ({rule})", *lines])


def _claim(fast: Entry, slow: Entry) -> str:
    """Whether the first is a record against the other, and why not; one that misses the target needs more than its training."""
    refused = [f"{fast.variant.label} does not meet the rule"] if fast.refused else []
    seeds = [sorted(run.seed or 0 for run in each.variant.counted) for each in (fast, slow)]
    if seeds[0] != seeds[1]:
        refused.append("the two have other seeds")
    machines = {tuple(run.settings.get(key) for key in MACHINE) for each in (fast, slow) for run in each.variant.counted}
    if len(machines) > 1:
        refused.append("the two ran on other machines or backends")
    p = welch(fast.seconds, slow.seconds)
    if p is None or p >= MOST_LUCK:
        refused.append(f"that it is shorter is not beyond doubt (p < {MOST_LUCK:g})")
    chance = "" if p is None else f", p = {p:.2g}"
    times = f"{np.mean(fast.seconds):,.1f} s against {slow.variant.label} {np.mean(slow.seconds):,.1f} s{chance}"
    return f"{fast.variant.label} {times}: {'no record: ' + '; '.join(refused) if refused else 'a record'}"
