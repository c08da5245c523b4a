"""How runs scale: what varies between them, the laws that are fitted over it, and what the laws predict (trm.report --scaling).

Runs that differ in one thing alone, and in seeds, are a series: parameters, training FLOPs, training puzzles, passes of the network
(by T or by n), or supervision steps. The ways that trm.evaluate asked runs in make series too: of supervision steps, votes or
rollouts; there the same runs answer at all sizes. Each series has its laws, or the reason why it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from trm.errors import UserError
from trm.report import laws
from trm.report.frontier import asked
from trm.report.labels import differing_keys, distinct, grouped
from trm.report.runs import DIGESTS, Run
from trm.report.variants import Comparison

TRAIN, TEST = DIGESTS
WIDTH = ("model.hidden_size", "model.num_heads", "model.puzzle_emb_ndim", "model.puzzle_emb_len", "model.num_layers")
RATE, BUDGET = "optimizer.lr", "train.max_flops"
LENGTH = (BUDGET, "train.max_steps", "train.epochs")
LEAST_SIZES, LEAST_SEEDS, LEAST_BUDGETS = 4, 2, 3
SIGNIFICANCE, UNEVEN = 0.05, 0.01
JOINT_PARAMETERS = 4  # E, A, a and phi; B and b come with several numbers of samples


class Axis(NamedTuple):
    """Something that runs may be compared over: its name, the settings that make it vary (any or all of them), a run's value."""

    name: str
    keys: tuple[str, ...]
    value: Callable[[Run], float | None]
    varies: Callable[[Iterable[bool]], bool] = any


def _passes(run: Run) -> float | None:
    T, n, variant = (run.settings.get(f"recursion.{key}") for key in ("T", "n", "variant"))
    return float(T * (n if variant == "single_state" else n + 1)) if T and n else None


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
    refusals += [f"{way.name}: a way of inference has no held-out loss: evaluate it again" for way in ways if not _has_loss(way)]
    ways = [way for way in ways if _has_loss(way)]
    fits += [fit for axis in AT_TEST_TIME for fit in _fits(axis, ways, _differing(ways), refusals, paired=True)]
    rates: Parabolas = {}
    for where, sizes in _series(Axis("learning rate", (RATE,), lambda run: run.settings.get(RATE)), runs, keys, refusals):
        losses = _points(sizes, "loss")
        rates[where] = losses, laws.fit_parabola(losses)
    joint, equal_compute = _joint(runs, keys, refusals), _equal_compute(runs, keys, refusals)
    if not (fits or rates or joint):
        raise UserError(f"nothing to fit: {'; '.join(refusals) or 'no setting that has a law varies between these runs'}")
    warnings = [
        f"{_place(fit.axis, fit.where)}: exact accuracy is at its ceiling ({highest:.1%}): sizes hardly differ"
        for fit in fits
        if fit.shares and (highest := max(fit.points.means)) >= laws.CEILING
    ]
    for fit in fits:
        p, ratio = laws.uneven(fit.points, shares=fit.shares)
        if fit.law and p < UNEVEN:
            warnings.append(
                f"{_place(fit.axis, fit.where)}: the spread of the seeds' {fit.measure} differs between sizes by a factor of up to "
                f"{ratio:.0f} (p = {p:.2g}), and the intervals take it as one"
            )
    jobs = len(comparison.runs)
    if missing := jobs - len(comparison.counted):
        warnings.append(f"{missing} of {jobs} jobs are not counted: python -m trm.report without --scaling says why")
    return Scaling(fits, equal_compute, joint, rates, refusals, warnings)


def _place(axis: str, where: str) -> str:
    return f"{axis} ({where})" if where else axis


def _has_loss(run: Run) -> bool:
    return run.loss is not None and run.loss > 0


def _measured(comparison: Comparison) -> tuple[list[Run], list[str]]:
    """The counted runs with a held-out loss whose budget was reached, and why the others are left out."""
    found, refusals = [], []
    for run in comparison.counted:
        budget = run.settings.get(BUDGET)
        if not _has_loss(run) or run.exact_accuracy is None:
            refusals.append(f"{run.name}: its summary has no held-out loss: train it again")
        elif budget and (run.training_flops or 0) < budget:
            refusals.append(f"{run.name}: its budget of {budget:g} training FLOPs was not reached: run it again with this budget")
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


def _points(sizes: Mapping[float, Sequence[Run]], quantity: str, *, paired: bool = False) -> laws.Points:
    return laws.points([(size, list(map(attrgetter(quantity), of_size))) for size, of_size in sizes.items()], paired=paired)


def _samples(run: Run) -> float:
    """Rows of all training steps."""
    return float((run.steps or 0) * run.settings["train.global_batch_size"])


def _sizes(
    place: str, keys: Sequence[str], runs: Sequence[Run], value: Callable[[Run], Any], refusals: list[str]
) -> dict[Any, list[Run]]:
    """Runs by their mean size, those of one size alike in these settings; none, and refused, where others have the same size."""
    found: dict[Any, list[Run]] = {}
    for alike in grouped([run for run in runs if value(run) is not None], keys):
        mean = np.mean([value(run) for run in alike], axis=0)
        size = tuple(mean.tolist()) if mean.ndim else float(mean)
        if size in found:
            told = [key for key in keys if len(distinct(run.settings.get(key) for run in (alike[0], found[size][0]))) > 1]
            refusals.append(
                f"{place}: {found[size][0].name} and {alike[0].name} differ in {', '.join(told)} and have one size: leave one out"
            )
            return {}
        found[size] = alike
    return found


def _series(
    axis: Axis, runs: Sequence[Run], keys: Sequence[str], refusals: list[str]
) -> Iterator[tuple[str, dict[float, list[Run]]]]:
    """What is held and the runs by size, for each series along an axis; what has too few sizes or seeds is refused."""
    if not axis.varies(key in keys for key in axis.keys):
        return
    held = [key for key in keys if key not in axis.keys]
    split, varied = _split(runs, held), False
    for where, members in split.items():
        place = _place(axis.name, where)
        sizes = _sizes(place, axis.keys, members, axis.value, refusals)
        single = [size for size, of_size in sizes.items() if len(of_size) < LEAST_SEEDS]
        varied |= len(sizes) != 1
        if len(sizes) < 2:
            continue
        if TRAIN in held and not _one_dataset(axis.name, where, members, refusals):
            continue
        if len(sizes) < LEAST_SIZES:
            refusals.append(f"{place}: {len(sizes)} sizes, and a law needs {LEAST_SIZES}")
        elif single:
            refusals.append(f"{place}: one seed at {single[0]:g}, and an interval needs {LEAST_SEEDS}")
        else:
            yield where, sizes
    if not varied and len({axis.value(run) for run in runs} - {None}) > 1:
        refusals.append(f"{axis.name}: each size differs in {', '.join(held)} too: give runs that differ in {axis.name} alone")


def _fits(axis: Axis, runs: Sequence[Run], keys: Sequence[str], refusals: list[str], *, paired: bool = False) -> list[Fit]:
    """The fits of an axis; with `paired` each run has to be there at all sizes."""
    found: list[Fit] = []
    for where, sizes in _series(axis, runs, keys, refusals):
        place = _place(axis.name, where)
        if paired:
            sizes = {size: sorted(of_size, key=attrgetter("name")) for size, of_size in sizes.items()}
            if len({tuple(run.name for run in of_size) for of_size in sizes.values()}) > 1:
                refusals.append(f"{place}: not every run was asked once at each size: evaluate all runs in the same ways")
                continue
        for measure, quantity in (("loss", "loss"), ("exact accuracy", "exact_accuracy")):
            fit = _fitted(Fit(axis.name, where, measure, _points(sizes, quantity, paired=paired)))
            found.append(fit)
            if fit.law and not fit.predicted:
                refusals.append(f"{place}: all sizes but the largest solve no puzzle or every one, which predicts nothing")
    return found


def _one_dataset(law: str, where: str, members: Sequence[Run], refusals: list[str]) -> bool:
    """Whether all members were trained on the same puzzles; otherwise the law is refused."""
    alike = len({run.settings.get(TRAIN) for run in members}) == 1
    if not alike:
        refusals.append(f"{_place(law, where)}: the runs have different training puzzles: give those of one dataset")
    return alike


def _fitted(fit: Fit) -> Fit:
    """The fit with its law, unless the sizes may differ by noise alone or the law goes the wrong way."""
    if (p := laws.tells_apart(fit.points, shares=fit.shares)) > SIGNIFICANCE:
        return replace(fit, refused=f"sizes are not told apart from the spread of the seeds (p = {p:.2g})")
    law: laws.Law = laws.fit_logistic(fit.points) if fit.shares else laws.fit_power_law(fit.points)
    if isinstance(law, laws.PowerLaw) and law.A[0] == 0:
        return replace(fit, refused=f"the loss does not fall with {fit.axis}")
    if fit.shares and all(mean in (0, 1) for mean in fit.points.means[:-1]):
        return replace(fit, law=law)
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
            sizes = _sizes("", WIDTH, of_budget, lambda run: run.parameters, [])  # the axis of parameters says what is refused
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
        own = (*WIDTH, *LENGTH, f"recursion.{name}")
        law = f"passes by {name} and parameters"
        for where, members in _split(runs, [key for key in keys if key not in own]).items():
            place = _place(law, where)
            sizes = _sizes(place, own, members, size, refusals)
            widths, depths, samples = (len({each[i] for each in sizes}) for i in (1, 2, 3))
            if widths < 2 or depths < 2:
                continue
            least = JOINT_PARAMETERS + (2 if samples > 1 else 0) + 1
            if depths < 3 or len(sizes) < least or any(len(of_size) < LEAST_SEEDS for of_size in sizes.values()):
                refusals.append(
                    f"{place}: {len(sizes)} sizes of {widths} widths and {depths} depths: the law needs {least} of 2 and 3, and "
                    f"{LEAST_SEEDS} seeds of each"
                )
            elif _one_dataset(law, where, members, refusals):
                losses = {each: np.array([run.loss for run in of_size]) for each, of_size in sorted(sizes.items())}
                found[name, where] = laws.fit_joint_law(losses)
    return found
