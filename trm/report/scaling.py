"""How runs scale: what varies between them, the laws that are fitted over it, and what the laws predict (trm.report --scaling).

Runs that differ in one thing alone, and in seeds, are a series: parameters, training FLOPs, training puzzles, passes of the network
(by T or by n), or supervision steps; and of the ways that trm.evaluate asked runs in, supervision steps, votes or rollouts. Each
series has its laws, or the reason why it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trm.errors import UserError
from trm.report import laws
from trm.report.frontier import asked
from trm.report.labels import differing_keys
from trm.report.runs import DIGESTS, Run
from trm.report.variants import Comparison

TRAIN, TEST = DIGESTS
WIDTH = ("model.hidden_size", "model.num_heads", "model.puzzle_emb_ndim", "model.puzzle_emb_len", "model.num_layers")
RATE = "optimizer.lr"
LENGTH = ("train.max_flops", "train.max_steps", "train.epochs")
LEAST_SIZES, LEAST_SEEDS, LEAST_BUDGETS = 4, 2, 3
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Axis:
    """Something that runs may be compared over: its name, the settings that make it vary, and its value for a run."""

    name: str
    keys: tuple[str, ...]
    value: Callable[[Run], float | None]


def _passes(run: Run) -> float | None:
    T, n = (run.settings.get(key) for key in ("recursion.T", "recursion.n"))
    return float(T * (n + 1)) if T and n else None


AXES = (
    Axis("parameters", WIDTH, lambda run: run.parameters),
    # runs of one budget are of one size: what they spent differs by less than a step's FLOPs
    Axis("training FLOPs", LENGTH, lambda run: run.settings.get("train.max_flops") or run.training_flops),
    Axis("training puzzles", ("data.num_puzzles", TRAIN), lambda run: run.settings.get("data.num_puzzles")),
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
class Measured:
    """A completed run with what is fitted."""

    run: Run
    loss: float
    accuracy: float
    samples: float
    recurrent: float | None  # weights of the blocks; None of runs that do not say it


@dataclass(frozen=True)
class Fit:
    """One law of one series."""

    measure: str  # "loss" or "exact accuracy"
    points: laws.Points
    law: laws.Law | None  # None: `refused` says why
    prediction: laws.Prediction | None = None
    refused: str = ""


@dataclass(frozen=True)
class Series:
    """Sizes of one axis, all else alike."""

    axis: str
    where: str  # what is held, of what varies elsewhere
    fits: tuple[Fit, ...]


@dataclass(frozen=True)
class EqualCompute:
    """Parabolas over the parameters at equal training FLOPs, and how the best size and its samples grow with the budget."""

    where: str
    parabolas: dict[float, tuple[laws.Points, laws.Parabola]]  # by budget
    best_parameters: laws.Interval | None  # exponents; None where fewer than three budgets have a best size inside
    best_samples: laws.Interval | None


@dataclass(frozen=True)
class Scaling:
    """All that --scaling tells."""

    series: list[Series]
    equal_compute: list[EqualCompute]
    joint: dict[tuple[str, str], laws.JointLaw]  # by what made the passes, and what is held
    rates: dict[str, tuple[laws.Points, laws.Parabola]]  # learning rates of runs that differ in these alone, by what is held
    refusals: list[str]
    warnings: list[str] = field(default_factory=list)


def study(comparison: Comparison) -> Scaling:
    """Fit what can be fitted. Raises UserError, in one line, where that is nothing."""
    runs, refusals = _measured(comparison)
    keys = [key for key in differing_keys([each.run for each in runs]) if key != TEST]
    series = [one for axis in AXES for one in _series(axis, runs, keys, refusals)]
    at_test_time = _at_test_time(comparison, refusals)
    series += at_test_time
    rates = _rates(runs, keys, refusals)
    if not (series or rates):
        raise UserError(f"nothing to fit: {'; '.join(refusals) or 'no setting that has a law varies between these runs'}")
    warnings = [
        f"{one.axis}{_at(one.where)}: exact accuracy is at its ceiling ({max(fit.points.means):.1%}): sizes are hardly told apart"
        for one in series
        for fit in one.fits
        if fit.measure == "exact accuracy" and max(fit.points.means) >= laws.CEILING
    ]
    jobs = len(comparison.runs)
    if missing := jobs - len(runs):
        warnings.append(f"{missing} of {jobs} jobs are not counted: python -m trm.report without --scaling says why")
    if at_test_time:
        warnings.append("FLOPs a puzzle: the same runs answer at every size, and the intervals take these answers as independent")
    return Scaling(series, _equal_compute(runs, keys, refusals), _joint(runs, keys, refusals), rates, refusals, warnings)


def _at_test_time(comparison: Comparison, refusals: list[str]) -> list[Series]:
    """The series of what trm.evaluate asked trained runs for; a line that does not count is among the refusals."""
    lines, left_out = asked(comparison)
    refusals += [f"{line}: {reason}" for line, reason in left_out]
    refusals += [f"{run.name}: a way of inference has no held-out loss" for run, line in lines if "lm_loss" not in line]
    ways = [Measured(run, line["lm_loss"], line["exact_accuracy"], 0.0, None) for run, line in lines if "lm_loss" in line]
    keys = [key for key in differing_keys([each.run for each in ways]) if key != TEST]
    return [one for axis in AT_TEST_TIME for one in _series(axis, ways, keys, refusals)]


def _at(where: str) -> str:
    return f" ({where})" if where else ""


def _measured(comparison: Comparison) -> tuple[list[Measured], list[str]]:
    """The counted runs with a held-out loss whose budget was reached, and why the others are none."""
    found, refusals = [], []
    for run in (run for variant in comparison.variants for run in variant.counted):
        budget = run.settings.get("train.max_flops")
        if run.loss is None or run.loss <= 0 or run.exact_accuracy is None:
            refusals.append(f"{run.name}: its summary has no held-out loss")
        elif budget and (run.training_flops or 0) < budget:
            refusals.append(f"{run.name}: its budget of {budget:g} training FLOPs was not reached")
        else:
            samples = float((run.steps or 0) * run.settings["train.global_batch_size"])
            found.append(Measured(run, run.loss, run.exact_accuracy, samples, run.recurrent_parameters))
    tests = {each.run.settings.get(TEST) for each in found}
    if len(tests) > 1:
        raise UserError(f"runs of {len(tests)} different sets of test puzzles have no common law: give those of one dataset")
    if not found:
        raise UserError(f"nothing to fit: {'; '.join(refusals[:3]) or 'no completed runs'}")
    return found, refusals


def _split(runs: Sequence[Measured], keys: Sequence[str]) -> dict[str, list[Measured]]:
    """Runs that agree in these settings, by words for them."""
    found: dict[str, list[Measured]] = {}
    for each in runs:
        values = [(key.rpartition(".")[2], each.run.settings.get(key)) for key in keys if key not in DIGESTS]
        words = (f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values)
        found.setdefault(", ".join(words), []).append(each)
    return found


def _series(axis: Axis, runs: Sequence[Measured], keys: Sequence[str], refusals: list[str]) -> list[Series]:
    """The series of an axis; what has too few sizes or seeds is refused."""
    found: list[Series] = []
    if not set(axis.keys) & set(keys):
        return found
    held = [key for key in keys if key not in axis.keys]
    for where, members in _split(runs, held).items():
        sizes: dict[float, list[Measured]] = {}
        for each in members:
            if (value := axis.value(each.run)) is not None:
                sizes.setdefault(float(value), []).append(each)
        single = [size for size, of_size in sizes.items() if len(of_size) < LEAST_SEEDS]
        if len(sizes) == 1:
            continue
        if TRAIN in held and not _one_dataset(axis.name, where, members, refusals):
            continue
        if len(sizes) < LEAST_SIZES:
            refusals.append(f"{axis.name}{_at(where)}: {len(sizes)} sizes, and a law needs {LEAST_SIZES}")
        elif single:
            refusals.append(f"{axis.name}{_at(where)}: one seed at {single[0]:g}, and an interval needs {LEAST_SEEDS}")
        else:
            found.append(Series(axis.name, where, (_fit("loss", axis, sizes), _fit("exact accuracy", axis, sizes))))
    return found


def _one_dataset(law: str, where: str, members: Sequence[Measured], refusals: list[str]) -> bool:
    """Whether all members were trained on the same puzzles; where they were not, the law is refused."""
    alike = len({each.run.settings.get(TRAIN) for each in members}) == 1
    if not alike:
        refusals.append(f"{law}{_at(where)}: the runs have different training puzzles")
    return alike


def _fit(measure: str, axis: Axis, sizes: Mapping[float, Sequence[Measured]]) -> Fit:
    """The law of a measure, unless the sizes are not told apart from noise or it goes the wrong way."""
    shares = measure == "exact accuracy"
    values = [(size, [each.accuracy if shares else each.loss for each in members]) for size, members in sizes.items()]
    found = laws.points(values)
    if (p := laws.tells_apart(found, shares=shares)) > SIGNIFICANCE:
        return Fit(measure, found, None, refused=f"sizes are not told apart from the spread of the seeds (p = {p:.2g})")
    law: laws.Law = laws.fit_logistic(found) if shares else laws.fit_power_law(found)
    if isinstance(law, laws.PowerLaw) and law.A == 0:
        return Fit(measure, found, None, refused=f"the loss does not fall with {axis.name}")
    return Fit(measure, found, law, laws.predict_last(found, shares=shares))


# -------------------------------------------------------------------------------------------------------------- equal compute


def _equal_compute(runs: Sequence[Measured], keys: Sequence[str], refusals: list[str]) -> list[EqualCompute]:
    """Where several budgets have several widths each."""
    if "train.max_flops" not in keys or not set(WIDTH) & set(keys):
        return []
    found = []
    held = [key for key in keys if key not in (*WIDTH, *LENGTH)]
    for where, members in _split(runs, held).items():
        parabolas, samples = dict[float, tuple[laws.Points, laws.Parabola]](), dict[float, laws.Array]()
        for budget in sorted({each.run.settings["train.max_flops"] for each in members if each.run.settings["train.max_flops"]}):
            sizes: dict[float, list[Measured]] = {}
            for each in members:
                if each.run.settings["train.max_flops"] == budget and each.run.parameters:
                    sizes.setdefault(float(each.run.parameters), []).append(each)
            if len(sizes) >= LEAST_SIZES and all(len(of_size) >= LEAST_SEEDS for of_size in sizes.values()):
                losses = laws.points([(size, [each.loss for each in of_size]) for size, of_size in sizes.items()])
                parabolas[float(budget)] = losses, laws.fit_parabola(losses, seed=len(parabolas))
                samples[float(budget)] = np.array([sizes[size][0].samples for size in losses.x])
        if parabolas and _one_dataset("parameters at equal training FLOPs", where, members, refusals):
            found.append(EqualCompute(where, parabolas, *_exponents(parabolas, samples)))
    return found


def _exponents(
    parabolas: Mapping[float, tuple[laws.Points, laws.Parabola]], samples: Mapping[float, laws.Array]
) -> tuple[laws.Interval | None, laws.Interval | None]:
    """Exponents of the best number of parameters and of its samples in the budget."""
    inside = {
        budget: (found.x, parabola.best.value, parabola.draws) for budget, (found, parabola) in parabolas.items() if parabola.best
    }
    if len(inside) < LEAST_BUDGETS:
        return None, None
    budgets, best = np.array(list(inside)), np.array([value for _, value, _ in inside.values()])
    draws = np.stack([of_budget for *_, of_budget in inside.values()])
    seen = np.stack(  # samples of the best size and of its draws, between those of the measured sizes
        [
            np.exp(np.interp(np.log([value, *of_budget]), np.log(sizes), np.log(samples[budget])))
            for budget, (sizes, value, of_budget) in inside.items()
        ]
    )
    return laws.exponent(budgets, best, draws), laws.exponent(budgets, seen[:, 0], seen[:, 1:])


def _rates(runs: Sequence[Measured], keys: Sequence[str], refusals: list[str]) -> dict[str, tuple[laws.Points, laws.Parabola]]:
    """Parabolas over the learning rate, where four of them or more are compared."""
    found = {}
    for where, members in _split(runs, [key for key in keys if key != RATE]).items() if RATE in keys else ():
        rates: dict[float, list[float]] = {}
        for each in members:
            rates.setdefault(float(each.run.settings[RATE]), []).append(each.loss)
        enough = len(rates) >= LEAST_SIZES and all(len(losses) >= LEAST_SEEDS for losses in rates.values())
        if enough and _one_dataset("learning rate", where, members, refusals):
            losses = laws.points(list(rates.items()))
            found[where] = losses, laws.fit_parabola(losses)
    return found


# ----------------------------------------------------------------------------------------------------- what a recursion is worth


def _joint(runs: Sequence[Measured], keys: Sequence[str], refusals: list[str]) -> dict[tuple[str, str], laws.JointLaw]:
    """The joint law over widths and passes, once for T and once for n, where there are three of each."""
    found = {}
    for name in ("T", "n"):
        held = [key for key in keys if key not in (*WIDTH, *LENGTH, f"recursion.{name}")]
        for where, members in _split(runs, held).items():
            by_size: dict[tuple[float, float, float, float], list[Measured]] = {}
            for each in members:
                if each.recurrent and each.run.parameters and (passes := _passes(each.run)):
                    once = each.run.parameters - each.recurrent
                    by_size.setdefault((once, each.recurrent, passes, each.samples), []).append(each)
            widths, depths = ({size[i] for size in by_size} for i in (1, 2))
            seeds = all(len(of_size) >= LEAST_SEEDS for of_size in by_size.values())
            enough = len(widths) >= 2 and len(depths) >= 3 and len(by_size) >= 6 and seeds
            if enough and _one_dataset(f"passes by {name} and parameters", where, members, refusals):
                losses = {size: np.array([each.loss for each in by_size[size]]) for size in sorted(by_size)}
                found[name, where] = laws.fit_joint_law(losses)
    return found
