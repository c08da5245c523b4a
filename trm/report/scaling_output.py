"""What --scaling writes: lines for the terminal, CSV, JSON, pictures and a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from trm.report import laws
from trm.report.scaling import EqualCompute, Fit, Scaling, Series
from trm.run.revision import code
from trm.show.charts import COLOURS, Theme, chart
from trm.show.page import render
from trm.show.table import aligned, csv_of, printable

COLUMNS = ("axis", "where", "measure", "quantity", "value", "low", "high", "verdict")
Row = dict[str, Any]


def rows(scaling: Scaling) -> list[Row]:
    """Every number that was fitted or predicted, with its interval, one after the other under COLUMNS."""
    found = [row for series in scaling.series for fit in series.fits for row in _rows_of_fit(series, fit)]
    for one in scaling.equal_compute:
        place = {"axis": "parameters at equal training FLOPs", "where": one.where, "measure": "loss"}
        for budget, (_, parabola) in one.parabolas.items():
            verdict = "" if parabola.best else "no minimum inside the measured sizes"
            found.append({**place, "quantity": f"best parameters at {budget:g} FLOPs", **_ends(parabola.best), "verdict": verdict})
        for name, interval in (("parameters", one.best_parameters), ("samples", one.best_samples)):
            verdict = "" if interval else "fewer than three budgets have a minimum inside"
            found.append({**place, "quantity": f"exponent of the best {name} in FLOPs", **_ends(interval), "verdict": verdict})
    for where, (measured, parabola) in scaling.rates.items():
        place = {"axis": "learning rate", "where": where, "measure": "loss"}
        verdict = "" if parabola.best else "no minimum inside the measured rates"
        found.append({**place, "quantity": "best learning rate, of a parabola", **_ends(parabola.best), "verdict": verdict})
        lowest = float(measured.x[measured.means.argmin()])
        found.append({**place, "quantity": "measured rate with the least loss", **_alone(lowest), "verdict": ""})
    for (name, where), joint in scaling.joint.items():
        place = {"axis": f"passes by {name} and parameters", "where": where, "measure": "loss"}
        found.append({**place, "quantity": "phi", **_ends(joint.phi), "verdict": ""})
        found += [{**place, "quantity": key, **_alone(getattr(joint, key)), "verdict": ""} for key in ("E", "A", "a", "B", "b")]
    return [{column: row[column] for column in COLUMNS} for row in found]


def _rows_of_fit(series: Series, fit: Fit) -> Iterator[Row]:
    place = {"axis": series.axis, "where": series.where, "measure": fit.measure}
    if fit.law is None:
        yield {**place, "quantity": "law", **_ends(None), "verdict": f"refused: {fit.refused}"}
        return
    for name, interval in fit.law.intervals().items():
        ends = laws.EXPONENTS
        loose = name == "a" and (interval.low <= 1.01 * ends[0] or interval.high >= 0.99 * ends[1])
        yield {**place, "quantity": name, **_ends(interval), "verdict": "not determined" if loose else ""}
    if fit.prediction:
        size = f"at {fit.prediction.x:g}"
        place_of = {**place, "quantity": f"predicted {size}, from the smaller ones"}
        yield {**place_of, **_ends(fit.prediction.predicted), "verdict": f"the law {'held' if fit.prediction.held else 'failed'}"}
        yield {**place, "quantity": f"measured {size}", **_alone(fit.prediction.measured), "verdict": ""}


def _ends(interval: laws.Interval | None) -> dict[str, float | None]:
    return dict.fromkeys(("value", "low", "high")) if interval is None else vars(interval)


def _alone(value: float) -> dict[str, float | None]:
    return {"value": value, "low": None, "high": None}


def csv_text(scaling: Scaling) -> str:
    """One line for each number."""
    return csv_of(rows(scaling), COLUMNS)


def json_text(scaling: Scaling) -> str:
    """The same with the measured points, the refusals and the warnings."""
    points = [
        {"axis": one.axis, "where": one.where, "measure": fit.measure, "size": float(x), "values": list(map(float, y))}
        for one in scaling.series
        for fit in one.fits
        for x, y in zip(fit.points.x, fit.points.y, strict=True)
    ]
    record = {"code": code(), "laws": rows(scaling), "points": points, "refused": scaling.refusals, "warnings": scaling.warnings}
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def table(scaling: Scaling) -> list[list[str]]:
    """The rows as texts, under their titles."""
    texts = [
        ["" if cell is None else cell if isinstance(cell, str) else f"{cell:.4g}" for cell in row.values()] for row in rows(scaling)
    ]
    return [["axis", "held", "measure", "quantity", "value", "from", "to", ""], *texts]


def terminal(scaling: Scaling) -> str:
    """The table, what was refused, and warnings."""
    lines = aligned(table(scaling), [False] * 4 + [True] * 3 + [False])
    lines += ["", *(f"not fitted: {reason}" for reason in scaling.refusals)] if scaling.refusals else []
    lines += ["", *(f"warning: {warning}" for warning in scaling.warnings)] if scaling.warnings else []
    return "\n".join(map(printable, lines))


# -------------------------------------------------------------------------------------------------------------------- pictures


def pictures(scaling: Scaling) -> dict[str, dict[Theme, bytes]]:
    """PNGs for a light and a dark page, by name: one of each axis, and one of equal compute."""
    axes = list(dict.fromkeys(series.axis for series in scaling.series))
    found: dict[str, dict[Theme, bytes]] = {}
    for axis in axes:
        own = [series for series in scaling.series if series.axis == axis]
        found[axis.replace(" ", "_").lower()] = {theme: _laws(own, theme) for theme in get_args(Theme)}
    for number, one in enumerate(scaling.equal_compute):
        found[f"equal_compute_{number}"] = {theme: _parabolas(one, theme) for theme in get_args(Theme)}
    return found


def _laws(own: list[Series], theme: Theme) -> bytes:
    """Loss on two logarithmic axes and exact accuracy on one: seeds are dots, a law is drawn where it was measured.

    What is dashed is the law of the smaller sizes alone, drawn to the largest, which it was not shown.
    """
    with chart(11, 4.2, theme) as (figure, file):
        both = figure.subplots(1, 2)
        for number, series in enumerate(own):
            colour = COLOURS[number % len(COLOURS)]
            for axes, fit in zip(both, series.fits, strict=True):
                _draw(axes, fit, colour, series.where or None, 100 if fit.measure == "exact accuracy" else 1)
        both[0].set(title="Held-out loss", xlabel=own[0].axis, xscale="log", yscale="log")
        both[1].set(title="Exact accuracy, %", xlabel=own[0].axis, xscale="log")
        for axes in both:
            _plain_numbers(axes)
        if any(series.where for series in own):
            figure.legend(*both[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return file.getvalue()


def _draw(axes: Axes, fit: Fit, colour: str, label: str | None, scale: float) -> None:
    for x, y in zip(fit.points.x, fit.points.y, strict=True):
        axes.plot([x] * len(y), scale * y, "o", color=colour, markersize=3, alpha=0.6)
    axes.plot(fit.points.x, scale * fit.points.means, "_", color=colour, markersize=10, label=label)
    if fit.law is None:
        return
    x = np.geomspace(fit.points.x[0], fit.points.x[-1], 100)
    low, high = np.quantile(fit.law.band(x), [0.025, 0.975], axis=0)
    axes.plot(x, scale * fit.law.at(x), color=colour, linewidth=1.5)
    axes.fill_between(x, scale * low, scale * high, color=colour, alpha=0.12, linewidth=0)
    known = fit.points.without_last()
    smaller: laws.Law = laws.fit_logistic(known, 2) if isinstance(fit.law, laws.Logistic) else laws.fit_power_law(known, 2)
    beyond = np.geomspace(known.x[-1], fit.points.x[-1], 20)
    axes.plot(beyond, scale * smaller.at(beyond), color=colour, linewidth=1, linestyle="--")


def _parabolas(one: EqualCompute, theme: Theme) -> bytes:
    with chart(7, 4.2, theme) as (figure, file):
        axes = figure.subplots()
        for number, (budget, (found, parabola)) in enumerate(one.parabolas.items()):
            colour = COLOURS[number % len(COLOURS)]
            for size, values in zip(found.x, found.y, strict=True):
                axes.plot([size] * len(values), values, "o", color=colour, markersize=3, alpha=0.6)
            x = np.geomspace(found.x[0], found.x[-1], 100)
            axes.plot(x, parabola.at(x), color=colour, label=f"{budget:.3g} FLOPs")
            if parabola.best:
                best = np.array([parabola.best.value])
                axes.plot(best, parabola.at(best), "D", color=colour, markersize=6)
        axes.set(title="Equal training FLOPs", xlabel="parameters", ylabel="held-out loss", xscale="log", yscale="log")
        _plain_numbers(axes)
        figure.legend(loc="outside right upper", fontsize=8)
    return file.getvalue()


def _plain_numbers(axes: Axes) -> None:
    """Numbers as people write them (100k, 1.5T) on logarithmic axes, in place of powers of ten."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if axes.get_yscale() == "log":
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def page(scaling: Scaling, title: str, drawn: dict[str, dict[Theme, bytes]]) -> str:
    """One self-contained HTML file."""
    template = Path(__file__).parent / "scaling.html"
    return render(template, [], title=title, scaling=scaling, table=table(scaling), pictures=drawn)
