"""Aligned tables for the terminal."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """The rows as lines, two spaces between columns; `right` says which columns are aligned on the right."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for ends in right:
        table.add_column(justify="right" if ends else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))
    buffer = io.StringIO()
    Console(width=100_000, file=buffer, no_color=True).print(table)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


def named(rows: Sequence[Mapping[str, str]], left: int = 1) -> list[str]:
    """Rows of named cells as lines below the names, the first `left` columns aligned on the left; - for a missing cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([row.get(name, "-") for name in names] for row in rows)]
    return aligned(cells, [number >= left for number in range(len(names))])


def csv_of(rows: Iterable[Mapping[str, Any]], columns: Collection[str]) -> str:
    """CSV of these columns of the rows; a missing value is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def printable(text: str) -> str:
    """The text with ? for characters that control a terminal, since names come from files."""
    return "".join(char if char.isprintable() else "?" for char in text)
