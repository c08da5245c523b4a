"""Ways of inference over the seeds of each variant: what `trm.evaluate checkpoint=RUN inference=frontier` left in the runs."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from trm.config import way_keys
from trm.report.comparable import CANDIDATES, COUNT, LAST, STEP, STEPS, TEST, Facts, facts, misfits
from trm.report.runs import Run, finite
from trm.report.variants import Comparison, Estimate, Variant, by_seed, estimate

FRONTIER_FILE = "evaluation/frontier.json"  # of a run folder
NUMBERS = ("exact_accuracy", "oracle_exact_accuracy", "flops_per_puzzle", "seconds_per_puzzle", "candidates_run")


class Way(NamedTuple):
    """One way of inference of a variant, over the runs that have it."""

    variant: Variant
    number: int  # of the variant in the comparison
    name: str
    exact_accuracy: Estimate
    means: dict[str, float]  # of the other NUMBERS


class _Row(NamedTuple):
    """A line of a run's frontier, and how it was measured."""

    number: int  # of the variant
    run: Run
    name: str
    facts: Facts
    values: dict[str, float]


LeftOut = list[tuple[str, str]]  # lines that do not count, as RUN: WAY, each with the reason


def asked(comparison: Comparison) -> tuple[list[Run], LeftOut]:
    """Each way that each counted run was evaluated in: the run with the settings, the FLOPs and the results of that way."""
    rows, left_out = _comparable(comparison)
    found = []
    for row in rows:
        way = {key: row.facts[key] for key in way_keys()} | {"inference.supervision_steps": row.facts[STEPS]}
        names = {"exact_accuracy": "exact_accuracy", "loss": "lm_loss", "flops_per_puzzle": "flops_per_puzzle"}
        values: dict[str, Any] = {field: finite(row.values.get(name)) for field, name in names.items()}
        found.append(replace(row.run, settings={**row.run.settings, **way}, **values))
    return found, left_out


@functools.lru_cache(maxsize=1)  # each output of a report asks for them
def ways(comparison: Comparison) -> tuple[list[Way], LeftOut]:
    """The ways by variant and then FLOPs, and the lines that none of them has."""
    (rows, left_out), found = _comparable(comparison), []
    for name in dict.fromkeys(row.name for row in rows):
        kept = _fitting([row for row in rows if row.name == name], left_out, ways=False)
        for number in dict.fromkeys(row.number for row in kept):
            own = [row for row in kept if row.number == number]
            found_of = {key: estimate(by_seed((row.run.seed, row.values[key]) for row in own).values()) for key in NUMBERS}
            exact, means = found_of["exact_accuracy"], {key: each.mean for key, each in found_of.items() if each}
            assert exact is not None
            found.append(Way(comparison.variants[number], number, name, exact, means))
    return sorted(found, key=lambda way: (way.number, way.means["flops_per_puzzle"])), left_out


def _comparable(comparison: Comparison) -> tuple[list[_Row], LeftOut]:
    """The lines of all counted runs that differ in their ways of inference alone; a run without a whole file has none."""
    rows: list[_Row] = []
    left_out: LeftOut = []
    counted = [(number, run) for number, variant in enumerate(comparison.variants) for run in variant.counted]
    for number, run in counted:
        if not run.has(FRONTIER_FILE):
            continue
        try:
            record = json.loads(Path(run.folder or "", FRONTIER_FILE).read_bytes())
            lines = list(record["rows"])
        except (OSError, ValueError, TypeError, RecursionError, KeyError):
            continue
        here = facts(run)
        for line in lines:
            try:
                step, name = record["checkpoint_step"], str(line["inference"])
                measured = {**here, **record["ways"][name], TEST: record["test_digest"], COUNT: line["count"], STEP: step}
                measured |= {LAST: step == here[STEP], STEPS: line["supervision_steps"], CANDIDATES: line["candidates"]}
                if not all(math.isfinite(line[key]) for key in NUMBERS):
                    raise ValueError("not finite")
                rows.append(_Row(number, run, name, measured, line))
            except (TypeError, KeyError, AttributeError, ValueError):
                unknown = "a line that does not say how it was measured: evaluate the run again"
                left_out.append((f"{run.name}: {FRONTIER_FILE}", unknown))
    return _fitting(rows, left_out, ways=True), left_out


def _fitting(rows: list[_Row], left_out: LeftOut, *, ways: bool) -> list[_Row]:
    """The rows that may be compared with most others; the others are left out."""
    reasons = misfits([row.facts for row in rows], ways=ways)
    left_out.extend((f"{row.run.name}: {row.name}", reason) for row, reason in zip(rows, reasons, strict=True) if reason)
    return [row for row, reason in zip(rows, reasons, strict=True) if not reason]
