"""How long variants take to an accuracy (`--target`), and whether one is a new record of it (`--records`).

The rule of records is in docs/results/records.md. A run is as long as its settings say, and its last evaluation decides: nobody
chooses a run or an evaluation. A side has ten seeds, which are named before the run and which no search has used. Their mean has to
be above the target beyond doubt (one-sided t-test). Then a shorter mean of the seconds of training is a record if it is shorter by
more than luck (Welch's test, one-sided).
"""

import itertools
from typing import NamedTuple

import numpy as np

from trm.report.baseline import ROUNDING, student
from trm.report.comparable import DECIDE_TRAIN, TRAIN, facts, misfits
from trm.report.runs import Points, Run
from trm.report.variants import Comparison, Estimate, Variant, by_seed, estimate

TARGET = 0.99
SEEDS = 10  # on each side: a block such as 100 to 109
FIRST_SEED = 100  # those below are for searches
LEAST_PUZZLES = 1000  # held out
MOST_LUCK = 0.01  # a claim needs a smaller p
MACHINE = tuple(f"hardware.{key}" for key in ("backend", "platform", "devices_per_host", "num_devices", "num_hosts"))


def reached(run: Run, target: float) -> tuple[int | None, float | None] | None:
    """Samples and seconds to the first evaluation with an exact accuracy (share of 1) of at least `target`; None without one.

    Samples are the rows of all training steps until then, seconds those in training steps, without compiling, evaluating and
    saving; None where the run does not say its batch, or timed no steps.
    """
    step = next((step for step, exact in run.evaluations if exact >= target), None)
    if step is None:
        return None
    rows = run.settings.get("train.global_batch_size")
    return step * rows if isinstance(rows, int) else None, seconds_until(run.step_times, step)


def seconds_until(step_times: Points, step: int) -> float | None:
    """Seconds of training up to `step`, from the mean seconds of a step that were logged for the steps since the log before."""
    if not step_times:
        return None
    after = (max(step, step_times[-1][0]), step_times[-1][1])  # steps behind the last log took as long as those before it
    logs = itertools.pairwise([(0, 0.0), *step_times, after])
    return sum(step_time * max(min(logged, step) - before, 0) for (before, _), (logged, step_time) in logs)


def time_to_target(variant: Variant, target: float) -> tuple[int, Estimate | None, Estimate | None]:
    """How many of a variant's counted runs reach the accuracy, and the samples and seconds to it over the seeds of those."""
    found = [(run.seed, at) for run in variant.counted if (at := reached(run, target)) is not None]
    samples, seconds = (estimate(by_seed((seed, at[i]) for seed, at in found).values()) for i in (0, 1))
    return len(found), samples, seconds


class Entry(NamedTuple):
    """A variant as the rule sees it."""

    variant: Variant
    seconds: list[float]  # of training until the last evaluation, of the runs that timed their steps
    refused: list[str]  # why it is not an entry of the table
    words: str  # the entry in a line


def entry(variant: Variant, target: float = TARGET) -> Entry:
    """What the rule says of a variant by itself."""
    runs = variant.counted
    accuracies = [run.exact_accuracy for run in runs if run.exact_accuracy is not None]
    seconds = [s for run in runs if (s := seconds_until(run.step_times, run.evaluated_step or 0)) is not None]
    seeds = sorted(run.seed for run in runs if run.seed is not None)
    first = seeds[0] if seeds else 0
    no_block = seeds != list(range(first, first + SEEDS)) or first % SEEDS or first < FIRST_SEED
    block = f"a block of {SEEDS} that no search has used, such as {FIRST_SEED} to {FIRST_SEED + SEEDS - 1}"
    p, mean = student(accuracies, target, "greater"), float(np.mean(accuracies))
    checks = [
        (no_block, f"its seeds are {', '.join(map(str, seeds)) or 'unknown'}, not {block}"),
        (len(runs) < variant.planned, f"{variant.planned - len(runs)} of its {variant.planned} jobs are not counted"),
        (any((run.evaluated_puzzles or 0) < LEAST_PUZZLES for run in runs), f"fewer than {LEAST_PUZZLES:,} held-out puzzles"),
        (len(seconds) < len(runs), f"{len(runs) - len(seconds)} of its runs did not time their steps"),
        (mean < target, f"its mean is below {100 * target:g} %"),
        (mean >= target and _luck(p), f"luck may explain a mean above {100 * target:g} % (a record needs p < {MOST_LUCK:g})"),
    ]
    refused = [words for wrong, words in checks if wrong]
    chance = "no p without a spread" if p is None else f"p = {p:.2g}"
    time = f"{np.mean(seconds):,.1f} s" if seconds else "no seconds"
    told = f"{variant.label}: {time} to {100 * mean:.2f} % (mean of {len(accuracies)}, {chance})"
    return Entry(variant, seconds, refused, f"{told}: {'; '.join(refused) or 'meets the rule'}")


def _luck(p: float | None) -> bool:
    return p is None or p >= MOST_LUCK


def welch(shorter: list[float], longer: list[float]) -> float | None:
    """The chance of a difference of the means at least as large where the first is not shorter: Welch's t-test, one-sided.

    None for fewer than two values on a side, or without a spread.
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
    for i, fact in enumerate(measured):  # what may be compared may differ in training puzzles; a record may not
        if not reasons[i] and any(fact[key] != usual[key] for key in (TRAIN, *DECIDE_TRAIN)):
            reasons[i] = "other training puzzles"
    rule = (
        f"whole training of {SEEDS} seeds named before; the mean of the last evaluations, of {LEAST_PUZZLES:,} puzzles or more, "
        f"is above {100 * target:g} % and the time shorter than before, each with p < {MOST_LUCK:g}, in turns; "
        "docs/results/records.md has the rule"
    )
    lines = [f"records: seconds of training to a mean of {100 * target:g} % ({rule})", *(f"  {each.words}" for each in found)]
    lines += [f"  not counted: {each.variant.label}: {why}" for each, why in zip(found, reasons, strict=True) if why]
    kept = [each for each, why in zip(found, reasons, strict=True) if not why and each.seconds]
    for fast, slow in itertools.pairwise(sorted(kept, key=lambda each: float(np.mean(each.seconds)))):
        seeds = [sorted(run.seed or 0 for run in each.variant.counted) for each in (fast, slow)]
        machines = {tuple(run.settings.get(key) for key in MACHINE) for each in (fast, slow) for run in each.variant.counted}
        p = welch(fast.seconds, slow.seconds)
        checks = [
            (fast.refused, f"{fast.variant.label} does not meet the rule"),
            (seeds[0] != seeds[1], "the two have different seeds"),
            (len(machines) > 1, "the two ran on different machines or backends"),
            (_luck(p), f"luck may explain the shorter time (a record needs p < {MOST_LUCK:g})"),
        ]
        refused = [words for wrong, words in checks if wrong]
        chance = "" if p is None else f", p = {p:.2g}"
        times = f"{np.mean(fast.seconds):,.1f} s against {slow.variant.label} {np.mean(slow.seconds):,.1f} s{chance}"
        lines.append(f"  {fast.variant.label} {times}: {'no record: ' + '; '.join(refused) if refused else 'a record'}")
    return "\n".join(lines)
