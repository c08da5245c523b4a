"""Comparing: the variants that runs make, and the statistics over each variant's seeds."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from trm.config import matching
from trm.errors import ConfigError, UserError
from trm.report.comparable import facts, misfits, unlike
from trm.report.labels import (
    chosen_keys,
    differing_keys,
    distinct,
    experiment_labels,
    identity,
    is_neutral,
    labels,
    sort_key,
    units,
    value_of,
)
from trm.report.runs import DIGESTS, Run

CONFIDENCE = 0.95
MEASURED_OTHERWISE = " †"

OTHERWISE = "measured in another way than the other runs of its variant: "


@dataclass(frozen=True)
class Estimate:
    """The mean of `n` values; `half_width` of the Student-t interval around it, None where one value gives none."""

    mean: float
    half_width: float | None
    n: int


def estimate(values: Iterable[float]) -> Estimate | None:
    """Mean and 95 % interval of independent values: mean +- t(0.975, n-1) * s / sqrt(n). None without values."""
    sample = np.asarray(list(values), dtype=np.float64)
    if not sample.size:
        return None
    if sample.size == 1:
        return Estimate(float(sample[0]), None, 1)
    quantile = special.stdtrit(sample.size - 1, (1 + CONFIDENCE) / 2)  # scipy.stats takes a second to import
    return Estimate(float(sample.mean()), float(quantile * sample.std(ddof=1) / math.sqrt(sample.size)), sample.size)


def by_seed(values: Iterable[tuple[int | None, float | None]]) -> dict[int | None, float]:
    """Values by their seeds: the mean of those that share one, as runs do that --group puts together; None is no value."""
    found: dict[int | None, list[float]] = {}
    for seed, value in values:
        if value is not None:
            found.setdefault(seed, []).append(value)
    return {seed: sum(of_seed) / len(of_seed) for seed, of_seed in found.items()}


@dataclass(frozen=True)
class Variant:
    """Runs that agree in what the report compares. `counted` are completed, one for each seed; the means are over them."""

    label: str
    description: str  # the label by settings, where `label` is an experiment's name
    runs: list[Run]
    counted: list[Run]
    planned: int  # jobs, with those that left no folder or no settings
    pooled: list[str]  # settings in which the counted runs differ: not one configuration then, and its interval not over seeds
    settings: Mapping[str, list[Any]]  # of the settings that differ between the report's runs: the values here
    paper: matching.PaperMatch | None

    def by_seed(self, quantity: Callable[[Run], float | None]) -> dict[int | None, float]:
        """A quantity by seed, of the counted runs that have it."""
        return by_seed((run.seed, quantity(run)) for run in self.counted)

    @property
    def exact_accuracy(self) -> Estimate | None:
        """Final exact accuracy over the seeds."""
        return estimate(self.by_seed(lambda run: run.exact_accuracy).values())

    @property
    def best_exact_accuracy(self) -> Estimate | None:
        """Each run's best evaluation, over the seeds."""
        return estimate(self.by_seed(lambda run: run.best_exact_accuracy).values())

    @property
    def score_names(self) -> list[str]:
        """The scores of the task's own that its counted runs have."""
        return list(dict.fromkeys(name for run in self.counted for name in run.scores))

    def score(self, name: str) -> Estimate | None:
        """A score of the task's own at the final evaluation, over the seeds."""
        return estimate(self.by_seed(lambda run: run.scores.get(name)).values())

    @property
    def difference(self) -> float | None:
        """The mean less the paper's value, where the runs differ from the paper in nothing."""
        found = self.exact_accuracy
        return found.mean - self.paper.row.exact_accuracy if found and self.paper and self.paper.comparable else None

    @property
    def caveats(self) -> list[str]:
        """What changes how the accuracies may be read, in words."""
        return list(dict.fromkeys(caveat for run in self.counted for caveat in run.caveats))

    def mean(self, quantity: Callable[[Run], float | None]) -> float | None:
        """The mean of a quantity over the counted runs that have it."""
        values = [value for value in map(quantity, self.counted) if value is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """All that the report says: the variants, and the jobs that are in none of their means."""

    runs: list[Run]
    variants: list[Variant]
    not_counted: list[tuple[Run, str]]  # with the reason
    keys: list[str]  # the settings that differ between the runs, neutral ones left out
    warnings: list[str] = field(default_factory=list)
    target: float | None = None  # exact accuracy (share of 1) to which samples and seconds are told
    baseline: Variant | None = None  # from which the others' differences are told
    not_compared: Mapping[str, str] = field(default_factory=dict)  # labels of variants that were measured otherwise, and how

    def title(self, variant: Variant) -> str:
        """The variant's label, marked where its numbers may not be compared with the others'."""
        return variant.label + (MEASURED_OTHERWISE if variant.label in self.not_compared else "")


def best_runs(comparison: Comparison, file: str) -> list[tuple[Variant, Run]]:
    """Of each variant with runs that left such a file the one with the best final score (evaluate.best_by).

    It is a counted one; of a variant that has none, one that is not done.
    """
    found = ((variant, [run for run in variant.counted or variant.runs if run.has(file)]) for variant in comparison.variants)
    return [(variant, max(runs, key=lambda run: run.deciding_score)) for variant, runs in found if runs]


def check_asked(group: list[str] | None, target: float | None) -> None:
    """Raise UserError for groups that name nothing, and for a target that is no exact accuracy."""
    if group == []:
        raise UserError("--group needs config keys or groups, such as recursion,ema")
    if target is not None and not 0 < target <= 1:
        raise UserError(f"--target {target:g} is no exact accuracy: give a share above 0 and up to 1, such as 0.8")


def compare(
    runs: list[Run], group: list[str] | None = None, target: float | None = None, baseline: str | None = None
) -> Comparison:
    """Put runs into variants: by all settings that differ between them, or by the keys and config groups in `group`.

    Raises ConfigError where `group` names no setting, or `baseline` no variant.
    """
    runs, warnings = _with_known_puzzles(runs), list[str]()
    known = [run for run in runs if run.settings and run.status != "damaged"]
    differing = differing_keys(known)
    chosen = differing if group is None else chosen_keys(known, group)
    groups = _groups(known, chosen)
    descriptions = labels([members[0] for members in groups], chosen, differing, group)
    names = experiment_labels(groups) if group is None else None
    missing = _missing_per_group(runs, groups)
    variants = []
    not_counted = [(run, run.reason) for run in runs if run.status != "completed"]
    for i, members in enumerate(groups):
        label = names[i] if names else descriptions[i]
        once, repeated = _one_for_each_seed(members)
        for run, first in repeated:
            not_counted.append((run, f"the same settings and seed as {first.name}, which is counted"))
        reasons = misfits([facts(run) for run in once])
        apart = {run.name: reason for run, reason in zip(once, reasons, strict=True) if reason}
        not_counted += [(run, f"{OTHERWISE}{apart[run.name]}") for run in once if run.name in apart]
        counted = [run for run in once if run.name not in apart]
        warnings += [f'"{label}": {name} is left out, {OTHERWISE}{reason}' for name, reason in apart.items()]
        if pooled := differing_keys(counted):
            warnings.append(f'"{label}" pools runs that differ in {", ".join(pooled)}: its mean and interval mix settings')
        if repeated:
            again = ", ".join(run.name for run, _ in repeated)
            warnings.append(f'"{label}": {again} repeat a seed with the same settings and are left out, since they add no evidence')
        variants.append(
            Variant(
                label=label,
                description=descriptions[i],
                runs=members,
                counted=counted,
                planned=len(members) - len(repeated) + missing[i],
                pooled=pooled,
                settings={key: distinct(value_of(run, key) for run in members) for key in differing},
                paper=_paper(counted or members),
            )
        )
    if names:
        variants.sort(key=lambda variant: re.sub(r"\d+", lambda number: number[0].zfill(20), variant.label))  # 2 before 10
    for caveat in dict.fromkeys(caveat for variant in variants for caveat in variant.caveats):  # once, of all that share it
        labels_of = [f'"{variant.label}"' for variant in variants if caveat in variant.caveats]
        every = len(labels_of) == len(variants) > 1
        warnings.append(f"{'all variants' if every else ', '.join(labels_of)}: {caveat}")
    base = next((variant for variant in variants if baseline in (variant.label, variant.description)), None)
    if base is None and baseline is not None:
        raise ConfigError(f"--baseline {baseline}: no variant; choose one of {'; '.join(variant.label for variant in variants)}")
    not_compared = _not_compared(variants, base, race=target is not None)
    others = "the others" if base is None else f'"{base.label}"'
    warnings += [f'"{label}" may not be compared with {others}: {reason}' for label, reason in not_compared.items()]
    return Comparison(runs, variants, not_counted, differing, warnings, target, base, not_compared)


def _groups(runs: list[Run], keys: list[str]) -> list[list[Run]]:
    """The runs that agree in the keys together, by the keys' values in the order in which labels name them."""
    by_identity: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        by_identity.setdefault(identity(run, keys), []).append(run)
    order = [key for unit in units(keys) for key in unit if key in keys]
    return sorted(by_identity.values(), key=lambda members: [sort_key(value_of(members[0], key)) for key in order])


def _not_compared(variants: list[Variant], base: Variant | None, *, race: bool) -> dict[str, str]:
    """The labels of the variants that were measured otherwise than the baseline, or than most where there is none; and how."""
    told = {variant.label: facts(variant.counted[0]) for variant in variants if variant.counted}
    if base is not None and base.label in told:
        reasons = [unlike(each, told[base.label], race=race) for each in told.values()]
    else:
        reasons = misfits(list(told.values()), race=race)
    return {label: reason for label, reason in zip(told, reasons, strict=True) if reason}


def _missing_per_group(runs: list[Run], groups: list[list[Run]]) -> list[int]:
    """How many jobs of each group left no settings: missing, damaged, or dead before they began.

    Their group is told by the overrides that they share with a job of the same sweep.
    """

    def job(run: Run) -> tuple[str, tuple[str, ...]] | None:
        overrides = tuple(sorted(o for o in run.overrides if not o.startswith("seed=")))
        return (run.sweep, overrides) if run.overrides else None

    jobs = [{job(run) for run in members} - {None} for members in groups]
    placed = {id(run) for members in groups for run in members}
    counts: Counter[int] = Counter()
    for run in runs:
        homes = [i for i, known in enumerate(jobs) if job(run) in known] if id(run) not in placed else []
        if len(homes) == 1:
            counts[homes[0]] += 1
    return [counts[i] for i in range(len(groups))]


def _one_for_each_seed(members: list[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """The completed runs with each seed of the same settings once, and the repeated ones with the run that stands for them."""
    kept: dict[tuple[str, ...], Run] = {}
    repeated = []
    keys = sorted({key for run in members for key in run.settings if not is_neutral(key)})
    for run in members:
        if run.status == "completed":
            first = kept.setdefault((*identity(run, keys), str(run.seed)), run)
            if first is not run:
                repeated.append((run, first))
    return list(kept.values()), repeated


def _with_known_puzzles(runs: list[Run]) -> list[Run]:
    """The runs, those that ended before they said on which puzzles with the puzzles of the runs that have their other settings.

    Where these have several kinds of puzzles, or there are none, such a run stays as it is.
    """
    keys = sorted({key for run in runs for key in run.settings if not is_neutral(key) and key not in DIGESTS})
    puzzles: dict[tuple[str, ...], set[tuple[Any, ...]]] = {}
    for run in runs:
        if run.settings.keys() >= DIGESTS.keys():
            puzzles.setdefault(identity(run, keys), set()).add(tuple(run.settings[key] for key in DIGESTS))
    filled = []
    for run in runs:
        there = puzzles.get(identity(run, keys), set())
        if run.settings and len(there) == 1 and not run.settings.keys() >= DIGESTS.keys():
            run = dataclasses.replace(run, settings={**run.settings, **dict(zip(DIGESTS, *there, strict=True))})
        filled.append(run)
    return filled


def _paper(runs: list[Run]) -> matching.PaperMatch | None:
    """The row of the paper that all runs have; unlike it in what any of them is unlike it."""
    matches = [matching.find(run.settings, run.total_steps, run.evaluated_puzzles, run.caveats) for run in runs]
    first = matches[0] if matches else None
    if first is None or any(match is None or match.row is not first.row for match in matches):
        return None
    unlike = tuple(dict.fromkeys(u for match in matches if match for u in match.unlike))
    return matching.PaperMatch(first.row, unlike, all(match.same_kind for match in matches if match))
