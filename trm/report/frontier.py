"""Ways of inference over the seeds of each variant: what `trm.evaluate checkpoint=RUN inference=frontier` left in the runs."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class _Row:
    """A line of a run's frontier."""

    number: int
    run: Run
    name: str
    facts: Facts
    values: Mapping[str, float]


def ways(comparison: Comparison) -> list[Way]:
    """By variant and then FLOPs; none where no run has a frontier."""
    return _ways(comparison)[0]


def asked(comparison: Comparison) -> list[tuple[Run, Mapping[str, float]]]:
    """Each way that each counted run was evaluated in: the run with the settings and FLOPs of that way, and the line's numbers."""
    rows = [row for number, variant in enumerate(comparison.variants) for run in variant.counted for row in _rows(run, number, [])]
    reasons = misfits([row.facts for row in rows], ways=True)
    return [
        (
            replace(
                row.run,
                settings={
                    **row.run.settings,
                    **{key: row.facts[key] for key in way_keys()},
                    "inference.supervision_steps": row.facts[STEPS],
                },
                flops_per_puzzle=row.values["flops_per_puzzle"],
            ),
            row.values,
        )
        for row, reason in zip(rows, reasons, strict=True)
        if not reason
    ]


def left_out(comparison: Comparison) -> list[tuple[str, str]]:
    """The lines that no way has, as RUN: WAY, each with the reason."""
    return _ways(comparison)[1]


def _ways(comparison: Comparison) -> tuple[list[Way], list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    runs = [(run, number) for number, variant in enumerate(comparison.variants) for run in variant.counted]
    rows = [row for each in runs for row in _rows(*each, told)]

    def fitting(rows: list[_Row], *, ways: bool) -> list[_Row]:
        reasons = misfits([row.facts for row in rows], ways=ways)
        told.extend((f"{row.run.name}: {row.name}", reason) for row, reason in zip(rows, reasons, strict=True) if reason)
        return [row for row, reason in zip(rows, reasons, strict=True) if not reason]

    rows, found = fitting(rows, ways=True), []
    for name in dict.fromkeys(row.name for row in rows):
        kept = fitting([row for row in rows if row.name == name], ways=False)
        for number in dict.fromkeys(row.number for row in kept):
            own = [row for row in kept if row.number == number]
            found_of = {key: estimate(by_seed((row.run.seed, row.values[key]) for row in own).values()) for key in NUMBERS}
            exact, means = found_of["exact_accuracy"], {key: each.mean for key, each in found_of.items() if each}
            assert exact is not None
            found.append(Way(comparison.variants[number], number, name, exact, means))
    return sorted(found, key=lambda way: (way.number, way.means["flops_per_puzzle"])), told


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
        return record if isinstance(record, dict) and isinstance(record["rows"], list) else {}
    except (OSError, ValueError, RecursionError, KeyError):
        return {}


def _rows(run: Run, number: int, told: list[tuple[str, str]]) -> list[_Row]:
    """The lines of the run's frontier; none where it has none, or the file is not one. They say how they were measured."""
    record = _read(run.folder / FRONTIER_FILE) if run.folder else {}
    found, here = [], facts(run)
    for line in record.get("rows", ()):
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
