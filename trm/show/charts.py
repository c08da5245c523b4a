"""What all charts look like, on a light and on a dark page."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator, NullFormatter

Theme = Literal["light", "dark"]

# Okabe and Ito's colours, which differ for any colour vision; variants beyond these repeat the colours with another line
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8a8a8a")
LINES = ("-", "--", ":", "-.")
INK = {"light": ("#ffffff", "#1c2126", "#d5dade"), "dark": ("#171b20", "#e4e8ec", "#3a424b")}  # page, text, rules
DPI = 150


@contextmanager
def chart(width: float, height: float, theme: Theme = "light") -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure of so many inches to draw on, and the file that is its PNG afterwards."""
    page, ink, rule = INK[theme]
    inks = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")
    style: Any = {  # matplotlib types these as a dict of its hundreds of literal keys
        **dict.fromkeys(inks, ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), page),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), rule),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.titlesize": 11,
        "font.size": 9.5,
        "legend.frameon": False,
        "text.parse_math": False,  # labels come from files: a $ in one is a dollar
    }
    with matplotlib.rc_context(style):
        figure, file = Figure(figsize=(width, height), layout="constrained"), io.BytesIO()
        yield figure, file
        # no version in the metadata, so that the same runs give the same bytes
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})


def plain_numbers(axis: Axis, form: Formatter, steps: Sequence[float] = (1, 2, 5)) -> None:
    """Numbers as people write them (100k, 1.5T) on a logarithmic axis, at these steps of each decade, in place of powers of ten."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(form)
    axis.set_minor_formatter(NullFormatter())
