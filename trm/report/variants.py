"""Comparing: the variants that runs make, and the statistics over each variant's seeds."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from trm.config import matching
from trm.errors import ConfigError, UserError
from trm.report.comparable import facts, misfits, unlike
from trm.report.labels import differing_keys, distinct, grouped, named_groups, telling_keys, value_of
from trm.report.runs import DIGESTS, Run

CONFIDENCE = 0.95
MEASURED_OTHERWISE = " †"
OTHERWISE = "measured in another way than the other runs of its variant: "


class Estimate(NamedTuple):
    """The mean of `n` values; `half_width` is that of the Student-t interval around it, None for a single value."""

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
    """The mean value of each seed, without missing values (None). Runs that --group puts together may share a seed."""
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

    def estimate(self, quantity: Callable[[Run], float | None]) -> Estimate | None:
        """A quantity over the seeds."""
        return estimate(self.by_seed(quantity).values())

    def mean(self, quantity: Callable[[Run], float | None]) -> float | None:
        """The mean of a quantity over the counted runs that have it."""
        values = [value for value in map(quantity, self.counted) if value is not None]
        return sum(values) / len(values) if values else None

    @property
    def exact_accuracy(self) -> Estimate | None:
        """Final exact accuracy over the seeds."""
        return self.estimate(attrgetter("exact_accuracy"))

    @property
    def scores(self) -> dict[str, Estimate | None]:
        """The task's own scores that its counted runs have, at the final evaluation, over the seeds."""
        names = dict.fromkeys(name for run in self.counted for name in run.scores)
        return {name: estimate(by_seed((run.seed, run.scores.get(name)) for run in self.counted).values()) for name in names}

    @property
    def difference(self) -> float | None:
        """The mean less the paper's value, where the runs differ from the paper in nothing."""
        found = self.exact_accuracy
        return found.mean - self.paper.row.exact_accuracy if found and self.paper and self.paper.comparable else None

    @property
    def caveats(self) -> list[str]:
        """What changes how the accuracies may be read, in words."""
        return list(dict.fromkeys(caveat for run in self.counted for caveat in run.caveats))


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that the report says: the variants, and the jobs that are in none of their means."""

    runs: list[Run]
    variants: list[Variant]
    not_counted: list[tuple[Run, str]]  # with the reason
    keys: list[str]  # the settings that differ between the runs, neutral ones left out
    warnings: list[str]
    target: float | None  # exact accuracy (share of 1) of --target
    baseline: Variant | None  # of --baseline
    not_compared: Mapping[str, str]  # labels of variants that were measured in another way than the others, and how

    @property
    def counted(self) -> list[Run]:
        """The runs that the means are over."""
        return [run for variant in self.variants for run in variant.counted]

    def title(self, variant: Variant) -> str:
        """The variant's label, marked where its numbers may not be compared with the others'."""
        return variant.label + (MEASURED_OTHERWISE if variant.label in self.not_compared else "")


def check_asked(group: list[str] | None, target: float | None) -> None:
    """Raise UserError for groups that name nothing, and for a target that is not an exact accuracy."""
    if group == []:
        raise UserError("--group needs config keys or groups, such as recursion,ema")
    if target is not None and not 0 < target <= 1:
        raise UserError(f"--target {target:g} is not an exact accuracy: give a share above 0 and up to 1, such as 0.8")


def compare(
    runs: list[Run], group: list[str] | None = None, target: float | None = None, baseline: str | None = None
) -> Comparison:
    """Put runs into variants: by all settings that differ between them, or by the keys and config groups in `group`.

    Raises ConfigError where `group` names no setting, or `baseline` no variant.
    """
    runs, warnings = _with_known_puzzles(runs), list[str]()
    differing, groups = named_groups([run for run in runs if run.settings and run.status != "damaged"], group)
    missing = _missing_per_group(runs, [members for _, _, members in groups])
    variants = []
    not_counted = [(run, run.reason) for run in runs if run.status != "completed"]
    for (label, description, members), absent in zip(groups, missing, strict=True):
        completed = [run for run in members if run.status == "completed"]
        alike = grouped(completed, [*telling_keys(members), "seed"])
        once, repeated = [first for first, *_ in alike], [(run, first) for first, *others in alike for run in others]
        not_counted += [(run, f"the same settings and seed as {first.name}, which is counted") for run, first in repeated]
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
                description=description,
                runs=members,
                counted=counted,
                planned=len(members) - len(repeated) + absent,
                pooled=pooled,
                settings={key: distinct(value_of(run, key) for run in members) for key in differing},
                paper=_paper(counted or members),
            )
        )
    for caveat in dict.fromkeys(caveat for variant in variants for caveat in variant.caveats):  # once, of all that share it
        labels_of = [f'"{variant.label}"' for variant in variants if caveat in variant.caveats]
        every = len(labels_of) == len(variants) > 1
        warnings.append(f"{'all variants' if every else ', '.join(labels_of)}: {caveat}")
    base = next((variant for variant in variants if baseline in (variant.label, variant.description)), None)
    if base is None and baseline is not None:
        raise ConfigError(f"--baseline {baseline}: no variant; choose one of {'; '.join(variant.label for variant in variants)}")
    measured, race = {variant.label: facts(variant.counted[0]) for variant in variants if variant.counted}, target is not None
    if base is not None and base.label in measured:
        reasons = [unlike(each, measured[base.label], race=race) for each in measured.values()]
    else:
        reasons = misfits(list(measured.values()), race=race)
    not_compared = {label: reason for label, reason in zip(measured, reasons, strict=True) if reason}
    others = "the others" if base is None else f'"{base.label}"'
    warnings += [f'"{label}" may not be compared with {others}: {reason}' for label, reason in not_compared.items()]
    return Comparison(runs, variants, not_counted, differing, warnings, target, base, not_compared)


def _missing_per_group(runs: list[Run], groups: list[list[Run]]) -> list[int]:
    """How many jobs of each group left no settings: they are missing, damaged, or died before they began.

    The overrides that such a job shares with a job of the same sweep tell its group.
    """

    def job(run: Run) -> tuple[str, tuple[str, ...]] | None:
        overrides = tuple(sorted(o for o in run.overrides if not o.startswith("seed=")))
        return (run.sweep, overrides) if run.overrides else None

    jobs = [{job(run) for run in members} - {None} for members in groups]
    placed = {id(run) for members in groups for run in members}
    homes = ([i for i, known in enumerate(jobs) if job(run) in known] for run in runs if id(run) not in placed)
    counts = Counter(found[0] for found in homes if len(found) == 1)
    return [counts[i] for i in range(len(groups))]


def _with_known_puzzles(runs: list[Run]) -> list[Run]:
    """The runs; one that ended before it said on which puzzles gets those of the runs that have its other settings.

    Such a run stays as it is where these have several kinds of puzzles, or do not exist.
    """
    filled = {id(run): run for run in runs}
    for alike in grouped(runs, [key for key in telling_keys(runs) if key not in DIGESTS]):
        puzzles = {tuple(run.settings[key] for key in DIGESTS) for run in alike if run.settings.keys() >= DIGESTS.keys()}
        if len(puzzles) == 1:
            known = dict(zip(DIGESTS, *puzzles, strict=True))
            filled |= {id(run): replace(run, settings={**run.settings, **known}) for run in alike if run.settings}
    return list(filled.values())


def _paper(runs: list[Run]) -> matching.PaperMatch | None:
    """The row of the paper that all runs have; unlike it in what any of them is unlike it."""
    matches = [matching.find(run.settings, run.total_steps, run.evaluated_puzzles, run.caveats) for run in runs]
    first = matches[0] if matches else None
    if first is None or any(match is None or match.row is not first.row for match in matches):
        return None
    unlike = tuple(dict.fromkeys(u for match in matches if match for u in match.unlike))
    return matching.PaperMatch(first.row, unlike, all(match.same_kind for match in matches if match))
