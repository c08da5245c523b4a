"""Scaling laws and their fits: a power law with a floor, a logistic, parabolas at equal compute, and the joint law of recursion.

Intervals are 95 % and come from a bootstrap over seeds: the deviations of all runs from the mean of their size, as shares of it,
are pooled, drawn anew and fitted again. A mean of n runs hides a part of its own deviation, and few runs tell little of their
spread. Deviations are therefore first widened by sqrt(n / (n - 1)) and by Student's t over the normal quantile; without it the
intervals are too narrow (tests/test_laws.py measures how often they hold the truth). Where the same runs were measured at all
sizes, whole runs are weighted anew. Intervals do not show that a law has the wrong form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Array = NDArray[np.float64]
RESAMPLES, JOINT_RESAMPLES = 1000, 200
CONFIDENCE = 0.95
EXPONENTS = (0.01, 4.0)  # of a power law; an interval that reaches one of these is open at that end
PHI = (-1.0, 3.0)  # of the joint law, likewise
CEILING = 0.98  # exact accuracy above which sizes hardly differ


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def is_open(self, ends: tuple[float, float]) -> bool:
        """Whether an end of the interval is an end of the range that was fitted, up to 1 %."""
        return self.low - ends[0] <= 0.01 * abs(ends[0]) or ends[1] - self.high <= 0.01 * abs(ends[1])


def interval(value: float, draws: Array) -> Interval:
    """A fitted value with the quantiles of its draws."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


class Points(NamedTuple):
    """Sizes in ascending order, and what runs of each seed measured there."""

    x: Array  # [P]
    y: Sequence[Array]  # [n_i] each
    paired: bool = False  # whether the same runs were measured at all sizes: [n] each, in one order
    lost: int = 0  # degrees of freedom of what was taken out of the values

    @property
    def means(self) -> Array:
        """Mean over the seeds, [P]."""
        return np.array([values.mean() for values in self.y])

    @property
    def spare(self) -> int:
        """Degrees of freedom of the spread over seeds: the runs less one for each size."""
        return sum(len(values) - 1 for values in self.y) - self.lost

    def telling(self, shares: bool) -> Points:
        """Those that tell of the spread: not shares that are 0 in all runs, or 1."""
        kept = [not (shares and y.mean() in (0, 1)) for y in self.y]
        return self._replace(x=self.x[kept], y=list(itertools.compress(self.y, kept)))


def points(sizes: Sequence[tuple[float, Sequence[float]]], *, paired: bool = False) -> Points:
    """Points of (size, values of its seeds), in any order; with `paired` the seeds are in one order."""
    ordered = sorted(sizes)
    x, y = np.array([x for x, _ in ordered], dtype=np.float64), [np.asarray(y, dtype=np.float64) for _, y in ordered]
    return Points(x, y, paired)


def _scale(mean: float, shares: bool) -> float:
    return math.sqrt(max(mean * (1 - mean), 1e-6)) if shares else mean


def _deviations(found: Points, shares: bool) -> list[Array]:
    """The deviations of each size's runs from their mean: as shares of the mean, or with `shares` of sqrt(p (1 - p))."""
    return [(y - y.mean()) / _scale(y.mean(), shares) for y in found.y]


def _wider(spare: int) -> float:
    return float(special.stdtrit(spare, (1 + CONFIDENCE) / 2) / special.ndtri((1 + CONFIDENCE) / 2))


def pooled(found: Points, *, shares: bool = False) -> Array:
    """The deviations of all runs, widened; a single zero where no size tells of the spread."""
    told = found.telling(shares)
    if told.spare < 1:
        return np.zeros(1)
    pool = np.concatenate(_deviations(told, shares))
    return np.asarray(pool * math.sqrt(len(pool) / told.spare) * _wider(told.spare))


def runs_apart(found: Points, *, shares: bool = False) -> Points:
    """The points without what a run of paired ones has in common at all sizes; those that are not paired as they are."""
    told = found.telling(shares)
    if not (found.paired and told.y):
        return found
    common = np.mean(_deviations(told, shares), axis=0)
    alone = {x: y - _scale(y.mean(), shares) * common for x, y in zip(told.x, told.y, strict=True)}
    return Points(found.x, [alone.get(x, y) for x, y in zip(found.x, found.y, strict=True)], lost=len(common) - 1)


def uneven(found: Points, *, shares: bool = False) -> tuple[float, float]:
    """The p value of Bartlett's test that all sizes have one spread of their deviations, and the largest over the least."""
    of = [each for each in _deviations(runs_apart(found, shares=shares).telling(shares), shares) if np.ptp(each) > 0]
    spreads = [float(each.std(ddof=1)) for each in of]
    return (float(stats.bartlett(*of).pvalue), max(spreads) / min(spreads)) if len(of) > 1 else (1.0, 1.0)


def resampled(found: Points, count: int, *, shares: bool = False, seed: int = 0) -> Array:
    """Means of each size, [1 + count, P]: those that were measured, then as other seeds might have given them."""
    random = np.random.default_rng(seed)
    if found.paired:
        runs = len(found.y[0])
        weights = random.standard_normal((count, runs)) * _wider(runs - 1) / math.sqrt(runs * (runs - 1))
        if not shares:  # the weights of few runs are large, and no loss is below zero
            factors = np.exp(np.stack([weights @ (np.log(y) - np.log(y).mean()) for y in found.y], axis=1))
            return np.concatenate([found.means[None], found.means * factors])
        errors = [weights @ (y - y.mean()) for y in found.y]
    else:
        pool = pooled(found, shares=shares)
        errors = [_scale(y.mean(), shares) * random.choice(pool, (count, len(y))).mean(1) for y in found.y]
    drawn = found.means + np.stack(errors, axis=1)
    return np.concatenate([found.means[None], drawn.clip(0, 1) if shares else np.maximum(drawn, 1e-9)])


def tells_apart(found: Points, *, shares: bool = False) -> float:
    """The p value of an F test that all sizes have one mean: of the logarithms, or with `shares` of arcsin(sqrt(p)).

    Both have about the same spread at all sizes. The logarithm of a share that may be 0 does not.
    """
    found = runs_apart(found, shares=shares)
    even = [np.arcsin(np.sqrt(y.clip(0, 1))) if shares else np.log(np.maximum(y, 1e-9)) for y in found.y]
    total, sizes = np.concatenate(even), len(even)
    within = sum(((y - y.mean()) ** 2).sum() for y in even) / found.spare
    between = sum(len(y) * (y.mean() - total.mean()) ** 2 for y in even) / (sizes - 1)
    return float(special.fdtrc(sizes - 1, found.spare, between / max(within, 1e-300)))


class PowerLaw(NamedTuple):
    """y = E + A x^-a, fitted to the means and then to each resample of them, [1 + R] each."""

    E: Array
    A: Array
    a: Array

    def at(self, x: Array) -> Array:
        """The values of all fits, [1 + R, X]."""
        E, A, a = (fits[:, None] for fits in (self.E, self.A, self.a))
        return np.asarray(E + A * x**-a)

    def intervals(self) -> dict[str, Interval]:
        """Of each parameter."""
        return {name: interval(fits[0], fits[1:]) for name, fits in self._asdict().items()}


def fit_power_law(found: Points, resamples: int = RESAMPLES) -> PowerLaw:
    """The law with the least squares of relative errors, E and A not negative.

    For an exponent the best E and A have a closed form. The best exponent is searched on a grid and then by golden sections.
    """
    rows = resampled(found, resamples)
    centre = math.exp(np.log(found.x).mean())  # so that x^-a is about one
    log_x = np.log(found.x / centre)
    grid = np.geomspace(*EXPONENTS, 80)
    best = _floor_and_scale(log_x, rows, np.broadcast_to(grid, (len(rows), len(grid))))[0].argmin(1)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        losses = _floor_and_scale(log_x, rows, np.stack([left, right], axis=1))[0]
        nearer = losses[:, 0] < losses[:, 1]
        low, high = np.where(nearer, low, left), np.where(nearer, right, high)
    a = (low + high) / 2
    _, E, A = _floor_and_scale(log_x, rows, a[:, None])
    return PowerLaw(E[:, 0], A[:, 0] * centre**a, a)


def _floor_and_scale(log_x: Array, rows: Array, a: Array) -> tuple[Array, Array, Array]:
    """Squares of relative errors, E and A of exponents [R, G] on rows [R, P]."""
    u, y = np.exp(-a[..., None] * log_x), rows[:, None]  # [R, G, P], [R, 1, P]
    w = 1 / y**2
    sw, su, suu, sy, suy = w.sum(-1), (w * u).sum(-1), (w * u * u).sum(-1), (w * y).sum(-1), (w * u * y).sum(-1)
    det = np.maximum(sw * suu - su * su, 1e-300)
    A = (sw * suy - su * sy) / det
    E = (sy - su * A) / sw
    A = np.where(E < 0, suy / suu, A)
    E = np.maximum(E, 0)
    E, A = np.where(A < 0, sy / sw, E), np.maximum(A, 0)
    return (w * (y - E[..., None] - A[..., None] * u) ** 2).sum(-1), E, A


class Logistic(NamedTuple):
    """p = 1 / (1 + exp(-(intercept + slope log x))), fitted to the means and then to each resample of them, [1 + R] each."""

    intercept: Array
    slope: Array

    def at(self, x: Array) -> Array:
        """The values of all fits, [1 + R, X]."""
        return np.asarray(special.expit(self.intercept[:, None] + self.slope[:, None] * np.log(x)))

    def intervals(self) -> dict[str, Interval]:
        """Of the slope, and of the size at which half of the puzzles are solved."""
        half = np.exp(np.clip(-self.intercept / np.where(self.slope == 0, 1e-12, self.slope), -300, 300))
        return {"slope": interval(self.slope[0], self.slope[1:]), "half": interval(half[0], half[1:])}


def fit_logistic(found: Points, resamples: int = RESAMPLES) -> Logistic:
    """The logistic of the greatest likelihood, shares of all sizes alike."""
    rows = resampled(found, resamples, shares=True)
    log_x = np.log(found.x)
    z = log_x - log_x.mean()
    b = np.zeros((len(rows), 2))
    b[:, 0] = special.logit(rows.mean(1).clip(1e-4, 1 - 1e-4))
    for _ in range(60):  # Newton's method, with a trace of a prior, since shares of 0 and 1 alone have no finite slope
        p = special.expit(b[:, :1] + b[:, 1:] * z)
        w, error = p * (1 - p), rows - p
        g0, g1 = error.sum(1) - 1e-4 * b[:, 0], (error * z).sum(1) - 1e-4 * b[:, 1]
        h00, h01, h11 = w.sum(1) + 1e-4, (w * z).sum(1), (w * z * z).sum(1) + 1e-4
        det = h00 * h11 - h01**2
        step = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0], axis=1) / det[:, None]
        b += step.clip(-2, 2)
    return Logistic(b[:, 0] - b[:, 1] * log_x.mean(), b[:, 1])


Law = PowerLaw | Logistic


def predict_last(found: Points, *, shares: bool = False, resamples: int = RESAMPLES) -> tuple[Law, Interval]:
    """The law of all sizes but the largest, and what it predicts for the mean of the largest one's seeds.

    Of paired points the same runs are predicted, so that what they have in common is no part of the interval.
    """
    known = runs_apart(found._replace(x=found.x[:-1], y=found.y[:-1]), shares=shares)
    law: Law = fit_logistic(known, resamples) if shares else fit_power_law(known, resamples)
    middle, *band = law.at(found.x[-1:])[:, 0].tolist()
    noise = np.random.default_rng(1).choice(pooled(known, shares=shares), (len(band), len(found.y[-1]))).mean(1)
    drawn = np.array(band) + noise * np.array([_scale(value, shares) for value in band])
    return law, interval(middle, drawn.clip(0, 1) if shares else drawn)


class Parabola(NamedTuple):
    """log y = c0 + c1 z + c2 z^2 of z = log x at one budget; draws of the best size are [R], nan where a resample has none."""

    coefficients: tuple[float, float, float]
    best: Interval | None  # the size with the least y; None where the parabola has none within the measured sizes
    draws: Array

    def at(self, x: Array) -> Array:
        """The parabola's values."""
        z = np.log(x)
        c0, c1, c2 = self.coefficients
        return np.asarray(np.exp(c0 + c1 * z + c2 * z * z))


def fit_parabola(found: Points, resamples: int = RESAMPLES, seed: int = 0) -> Parabola:
    """The parabola through the means of one budget, and its minimum if nine of ten resamples have one within the sizes.

    Budgets that are compared need different `seed`s; otherwise the same runs are drawn for all of them.
    """
    log_x = np.log(found.x)
    centre = log_x.mean()
    c2, c1, c0 = np.polyfit(log_x - centre, np.log(resampled(found, resamples, seed=seed)).T, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest = np.where(c2 > 0, centre - c1 / (2 * c2), np.nan)
    inside = (lowest >= log_x[0]) & (lowest <= log_x[-1])
    draws = np.exp(np.clip(lowest[1:], log_x[0], log_x[-1]))  # what lies outside is counted at the end
    best = None
    if inside[0] and inside[1:].mean() >= 0.9:
        best = interval(float(np.exp(lowest[0])), draws[~np.isnan(draws)])
    coefficients = (c0[0] - c1[0] * centre + c2[0] * centre**2, c1[0] - 2 * c2[0] * centre, c2[0])
    return Parabola(tuple(map(float, coefficients)), best, draws)  # type: ignore[arg-type]


def exponent(budgets: Array, values: Array, draws: Array) -> Interval:
    """The exponent of a quantity in the budget: of its values [C] and of their draws [C, R]."""
    z = np.log(budgets) - np.log(budgets).mean()
    usable = ~np.isnan(draws).any(0)
    value, drawn = ((z @ np.log(each)) / (z @ z) for each in (values, draws[:, usable]))
    return interval(float(value), drawn)


class JointLaw(NamedTuple):
    """L = E + A (N_once + r^phi N_rec)^-a + B D^-b (arXiv 2604.21106); B is 0 where all runs have one D."""

    E: float
    A: float
    B: float
    a: float
    b: float
    phi: Interval

    @property
    def undetermined(self) -> str:
        """Why the runs do not determine phi; empty if they do."""
        if self.A == 0:
            return "the loss does not depend on the effective parameters"
        return "the interval reaches the end of the range of the fit" if self.phi.is_open(PHI) else ""


def fit_joint_law(losses: Mapping[tuple[float, float, float, float], Array], resamples: int = JOINT_RESAMPLES) -> JointLaw:
    """The law with the least squares of relative errors; E, A and B not negative. A resample starts at the fit.

    `losses` [n_i] are those of the seeds of each (weights outside the recursion, weights inside, its passes, samples).
    """
    once, recurrent, passes, samples = np.array(list(zip(*losses, strict=True)), dtype=np.float64)
    found = Points(np.arange(len(losses), dtype=np.float64), list(losses.values()))
    several = len(set(samples)) > 1
    n0, d0 = math.exp(np.log(once + recurrent).mean()), math.exp(np.log(samples).mean())

    def solved(p: Array, y: Array) -> tuple[Array, Array]:
        effective = (once + passes ** p[0] * recurrent) / n0
        columns = [np.ones_like(y), effective ** -p[1], *([(samples / d0) ** -p[2]] if several else [])]
        basis = np.stack(columns, axis=1) / y[:, None]
        coefficients, _ = optimize.nnls(basis, np.ones_like(y))
        return coefficients, basis @ coefficients - 1

    def fitted(y: Array, starts: Sequence[tuple[float, ...]]) -> Array:
        bounds = np.array([PHI, EXPONENTS, EXPONENTS][: 3 if several else 2]).T
        ends = [optimize.least_squares(lambda p: solved(p, y)[1], start, bounds=bounds) for start in starts]
        return np.asarray(min(ends, key=lambda end: end.cost).x)

    grid = itertools.product((0.2, 0.6, 1.0), (0.2, 0.8), *([(0.2, 0.8)] if several else []))
    means, *drawn = resampled(found, resamples)
    best = fitted(means, list(grid))
    phis = np.array([fitted(y, [tuple(best.clip(-0.99, 2.99))])[0] for y in drawn])
    (E, A, *B), _ = solved(best, means)
    b = float(best[2]) if several else 0.0
    return JointLaw(
        float(E), float(A) * n0 ** best[1], float(B[0]) * d0**b if several else 0.0, float(best[1]), b, interval(best[0], phis)
    )
