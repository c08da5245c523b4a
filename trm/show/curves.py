"""Tables and pictures of `python -m trm.evaluate`: accuracy against compute, votes of symmetric copies, and scores by
difficulty.

Shares of 1 in CSV and JSON, percent on the terminal and in pictures.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullLocator

from trm.errors import UserError
from trm.show.charts import COLOURS, LINES, png, style

Rows = Sequence[dict[str, Any]]  # one dict for each line, with the same keys


def write_curve(folder: Path, points: Rows, facts: dict[str, Any], scores: Sequence[str] = ()) -> None:
    """Print the points of trm.inference.compute.ComputePoint and write compute_curve.csv, .json and .png. Raises UserError.

    `scores` are those of the task's own that they have beside.
    """
    columns = {
        "supervision_steps": ("steps", "{:d}", 1),
        "exact_accuracy": ("exact %", "{:.2f}", 100),
        **_score_columns(scores),
        "flops_per_puzzle": ("GFLOP/puzzle", "{:.4g}", 1e-9),
        "halting_exact_accuracy": ("halting: exact %", "{:.2f}", 100),
        "halting_mean_steps": ("mean steps", "{:.2f}", 1),
        "halting_flops_per_puzzle": ("GFLOP/puzzle", "{:.4g}", 1e-9),
    }
    _write(folder, "compute_curve", points, facts, columns, curve_picture(points, facts))


def write_votes(folder: Path, rows: Rows, facts: dict[str, Any], scores: Sequence[str] = ()) -> None:
    """Print the rows of trm.inference.compute.VoteResult and write voting.csv, .json and .png. Raises UserError.

    `scores` are those of the task's own that they have beside.
    """
    columns = {
        "copies": ("copies", "{:d}", 1),
        "exact_accuracy": ("exact %", "{:.2f}", 100),
        **_score_columns(scores),
        "accuracy": ("cells %", "{:.2f}", 100),
        "single_exact_accuracy": ("one copy alone: exact %", "{:.2f}", 100),
        "flops_per_puzzle": ("GFLOP/puzzle", "{:.4g}", 1e-9),
    }
    _write(folder, "voting", rows, facts, columns, votes_picture(rows, facts))


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


def _score_columns(names: Sequence[str]) -> dict[str, tuple[str, str, float]]:
    return {name: (f"{name.removesuffix('_accuracy')} %", "{:.2f}", 100) for name in names}


def _scores_of(rows: Rows) -> list[str]:
    return [name for name in rows[0] if name not in ("from", "to", "mean", "puzzles")]


def difficulty_picture(rows: Rows, facts: dict[str, Any]) -> bytes:
    """The scores against how hard the puzzles are; numbers at the points: puzzles. PNG."""
    with matplotlib.rc_context(style("light")):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        names = _scores_of(rows)
        for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            look: dict[str, Any] = {"color": colour, "marker": "os^Dv"[i % 5], "linestyle": LINES[i % len(LINES)], "markersize": 5}
            label = name.removesuffix("_accuracy")
            axes.plot([row["mean"] for row in rows], [100 * row[name] for row in rows], label=label, **look)
        for row in rows:
            place = (row["mean"], 100 * max(row[name] for name in names))
            axes.annotate(str(row["puzzles"]), place, (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xlabel(f"{facts['difficulty']}, mean of a range; numbers at the points: puzzles")
        axes.set_ylim(-3, 108)
        return _finished(figure, axes, f"Scores by difficulty\n{_title(facts)}", "%")


def curve_picture(points: Rows, facts: dict[str, Any]) -> bytes:
    """Exact accuracy against FLOPs of a puzzle, with and without halting; points are labelled with their steps. PNG."""
    with matplotlib.rc_context(style("light")):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        lines = (("", "all steps", "o-"), ("halting_", "halting on", "s--"))
        for (prefix, label, marks), colour in zip(lines, COLOURS, strict=False):
            x = [point[f"{prefix}flops_per_puzzle"] for point in points]
            y = [100 * point[f"{prefix}exact_accuracy"] for point in points]
            axes.plot(x, y, marks, color=colour, label=label, markersize=5)
        for point in points:
            place = (point["flops_per_puzzle"], 100 * point["exact_accuracy"])
            axes.annotate(str(point["supervision_steps"]), place, (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(unit="FLOP"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("compute for a puzzle; numbers at the points: supervision steps")
        return _finished(figure, axes, f"Accuracy against compute\n{_title(facts)}")


def votes_picture(rows: Rows, facts: dict[str, Any]) -> bytes:
    """Exact accuracy of the vote against the number of copies, beside the copies by themselves. PNG."""
    with matplotlib.rc_context(style("light")):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        copies = [row["copies"] for row in rows]
        axes.plot(copies, [100 * row["exact_accuracy"] for row in rows], "o-", color=COLOURS[0], label="vote")
        alone = [100 * row["single_exact_accuracy"] for row in rows]
        axes.plot(copies, alone, "s--", color=COLOURS[1], label="one copy alone, mean")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(copies))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("symmetric copies of a puzzle; 1 = no vote")
        return _finished(figure, axes, f"Test-time voting\n{_title(facts)}")


def _title(facts: dict[str, Any]) -> str:
    return f"{facts['run_name']} at step {facts['checkpoint_step']}: {facts['puzzles']:,} puzzles of {facts['data']}"


def _finished(figure: Figure, axes: Axes, title: str, what: str = "exact accuracy, %") -> bytes:
    axes.set_ylabel(what)
    axes.set_title(title)
    axes.grid(visible=True)
    axes.legend(frameon=False)
    return png(figure)


def _write(
    folder: Path, name: str, rows: Rows, facts: dict[str, Any], columns: dict[str, tuple[str, str, float]], picture: bytes
) -> None:
    """`columns`: for each key of a row its title on the terminal, how its value is written, and what it is multiplied by there."""
    body = json.dumps({**facts, "rows": list(rows)}, sort_keys=True)
    files = [folder / f"{name}{end}" for end in (".csv", ".json", ".png")]
    try:
        with files[0].open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        files[1].write_text(json.dumps(json.loads(body), indent=1) + "\n")
        files[2].write_bytes(picture)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}): choose another folder with --out DIR") from error
    texts = [[title for title, _, _ in columns.values()]]
    for row in rows:
        texts.append([form.format(row[key] * scale) for key, (_, form, scale) in columns.items()])
    widths = [max(len(text[i]) for text in texts) for i in range(len(columns))]
    for text in texts:
        print("  ".join(f"{value:>{width}}" for value, width in zip(text, widths, strict=True)))
    print(f"step {facts['checkpoint_step']}, {facts['weights']} weights, {facts['seconds']:.1f} s")
    for path in files:
        print(f"written: {path}")
    print(body)
