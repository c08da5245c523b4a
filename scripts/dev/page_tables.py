"""The tables of docs/results, as Markdown from the files of reports and studies; scripts/dev/pages.py puts them into the pages."""

import csv
import io
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from trm.cli import compose_jobs
from trm.report.variants import estimate

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = DOCS / "results"

Row = Mapping[str, Any]

# column of a file: title, format, factor
COLUMNS = {
    "variant": ("variant", "", 1),
    "settings": ("settings", "", 1),
    "seeds": ("seeds", "", 1),
    "parameters": ("weights", ",.0f", 1),
    "steps": ("steps", ",.0f", 1),
    "exact_accuracy_mean": ("exact %", ".1f", 100),
    "best_exact_accuracy_mean": ("best evaluation of a run, mean %", ".1f", 100),
    "less_baseline_mean": ("less the baseline, points", "+.1f", 100),
    "p_corrected": ("p, by Holm", ".2g", 1),
    "training_flops": ("TFLOP trained", ".0f", 1e-12),
    "flops_per_puzzle": ("GFLOP a puzzle", ".3g", 1e-9),
    "target_reached_seeds": ("seeds that reach 99 %", "", 1),
    "seconds_to_target_mean": ("seconds to the first 99 %", ".0f", 1),
    "samples_to_target_mean": ("rows to it", ",.0f", 1),
    "seconds": ("seconds of a whole run", ".0f", 1),
    "inference": ("candidates from", "", 1),
    "selection": ("answer chosen by", "", 1),
    "candidates": ("K", "", 1),
    "supervision_steps": ("D", "", 1),
    "difference": ("difference, 95 %", "+.1f", 100),
    "p": ("p", ".2g", 1),
    "sign_p": ("sign p", ".2g", 1),
    "oracle_exact_accuracy": ("pass@K % (oracle)", ".1f", 100),
    "selection_failures": ("selection failures %", ".0f", 100),
    "candidates_run": ("candidates run", ".3g", 1),
    "passes_per_puzzle": ("passes", ".4g", 1),
    "pareto": ("front", "", 1),
    "step": ("step", "", 1),
    "way": ("way", "", 1),
    "ms": ("ms", ".1f", 1),
    "samples/s": ("samples/s", ",.0f", 1),
    "times ordinary_compiled": ("here / plain", ".2f", 1),
    "peak GB": ("peak GB", ".1f", 1),
    "global_step": ("step", ",.0f", 1),
    "exact_accuracy": ("exact %", ".1f", 100),
    "count": ("held-out puzzles", ",.0f", 1),
}
TABLES = {
    "variants": "variant, settings, seeds, parameters, steps, exact_accuracy_mean, less_baseline_mean, p_corrected, "
    "flops_per_puzzle",
    "recursions": "variant, seeds, training_flops, exact_accuracy_mean, best_exact_accuracy_mean, less_baseline_mean, p_corrected, "
    "flops_per_puzzle",
    "records": "variant, seeds, target_reached_seeds, seconds_to_target_mean, samples_to_target_mean, seconds, steps, "
    "exact_accuracy_mean",
    "ways": "inference, selection, candidates, supervision_steps, exact_accuracy, difference, p, sign_p, oracle_exact_accuracy, "
    "selection_failures, candidates_run, passes_per_puzzle, flops_per_puzzle, pareto",
    "step": "step, way, ms, samples/s, times ordinary_compiled, peak GB",
    "evaluations": "global_step, exact_accuracy, count",
}
SCORES = (("loss", 1, ".3f"), ("exact_accuracy", 100, ".1f"))


def rows_of(path: Path) -> list[Row]:
    """The rows of a report's file; the evaluations of metrics.jsonl."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    if path.suffix == ".jsonl":
        return [row for row in map(json.loads, text.splitlines()) if row["kind"] == "eval"]
    found = json.loads(text)
    rows: list[Row] = found["rows"] if isinstance(found, dict) else found
    return rows


def shown(row: Row, key: str) -> str:
    """A cell: the number with half the width of its 95 % interval, or with the interval's ends, where the file has them."""
    value, (_, form, factor) = row.get(key), COLUMNS[key]
    if value in ("", None):
        return ""
    if not form:
        return {"True": "yes", "False": ""}.get(str(value), str(value))
    text = f"{float(value) * factor:{form}}"
    if width := row.get(f"{key.removesuffix('_mean')}_ci95_half_width") or row.get(f"{key}_half_width"):
        text += f" ± {float(width) * factor:{form.lstrip('+')}}"
    if row.get(f"{key}_low") not in ("", None):
        low, high = (float(row[f"{key}_{end}"]) for end in ("low", "high"))
        if key == "exact_accuracy":  # Student's interval of a share goes beyond its ends
            low, high = max(low, 0.0), min(high, 1.0)
        text += f" ({low * factor:{form}} to {high * factor:{form}})"
    return text


def of_rows(name: str, path: Path) -> str:
    """A table of TABLES: the rows of a report's file."""
    keys, rows = TABLES[name].split(", "), rows_of(path)
    if name == "variants":
        rows = sorted(rows, key=lambda row: -float(row["exact_accuracy_mean"]))
    lines = [[COLUMNS[key][0] for key in keys], ["---:" if COLUMNS[key][1] else "---" for key in keys]]
    lines += [[shown(row, key) for key in keys] for row in rows]
    return markdown(lines)


def sizes(path: Path) -> str:
    """The measurements at each size of the first axis of a file of --scaling: means over the seeds with 95 % intervals."""
    points = json.loads(path.read_text())["points"]
    found: dict[tuple[str, float], dict[str, list[float]]] = {}
    for point in points:
        if point["axis"] == points[0]["axis"]:
            found.setdefault((point["where"], point["size"]), {})[point["measure"]] = point["values"]
    lines = [["held", points[0]["axis"], "seeds", "held-out loss", "exact %"], ["---", "---:", "---:", "---:", "---:"]]
    for (where, size), of in found.items():
        loss, exact = of["loss"], of["exact accuracy"]
        lines.append([where, f"{size:,.6g}", str(len(loss)), mean(loss, ".4f"), percent(exact)])
    return markdown(lines)


def votes(path: Path) -> str:
    """Exact accuracy by width, supervision steps and copies, of a file of --scaling about ways of inference."""
    of: dict[str, dict[float, str]] = {}
    for point in json.loads(path.read_text())["points"]:
        if point["axis"] == "FLOPs a puzzle by votes" and point["measure"] == "exact accuracy":
            of.setdefault(point["where"], {})[point["size"]] = percent(point["values"])
    least = min(next(iter(of.values())))
    heads = [f"copies: {size / least:.0f}" for size in next(iter(of.values()))]
    lines = [["held", "MFLOP of one copy", *heads], ["---", "---:", *["---:"] * len(heads)]]
    lines += [[where, f"{min(each) / 1e6:,.0f}", *each.values()] for where, each in of.items()]
    return markdown(lines)


def by_setting(path: Path, *, least_loss_first: bool = False) -> str:
    """Held-out loss and exact accuracy of each seed, by the settings in which the runs of a report's file differ."""
    found = json.loads(path.read_text())
    runs = {run["name"]: run for run in found["runs"]}
    keys = [key for key in found["variants"][0]["config"] if key not in ("model.num_heads", "train.max_flops", "train.max_steps")]
    lines = [[*(key.rpartition(".")[2] for key in keys), "TFLOP", "steps", "held-out loss", "exact %"], ["---:"] * (len(keys) + 4)]
    rows: list[tuple[float, list[float], list[str]]] = []
    for variant in found["variants"]:
        members = [runs[name] for name in variant["runs"]]
        settings = [variant["config"][key][0] for key in keys]
        values = [", ".join(f"{factor * run[key]:{form}}" for run in members) for key, factor, form in SCORES]
        cells = [f"{variant['training_flops'] / 1e12:.3g}", f"{variant['steps']:,.0f}", *values]
        rows.append((sum(run["loss"] for run in members) / len(members), settings, [*map(str, settings), *cells]))
    return markdown([*lines, *(cells for *_, cells in sorted(rows, key=lambda row: row[0] if least_loss_first else row[1]))])


def choice(path: Path) -> str:
    """`by_setting` with the least mean loss first."""
    return by_setting(path, least_loss_first=True)


def fitted(path: Path) -> str:
    """The laws of a file of --scaling: the exponent of a loss or the slope of a logistic, and the largest size as predicted."""
    lines = [
        ["over", "held", "of", "a or slope", "predicted at the largest", "measured", "verdict"],
        ["---"] * 3 + ["---:"] * 3 + ["---"],
    ]
    for names, of in laws_of(path).items():
        if "predicted" in of:
            exponent, predicted = (_interval(of[key]) for key in ("a" if "a" in of else "slope", "predicted"))
            lines.append([*names, exponent, predicted, f"{float(of['measured']['value']):.3g}", of["predicted"]["verdict"]])
    return markdown(lines)


def laws_of(path: Path) -> dict[tuple[str, str, str], dict[str, Row]]:
    """The rows of each law (by axis, what is held, and measure), by the first word of their quantity."""
    laws: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows_of(path):
        laws.setdefault((row["axis"], row["where"], row["measure"]), {})[row["quantity"].partition(" ")[0]] = row
    return laws


def rates(path: Path) -> str:
    """The best learning rate of each width of a file of --scaling."""
    lines = [["width", "best rate, of a parabola", "measured rate with the least loss"], ["---", "---:", "---:"]]
    of: dict[str, list[Row]] = {}
    for row in rows_of(path):
        if row["axis"] == "learning rate":
            of.setdefault(row["where"].partition("hidden_size=")[2].partition(",")[0], []).append(row)
    for width, (parabola, lowest) in of.items():
        best = _interval(parabola) if parabola["value"] else parabola["verdict"]
        lines.append([width, best, f"{float(lowest['value']):g}"])
    return markdown(lines)


def phi(path: Path) -> str:
    """The worth of a recursion in each joint law of a file of --scaling."""
    lines = [["passes by", "held", "phi", "verdict"], ["---", "---", "---:", "---"]]
    for row in rows_of(path):
        if row["quantity"] == "phi":
            lines.append([row["axis"].split()[2], row["where"], _interval(row), row["verdict"] or "determined"])
    return markdown(lines)


def costs(page: Path) -> str:
    """What each budget of the sweeps costs that the page's commands of trm.plan name, at 40 % of the peak."""
    from trm.plan.settings import PlanSettings
    from trm.plan.workload import estimate as planned
    from trm.plan.workload import workload

    lines = [["sweep", "FLOPs of a job", "jobs of one seed", "hours of a job", "chip-hours, three seeds"], ["---", *["---:"] * 4]]
    for command in re.findall(r"^python -m trm\.plan (.*)$", page.read_text().replace("\\\n", " "), re.MULTILINE):
        words, of = shlex.split(command), dict[float, list[tuple[int, float]]]()
        for cfg in compose_jobs(words).values():
            run = planned(workload(cfg), cfg.hardware, PlanSettings.host_ms_per_step / 1e3)
            of.setdefault(cfg.train.max_flops or 0, []).append((run.chips, run.hours(0.4)))
        [name] = [word.partition("=")[2] for word in words if word.startswith("+sweep=")]
        name += "".join(f", {word.split('.')[1].split('=')[0]}" for word in words if word.startswith("recursion.n_sup=1,"))
        for budget, jobs in sorted(of.items()):
            hours = sorted({f"{each:.2f}" for _, each in jobs}, key=float)
            spent = f"{3 * sum(chips * each for chips, each in jobs):.0f}"
            lines.append([f"`{name}`", f"{budget:g}", str(len(jobs)), " to ".join(dict.fromkeys((hours[0], hours[-1]))), spent])
    return markdown(lines)


def spread(path: Path) -> str:
    """The spread over seeds of each width in a file of --scaling, and the intervals of three seeds at four budgets that have it.

    A spread is pooled over the sizes. The exponent is that of a power law without a floor, each budget four times the one before.
    """
    lines = [
        ["width", "spread of the loss", "mean loss", "exponent of the loss", "spread of exact accuracy", "mean exact accuracy"],
        ["---:"] * 6,
    ]
    of: dict[str, dict[str, list[float]]] = {}
    for point in json.loads(path.read_text())["points"]:
        if point["axis"] == "training FLOPs":
            scale = 100 * (1 if point["measure"] == "exact accuracy" else 1 / np.mean(point["values"]))
            of.setdefault(point["where"], {}).setdefault(point["measure"], []).append(
                (scale * np.std(point["values"], ddof=1)) ** 2
            )
    half = stats.t.ppf(0.975, 4 * (3 - 1)) / math.sqrt(3)
    for where, squares in of.items():
        loss, exact = (math.sqrt(np.mean(squares[measure])) for measure in ("loss", "exact accuracy"))
        slope = half * loss / 100 / (math.log(4) * math.sqrt(5))  # the root of the squares of log 4 times -1.5, -0.5, 0.5 and 1.5
        cells = f"{loss:.1f} %", f"± {half * loss:.1f} %", f"± {slope:.3f}", f"{exact:.1f} points", f"± {half * exact:.1f} points"
        lines.append([where.partition("hidden_size=")[2].partition(",")[0], *cells])
    return markdown(lines)


def _interval(row: Row) -> str:
    value, low, high = (float(row[key]) for key in ("value", "low", "high"))
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def mean(values: list[float], form: str) -> str:
    """The mean with half of Student's 95 % interval."""
    found = estimate(values)
    assert found is not None
    return f"{found.mean:{form}} ± {found.half_width:{form}}"


def percent(shares: Sequence[float]) -> str:
    """The mean of shares of 1 in percent, with half of Student's 95 % interval."""
    return mean([100 * share for share in shares], ".1f")


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """Rows of cells as the rows of a Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ways_of_inference() -> dict[str, Row]:
    """The rows of the inference study by CANDIDATES/SELECTION/K/D."""
    keys = ("inference", "selection", "candidates", "supervision_steps")
    return {"/".join(str(row[key]) for key in keys): row for row in rows_of(RESULTS / "inference_6x6" / "frontier.json")}


def at_width(width: int, name: str = "isoflop", axis: str = "training FLOPs", size: float | None = None) -> str:
    """Exact accuracy in percent of this width at a size of the axis of a sweep of the scaling study, by default the largest."""
    own = [p for p in accuracies(name) if p["axis"] == axis and p["where"].startswith(f"hidden_size={width},")]
    of = {p["size"]: p["values"] for p in own}
    return percent(of[size or max(of)])


def exact_of(name: str, where: str) -> list[str]:
    """Exact accuracies in percent of the sizes of one series of the scaling study, by the words for what it holds."""
    return [percent(p["values"]) for p in accuracies(name) if p["where"] == where]


def accuracies(name: str) -> list[Row]:
    """The points of exact accuracy in a file of the scaling study."""
    points = json.loads((RESULTS / "scaling_6x6" / f"{name}.json").read_text())["points"]
    return [point for point in points if point["measure"] == "exact accuracy"]
