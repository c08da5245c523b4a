"""The tables of `python -m trm.evaluate`, each with a picture: ways of inference, supervision steps, and puzzles by difficulty.

Shares of 1 in CSV and JSON, percent on the terminal and in pictures.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from trm.inference.compute import with_intervals
from trm.show.charts import COLOURS, LINES, chart
from trm.show.files import write_files
from trm.show.table import aligned, csv_of

Rows = Sequence[dict[str, Any]]  # one dict for each line
Columns = dict[str, tuple[str, str, float]]  # for each key of a row: its title, its format and its factor

WHICH: Columns = {  # what a row is about
    "inference": ("inference", "{}", 1),
    "candidates": ("K", "{:.6g}", 1),
    "supervision_steps": ("D", "{:d}", 1),
    "selection": ("selection", "{}", 1),
    "from": ("from", "{:d}", 1),
    "to": ("to", "{:d}", 1),
    "mean": ("mean", "{:.1f}", 1.0),
    "count": ("puzzles", "{:d}", 1),
    "exact_accuracy": ("exact %", "{:.2f}", 100),
    "exact_accuracy_low": ("95 % over puzzles: from", "{:.2f}", 100),
    "exact_accuracy_high": ("to", "{:.2f}", 100),
}
COSTS: Columns = {
    "difference": ("difference", "{:+.2f}", 100),
    "difference_low": ("95 %: from", "{:+.2f}", 100),
    "difference_high": ("to", "{:+.2f}", 100),
    "p": ("p", "{:.2g}", 1),
    "sign_p": ("sign p", "{:.2g}", 1),
    "oracle_exact_accuracy": ("pass@K % (oracle)", "{:.2f}", 100),
    "selection_failures": ("selection failures %", "{:.0f}", 100),
    "candidates_run": ("candidates run", "{:.3g}", 1),
    "passes_per_puzzle": ("passes/puzzle", "{:.4g}", 1),
    "flops_per_puzzle": ("GFLOP/puzzle", "{:.4g}", 1e-9),
    "seconds_per_puzzle": ("ms/puzzle", "{:.3g}", 1e3),
    "pareto": ("Pareto front", "{:d}", 1),
}


def columns_of(rows: Rows, scores: Sequence[str] = ()) -> Columns:
    """The columns that some of the rows have, with the task's own `scores` next to the exact accuracy."""
    columns = WHICH | {name: (f"{name.removesuffix('_accuracy')} %", "{:.2f}", 100) for name in scores} | COSTS
    return {key: column for key, column in columns.items() if any(key in row for row in rows)}


def cells(rows: Rows, scores: Sequence[str] = ()) -> list[list[str]]:
    """A table's titles and its lines as text, in percent; empty where a row has no such value."""
    columns = columns_of(rows, scores)
    lines = [
        ["" if row.get(key) is None else form.format(row[key] * scale) for key, (_, form, scale) in columns.items()] for row in rows
    ]
    return [[title for title, _, _ in columns.values()], *lines]


def write_table(
    folder: Path, name: str, rows: Rows, facts: dict[str, Any], scores: Sequence[str] = (), *, told: bool = True
) -> list[str]:
    """Write NAME.csv, .json and .png with Wilson's 95 % intervals over puzzles, and print the table if it is `told`.

    `facts` are what the rows have in common; `scores` name the task's own. Returns the names of the files. Raises UserError.
    """
    rows = with_intervals(rows)
    columns = columns_of(rows, scores)
    record = {**facts, "rows": rows}
    files: dict[str, str | bytes] = {
        f"{name}.csv": csv_of(rows, columns),
        f"{name}.json": json.dumps(record, indent=1, sort_keys=True) + "\n",
        f"{name}.png": picture(rows, facts, scores),
    }
    write_files("--out", folder, {folder / file: content for file, content in files.items()})
    if told:
        if "difficulty" in facts:
            print(f"{facts['difficulty']}: from, to and mean of each line")
        print(*aligned(cells(rows, scores), [True] * len(columns)), sep="\n")
        print(f"step {facts['checkpoint_step']}, {facts['weights']} weights, {facts['seconds']:.1f} s")
        print(*(f"written: {folder / file}" for file in files), json.dumps(record, sort_keys=True), sep="\n")
    return list(files)


def picture(rows: Rows, facts: dict[str, Any], scores: Sequence[str] = ()) -> bytes:
    """Exact accuracy with its interval against FLOPs of a puzzle or difficulty, as PNG.

    A line joins the Pareto front of ways of inference; crosses above show the oracle. By difficulty the task's own scores are lines
    too, and the points show their numbers of puzzles.
    """
    with chart(7, 4.6) as (figure, file):
        axes = figure.subplots()
        if "difficulty" in facts:
            x, title, words = "mean", "Scores by difficulty", f"{facts['difficulty']}, mean of a range; numbers: puzzles"
            for number, score in enumerate(["exact_accuracy", *scores]):
                _line(axes, number, rows, x, score, score.removesuffix("_accuracy"))
            labels = [str(row["count"]) for row in rows]
        else:
            x, words = "flops_per_puzzle", "compute for a puzzle; bars: 95 % over puzzles"
            several = any("pareto" in row for row in rows)
            title, front = (
                ("Ways of inference", "Pareto front") if several else ("Accuracy after each supervision step", "after each step")
            )
            _line(axes, 0, [row for row in rows if row.get("pareto", True)], x, "exact_accuracy", front)
            if oracle := [row for row in rows if "single_exact_accuracy" in row]:
                label = "any candidate right (pass@K, an oracle)"
                shares = [100 * row["oracle_exact_accuracy"] for row in oracle]
                axes.plot([row[x] for row in oracle], shares, "x", color=COLOURS[1], label=label)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(EngFormatter(unit="FLOP"))
            axes.xaxis.set_minor_locator(NullLocator())
            labels = [row["inference"] if several else str(row["supervision_steps"]) for row in rows]
        for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
            share, low, high = (100 * row[f"exact_accuracy{end}"] for end in ("", "_low", "_high"))
            colour = COLOURS[0 if row.get("pareto", True) else 6]
            axes.errorbar(row[x], share, yerr=[[share - low], [high - share]], fmt="o", color=colour, markersize=5, capsize=2)
            axes.annotate(label, (row[x], share), (5, (6, -12)[number % 2]), textcoords="offset points", fontsize=8)
        run = f"{facts['run_name']} at step {facts['checkpoint_step']}: {facts['puzzles']:,} puzzles of {facts['data']}"
        axes.set(title=f"{title}\n{run}", xlabel=words, ylabel="%" if "difficulty" in facts else "exact accuracy, %")
        axes.legend()
    return file.getvalue()


def _line(axes: Axes, number: int, rows: Rows, x: str, share: str, label: str) -> None:
    y, marker, line = [100 * row[share] for row in rows], "os^Dv"[number % 5], LINES[number % len(LINES)]
    axes.plot([row[x] for row in rows], y, line, marker=marker, color=COLOURS[number], label=label, markersize=5)
