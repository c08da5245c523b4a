"""Writing: the terminal's table, CSV and JSON. Shares of 1 in CSV and JSON as in summary.json, percent elsewhere."""

import json
import textwrap
from operator import attrgetter
from typing import Any

from trm.report import tables
from trm.report.baseline import differences
from trm.report.frontier import ways
from trm.report.records import time_to_target
from trm.report.variants import Comparison, Estimate, Variant
from trm.run.revision import code
from trm.show.table import aligned, csv_of, printable

TEXT_WIDTH, LONGEST_REASON = 110, 300  # characters, on the terminal
RUN_MEANS = ("steps", "samples_per_s", "seconds", "evaluated_puzzles", "training_flops", "flops_per_puzzle")
NOT_IN_JSON = ("sweep", "settings", "losses", "step_times", "folder")  # of a run


def terminal(comparison: Comparison) -> str:
    """The results table, what it means, the jobs that are not counted, and warnings."""

    def table(rows: list[tables.Row]) -> list[str]:
        texts = [[title for title, _ in rows[0]], *([cell.text for _, cell in row] for row in rows)]
        return aligned(texts, [cell.numeric for _, cell in rows[0]])

    lines = []
    if comparison.variants:
        lines += [*table(tables.results(comparison)), ""]
        for note in tables.notes(comparison):
            lines += [] if note == tables.RATES_NOTE else textwrap.wrap(note, TEXT_WIDTH, subsequent_indent="  ")
    if found := tables.inference(comparison):
        lines += ["", "ways of inference (trm.evaluate inference=frontier):", *table(found)]
    lines += [f"  not counted: {line}: {reason}" for line, reason in ways(comparison)[1]]
    if comparison.not_counted:
        lines += ["", f"not in the means: {len(comparison.not_counted)} of {len(comparison.runs)} jobs"]
        reasons = [[tables.kind(run), run.name, textwrap.shorten(why, LONGEST_REASON)] for run, why in comparison.not_counted]
        lines += [f"  {line}" for line in aligned(reasons, [False] * 3)]
    lines += ["", *(f"warning: {warning}" for warning in comparison.warnings)] if comparison.warnings else []
    return "\n".join(map(printable, lines))


def variant_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Each variant's numbers under the names that CSV and JSON use; with those of --target and --baseline where they are given."""
    found, less, target = [], differences(comparison), comparison.target
    for variant in comparison.variants:
        best, row = variant.estimate(attrgetter("best_exact_accuracy")), variant.paper.row if variant.paper else None
        bests = [run.best_exact_accuracy for run in variant.counted if run.best_exact_accuracy is not None]
        record = {
            "variant": variant.label,
            "settings": variant.description,
            "seeds": len(variant.counted),
            "jobs": variant.planned,
            "pooled_over": " ".join(variant.pooled) or None,
            **_estimate("exact_accuracy", variant.exact_accuracy),
            "best_exact_accuracy_mean": best.mean if best else None,
            "best_exact_accuracy_max": max(bests, default=None),
            **{name: variant.mean(attrgetter(name)) for name in RUN_MEANS},
            "parameters": next((run.parameters for run in variant.counted if run.parameters is not None), None),
            "paper_row": row.name if row else None,
            "paper_exact_accuracy": row.exact_accuracy if row else None,
            "paper_comparable": variant.paper.comparable if variant.paper else None,
            "difference": variant.difference,
            "data_caveats": "; ".join(variant.caveats) or None,
        }
        for name, score in variant.scores.items():
            record |= _estimate(name, score)
        if (found_less := less.get(variant.label)) is not None:
            record |= _estimate("less_baseline", found_less.exact_accuracy)
            record |= {"p": found_less.p, "p_corrected": found_less.corrected}
        if target is not None:
            reached, samples, seconds = time_to_target(variant, target)
            record |= {"target": target, "target_reached_seeds": reached}
            record |= _estimate("samples_to_target", samples) | _estimate("seconds_to_target", seconds)
        found.append(record)
    return found


def _estimate(name: str, found: Estimate | None) -> dict[str, float | None]:
    return {f"{name}_mean": found.mean if found else None, f"{name}_ci95_half_width": found.half_width if found else None}


def csv_text(comparison: Comparison) -> str:
    """One row for each variant."""
    records = variant_records(comparison)
    for record in records if comparison.not_compared else ():
        record["not_compared"] = comparison.not_compared.get(record["variant"])
    return csv_of(records, list(dict.fromkeys(name for record in records for name in record))) if records else ""


def json_text(comparison: Comparison) -> str:
    """Variants, runs with their evaluations, the jobs that are not counted, and warnings."""

    def more(variant: Variant) -> dict[str, Any]:
        unlike = list(variant.paper.unlike) if variant.paper else None
        return {"config": dict(variant.settings), "runs": [run.name for run in variant.counted], "unlike_paper": unlike}

    homes = {id(run): variant.label for variant in comparison.variants for run in variant.runs}
    counted = set(map(id, comparison.counted))
    found, left_out = ways(comparison)
    record = {
        "code": code(),  # of the report; each run has its own
        "variants": [
            numbers | more(variant) for numbers, variant in zip(variant_records(comparison), comparison.variants, strict=True)
        ],
        "runs": [
            {"variant": homes.get(id(run)), "counted": id(run) in counted}
            | {name: value for name, value in vars(run).items() if name not in NOT_IN_JSON}
            for run in comparison.runs
        ],
        "inference": [
            {"variant": way.variant.label, "inference": way.name, **_estimate("exact_accuracy", way.exact_accuracy), **way.means}
            for way in found
        ],
        "inference_not_counted": dict(left_out),
        "not_compared": dict(comparison.not_compared),
        "not_counted": [{"name": run.name, "status": tables.kind(run), "reason": reason} for run, reason in comparison.not_counted],
        "warnings": comparison.warnings,
        "notes": tables.notes(comparison),
    }
    return json.dumps(record, indent=1, allow_nan=False, default=str) + "\n"
