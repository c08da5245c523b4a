"""Writing: the terminal's table, CSV, JSON and the page. Shares of 1 in CSV and JSON as in summary.json, percent elsewhere."""

import base64
import csv
import hashlib
import io
import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from trm.config import EXACT, paper
from trm.inference.samples import SAMPLES_FILE
from trm.report import plots
from trm.report.runs import Run
from trm.report.target import TimeToTarget, time_to_target, words
from trm.report.thinking import MOST_PUZZLES, thinking
from trm.report.variants import Comparison, Estimate, Variant, show

CSV_FILE, JSON_FILE, CURVES_FILE, BARS_FILE, PAGE_FILE = "report.csv", "report.json", "curves.png", "bars.png", "index.html"
STEPS_FILE = "steps.png"
NO_VALUE = "-"
EXACT_TITLE, DECIDES = "exact accuracy %", "(decides)"
UNLIKE_PAPER = "*"
TEXT_WIDTH, LONGEST_REASON = 110, 300  # characters, on the terminal

NOTES = (
    "exact accuracy: share of held-out puzzles solved in every cell at the final evaluation, in percent; mean over the seeds of "
    "completed runs, ± half the width of the 95 % Student-t interval (n=1: none can be given)",
    "best: the highest evaluation of each run, mean over seeds; chosen on the test puzzles, so read it as optimistic",
    "steps, samples/s and seconds: mean over seeds; seconds in training steps over all starts of a run, samples/s of the last one",
    f"paper: {paper.CITATION}, {paper.DATASET_LABEL}; {UNLIKE_PAPER} = same ablation, but the runs differ from the paper in other "
    "settings or data, so no difference is given",
)


# ------------------------------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class Column:
    """A column of the results table: its text, and the number that it sorts by."""

    title: str
    text: Callable[[Variant], str]
    number: Callable[[Variant], float | None] | None = None  # None: sorts as text


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return NO_VALUE
    width = "" if estimate.half_width is None else f" ± {100 * estimate.half_width:.1f}"
    return f"{100 * estimate.mean:.1f}{width or ' (n=1)'}"


def _optional(form: str, value: float | None) -> str:
    return NO_VALUE if value is None else form.format(value)


def _mean_of(estimate: Estimate | None) -> float | None:
    return estimate.mean if estimate else None


def _steps(run: Run) -> float | None:
    return run.steps


def _rate(run: Run) -> float | None:
    return run.samples_per_s


def _seconds(run: Run) -> float | None:
    return run.seconds


def _seeds(variant: Variant) -> str:
    counted = len(variant.counted)
    text = str(counted) if counted == variant.planned else f"{counted} of {variant.planned}"
    return f"{text} runs" if variant.pooled else text


def _paper_text(variant: Variant) -> str:
    if variant.paper is None:
        return NO_VALUE
    return f"{100 * variant.paper.row.exact_accuracy:.1f}" + ("" if variant.paper.comparable else UNLIKE_PAPER)


COLUMNS = (
    Column("variant", lambda v: v.label),
    Column("seeds", _seeds, lambda v: len(v.counted)),
    Column(EXACT_TITLE, lambda v: _percent(v.exact_accuracy), lambda v: _mean_of(v.exact_accuracy)),
    Column("best %", lambda v: _optional("{:.1f}", _times_100(_mean_of(v.best_exact_accuracy))),
           lambda v: _mean_of(v.best_exact_accuracy)),
    Column("steps", lambda v: _optional("{:,.0f}", v.mean(_steps)), lambda v: v.mean(_steps)),
    Column("samples/s", lambda v: _optional("{:,.0f}", v.mean(_rate)), lambda v: v.mean(_rate)),
    Column("seconds", lambda v: _optional("{:,.0f}", v.mean(_seconds)), lambda v: v.mean(_seconds)),
    Column("paper (9x9) %", _paper_text, lambda v: v.paper.row.exact_accuracy if v.paper else None),
    Column("difference", lambda v: _optional("{:+.1f}", _times_100(v.difference)), lambda v: v.difference),
)  # fmt: skip


SCORES_NOTE = (
    "{names}: the task's own scores at the final evaluation, over the seeds as exact accuracy; {decides} decides which checkpoint "
    "of a run is its best (evaluate.best_by)"
)
TARGET_NOTE = (
    "samples and seconds to {target:g} %: rows of all training steps, and seconds in training steps, up to the first evaluation "
    "with at least that exact accuracy; mean ± half the width of the 95 % interval over the seeds that reached it"
)


def columns(comparison: Comparison) -> tuple[Column, ...]:
    """The columns of the results table; with those of --target where it is given."""
    target, shown, decides = comparison.target, list(COLUMNS), deciding(comparison)
    names = score_names(comparison)
    exact = next(i for i, column in enumerate(shown) if column.title == EXACT_TITLE)
    if names and decides == [EXACT]:
        shown[exact] = replace(shown[exact], title=f"{EXACT_TITLE} {DECIDES}")
    for name in reversed(names):
        shown.insert(exact + 1, _score_column(name, decides == [name]))
    if target is None:
        return tuple(shown)

    def to_target(variant: Variant) -> TimeToTarget:
        return time_to_target(variant, target)

    name = f"to {100 * target:g} %"
    return (
        *shown,
        Column(f"samples {name}", lambda v: words(to_target(v), to_target(v).samples), lambda v: _mean_of(to_target(v).samples)),
        Column(f"seconds {name}", lambda v: words(to_target(v), to_target(v).seconds), lambda v: _mean_of(to_target(v).seconds)),
    )


def _score_column(name: str, decides: bool) -> Column:
    title = f"{name} %{f' {DECIDES}' if decides else ''}"
    return Column(title, lambda v: _percent(v.score(name)), lambda v: _mean_of(v.score(name)))


def score_names(comparison: Comparison) -> list[str]:
    """The scores of their own that the tasks of the counted runs have."""
    return list(dict.fromkeys(name for variant in comparison.variants for run in variant.counted for name in run.scores))


def deciding(comparison: Comparison) -> list[str]:
    """The scores by which the counted runs chose their best checkpoints."""
    runs = [run for variant in comparison.variants for run in variant.counted]
    return sorted({str(run.settings.get("evaluate.best_by", EXACT)) for run in runs})


def notes(comparison: Comparison) -> tuple[str, ...]:
    """What the columns mean."""
    found = list(NOTES)
    if names := score_names(comparison):
        found.append(SCORES_NOTE.format(names=", ".join(names), decides=" or ".join(deciding(comparison))))
    if comparison.target is not None:
        found.append(TARGET_NOTE.format(target=100 * comparison.target))
    return tuple(found)


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value


# ------------------------------------------------------------------------------------------------------------------ terminal


def terminal(comparison: Comparison) -> str:
    """The results table, what it means, the jobs that are not counted, and warnings."""
    shown = columns(comparison)
    rows = [[column.title for column in shown]]
    rows += [[column.text(variant) for column in shown] for variant in comparison.variants]
    lines = _aligned(rows, [column.number is not None for column in shown]) if comparison.variants else []
    unsaid = {NOTES[2]} if any(v.paper for v in comparison.variants) else set(NOTES[2:])
    for note in ["", *(note for note in notes(comparison) if comparison.variants and note not in unsaid)]:
        lines += textwrap.wrap(note, TEXT_WIDTH, subsequent_indent="  ") or [""]
    if comparison.not_counted:
        lines += ["", f"not in the means: {len(comparison.not_counted)} of {len(comparison.runs)} jobs"]
        reasons = [[_kind(run), run.name, textwrap.shorten(reason, LONGEST_REASON)] for run, reason in comparison.not_counted]
        lines += [f"  {line}" for line in _aligned(reasons, [False] * 3)]
    lines += ["", *(f"warning: {warning}" for warning in comparison.warnings)] if comparison.warnings else []
    # names come from files: nothing in them may steer the terminal
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def _kind(run: Run) -> str:
    return "repeated" if run.status == "completed" else run.status


def _aligned(rows: list[list[str]], right: list[bool]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


# --------------------------------------------------------------------------------------------------------------- CSV and JSON


def variant_record(variant: Variant, target: float | None = None) -> dict[str, Any]:
    """A variant's numbers under the names that CSV and JSON use; with those of --target where it is given."""
    exact, best = variant.exact_accuracy, variant.best_exact_accuracy
    bests = [run.best_exact_accuracy for run in variant.counted if run.best_exact_accuracy is not None]
    return {
        "variant": variant.label,
        "settings": variant.description,
        "seeds": len(variant.counted),
        "jobs": variant.planned,
        "pooled_over": " ".join(variant.pooled) or None,
        "exact_accuracy_mean": exact.mean if exact else None,
        "exact_accuracy_ci95_half_width": exact.half_width if exact else None,
        "best_exact_accuracy_mean": best.mean if best else None,
        "best_exact_accuracy_max": max(bests, default=None),
        "steps": variant.mean(_steps),
        "samples_per_s": variant.mean(_rate),
        "seconds": variant.mean(_seconds),
        "parameters": next((run.parameters for run in variant.counted if run.parameters is not None), None),
        "paper_row": variant.paper.row.name if variant.paper else None,
        "paper_exact_accuracy": variant.paper.row.exact_accuracy if variant.paper else None,
        "paper_comparable": variant.paper.comparable if variant.paper else None,
        "difference": variant.difference,
        **{f"{name}_{key}": value for name in _names(variant) for key, value in _estimate_record(variant.score(name)).items()},
        **({} if target is None else _target_record(time_to_target(variant, target), target)),
    }


def _names(variant: Variant) -> list[str]:
    return list(dict.fromkeys(name for run in variant.counted for name in run.scores))


def _estimate_record(found: Estimate | None) -> dict[str, float | None]:
    return {"mean": found.mean if found else None, "ci95_half_width": found.half_width if found else None}


def _target_record(result: TimeToTarget, target: float) -> dict[str, Any]:
    record: dict[str, Any] = {"target": target, "target_reached_seeds": result.reached}
    for name, found in (("samples", result.samples), ("seconds", result.seconds)):
        record[f"{name}_to_target_mean"] = found.mean if found else None
        record[f"{name}_to_target_ci95_half_width"] = found.half_width if found else None
    return record


def csv_text(comparison: Comparison) -> str:
    """One row for each variant."""
    records = [variant_record(variant, comparison.target) for variant in comparison.variants]
    buffer = io.StringIO()
    if records:
        names = list(dict.fromkeys(name for record in records for name in record))
        writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return buffer.getvalue()


def json_text(comparison: Comparison) -> str:
    """Variants, runs with their evaluations, the jobs that are not counted, and warnings."""
    homes = {id(run): variant.label for variant in comparison.variants for run in variant.runs}
    counted = {id(run) for variant in comparison.variants for run in variant.counted}
    variants = [
        variant_record(variant, comparison.target)
        | {
            "config": dict(variant.settings),
            "runs": [run.name for run in variant.counted],
            "unlike_paper": list(variant.paper.unlike) if variant.paper else None,
        }
        for variant in comparison.variants
    ]
    simple: tuple[str, ...] = (
        "name",
        "status",
        "reason",
        "seed",
        "experiment",
        "exact_accuracy",
        "best_exact_accuracy",
        "best_step",
        "steps",
    )
    simple += ("total_steps", "samples_per_s", "seconds", "parameters", "evaluations", "exact_accuracy_by_step", "overrides")
    simple += ("warnings", "scores")
    runs = [
        {"variant": homes.get(id(run)), "counted": id(run) in counted} | {name: getattr(run, name) for name in simple}
        for run in comparison.runs
    ]
    not_counted = [{"name": run.name, "status": _kind(run), "reason": reason} for run, reason in comparison.not_counted]
    record = {"variants": variants, "runs": runs, "not_counted": not_counted, "warnings": comparison.warnings}
    record["notes"] = notes(comparison)
    return json.dumps(record, indent=1, allow_nan=False, default=str) + "\n"


# ---------------------------------------------------------------------------------------------------------------------- page


def page(comparison: Comparison, title: str) -> str:
    """The page as one self-contained HTML file: pictures, style and script are inside, and its policy forbids any load."""
    shown = thinking(comparison)
    names = ["sort.js", *(["thinking.js"] if shown else [])]
    scripts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    tables = [
        {"title": column.title, "numeric": column.number is not None, "text": column.text, "number": column.number or column.text}
        for column in columns(comparison)
    ]
    statuses = ("completed", "failed", "preempted", "unfinished", "missing", "damaged")
    return template.render(
        title=title,
        comparison=comparison,
        columns=tables,
        statuses=[(status, sum(run.status == status for run in comparison.runs)) for status in statuses],
        runs=[(variant, run) for variant in comparison.variants for run in variant.runs],
        counted={id(run) for variant in comparison.variants for run in variant.counted},
        kind=_kind,
        show=show,
        identity=id,
        percent=lambda share: _optional("{:.1f}", _times_100(share)),
        whole=lambda value: _optional("{:,.0f}", value),
        notes=notes(comparison),
        pictures={
            name: {theme: _data_uri(draw(comparison, theme)) for theme in ("light", "dark")}
            for name, draw in (("curves", plots.curves), ("bars", plots.bars), ("steps", plots.supervision_steps))
        },
        thinking=shown,
        samples_file=SAMPLES_FILE,
        most_puzzles=MOST_PUZZLES,
        scripts=[Markup(script) for script in scripts],  # ours, with nothing from run files in it
        script_hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
    )


def _data_uri(png: bytes | None) -> str | None:
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode()
