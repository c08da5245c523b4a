"""`python -m trm.report DIR... --baseline VARIANT`: each variant's exact accuracy less the baseline's, over the seeds of both.

Runs with one seed see the same puzzles in the same order, so that their difference says more than that of the means. The test is
Student's paired t-test, two-sided; p values are corrected by Holm for as many variants as have one.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from trm.report.variants import Comparison, Estimate, estimate

ROUNDING = 1e-9  # below which values that are shares of counts are equal


class Difference(NamedTuple):
    """A variant's mean difference to the baseline (shares of 1), and how likely one as large is by chance."""

    exact_accuracy: Estimate
    p: float | None  # of this variant alone; None for a single seed, or for differences without a spread
    corrected: float | None  # by Holm, for all variants that have one


def differences(comparison: Comparison) -> Mapping[str, Difference]:
    """By the label of the variant; without the baseline, and without variants that share no seed or may not be compared with it."""
    if comparison.baseline is None:
        return {}
    base, found, chances = comparison.baseline.by_seed(attrgetter("exact_accuracy")), {}, {}
    for variant in comparison.variants:
        own = variant.by_seed(attrgetter("exact_accuracy"))
        pairs = [own[seed] - base[seed] for seed in own if seed is not None and seed in base]
        mean = estimate(pairs)
        if variant is not comparison.baseline and variant.label not in comparison.not_compared and mean is not None:
            found[variant.label] = mean
            if (p := student(pairs)) is not None:
                chances[variant.label] = p
    corrected = dict(zip(chances, holm(list(chances.values())), strict=True))
    return {label: Difference(mean, chances.get(label), corrected.get(label)) for label, mean in found.items()}


def student(values: list[float], mean: float = 0.0, alternative: str = "two-sided") -> float | None:
    """The p value of Student's t-test that the values' true mean is `mean`; None for fewer than two values or without a spread."""
    if len(values) < 2 or np.ptp(values) < ROUNDING:
        return None
    from scipy import stats  # which takes a second to import

    return float(stats.ttest_1samp(values, mean, alternative=alternative).pvalue)


def holm(chances: list[float]) -> list[float]:
    """The p values corrected for their number (Holm 1979): the smallest times n, the next times n - 1, ..., never falling."""
    corrected, largest = [0.0] * len(chances), 0.0
    for rank, i in enumerate(np.argsort(chances, kind="stable")):
        largest = max(largest, min((len(chances) - rank) * chances[i], 1.0))
        corrected[i] = largest
    return corrected
