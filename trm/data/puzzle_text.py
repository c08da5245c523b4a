"""Questions as people write them: one or many, in the task's own text, in JSON, or in a csv file with a column of questions."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.data.csv_source import COLUMNS, columns_of
from trm.errors import DataError
from trm.ground.files import read_text
from trm.tasks.base import Task

_KEYS = (*COLUMNS["question"], "grid", "board", "givens", "value", "values", "cells")
_BETWEEN = re.compile(r"^[^\S\n]*(?:[#\[].*|(?:grid|puzzle)\b.*)?$", re.IGNORECASE | re.MULTILINE)
_FILE = re.compile(r"[^\n]*\.(sdk|ss|sdm|txt|csv|json|gz)", re.IGNORECASE)


def text_of(name: str) -> str:
    """The text of a file with this name, or the name itself. Raises DataError where a file's name names no file."""
    try:
        there = Path(name).exists()
    except (OSError, ValueError):  # too long for a name
        there = False
    if there:
        return read_text(Path(name))
    if _FILE.fullmatch(name.strip()):
        raise DataError(f"{name}: there is no such file: give a puzzle, or a file that holds one")
    return "\n".join(name.removeprefix("\ufeff").splitlines())


def questions_in(text: str, task: Task) -> list[NDArray[np.uint8]]:
    """The questions [L] of a text, one or many. Raises DataError that names the line and column of what is wrong.

    A text of many questions has one on each line (perhaps with other words), or drawn grids with an empty line or a heading between
    them, or is JSON or csv with a column that is called question.
    """
    written = _json(text, task) or _csv(text)
    if not written:
        try:
            return [task.parse(text)]
        except DataError:
            lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
            lines = [(number, line) for number, line in lines if not line.lstrip().startswith(("#", "[")) or _is(task, line)]
            # a line may have other words beside its puzzle, such as how hard it is
            words = [(number, line, re.split(r"[\s,;]+", line)) for number, line in lines]
            cells = task.facts.seq_len
            written = [(f"line {n}: ", next((word for word in each if len(word) == cells), line)) for n, line, each in words]
            if not any(_is(task, puzzle) for _, puzzle in written):
                grids = [block for block in _BETWEEN.split(text) if block.strip()]
                if not all(_is(task, block) for block in grids[:2]) or len(grids) < 2:
                    raise
                written = [(f"puzzle {number}: ", block) for number, block in enumerate(grids, 1)]
    questions = []
    for where, puzzle in written:
        try:
            questions.append(task.parse(puzzle))
        except DataError as error:
            raise DataError(f"{where}{error}") from error
    return questions


def unlikeness(text: str, task: Task) -> int:
    """How far a text is from a puzzle of the task: the characters that are not cells, and the difference in the number of cells."""
    cells = [char for char in text if ord(char) < 256 and task.token_of_byte[ord(char)] != task.facts.pad]
    others = sum(not char.isspace() for char in text) - sum(not char.isspace() for char in cells)
    return others + abs(len(cells) + others - task.facts.seq_len)


def _is(task: Task, text: str) -> bool:
    try:
        task.parse(text)
    except DataError:
        return False
    return True


def _csv(text: str) -> list[tuple[str, str]] | None:
    """The place and the text of each question of a csv text; None where no column is called question."""
    header, delimiter = columns_of(text.partition("\n")[0])
    places = [i for i, name in enumerate(header) if name.lower() in COLUMNS["question"]]
    if len(places) != 1:
        return None
    reader = csv.reader(text.splitlines(keepends=True)[1:], delimiter=delimiter)
    rows = [(reader.line_num + 1, row) for row in reader if any(row)]
    return [(f"line {line}: ", row[places[0]] if len(row) > places[0] else "") for line, row in rows]


def _json(text: str, task: Task) -> list[tuple[str, str]] | None:
    """The place and the text of each question of a JSON text; None where the text is not a JSON list or object."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        try:  # one object on each line
            plain = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            return None
        plain = plain if plain and all(isinstance(each, dict) for each in plain) else None
    return [(f"puzzle {i}: " if i else "", each) for i, each in _grids(plain, task)] if isinstance(plain, list | dict) else None


def _grids(plain: Any, task: Task) -> list[tuple[int, str]]:
    """The numbers (from 1; 0 = the only puzzle) and texts of the puzzles of a JSON value."""
    if isinstance(plain, dict):
        named = [key for key in plain if key.lower() in _KEYS] or ([*plain] if len(plain) == 1 else [])
        if len(named) != 1:
            raise DataError(f"JSON with the keys {', '.join(plain)[:80]}: call the one that holds the puzzle question")
        return _grids(plain[named[0]], task)
    if isinstance(plain, str):
        return [(0, plain)]
    if not isinstance(plain, list) or not plain:
        raise DataError(f"JSON with {json.dumps(plain)} for a puzzle: give its cells as text, as a list, or as rows")
    if not any(isinstance(row, list | dict) or (isinstance(row, str) and len(row) > 2) for row in plain):
        return [(0, _row(plain))]
    if isinstance(plain[0], str) and len(plain[0]) != task.facts.seq_len:
        return [(0, "\n".join(map(str, plain)))]
    if isinstance(plain[0], list) and len(plain[0]) != task.facts.seq_len and not any(isinstance(c, list) for c in plain[0]):
        return [(0, "\n".join(_row(row) for row in plain))]
    return [(i, text) for i, each in enumerate(plain, 1) for _, text in _grids(each, task)]


def _row(cells: Any) -> str:
    """The cells of a JSON list as text."""
    if not isinstance(cells, list):
        return str(cells)
    words = ["." if cell is None or cell == "" else f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in cells]
    return ("" if all(len(word) == 1 for word in words) else ",").join(words)
