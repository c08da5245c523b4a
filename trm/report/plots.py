"""Pictures: learning curves, a bar for each variant, accuracy by supervision step; each for a light and a dark page."""

from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from trm.report.runs import Points, Run
from trm.report.variants import Comparison, Variant
from trm.show.charts import COLOURS, INK, LINES, Theme, png, style

MOST_MARKED_POINTS = 25  # evaluations of one curve; more are drawn without markers


def curves(comparison: Comparison, theme: Theme = "light") -> bytes:
    """Exact accuracy of the evaluations and training loss against the step, as PNG.

    A thin line for each run (dashed where it is not counted) and a thick one for a variant's mean over the counted ones.
    """
    with matplotlib.rc_context(style(theme)):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        accuracy, loss = figure.subplots(1, 2)
        for i, variant in enumerate(comparison.variants):
            colour, line = _look(i)
            _draw(accuracy, variant, "evaluations", colour, line, 100)
            _draw(loss, variant, "losses", colour, line, 1)
        accuracy.set(title="Exact accuracy on held-out puzzles", xlabel="training step", ylabel="%", ylim=(-2, 102))
        loss.set(title="Training loss", xlabel="training step")
        if loss.lines:
            loss.set_yscale("log", nonpositive="mask")
            low, high = loss.get_ylim()
            loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 1.25, 1.5, 2, 3, 4, 5, 6, 8)))
            loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            loss.yaxis.set_minor_formatter(NullFormatter())
        for axes, what in ((accuracy, "evaluations"), (loss, "training metrics")):
            axes.grid(visible=True)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
            if not axes.lines:
                axes.text(0.5, 0.5, f"no {what} yet", ha="center", va="center", transform=axes.transAxes)
        handles, labels = accuracy.get_legend_handles_labels()
        if not handles:
            handles, labels = loss.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
        return png(figure)


def _draw(axes: Axes, variant: Variant, kind: Literal["evaluations", "losses"], colour: str, line: str, scale: float) -> None:
    """One variant's runs and mean. The label goes to the mean, or to a single run, or to the first that is not counted."""
    counted = [run for run in variant.counted if _points(run, kind)]
    others = [run for run in variant.runs if run.status not in ("completed", "damaged") and _points(run, kind)]
    for run in others:
        style = {"linestyle": (0, (4, 3)), "linewidth": 0.9, "alpha": 0.6, "color": colour}
        label = f"{variant.label} (not counted)" if not counted and run is others[0] else None
        axes.plot(*_xy(_points(run, kind), scale), label=label, **style)  # type: ignore[arg-type]
    if len(counted) > 1:
        for run in counted:
            axes.plot(*_xy(_points(run, kind), scale), color=colour, linestyle=line, linewidth=0.8, alpha=0.4)
    if counted:
        mean = _mean([_points(run, kind) for run in counted])
        marker = "o" if kind == "evaluations" and len(mean) <= MOST_MARKED_POINTS else None
        axes.plot(*_xy(mean, scale), color=colour, linestyle=line, linewidth=2, marker=marker, markersize=4, label=variant.label)


def _points(run: Run, kind: Literal["evaluations", "losses"]) -> Points:
    return run.evaluations if kind == "evaluations" else run.losses


def _mean(series: list[Points]) -> Points:
    """The mean at the steps that all of the series have."""
    values = [dict(points) for points in series]
    shared = sorted(set.intersection(*(set(v) for v in values)))
    return [(step, float(np.mean([v[step] for v in values]))) for step in shared]


def _xy(points: Points, scale: float) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [scale * value for _, value in points]


def bars(comparison: Comparison, theme: Theme = "light") -> bytes:
    """Final exact accuracy of each variant, with its interval, its seeds as dots and the paper's value, as PNG."""
    shown = [(i, variant) for i, variant in enumerate(comparison.variants) if variant.exact_accuracy]
    with matplotlib.rc_context(style(theme)):
        page, ink, _ = INK[theme]
        figure = Figure(figsize=(11, 1.3 + 0.42 * max(len(shown), 2)), layout="constrained")
        axes = figure.subplots()
        for row, (i, variant) in enumerate(shown):
            found = variant.exact_accuracy
            assert found is not None
            seeds = [100 * run.exact_accuracy for run in variant.counted if run.exact_accuracy is not None]
            axes.barh(row, 100 * found.mean, height=0.62, color=_look(i)[0], alpha=0.85)
            axes.plot(
                seeds, [row + 0.19] * len(seeds), "o", markersize=4, color=page, markeredgecolor=ink, markeredgewidth=0.8, zorder=3
            )
            if found.half_width is None:
                text = f"{100 * found.mean:.1f}  n=1, no interval"
            else:
                text = f"{100 * found.mean:.1f} ± {100 * found.half_width:.1f}  n={found.n}"
                axes.errorbar(100 * found.mean, row, xerr=100 * found.half_width, color=ink, capsize=4, linewidth=1.4, zorder=4)
            if variant.paper and variant.paper.comparable:
                axes.plot(100 * variant.paper.row.exact_accuracy, row, "D", color=ink, markersize=7, zorder=5, fillstyle="none")
            axes.text(101, row, text, va="center", fontsize=9)
        axes.set_yticks(range(len(shown)), [variant.label for _, variant in shown])
        axes.set(xlim=(0, 100), ylim=(max(len(shown), 2) - 0.4, -0.6), xlabel="final exact accuracy on held-out puzzles, %")
        axes.set_title("Mean over seeds with 95 % interval; dots are seeds" + _diamond(comparison), fontsize=10)
        axes.grid(visible=True, axis="x")
        axes.set_axisbelow(True)
        if not shown:
            axes.text(0.5, 0.5, "no completed runs yet", ha="center", va="center", transform=axes.transAxes)
        return png(figure)


def supervision_steps(comparison: Comparison, theme: Theme = "light") -> bytes | None:
    """Exact accuracy after each supervision step of the last evaluation, mean over each variant's seeds, as PNG.

    None where no counted run has it.
    """
    series = [
        (i, variant, [run.exact_accuracy_by_step for run in variant.counted if run.exact_accuracy_by_step])
        for i, variant in enumerate(comparison.variants)
    ]
    series = [(i, variant, runs) for i, variant, runs in series if runs]
    if not series:
        return None
    with matplotlib.rc_context(style(theme)):
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, variant, runs in series:
            colour, line = _look(i)
            seeds = [[(step, share) for step, share in enumerate(run, start=1)] for run in runs]
            mean = _mean(seeds)
            if len(seeds) > 1:
                for points in seeds:
                    axes.plot(*_xy(points, 100), color=colour, linestyle=line, linewidth=0.8, alpha=0.4)
            marker = "o" if len(mean) <= MOST_MARKED_POINTS else None
            axes.plot(*_xy(mean, 100), color=colour, linestyle=line, linewidth=2, marker=marker, markersize=4, label=variant.label)
        shares = [100 * share for _, _, runs in series for run in runs for share in run]
        limits = max(min(shares) - 5, -2), min(max(shares) + 5, 102)  # the differences are small: not from 0
        axes.set(title="Exact accuracy after each supervision step", xlabel="supervision step", ylabel="%", ylim=limits)
        axes.grid(visible=True)
        axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
        return png(figure)


def _diamond(comparison: Comparison) -> str:
    compared = any(variant.difference is not None for variant in comparison.variants)
    return ", diamonds the paper's values" if compared else ""


def _look(i: int) -> tuple[str, str]:
    return COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)]
