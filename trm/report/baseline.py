"""`python -m trm.report DIR... --baseline VARIANT`: each variant's exact accuracy less the baseline's, over the seeds of both.

Runs with one seed see the same puzzles in the same order, so that their difference says more than that of the means. Student's
paired t-test, two-sided; p values are corrected by Holm for as many variants as are compared.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from trm.report.variants import Comparison, Estimate, Variant, estimate


@dataclass(frozen=True)
class Difference:
    """A variant's mean difference to the baseline (shares of 1), and how likely one as large is where there is none."""

    exact_accuracy: Estimate
    p: float | None  # of this variant alone; None of a single seed
    corrected: float | None  # by Holm, for all variants


def differences(comparison: Comparison) -> Mapping[str, Difference]:
    """By the label of the variant; those without a seed that the baseline has too are left out, and so is the baseline."""
    if comparison.baseline is None:
        return {}
    base, found, chances = _by_seed(comparison.baseline), {}, {}
    for variant in comparison.variants:
        own = _by_seed(variant)
        pairs = [own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())]
        mean = estimate(pairs)
        if variant is not comparison.baseline and mean is not None:
            found[variant.label] = mean
            if (p := paired(pairs)) is not None:
                chances[variant.label] = p
    corrected = dict(zip(chances, holm(list(chances.values())), strict=True))
    return {label: Difference(mean, chances.get(label), corrected.get(label)) for label, mean in found.items()}


def _by_seed(variant: Variant) -> dict[int, float]:
    return {run.seed: run.exact_accuracy for run in variant.counted if run.exact_accuracy is not None and run.seed is not None}


def paired(pairs: list[float]) -> float | None:
    """The chance of a mean at least as far from 0 where the differences' true mean is 0: Student's t, two-sided."""
    sample = np.asarray(pairs, dtype=np.float64)
    if sample.size < 2:
        return None
    spread = sample.std(ddof=1)
    if spread == 0:
        return 1.0 if sample.mean() == 0 else 0.0
    t = abs(sample.mean()) * math.sqrt(sample.size) / spread
    return float(2 * special.stdtr(sample.size - 1, -t))


def holm(chances: list[float]) -> list[float]:
    """The p values corrected for their number (Holm 1979): the smallest times n, the next times n - 1, ..., never falling."""
    corrected, largest = [0.0] * len(chances), 0.0
    for rank, i in enumerate(np.argsort(chances, kind="stable")):
        largest = max(largest, min((len(chances) - rank) * chances[i], 1.0))
        corrected[i] = largest
    return corrected
