"""How runs scale: what varies between them, the laws that are fitted over it, and what the laws predict (trm.report --scaling).

Runs that differ in one thing alone, and in seeds, are a series: parameters, training FLOPs, training puzzles, passes of the network
(by T or by n), or supervision steps. The ways that trm.evaluate asked runs in make series too: of supervision steps, votes or
rollouts. Each series has its laws, or the reason why it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from trm.errors import UserError
from trm.report import laws
from trm.report.frontier import asked
from trm.report.labels import differing_keys
from trm.report.runs import DIGESTS, Run
from trm.report.variants import Comparison

TRAIN, TEST = DIGESTS
WIDTH = ("model.hidden_size", "model.num_heads", "model.puzzle_emb_ndim", "model.puzzle_emb_len", "model.num_layers")
RATE, BUDGET = "optimizer.lr", "train.max_flops"
LENGTH = (BUDGET, "train.max_steps", "train.epochs")
LEAST_SIZES, LEAST_SEEDS, LEAST_BUDGETS = 4, 2, 3
SIGNIFICANCE = 0.05


class Axis(NamedTuple):
    """Something that runs may be compared over: its name, the settings that make it vary (any or all of them), a run's value."""

    name: str
    keys: tuple[str, ...]
    value: Callable[[Run], float | None]
    varies: Callable[[Iterable[bool]], bool] = any


def _passes(run: Run) -> float | None:
    T, n = (run.settings.get(key) for key in ("recursion.T", "recursion.n"))
    return float(T * (n + 1)) if T and n else None


AXES = (
    Axis("parameters", WIDTH, lambda run: run.parameters),
    # runs of one budget are of one size: what they spent differs by less than a step's FLOPs
    Axis("training FLOPs", LENGTH, lambda run: run.settings.get(BUDGET) or run.training_flops),
    Axis("training puzzles", ("data.num_puzzles", TRAIN), lambda run: run.settings.get("data.num_puzzles")),
    Axis("passes by T and n", ("recursion.T", "recursion.n"), _passes, varies=all),
    Axis("passes by T", ("recursion.T",), _passes),
    Axis("passes by n", ("recursion.n",), _passes),
    Axis("supervision steps", ("recursion.n_sup",), lambda run: run.settings.get("recursion.n_sup")),
)
# of a trained run, by what its ways of inference differ in
AT_TEST_TIME = tuple(
    Axis(f"FLOPs a puzzle by {words}", (f"inference.{key}",), lambda run: run.flops_per_puzzle)
    for words, key in (("supervision steps", "supervision_steps"), ("votes", "copies"), ("rollouts", "rollouts"))
)


@dataclass(frozen=True)
class Fit:
    """One law over the sizes of one axis, all else alike."""

    axis: str
    where: str  # what is held, of what varies elsewhere
    measure: str  # "loss" or "exact accuracy"
    points: laws.Points
    law: laws.Law | None = None  # None: `refused` says why
    smaller: laws.Law | None = None  # the law of all sizes but the largest
    predicted: laws.Interval | None = None  # what it says of the largest
    refused: str = ""

    @property
    def shares(self) -> bool:
        """Whether the values are shares of 1."""
        return self.measure == "exact accuracy"


Parabolas = dict[Any, tuple[laws.Points, laws.Parabola]]


class EqualCompute(NamedTuple):
    """Parabolas over the parameters at equal training FLOPs, and how the best size and its samples grow with the budget."""

    where: str
    parabolas: Parabolas  # by budget
    best_parameters: laws.Interval | None  # exponents; None where fewer than three budgets have a best size inside
    best_samples: laws.Interval | None


class Scaling(NamedTuple):
    """All that --scaling tells."""

    fits: list[Fit]  # two for each series: loss and exact accuracy
    equal_compute: list[EqualCompute]
    joint: dict[tuple[str, str], laws.JointLaw]  # by what made the passes, and what is held
    rates: Parabolas  # over learning rates, of runs that differ in these alone, by what is held
    refusals: list[str]
    warnings: list[str]


def study(comparison: Comparison) -> Scaling:
    """Fit what can be fitted. Raises UserError, in one line, where that is nothing."""
    runs, refusals = _measured(comparison)
    keys = _differing(runs)
    fits = [fit for axis in AXES for fit in _fits(axis, runs, keys, refusals)]
    ways, left_out = asked(comparison)
    refusals += [f"{line}: {reason}" for line, reason in left_out]
    refusals += [f"{way.name}: a way of inference has no held-out loss" for way in ways if way.loss is None]
    ways = [way for way in ways if way.loss is not None]
    at_test_time = [fit for axis in AT_TEST_TIME for fit in _fits(axis, ways, _differing(ways), refusals)]
    fits += at_test_time
    rates: Parabolas = {}
    for where, members in _split(runs, [key for key in keys if key != RATE]).items() if RATE in keys else ():
        found = _grouped(members, lambda run: float(run.settings[RATE]))
        if _enough(found) and _one_dataset("learning rate", where, members, refusals):
            losses = _points(found, "loss")
            rates[where] = losses, laws.fit_parabola(losses)
    if not (fits or rates):
        raise UserError(f"nothing to fit: {'; '.join(refusals) or 'no setting that has a law varies between these runs'}")
    warnings = [
        f"{_place(fit.axis, fit.where)}: exact accuracy is at its ceiling ({highest:.1%}): sizes hardly differ"
        for fit in fits
        if fit.shares and (highest := max(fit.points.means)) >= laws.CEILING
    ]
    jobs = len(comparison.runs)
    if missing := jobs - len(runs):
        warnings.append(f"{missing} of {jobs} jobs are not counted: python -m trm.report without --scaling says why")
    if at_test_time:
        warnings.append("FLOPs a puzzle: the same runs answer at every size, and the intervals take these answers as independent")
    return Scaling(fits, _equal_compute(runs, keys, refusals), _joint(runs, keys, refusals), rates, refusals, warnings)


def _place(axis: str, where: str) -> str:
    return f"{axis} ({where})" if where else axis


def _measured(comparison: Comparison) -> tuple[list[Run], list[str]]:
    """The counted runs with a held-out loss whose budget was reached, and why the others are left out."""
    found, refusals = [], []
    for run in comparison.counted:
        budget = run.settings.get(BUDGET)
        if run.loss is None or run.loss <= 0 or run.exact_accuracy is None:
            refusals.append(f"{run.name}: its summary has no held-out loss")
        elif budget and (run.training_flops or 0) < budget:
            refusals.append(f"{run.name}: its budget of {budget:g} training FLOPs was not reached")
        else:
            found.append(run)
    tests = {run.settings.get(TEST) for run in found}
    if len(tests) > 1:
        raise UserError(f"runs of {len(tests)} different sets of test puzzles have no common law: give those of one dataset")
    if not found:
        raise UserError(f"nothing to fit: {'; '.join(refusals[:3]) or 'no completed runs'}")
    return found, refusals


def _differing(runs: list[Run]) -> list[str]:
    return [key for key in differing_keys(runs) if key != TEST]


def _grouped(runs: Iterable[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    """Runs by this key, without those that have none."""
    found: dict[Any, list[Run]] = {}
    for run in runs:
        if (value := key(run)) is not None:
            found.setdefault(value, []).append(run)
    return found


def _split(runs: Iterable[Run], keys: Sequence[str]) -> dict[str, list[Run]]:
    """Runs that agree in these settings, by words for them."""

    def words(run: Run) -> str:
        values = [(key.rpartition(".")[2], run.settings.get(key)) for key in keys if key not in DIGESTS]
        return ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values)

    return _grouped(runs, words)


def _enough(sizes: Mapping[float, Sequence[Run]]) -> bool:
    return len(sizes) >= LEAST_SIZES and all(len(of_size) >= LEAST_SEEDS for of_size in sizes.values())


def _points(sizes: Mapping[float, Sequence[Run]], quantity: str) -> laws.Points:
    return laws.points([(size, list(map(attrgetter(quantity), of_size))) for size, of_size in sizes.items()])


def _samples(run: Run) -> float:
    """Rows of all training steps."""
    return float((run.steps or 0) * run.settings["train.global_batch_size"])


def _fits(axis: Axis, runs: Sequence[Run], keys: Sequence[str], refusals: list[str]) -> list[Fit]:
    """The fits of an axis; what has too few sizes or seeds is refused."""
    found: list[Fit] = []
    if not axis.varies(key in keys for key in axis.keys):
        return found
    held = [key for key in keys if key not in axis.keys]
    for where, members in _split(runs, held).items():
        sizes = _grouped(members, lambda run: None if (value := axis.value(run)) is None else float(value))
        single = [size for size, of_size in sizes.items() if len(of_size) < LEAST_SEEDS]
        place = _place(axis.name, where)
        if len(sizes) == 1:
            continue
        if TRAIN in held and not _one_dataset(axis.name, where, members, refusals):
            continue
        if len(sizes) < LEAST_SIZES:
            refusals.append(f"{place}: {len(sizes)} sizes, and a law needs {LEAST_SIZES}")
        elif single:
            refusals.append(f"{place}: one seed at {single[0]:g}, and an interval needs {LEAST_SEEDS}")
        else:
            found.append(_fitted(Fit(axis.name, where, "loss", _points(sizes, "loss"))))
            found.append(_fitted(Fit(axis.name, where, "exact accuracy", _points(sizes, "exact_accuracy"))))
    return found


def _one_dataset(law: str, where: str, members: Sequence[Run], refusals: list[str]) -> bool:
    """Whether all members were trained on the same puzzles; otherwise the law is refused."""
    alike = len({run.settings.get(TRAIN) for run in members}) == 1
    if not alike:
        refusals.append(f"{_place(law, where)}: the runs have different training puzzles")
    return alike


def _fitted(fit: Fit) -> Fit:
    """The fit with its law, unless the sizes may differ by noise alone or the law goes the wrong way."""
    if (p := laws.tells_apart(fit.points, shares=fit.shares)) > SIGNIFICANCE:
        return replace(fit, refused=f"sizes are not told apart from the spread of the seeds (p = {p:.2g})")
    law: laws.Law = laws.fit_logistic(fit.points) if fit.shares else laws.fit_power_law(fit.points)
    if isinstance(law, laws.PowerLaw) and law.A[0] == 0:
        return replace(fit, refused=f"the loss does not fall with {fit.axis}")
    smaller, predicted = laws.predict_last(fit.points, shares=fit.shares)
    return replace(fit, law=law, smaller=smaller, predicted=predicted)


def _equal_compute(runs: Sequence[Run], keys: Sequence[str], refusals: list[str]) -> list[EqualCompute]:
    """Where several budgets have several widths each: their parabolas, and the exponents where enough have a best size inside."""
    if BUDGET not in keys or not set(WIDTH) & set(keys):
        return []
    found = []
    for where, members in _split(runs, [key for key in keys if key not in (*WIDTH, *LENGTH)]).items():
        parabolas: Parabolas = {}
        inside: dict[float, tuple[laws.Array, laws.Array]] = {}  # the best size and its draws, and the samples of each of these
        for budget, of_budget in sorted(_grouped(members, lambda run: run.settings[BUDGET] or None).items()):
            sizes = _grouped(of_budget, lambda run: float(run.parameters) if run.parameters else None)
            if not _enough(sizes):
                continue
            losses = _points(sizes, "loss")
            parabola = laws.fit_parabola(losses, seed=len(parabolas))
            parabolas[float(budget)] = losses, parabola
            if parabola.best:
                best = np.array([parabola.best.value, *parabola.draws])
                samples = np.log([_samples(sizes[size][0]) for size in losses.x])
                inside[float(budget)] = best, np.exp(np.interp(np.log(best), np.log(losses.x), samples))
        if parabolas and _one_dataset("parameters at equal training FLOPs", where, members, refusals):
            exponents: list[laws.Interval | None] = [None, None]
            if len(inside) >= LEAST_BUDGETS:
                each = (np.stack(values) for values in zip(*inside.values(), strict=True))
                exponents = [laws.exponent(np.array(list(inside)), rows[:, 0], rows[:, 1:]) for rows in each]
            found.append(EqualCompute(where, parabolas, *exponents))
    return found


def _joint(runs: Sequence[Run], keys: Sequence[str], refusals: list[str]) -> dict[tuple[str, str], laws.JointLaw]:
    """The joint law over widths and passes, once for T and once for n, where there are three of each."""

    def size(run: Run) -> tuple[float, float, float, float] | None:
        passes = _passes(run)
        if not (run.recurrent_parameters and run.parameters and passes):
            return None
        return run.parameters - run.recurrent_parameters, run.recurrent_parameters, passes, _samples(run)

    found = {}
    for name in ("T", "n"):
        held = [key for key in keys if key not in (*WIDTH, *LENGTH, f"recursion.{name}")]
        for where, members in _split(runs, held).items():
            sizes = _grouped(members, size)
            widths, depths = ({each[i] for each in sizes} for i in (1, 2))
            seeds = all(len(of_size) >= LEAST_SEEDS for of_size in sizes.values())
            enough = len(widths) >= 2 and len(depths) >= 3 and len(sizes) >= 6 and seeds
            if enough and _one_dataset(f"passes by {name} and parameters", where, members, refusals):
                losses = {each: np.array([run.loss for run in of_size]) for each, of_size in sorted(sizes.items())}
                found[name, where] = laws.fit_joint_law(losses)
    return found
