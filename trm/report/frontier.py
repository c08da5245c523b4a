"""Ways of inference over the seeds of each variant: what `trm.evaluate checkpoint=RUN inference=frontier` left in the runs."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from trm.config import way_keys
from trm.report.comparable import CANDIDATES, COUNT, LAST, STEP, STEPS, TEST, Facts, facts, misfits
from trm.report.runs import Run
from trm.report.variants import Comparison, Estimate, Variant, by_seed, estimate

FRONTIER_FILE = "evaluation/frontier.json"  # of a run folder
NUMBERS = ("exact_accuracy", "oracle_exact_accuracy", "flops_per_puzzle", "seconds_per_puzzle", "candidates_run")


@dataclass(frozen=True)
class Way:
    """One way of inference of a variant, over the runs that have it."""

    variant: Variant
    number: int  # of the variant in the comparison
    name: str
    exact_accuracy: Estimate
    means: dict[str, float]  # of the other NUMBERS


class _Row(NamedTuple):
    """A line of a run's frontier, and how it was measured."""

    number: int
    run: Run
    name: str
    facts: Facts
    values: dict[str, float]


Told = list[tuple[str, str]]  # lines that do not count, as RUN: WAY, each with the reason


def asked(comparison: Comparison) -> tuple[list[tuple[Run, Mapping[str, float]]], Told]:
    """Each way that each counted run was evaluated in: the run with the settings and FLOPs of that way, and the line's numbers."""
    told: Told = []
    found: list[tuple[Run, Mapping[str, float]]] = []
    for row in _comparable(comparison, told):
        asked_for = {key: row.facts[key] for key in way_keys()} | {"inference.supervision_steps": row.facts[STEPS]}
        settings = {**row.run.settings, **asked_for}
        found.append((replace(row.run, settings=settings, flops_per_puzzle=row.values["flops_per_puzzle"]), row.values))
    return found, told


def ways(comparison: Comparison) -> tuple[list[Way], Told]:
    """The ways by variant and then FLOPs, and the lines that none of them has."""
    told: Told = []
    rows, found = _comparable(comparison, told), []
    for name in dict.fromkeys(row.name for row in rows):
        kept = _fitting([row for row in rows if row.name == name], told, ways=False)
        for number in dict.fromkeys(row.number for row in kept):
            own = [row for row in kept if row.number == number]
            found_of = {key: estimate(by_seed((row.run.seed, row.values[key]) for row in own).values()) for key in NUMBERS}
            exact, means = found_of["exact_accuracy"], {key: each.mean for key, each in found_of.items() if each}
            assert exact is not None
            found.append(Way(comparison.variants[number], number, name, exact, means))
    return sorted(found, key=lambda way: (way.number, way.means["flops_per_puzzle"])), told


def _comparable(comparison: Comparison, told: Told) -> list[_Row]:
    """The lines of all counted runs that differ in their ways of inference alone."""
    runs = [(run, number) for number, variant in enumerate(comparison.variants) for run in variant.counted]
    return _fitting([row for each in runs for row in _rows(*each, told)], told, ways=True)


def _fitting(rows: list[_Row], told: Told, *, ways: bool) -> list[_Row]:
    reasons = misfits([row.facts for row in rows], ways=ways)
    told.extend((f"{row.run.name}: {row.name}", reason) for row, reason in zip(rows, reasons, strict=True) if reason)
    return [row for row, reason in zip(rows, reasons, strict=True) if not reason]


def _rows(run: Run, number: int, told: Told) -> list[_Row]:
    """The lines of the run's frontier; none where it has none, or the file is not one."""
    if not run.has(FRONTIER_FILE):
        return []
    try:
        record = json.loads((Path(run.folder or "") / FRONTIER_FILE).read_bytes())
        lines = list(record["rows"])
    except (OSError, ValueError, TypeError, RecursionError, KeyError):
        return []
    found, here = [], facts(run)
    for line in lines:
        try:
            step, name = record["checkpoint_step"], str(line["inference"])
            measured = {**here, **record["ways"][name], TEST: record["test_digest"], COUNT: line["count"], STEP: step}
            measured |= {LAST: step == here[STEP], STEPS: line["supervision_steps"], CANDIDATES: line["candidates"]}
            if not all(math.isfinite(line[key]) for key in NUMBERS):
                raise ValueError("not finite")
            found.append(_Row(number, run, name, measured, line))
        except (TypeError, KeyError, AttributeError, ValueError):
            told.append((f"{run.name}: {FRONTIER_FILE}", "a line that does not say how it was measured: evaluate the run again"))
    return found
