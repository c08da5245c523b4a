"""How long runs take to an accuracy: samples and seconds up to the first evaluation that reaches it."""

import itertools
from dataclasses import dataclass

from trm.report.runs import Points, Run
from trm.report.variants import Estimate, Variant, by_seed, estimate


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


@dataclass(frozen=True)
class TimeToTarget:
    """Of a variant's counted runs: how many reached the accuracy, and means and 95 % intervals over those alone."""

    runs: int
    reached: int
    samples: Estimate | None
    seconds: Estimate | None

    def words(self, quantity: Estimate | None) -> str:
        """A table's cell: the mean and half of its interval, and how many of the runs it is over where that is not all."""
        if self.reached == 0:
            return f"not reached by {self.runs}"
        if quantity is None:
            return "-"
        text = f"{quantity.mean:,.0f}" + (" (n=1)" if quantity.half_width is None else f" ± {quantity.half_width:,.0f}")
        return text if self.reached == self.runs else f"{text}, {self.reached} of {self.runs}"


def time_to_target(variant: Variant, target: float) -> TimeToTarget:
    """Over the variant's seeds."""
    found = [(run.seed, at) for run in variant.counted if (at := reached(run, target)) is not None]
    samples, seconds = (estimate(by_seed((seed, at[i]) for seed, at in found).values()) for i in (0, 1))
    return TimeToTarget(len(variant.counted), len(found), samples, seconds)
