"""Tables and pictures of `python -m trm.evaluate`: scores by difficulty, and ways of inference compared.

Shares of 1 in CSV and JSON, percent on the terminal and in pictures.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from trm.show.charts import COLOURS, LINES, chart
from trm.show.files import write_files
from trm.show.table import aligned

Rows = Sequence[dict[str, Any]]  # one dict for each line, with the same keys


def write_difficulty(folder: Path, rows: Rows, facts: dict[str, Any]) -> None:
    """Print the rows of trm.inference.compute.by_difficulty and write by_difficulty.csv, .json and .png. Raises UserError."""
    columns = {
        "from": (f"{facts['difficulty']}: from", "{:d}", 1),
        "to": ("to", "{:d}", 1),
        "mean": ("mean", "{:.1f}", 1.0),
        "puzzles": ("puzzles", "{:d}", 1),
        **_score_columns(_scores_of(rows)),
    }
    _write(folder, "by_difficulty", rows, facts, columns, difficulty_picture(rows, facts))


def write_frontier(folder: Path, rows: Rows, facts: dict[str, Any], scores: Sequence[str] = ()) -> None:
    """Print ways of inference by their FLOPs a puzzle and write frontier.csv, .json and .png. Raises UserError."""
    _write(
        folder,
        "frontier",
        rows,
        facts,
        frontier_columns(scores),
        frontier_picture(rows, facts),
    )


def frontier_columns(scores: Sequence[str] = ()) -> dict[str, tuple[str, str, float]]:
    """For each key of a way's row its title, how its value is written, and what it is multiplied by."""
    return {
        "inference": ("inference", "{}", 1),
        "candidates": ("K", "{:.6g}", 1),
        "supervision_steps": ("D", "{:d}", 1),
        "selection": ("selection", "{}", 1),
        "exact_accuracy": ("exact %", "{:.2f}", 100),
        "exact_accuracy_low": ("95 % over puzzles: from", "{:.2f}", 100),
        "exact_accuracy_high": ("to", "{:.2f}", 100),
        **_score_columns(scores),
        "oracle_exact_accuracy": ("pass@K % (oracle)", "{:.2f}", 100),
        "candidates_run": ("candidates run", "{:.3g}", 1),
        "passes_per_puzzle": ("passes/puzzle", "{:.4g}", 1),
        "flops_per_puzzle": ("GFLOP/puzzle", "{:.4g}", 1e-9),
        "seconds_per_puzzle": ("ms/puzzle", "{:.3g}", 1e3),
        "pareto": ("Pareto front", "{:d}", 1),
    }


def _score_columns(names: Sequence[str]) -> dict[str, tuple[str, str, float]]:
    return {name: (f"{name.removesuffix('_accuracy')} %", "{:.2f}", 100) for name in names}


def _scores_of(rows: Rows) -> list[str]:
    return [name for name in rows[0] if name not in ("from", "to", "mean", "puzzles")]


def difficulty_picture(rows: Rows, facts: dict[str, Any]) -> bytes:
    """The scores against how hard the puzzles are; numbers at the points: puzzles. PNG."""
    with chart(7, 4.2) as (figure, file):
        axes = figure.subplots()
        names = _scores_of(rows)
        for number, name in enumerate(names):
            _line(axes, number, rows, "mean", name, name.removesuffix("_accuracy"))
        for row in rows:
            place = (row["mean"], 100 * max(row[name] for name in names))
            axes.annotate(str(row["puzzles"]), place, (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.set_ylim(-3, 108)
        _name(axes, "Scores by difficulty", f"{facts['difficulty']}, mean of a range; numbers at the points: puzzles", facts, "%")
    return file.getvalue()


def _compute_axis(axes: Any) -> None:
    """FLOPs from left to right."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(unit="FLOP"))
    axes.xaxis.set_minor_locator(NullLocator())


def frontier_picture(rows: Rows, facts: dict[str, Any]) -> bytes:
    """Exact accuracy of each way against its FLOPs a puzzle, with the Pareto front as a line and the oracle above it. PNG."""
    with chart(7, 4.6) as (figure, file):
        axes = figure.subplots()
        front = [row for row in rows if row["pareto"]]
        _line(axes, 0, front, "flops_per_puzzle", "exact_accuracy", "Pareto front")
        for number, row in enumerate(rows):
            place = (row["flops_per_puzzle"], 100 * row["exact_accuracy"])
            ends = [
                [100 * (row["exact_accuracy"] - row["exact_accuracy_low"])],
                [100 * (row["exact_accuracy_high"] - row["exact_accuracy"])],
            ]
            axes.errorbar(*place, yerr=ends, fmt="o", color=COLOURS[0 if row["pareto"] else 6], markersize=5, capsize=2)
            axes.annotate(row["inference"], place, (5, (6, -12)[number % 2]), textcoords="offset points", fontsize=8)
        several = [row for row in rows if "single_exact_accuracy" in row]
        if several:
            shares = [100 * row["oracle_exact_accuracy"] for row in several]
            label = "any candidate right (pass@K, an oracle)"
            axes.plot([row["flops_per_puzzle"] for row in several], shares, "x", color=COLOURS[1], label=label)
        _compute_axis(axes)
        _name(axes, "Ways of inference", "compute for a puzzle; bars: 95 % over puzzles", facts)
    return file.getvalue()


def _line(axes: Axes, number: int, rows: Rows, x: str, share: str, label: str) -> None:
    y, marker, line = [100 * row[share] for row in rows], "os^Dv"[number % 5], LINES[number % len(LINES)]
    axes.plot([row[x] for row in rows], y, line, marker=marker, color=COLOURS[number], label=label, markersize=5)


def _name(axes: Axes, title: str, x: str, facts: dict[str, Any], y: str = "exact accuracy, %") -> None:
    run = f"{facts['run_name']} at step {facts['checkpoint_step']}: {facts['puzzles']:,} puzzles of {facts['data']}"
    axes.set(title=f"{title}\n{run}", xlabel=x, ylabel=y)
    axes.legend()


def _write(
    folder: Path, name: str, rows: Rows, facts: dict[str, Any], columns: dict[str, tuple[str, str, float]], picture: bytes
) -> None:
    """`columns`: for each key of a row its title on the terminal, how its value is written, and what it is multiplied by there."""
    record = json.dumps({**facts, "rows": list(rows)}, sort_keys=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    files: dict[str, str | bytes] = {
        ".csv": text.getvalue(),
        ".json": json.dumps(json.loads(record), indent=1) + "\n",
        ".png": picture,
    }
    write_files("--out", folder, {folder / f"{name}{end}": content for end, content in files.items()})
    shown = [[form.format(row[key] * scale) for key, (_, form, scale) in columns.items()] for row in rows]
    print(*aligned([[title for title, _, _ in columns.values()], *shown], [True] * len(columns)), sep="\n")
    print(f"step {facts['checkpoint_step']}, {facts['weights']} weights, {facts['seconds']:.1f} s")
    for end in files:
        print(f"written: {folder / name}{end}")
    print(record)
