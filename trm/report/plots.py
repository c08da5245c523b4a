"""Pictures: learning curves, a bar for each variant, accuracy by supervision step, ways of inference; on light and dark pages."""

import itertools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from trm.ground.progress import work
from trm.inference.compute import pareto
from trm.report.frontier import ways
from trm.report.runs import Points, Run
from trm.report.variants import MEASURED_OTHERWISE, Comparison
from trm.show.charts import COLOURS, INK, LINES, Theme, chart, plain_numbers

WAY_MARKS = "osD^vP*<>phHd8"  # of ways of inference
MOST_MARKED_POINTS = 25  # evaluations of one curve; more are drawn without markers
NOT_COUNTED: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 0.9, "alpha": 0.6}
CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}


def drawn(comparison: Comparison) -> dict[str, dict[Theme, bytes]]:
    """All pictures that there is something for, by name, on each kind of page, as PNG."""
    pictures = {"curves": _curves, "bars": _bars}
    if any(run.exact_accuracy_by_step for run in comparison.counted):
        pictures["steps"] = _supervision_steps
    if ways(comparison)[0]:
        pictures["frontier"] = _frontier
    found: dict[str, dict[Theme, bytes]] = {name: {} for name in pictures}
    todo = [(name, draw, theme) for name, draw in pictures.items() for theme in get_args(Theme)]
    with work("pictures drawn", len(todo), "picture") as done:
        for number, (name, draw, theme) in enumerate(todo, start=1):
            found[name][theme] = draw(comparison, theme)
            done(number)
    return found


def _curves(comparison: Comparison, theme: Theme) -> bytes:
    """Exact accuracy of the evaluations and training loss against the step.

    A thin line for each run (dashed where it is not counted) and a thick one for a variant's mean over the counted ones.
    """
    with chart(11, 4.2, theme) as (figure, file):
        accuracy, loss = figure.subplots(1, 2)
        _lines(accuracy, comparison, lambda run: [(step, 100 * exact) for step, exact in run.evaluations])
        _lines(loss, comparison, lambda run: run.losses, marked=False)
        accuracy.set(title="Exact accuracy on held-out puzzles", xlabel="training step", ylabel="%", ylim=(-2, 102))
        loss.set(title="Training loss", xlabel="training step")
        if loss.lines:
            loss.set_yscale("log", nonpositive="mask")
            low, high = loss.get_ylim()
            steps = (1, 2, 5) if high > 10 * low else (1, 1.25, 1.5, 2, 3, 4, 5, 6, 8)
            plain_numbers(loss.yaxis, FuncFormatter(lambda value, _: f"{value:g}"), steps)
        for axes, what in ((accuracy, "evaluations"), (loss, "training metrics")):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
            if not axes.lines:
                axes.text(0.5, 0.5, f"no {what} yet", transform=axes.transAxes, **CENTRED)
        _legend(figure, accuracy if accuracy.lines else loss)
    return file.getvalue()


def _supervision_steps(comparison: Comparison, theme: Theme) -> bytes:
    """Exact accuracy after each supervision step of the last evaluation, mean over each variant's seeds."""
    with chart(11, 3.8, theme) as (figure, file):
        axes = figure.subplots()
        _lines(axes, comparison, lambda run: [(i + 1, 100 * s) for i, s in enumerate(run.exact_accuracy_by_step)], others=False)
        shares = np.concatenate([line.get_ydata() for line in axes.lines])
        limits = max(shares.min() - 5, -2), min(shares.max() + 5, 102)  # the differences are small: not from 0
        axes.set(title="Exact accuracy after each supervision step", xlabel="supervision step", ylabel="%", ylim=limits)
        axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
        _legend(figure, axes)
    return file.getvalue()


def _lines(
    axes: Axes, comparison: Comparison, points_of: Callable[[Run], Points], *, marked: bool = True, others: bool = True
) -> None:
    """Each variant's runs and mean. The label goes to the mean, or to the first of the runs that are not counted (`others`)."""

    def draw(points: Points, **look: Any) -> None:
        axes.plot(*np.reshape(points, (-1, 2)).T, **look)

    for i, variant in enumerate(comparison.variants):
        colour, line = _look(i)
        counted = [points for run in variant.counted if (points := points_of(run))]
        unfinished = [run for run in variant.runs if others and run.status not in ("completed", "damaged")]
        title = comparison.title(variant)
        label = None if counted else f"{title} (not counted)"
        for points in filter(None, map(points_of, unfinished)):
            draw(points, label=label, color=colour, **NOT_COUNTED)
            label = None
        for points in counted if len(counted) > 1 else ():
            draw(points, color=colour, linestyle=line, linewidth=0.8, alpha=0.4)
        if counted:
            values = [dict(points) for points in counted]
            shared = sorted(set.intersection(*map(set, values)))  # steps
            mean = [(step, float(np.mean([of_run[step] for of_run in values]))) for step in shared]
            marker = "o" if marked and len(mean) <= MOST_MARKED_POINTS else None
            draw(mean, color=colour, linestyle=line, linewidth=2, marker=marker, markersize=4, label=title)


def _bars(comparison: Comparison, theme: Theme) -> bytes:
    """Final exact accuracy of each variant, with its interval, its seeds as dots and the paper's value."""
    shown = [(i, variant, found) for i, variant in enumerate(comparison.variants) if (found := variant.exact_accuracy)]
    page, ink, _ = INK[theme]
    dots: dict[str, Any] = {"markersize": 4, "color": page, "markeredgecolor": ink, "markeredgewidth": 0.8, "zorder": 3}
    with chart(11, 1.3 + 0.42 * max(len(shown), 2), theme) as (figure, file):
        axes = figure.subplots()
        for row, (i, variant, found) in enumerate(shown):
            mean, text = 100 * found.mean, f"{100 * found.mean:.1f}  n=1, no interval"
            seeds = [100 * run.exact_accuracy for run in variant.counted if run.exact_accuracy is not None]
            axes.barh(row, mean, height=0.62, color=_look(i)[0], alpha=0.85)
            axes.plot(seeds, [row + 0.19] * len(seeds), "o", **dots)
            if found.half_width is not None:
                text = f"{mean:.1f} ± {100 * found.half_width:.1f}  n={found.n}"
                axes.errorbar(mean, row, xerr=100 * found.half_width, color=ink, capsize=4, linewidth=1.4, zorder=4)
            if variant.paper and variant.paper.comparable:
                axes.plot(100 * variant.paper.row.exact_accuracy, row, "D", color=ink, markersize=7, zorder=5, fillstyle="none")
            axes.text(101, row, text, va="center", fontsize=9)
        axes.set_yticks(range(len(shown)), [comparison.title(variant) for _, variant, _ in shown])
        axes.set(xlim=(0, 100), ylim=(max(len(shown), 2) - 0.4, -0.6), xlabel="final exact accuracy on held-out puzzles, %")
        diamonds = ", diamonds the paper's values" if any(v.difference is not None for v in comparison.variants) else ""
        apart = f";{MEASURED_OTHERWISE} = measured in another way" if comparison.not_compared else ""
        axes.set_title(f"Mean over seeds with 95 % interval; dots are runs{diamonds}{apart}", fontsize=10)
        axes.grid(visible=False, axis="y")
        axes.set_axisbelow(True)
        if not shown:
            axes.text(0.5, 0.5, "no completed runs yet", transform=axes.transAxes, **CENTRED)
    return file.getvalue()


def _frontier(comparison: Comparison, theme: Theme) -> bytes:
    """Exact accuracy of ways of inference against their FLOPs a puzzle, mean over each variant's seeds."""
    with chart(11, 4.4, theme) as (figure, file):
        axes, (found, _) = figure.subplots(), ways(comparison)
        marks = dict(zip(dict.fromkeys(way.name for way in found), itertools.cycle(WAY_MARKS)))
        numbers = sorted({way.number for way in found})
        for number in numbers:
            own, (colour, line) = [way for way in found if way.number == number], _look(number)
            flops, shares = [way.means["flops_per_puzzle"] for way in own], [100 * way.exact_accuracy.mean for way in own]
            rows = [{"flops_per_puzzle": x, "exact_accuracy": y} for x, y in zip(flops, shares, strict=True)]
            front = [(row["flops_per_puzzle"], row["exact_accuracy"]) for row in pareto(rows) if row["pareto"]]
            axes.plot(*zip(*front, strict=True), color=colour, linestyle=line, linewidth=1, label=comparison.title(own[0].variant))
            oracle = [100 * way.means["oracle_exact_accuracy"] for way in own]
            axes.plot(flops, oracle, "x", color=colour, markersize=4, alpha=0.6)
            for i, way in enumerate(own):
                width = 100 * (way.exact_accuracy.half_width or 0)
                axes.errorbar(flops[i], shares[i], yerr=width, fmt=marks[way.name], color=colour, capsize=3, markersize=5)
                if len(numbers) == 1:
                    axes.annotate(way.name, (flops[i], shares[i]), (4, (5, -11)[i % 2]), textcoords="offset points", fontsize=7)
        if len(numbers) > 1:  # names at the points of several variants would lie upon one another
            for name, mark in marks.items():
                axes.plot([], [], mark, color=INK[theme][1], markersize=5, label=name)
        axes.set(title="Ways of inference; crosses: any candidate right (an oracle)", xlabel="FLOPs of a puzzle", ylabel="exact, %")
        axes.set_xscale("log")
        plain_numbers(axes.xaxis, EngFormatter(sep=""))
        _legend(figure, axes)
    return file.getvalue()


def _legend(figure: Figure, axes: Axes) -> None:
    if axes.lines:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def _look(i: int) -> tuple[str, str]:
    return COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)]
