"""What --scaling writes: lines for the terminal, CSV, JSON, pictures and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter

from trm.report import laws
from trm.report.scaling import Fit, Parabolas, Scaling
from trm.run.revision import code
from trm.show.charts import COLOURS, Theme, chart, plain_numbers
from trm.show.page import render
from trm.show.table import aligned, csv_of, printable

TEMPLATE = Path(__file__).parent / "scaling.html"
COLUMNS = ("axis", "where", "measure", "quantity", "value", "low", "high", "verdict")
Row = dict[str, Any]


def rows(scaling: Scaling) -> list[Row]:
    """Every number that was fitted or predicted, with its interval, one after the other under COLUMNS."""
    found: list[Row] = []

    def add(place: tuple[str, str, str], quantity: str, value: laws.Interval | float | None, verdict: str = "") -> None:
        ends = (value.value, value.low, value.high) if isinstance(value, laws.Interval) else (value, None, None)
        found.append(dict(zip(COLUMNS, (*place, quantity, *ends, verdict), strict=True)))

    for fit in scaling.fits:
        place = (fit.axis, fit.where, fit.measure)
        if fit.law is None:
            add(place, "law", None, f"refused: {fit.refused}")
            continue
        found_of = fit.law.intervals()
        for name, interval in found_of.items():
            verdict = "not determined" if name == "a" and interval.is_open(laws.EXPONENTS) else ""
            if name == "half" and 0 in found_of["slope"]:
                verdict = "not determined"
            elif name == "half" and not fit.points.x[0] <= interval.value <= fit.points.x[-1]:
                verdict = "outside of the measured sizes"
            add(place, name, interval, verdict)
        if fit.predicted:
            size, mean = f"at {fit.points.x[-1]:g}", float(fit.points.means[-1])
            verdict = f"the law {'held' if mean in fit.predicted else 'failed'}"
            add(place, f"predicted {size}, from the smaller ones", fit.predicted, verdict)
            add(place, f"measured {size}", mean)
    for one in scaling.equal_compute:
        place = ("parameters at equal training FLOPs", one.where, "loss")
        for budget, (_, parabola) in one.parabolas.items():
            verdict = "" if parabola.best else "no minimum inside the measured sizes"
            add(place, f"best parameters at {budget:g} FLOPs", parabola.best, verdict)
        for name, exponent in (("parameters", one.best_parameters), ("samples", one.best_samples)):
            verdict = "" if exponent else "fewer than three budgets have a minimum inside"
            add(place, f"exponent of the best {name} in FLOPs", exponent, verdict)
    for where, (measured, parabola) in scaling.rates.items():
        place, verdict = ("learning rate", where, "loss"), "" if parabola.best else "no minimum inside the measured rates"
        add(place, "best learning rate, of a parabola", parabola.best, verdict)
        add(place, "measured rate with the least loss", float(measured.x[measured.means.argmin()]))
    for (name, where), joint in scaling.joint.items():
        for quantity in ("phi", "E", "A", "a", "B", "b"):
            verdict = f"not determined: {joint.undetermined}" if quantity == "phi" and joint.undetermined else ""
            add((f"passes by {name} and parameters", where, "loss"), quantity, getattr(joint, quantity), verdict)
    return found


def written(scaling: Scaling, title: str) -> tuple[dict[str, str | bytes], str]:
    """The files by name, and the text for the terminal: every number, what was refused, and warnings."""
    found = rows(scaling)
    table = [["" if cell is None else cell if isinstance(cell, str) else f"{cell:.4g}" for cell in row.values()] for row in found]
    table = [["axis", "held", "measure", "quantity", "value", "from", "to", ""], *table]
    lines = aligned(table, [False] * 4 + [True] * 3 + [False])
    lines += ["", *(f"not fitted: {reason}" for reason in scaling.refusals)] if scaling.refusals else []
    lines += ["", *(f"warning: {warning}" for warning in scaling.warnings)] if scaling.warnings else []
    points = [
        {"axis": fit.axis, "where": fit.where, "measure": fit.measure, "size": float(x), "values": list(map(float, y))}
        for fit in [*scaling.fits, *(Fit("learning rate", where, "loss", found) for where, (found, _) in scaling.rates.items())]
        for x, y in zip(fit.points.x, fit.points.y, strict=True)
    ]
    told = {"not fitted": scaling.refusals, "warning": scaling.warnings}
    notes = [{"quantity": quantity, "verdict": line} for quantity, lines in told.items() for line in lines]
    record = {"code": code(), "laws": found, "points": points, "refused": scaling.refusals, "warnings": scaling.warnings}
    drawn = pictures(scaling)
    files: dict[str, str | bytes] = {
        "scaling.csv": csv_of([*found, *notes], COLUMNS),
        "scaling.json": json.dumps(record, indent=1, allow_nan=False) + "\n",
        **{f"{name}.png": picture["light"] for name, picture in drawn.items()},
        "index.html": render(TEMPLATE, [], title=title, scaling=scaling, table=table, pictures=drawn),
    }
    return files, "\n".join(map(printable, lines))


def pictures(scaling: Scaling) -> dict[str, dict[Theme, bytes]]:
    """PNGs for a light and a dark page, by name: one for each axis, for each set of parabolas at equal compute, and of rates."""
    found: dict[str, dict[Theme, bytes]] = {}
    for axis in dict.fromkeys(fit.axis for fit in scaling.fits):
        own = [fit for fit in scaling.fits if fit.axis == axis]
        found[axis.replace(" ", "_").lower()] = {theme: _laws(own, theme) for theme in get_args(Theme)}
    for number, one in enumerate(scaling.equal_compute):
        named = {f"{budget:.3g} FLOPs": each for budget, each in one.parabolas.items()}
        found[f"equal_compute_{number}"] = {
            theme: _parabolas(named, "Equal training FLOPs", "parameters", theme) for theme in get_args(Theme)
        }
    if scaling.rates:
        found["learning_rate"] = {
            theme: _parabolas(scaling.rates, "Equal settings", "learning rate", theme) for theme in get_args(Theme)
        }
    return found


def _laws(own: list[Fit], theme: Theme) -> bytes:
    """Loss on two logarithmic axes and exact accuracy on one: seeds are dots, a law is drawn where it was measured.

    A dashed line is the law of the smaller sizes alone, drawn to the largest, which it was not shown.
    """
    colours = {where: COLOURS[number % len(COLOURS)] for number, where in enumerate(dict.fromkeys(fit.where for fit in own))}
    with chart(11, 4.2, theme) as (figure, file):
        both = figure.subplots(1, 2)
        for fit in own:
            axes, scale, colour = both[int(fit.shares)], 100 if fit.shares else 1, colours[fit.where]
            for x, y in zip(fit.points.x, fit.points.y, strict=True):
                axes.plot([x] * len(y), scale * y, "o", color=colour, markersize=3, alpha=0.6)
            axes.plot(fit.points.x, scale * fit.points.means, "_", color=colour, markersize=10, label=fit.where or None)
            if fit.law is None:
                continue
            first, known, largest = fit.points.x[[0, -2, -1]]
            x, beyond = np.geomspace(first, largest, 100), np.geomspace(known, largest, 20)
            values = fit.law.at(x)
            low, high = np.quantile(values[1:], [0.025, 0.975], axis=0)
            axes.plot(x, scale * values[0], color=colour, linewidth=1.5)
            axes.fill_between(x, scale * low, scale * high, color=colour, alpha=0.12, linewidth=0)
            if fit.smaller:
                axes.plot(beyond, scale * fit.smaller.at(beyond)[0], color=colour, linewidth=1, linestyle="--")
        both[0].set(title="Held-out loss", xlabel=own[0].axis, xscale="log", yscale="log")
        both[1].set(title="Exact accuracy, %", xlabel=own[0].axis, xscale="log")
        for axes in both:
            _plain_numbers(axes)
        if any(colours):
            figure.legend(*both[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return file.getvalue()


def _parabolas(parabolas: Parabolas, title: str, sizes: str, theme: Theme) -> bytes:
    with chart(7, 4.2, theme) as (figure, file):
        axes = figure.subplots()
        for number, (name, (found, parabola)) in enumerate(parabolas.items()):
            colour = COLOURS[number % len(COLOURS)]
            for size, values in zip(found.x, found.y, strict=True):
                axes.plot([size] * len(values), values, "o", color=colour, markersize=3, alpha=0.6)
            x = np.geomspace(found.x[0], found.x[-1], 100)
            axes.plot(x, parabola.at(x), color=colour, label=name or None)
            if parabola.best:
                best = np.array([parabola.best.value])
                axes.plot(best, parabola.at(best), "D", color=colour, markersize=6)
        axes.set(title=title, xlabel=sizes, ylabel="held-out loss", xscale="log", yscale="log")
        _plain_numbers(axes)
        if any(parabolas):
            figure.legend(loc="outside right upper", fontsize=8)
    return file.getvalue()


def _plain_numbers(axes: Axes) -> None:
    plain_numbers(axes.xaxis, EngFormatter(sep=""))
    if axes.get_yscale() == "log":
        low, high = axes.get_ylim()
        steps = (1, 2, 5) if high > 5 * low else (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
        plain_numbers(axes.yaxis, FuncFormatter(lambda value, _: f"{value:g}"), steps)
