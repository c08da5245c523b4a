"""Fill pages of docs/ from their files and commands: `python scripts/dev/pages.py`.

A table between `<!-- NAME, from FILE -->` and `<!-- end -->` is made from that file. The plan's page has the output of a command
below each heading that is one. `sentences` has words with numbers of such files, which are tested but not filled.
tests/test_pages.py and tests/test_readme.py compare the pages with all of it.
"""

import contextlib
import csv
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from trm.cli import compose, compose_jobs
from trm.config import digest
from trm.config.groups import CONF_DIR
from trm.config.paper import ROWS
from trm.report.variants import estimate

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = DOCS / "results"
PAGES = sorted(RESULTS.glob("*.md"))
README = DOCS.parent / "README.md"
BLOCK = re.compile(r"^## `python -m trm\.plan ([^\n`]*)`\n```\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
FILLED = re.compile(r"^<!-- (\w+), from (\S+) -->\n(.*?)^<!-- end -->\n", re.MULTILINE | re.DOTALL)

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
CARDS = {
    "sudoku_6x6": "6x6 Sudoku, 1 network, CPU",
    "maze_9x9": "mazes of side 9, 1 network, CPU",
    "sudoku_9x9": "9x9 Sudoku, generated, 1 network, one GPU",
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


def table(name: str, path: Path) -> str:
    """The table of that name as Markdown."""
    if name in OTHERS:
        return OTHERS[name](path)
    keys, rows = TABLES[name].split(", "), rows_of(path)
    if name == "variants":
        rows = sorted(rows, key=lambda row: -float(row["exact_accuracy_mean"]))
    lines = [[COLUMNS[key][0] for key in keys], ["---:" if COLUMNS[key][1] else "---" for key in keys]]
    lines += [[shown(row, key) for key in keys] for row in rows]
    return _markdown(lines)


def sizes(path: Path) -> str:
    """The measurements at each size of the first axis of a file of --scaling: means over the seeds with 95 % intervals."""
    points = json.loads(path.read_text())["points"]
    found: dict[tuple[str, float], dict[str, list[float]]] = {}
    for point in points:
        if point["axis"] == points[0]["axis"]:
            found.setdefault((point["where"], point["size"]), {})[point["measure"]] = point["values"]
    lines = [["held", points[0]["axis"], "seeds", "held-out loss", "exact %"], ["---", "---:", "---:", "---:", "---:"]]
    for (where, size), of in found.items():
        loss, exact = of["loss"], [100 * share for share in of["exact accuracy"]]
        lines.append([where, f"{size:,.6g}", str(len(loss)), _mean(loss, ".4f"), _mean(exact, ".1f")])
    return _markdown(lines)


def fitted(path: Path) -> str:
    """The laws of a file of --scaling: the exponent of a loss or the slope of a logistic, and the largest size as predicted."""
    lines = [
        ["over", "held", "of", "a or slope", "predicted at the largest", "measured", "verdict"],
        ["---"] * 3 + ["---:"] * 3 + ["---"],
    ]
    for names, of in _laws(path).items():
        if "predicted" in of:
            exponent, predicted = (_interval(of[key]) for key in ("a" if "a" in of else "slope", "predicted"))
            lines.append([*names, exponent, predicted, f"{float(of['measured']['value']):.3g}", of["predicted"]["verdict"]])
    return _markdown(lines)


def _laws(path: Path) -> dict[tuple[str, str, str], dict[str, Row]]:
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
    return _markdown(lines)


def phi(path: Path) -> str:
    """The worth of a recursion in each joint law of a file of --scaling."""
    lines = [["passes by", "held", "phi", "verdict"], ["---", "---", "---:", "---"]]
    for row in rows_of(path):
        if row["quantity"] == "phi":
            lines.append([row["axis"].split()[2], row["where"], _interval(row), row["verdict"] or "determined"])
    return _markdown(lines)


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
    return _markdown(lines)


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
    return _markdown(lines)


def _interval(row: Row) -> str:
    value, low, high = (float(row[key]) for key in ("value", "low", "high"))
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def _mean(values: list[float], form: str) -> str:
    """The mean with half of Student's 95 % interval."""
    found = estimate(values)
    assert found is not None
    return f"{found.mean:{form}} ± {found.half_width:{form}}"


def _markdown(lines: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def overview() -> str:
    """The README's table of results, each from the committed file that its last column links, and of what was not run."""
    field = {row["variant"]: row for row in rows_of(RESULTS / "field_6x6" / "report.csv")}
    mazes = {row["variant"]: row for row in rows_of(RESULTS / "maze_grid" / "report.csv")}
    ways = _ways()
    alone, best = ways["steps/last/1/16"], ways["copies/vote/8/16"]
    arc = re.findall(r"^\| 31 variants, votes \|.*\*\*(.*?)\*\* \|$", (RESULTS / "arc_small.md").read_text(), re.MULTILINE)
    grid = f"mazes of side 9, {mazes['t2_n2']['seeds']} seeds"
    few = f"6x6 Sudoku, 3,000 puzzles, {field['field_trm']['seeds']} seeds"
    equal, less = (f"6x6 Sudoku, {budget} TFLOP of training, 3 seeds" for budget in (6, 2))
    depths = ", ".join(_at(32, "recursion", "passes by T and n", passes) for passes in (2, 6))
    votes_of = f"6x6 Sudoku, width 16, {best['seeds']} seeds, {best['count']} puzzles"
    paper, absent = f"{100 * ROWS[0].exact_accuracy:.1f}", "**not run yet**"
    lines = [
        (few, "TRM, T=2 n=2", shown(field["field_trm"], "exact_accuracy_mean"), "", _link("field_6x6.md")),
        (few, "the fast recipe", shown(field["field_fast"], "exact_accuracy_mean"), "", _link("field_6x6.md")),
        *[(equal, f"TRM of width {width}", _at(width), "", _link("scaling_6x6.md")) for width in (32, 128)],
        (less, "width 32; T=1 n=1, T=2 n=2", depths, "", _link("scaling_6x6.md")),
        (votes_of, "TRM; one answer", shown(alone, "exact_accuracy"), "", _link("inference_6x6.md")),
        (votes_of, f"votes of {best['candidates']} copies", shown(best, "exact_accuracy"), "", _link("inference_6x6.md")),
        (grid, "TRM, T=2 n=2", shown(mazes["t2_n2"], "exact_accuracy_mean"), "", _link("maze_grid.md")),
        (grid, "TRM, T=4 n=6", shown(mazes["t4_n6"], "exact_accuracy_mean"), "", _link("maze_grid.md")),
        ("20 ARC tasks, 3 seeds, pass@2", "31 variants vote", arc[0], "", _link("arc_small.md")),
        *[_card(name, title) for name, title in CARDS.items()],
        ("Sudoku-Extreme", "D=512, T=3 n=6, MLP", absent, paper, _link("experiments.md")),
        ("Maze-Hard", "D=512, attention", absent, "85.3", _link("experiments.md")),
        ("ARC-AGI-1, ARC-AGI-2, pass@2", "D=512, attention", absent, "44.6, 7.8", _link("experiments.md")),
        ("any of them on a TPU", "", absent, "", _link("plan_v4_64.md")),
    ]
    head = "| task | network | here, exact % | the paper | from |\n| --- | --- | ---: | ---: | --- |\n"
    return head + _markdown(lines)


def _link(page: str) -> str:
    return f"[page](docs/results/{page})"


def _ways() -> dict[str, Row]:
    """The rows of the inference study by CANDIDATES/SELECTION/K/D."""
    keys = ("inference", "selection", "candidates", "supervision_steps")
    return {"/".join(str(row[key]) for key in keys): row for row in rows_of(RESULTS / "inference_6x6" / "frontier.json")}


def _card(name: str, title: str) -> tuple[str, ...]:
    """The overview's line of a network of models/, from its card."""
    facts = yaml.safe_load((DOCS.parent / "models" / name / "README.md").read_text().split("---\n")[1])
    low, high = (100 * value for value in facts["interval_95"])
    exact = f"{100 * facts['exact_accuracy']:.1f} ({low:.1f} to {high:.1f})"
    return title, f"{facts['parameters']:,} weights", exact, "", f"[card](models/{name}/README.md)"


def experiments(names: str) -> str:
    """The table of the experiments that match a glob, with their digests at full size and tiny."""
    lines = ["| experiment | changes | digest | tiny |", "| --- | --- | --- | --- |"]
    for path in sorted((CONF_DIR / "experiment").glob(f"{names}.yaml")):
        text = re.sub(r"\n#   (?=\S+ (?:up|down|=))", " ", path.read_text(encoding="utf-8"))
        found = re.search(r"^# Changes: (.*)$", text, re.MULTILINE)
        alias = re.search(r"^# Alias of: (\S+)$", text, re.MULTILINE)
        changes = f"= `{alias[1]}`" if alias else found[1] if found else "-"
        sizes: tuple[list[str], ...] = ([], ["recipe=tiny", "data=sudoku_6x6"])
        digests = [digest(compose([f"experiment={path.stem}", "run_name=r", *size])) for size in sizes]
        lines.append(f"| `{path.stem}` | {changes} | `{digests[0]}` | `{digests[1]}` |")
    return "\n".join(lines) + "\n"


OTHERS: dict[str, Callable[[Path], str]] = {
    "experiments": lambda _: experiments("[!_]*"),
    "overview": lambda _: overview(),
    "sizes": sizes,
    "laws": fitted,
    "rates": rates,
    "phi": phi,
    "costs": costs,
    "spread": spread,
}


def sentences() -> dict[str, list[str]]:
    """By page, its words with numbers of its files."""
    field = {row["variant"].removeprefix("field_"): row for row in rows_of(RESULTS / "field_6x6" / "report.csv")}
    gain = {name: 100 * float(row["less_baseline_mean"] or "nan") for name, row in field.items()}
    steps = {name: shown(row, "steps") for name, row in field.items()}
    mazes = {row["variant"]: row for row in rows_of(RESULTS / "maze_grid" / "report.csv")}
    adam, fast = rows_of(RESULTS / "records" / "2026-11-26_fast" / "report.csv")
    seconds, rows = (float(fast[key]) / float(adam[key]) for key in ("seconds_to_target_mean", "samples_to_target_mean"))
    entries = rows_of(RESULTS / "records" / "2026-11-30_first" / "report.csv")
    [shallow] = rows_of(RESULTS / "scaling_6x6" / "shallow.csv")
    return {
        "field_6x6": [
            f"for the {sum(bool(row['p_corrected']) for row in field.values())} rows that have one",
            f"the fast recipe ({gain['fast']:+.1f}), a single latent ({gain['single_z']:+.1f}) and the "
            f"curriculum ({gain['curriculum']:+.1f})",
            f"EqR's {gain['eqr']:+.1f} is",
            f"{shown(field['no_ema'], 'less_baseline_mean')} without it",
            f"it makes {steps['one_step']} of them",
            f"costs a third of the steps and {-gain['act']:.0f} points",
            f"T=3 n=6 had {steps['t3_n6']} steps for the baseline's {steps['trm']}, winner takes all {steps['wta']}",
        ],
        "maze_grid": [
            f"{shown(mazes['t2_n2'], 'parameters')} weights",
            f"T=3 n=6 lies {-gain['t3_n6']:.0f} points behind T=2 n=2",
        ],
        "inference_6x6": list(_inference()),
        "scaling_6x6": [
            f"buys {_at(32)} % at width 32, {_at(64)} % at width 64 and {_at(128)} % at width 128",
            "At width 32, T=1 n=1 solves {} %, T=2 n=2 {} % and T=4 n=4 {} %".format(
                *(_at(32, "recursion", "passes by T and n", passes) for passes in (2, 6, 20))
            ),
            f"T=1 n=1 solves {shown(shallow, 'exact_accuracy_mean')} % (three seeds, {shown(shallow, 'steps')} steps) and T=2 n=2 "
            f"{_at(32)} %",
            "{} % with one step, {} % with four and {} % with sixteen".format(
                *(_at(32, "nsup", "supervision steps", steps) for steps in (1, 4, 16))
            ),
            *_failed_laws(),
        ],
        "gpu": list(_gpu()),
        "records": [
            f"took {shown(adam, 'seconds')} and {shown(fast, 'seconds')} s, and ended at "
            f"{shown(adam, 'exact_accuracy_mean')} and {shown(fast, 'exact_accuracy_mean')} %",
            f"(one-sided p = {_above_99(adam):.2f} and {_above_99(fast):.2f})",
            f"the second takes {seconds:.2f} of the first's seconds and {rows:.2f} of its rows",
            f"{shown(entries[1], 'seconds')} s to {100 * float(entries[1]['exact_accuracy_mean']):.2f} %** (one-sided p of a mean "
            f"above 99 %: {_above_99(entries[1]):.2g}), {float(entries[1]['seconds']) / float(entries[0]['seconds']):.2f} of the",
            f"its mean is {100 * float(entries[0]['exact_accuracy_mean']):.2f} %, with p = {_above_99(entries[0]):.2g} where",
        ],
    }


def _at(width: int, name: str = "isoflop", axis: str = "training FLOPs", size: float | None = None) -> str:
    """Exact accuracy in percent of this width at a size of the axis of a sweep of the scaling study, by default the largest."""
    points = json.loads((RESULTS / "scaling_6x6" / f"{name}.json").read_text())["points"]
    own = [p for p in points if p["axis"] == axis and p["where"].startswith(f"hidden_size={width},")]
    of = {p["size"]: p["values"] for p in own if p["measure"] == "exact accuracy"}
    return _mean([100 * share for share in of[size or max(of)]], ".1f")


def _failed_laws() -> Iterator[str]:
    """How many laws over training FLOPs predicted too much for the largest budget, and how many too little."""
    too_high: dict[str, list[bool]] = {"loss": [], "exact accuracy": []}
    for (axis, _, measure), of in _laws(RESULTS / "scaling_6x6" / "isoflop.csv").items():
        if axis == "training FLOPs" and "predicted" in of and "failed" in of["predicted"]["verdict"]:
            too_high[measure].append(float(of["predicted"]["value"]) > float(of["measured"]["value"]))
    words = ["none", "one", "two", "three", "four", "five"]
    losses, shares = too_high.values()
    yield f"All {words[sum(losses)]} laws of the loss predict a larger loss at 6 TFLOP"
    yield f"fail at {words[len(shares)]} widths, {words[sum(shares)]} too high and {words[len(shares) - sum(shares)]} too low."


def _above_99(row: Row) -> float:
    """The one-sided p of a mean above 99 %, from the mean and its 95 % interval."""
    others = int(row["seeds"]) - 1
    error = float(row["exact_accuracy_ci95_half_width"]) / stats.t.ppf(0.975, others)
    return float(stats.t.sf((float(row["exact_accuracy_mean"]) - 0.99) / error, others))


def _inference() -> Iterator[str]:
    by = _ways()

    def cells(key: str, *ways: str) -> list[str]:
        return [shown(by[way], key) for way in ways]

    def exact(*ways: str) -> list[str]:
        return [text.split(" ")[0] for text in cells("exact_accuracy", *ways)]

    def points(way: str) -> str:
        return shown(by[way], "difference").replace(" (", " points, ").rstrip(")")

    alone, *longer = exact(*(f"steps/last/1/{steps}" for steps in (16, 64, 256)))
    two, eight, many = exact(*(f"copies/vote/{count}/16" for count in (2, 8, 32)))
    yield f"Two copies solve {two}, eight {eight} and thirty-two {many} % ({points('copies/vote/32/16')})"
    yield f"one answer solves {alone} %"
    yield "{}, {} and {} %".format(*exact(*(f"noise{noise}/best_q/100/16" for noise in ("0.1", "0.3", "1"))))
    yield "{} % after 64 and {} % after 256".format(*longer)
    yield "restarts solve {} %".format(*exact("restarts/best_q/32/16"))
    shares = [
        100 * (1 - (1 - float(by[way]["oracle_exact_accuracy"])) / (1 - float(by["steps/last/1/16"]["exact_accuracy"])))
        for way in ("copies/vote/8/16", "noise0.3/best_q/100/16")
    ]
    yield "eight copies solve {:.0f} % and some of a hundred rollouts with noise 0.3 solve {:.0f} %".format(*shares)
    yield f"Two copies cost {float(by['copies/halt_first/2/16']['candidates_run']):.2f} of one answer"
    yield f"({points('copies/halt_first/2/16')})"
    yield f"eight cost {float(by['copies/halt_first/8/16']['candidates_run']):.2f} and solve"
    yield f"{exact('copies/halt_first/8/16')[0]} % ({points('copies/halt_first/8/16')})"
    gaps: dict[str, list[float]] = {}
    for row in by.values():
        if row["candidates"] != 1:
            gap = 100 * (float(row["oracle_exact_accuracy"]) - float(row["exact_accuracy"]))
            gaps.setdefault(row["selection"], []).append(gap)
    mean = sorted((sum(gap) / len(gap), name) for name, gap in gaps.items())
    yield "asked for): " + "; ".join(f"`{name}` {gap:.1f}" for gap, name in mean)


def _gpu() -> Iterator[str]:
    train, plain, *_ = rows_of(RESULTS / "gpu" / "beside.json")
    clock, every, *kernels = rows_of(RESULTS / "gpu" / "kernels.json")
    ms = {
        kind: sum(row["ms"] for row in kernels if re.search(pattern, row["kernel"]))
        for kind, pattern in (
            ("products", "nvjet|gemm"),
            ("pointwise", "triton_poi|elementwise"),
            ("reductions", "triton_(red|per)"),
        )
    }
    yield f"Peak memory of training {shown(train, 'peak GB')} GB (plain: {shown(plain, 'peak GB')})"
    yield f"(65,104 steps of 768) trains for {65104 * train['ms'] / 3.6e6:.1f} hours"
    yield f"the kernels fill {100 * every['ms'] / clock['ms']:.0f} % of the step"
    yield f"Products take {ms['products']:.0f} ms of {every['ms']:.0f}: at the rate of a plain 8192 product"
    rate = train["matmul GFLOP/s"]
    yield f"({rate / 1e3:.0f} TFLOP/s) they would take {1e3 * train['GFLOP a step'] / rate:.0f};"
    unaligned = [row["ms"] for row in kernels if "align1" in row["kernel"]]
    yield f"one kernel for unaligned rows is left, {unaligned[0]:.1f} ms"
    gate = {row["kernel"]: row["ms"] for row in kernels if "mul_silu" in row["kernel"]}
    forward = sum(value for kernel, value in gate.items() if "backward" not in kernel)
    yield f"Pointwise kernels take {ms['pointwise']:.0f} ms, {sum(gate.values()):.0f} of them SwiGLU's gate ({forward:.0f} forward)"
    yield f"Reductions (RMSNorm) take {ms['reductions']:.0f}"
    facts = yaml.safe_load((DOCS.parent / "models" / "sudoku_9x9" / "README.md").read_text().split("---\n")[1])
    yield f"{facts['steps']:,} steps in {facts['training_seconds']:.0f} s"
    yield f"({512 * facts['steps'] / facts['training_seconds']:,.0f} samples/s; "
    yield f"{1000 * facts['training_seconds'] / facts['steps']:.0f} ms a step"


def blocks() -> dict[str, str]:
    """The output on the plan's page below each command, by the command's arguments."""
    return {block[1]: block[2] for block in BLOCK.finditer((RESULTS / "plan_v4_64.md").read_text())}


def printed(arguments: str) -> str:
    """The output of a command of trm.plan."""
    from trm.plan.__main__ import main

    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(shlex.split(arguments))
    return out.getvalue()


def filled(page: Path) -> str:
    """The page with new tables and outputs."""

    def anew(found: re.Match[str]) -> str:
        return f"<!-- {found[1]}, from {found[2]} -->\n{table(found[1], page.parent / found[2])}<!-- end -->\n"

    text = FILLED.sub(anew, page.read_text(encoding="utf-8"))
    return BLOCK.sub(lambda found: f"## `python -m trm.plan {found[1]}`\n```\n{printed(found[1])}```\n", text)


if __name__ == "__main__":
    for page in [*PAGES, README]:
        page.write_text(filled(page), encoding="utf-8")
        print(f"written: {page}")
