"""Puzzles as people write them: csv files for a dataset, and questions for a network as text, JSON or csv.

csv files are the published ones (source,question,answer,rating) or those of other people. The columns are found by their names, in
any order and beside other columns. The rating may be missing, and so may the answer where the task finds that a puzzle has exactly
one. Every row is checked.
"""

import contextlib
import csv
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.errors import DataError
from trm.ground.files import opened_text, read_text, sha256_of
from trm.ground.progress import work
from trm.tasks.base import Split, Task

HEADER = "source,question,answer,rating"
# The names of a column here and elsewhere; upper or lower case does not matter.
COLUMNS = {
    "question": ("question", "questions", "puzzle", "puzzles", "quiz", "quizzes", "input", "inputs", "problem", "unsolved"),
    "answer": ("answer", "answers", "solution", "solutions", "output", "outputs", "label", "labels", "solved", "target"),
    "rating": ("rating", "ratings", "difficulty"),
}
DELIMITERS = ",;\t"
_BLOCK_ROWS = 4096
_KEYS = (*COLUMNS["question"], "grid", "board", "givens", "value", "values", "cells")
_BETWEEN = re.compile(r"^[^\S\n]*(?:[#\[].*|(?:grid|puzzle)\b.*)?$", re.IGNORECASE | re.MULTILINE)
_FILE = re.compile(r"[^\n]*\.(sdk|ss|sdm|txt|csv|json|gz)", re.IGNORECASE)


@dataclass(frozen=True)
class CsvFile:
    """A csv file: its path, the sha256 of its (unpacked) bytes, its number of puzzles, and its columns."""

    path: Path
    sha256: str
    num_rows: int
    header: tuple[str, ...]
    delimiter: str
    question: int  # columns, from 0
    answer: int | None
    ratings: NDArray[np.float64] | None  # [rows], where they were needed


def scan(path: Path, key: str, *, rated: bool = False) -> CsvFile:
    """Count the rows of a csv file and read its header; `rated`: read the ratings too, which must be there.

    Raises DataError that names the config `key` or the file.
    """
    with opened_text(path, key) as text:
        header, delimiter = columns_of(next(text, ""), f"{path}:1: ")
        question, answer, rating = (_column(path, header, name) for name in COLUMNS)
        if question is None:
            grid = any(len(name) >= 16 and not re.search("[H-WYZh-wyz]", name) for name in header)
            fix = "it seems to be a puzzle: put a line with the columns' names above it" if grid else "it names the columns"
            raise DataError(
                f"{path}:1: the header is {delimiter.join(header)[:80]!r}, in which no column is called question: {fix}, "
                f"{HEADER} or at least question ({', '.join(COLUMNS['question'][2:8:2])} and others are understood too)"
            )
        if rated and rating is None:
            raise DataError(f"{path}:1: data.min_rating needs a column rating, and the header has none: {','.join(header)}")
        num_rows, found = 0, []
        for line, row in _rows(path, text, delimiter):
            num_rows += 1
            if rated:
                rated_as = row[rating] if rating is not None and rating < len(row) else ""
                with contextlib.suppress(ValueError):
                    found.append(float(rated_as))
                if len(found) < num_rows or not math.isfinite(found[-1]):
                    raise DataError(f"{path}:{line}: the rating {rated_as[:40]!r} is not a number, but data.min_rating needs one")
    if not num_rows:
        raise DataError(f"{path}: holds no puzzles: it needs a row for each puzzle after the header")
    return CsvFile(path, sha256_of(path), num_rows, header, delimiter, question, answer, np.array(found) if rated else None)


def columns_of(line: str, where: str = "") -> tuple[tuple[str, ...], str]:
    """The names of a file's columns, and their separator, from its first line."""
    delimiter = next((character for character in DELIMITERS if character in line), DELIMITERS[0])
    try:
        return tuple(name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])) or ("",), delimiter
    except csv.Error as error:
        raise DataError(f"{where}the header cannot be read: {error}") from error


def _column(path: Path, header: tuple[str, ...], column: str) -> int | None:
    """The number of a column, from 0: the one with this name, else the only one with another name for it; None if missing."""
    found = [i for i, name in enumerate(header) if name.lower() in COLUMNS[column]]
    found = [i for i in found if header[i].lower() == column] or found
    if len(found) > 1 and column != "rating":  # only data.min_rating reads it
        several = " and ".join(header[i] for i in found)
        raise DataError(f"{path}:1: {several} could each be the {column}: name one of them {column} and rename the others")
    return found[0] if len(found) == 1 else None


def _rows(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The first line and the fields of each row after the header, without blank lines."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 2
    try:
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield line, row
            line = reader.line_num + 2
    except csv.Error as error:
        raise DataError(f"{path}:{line}: {error}") from error


def read_rows(file: CsvFile, task: Task, chosen: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int]]:
    """Questions and answers [len(chosen), L] of the rows with these numbers (from 0, in this order), and their lines in the file.

    Checks every row of the file, chosen or not; raises DataError "FILE:LINE: reason" for the first wrong row.
    """
    shape = (len(chosen), task.facts.seq_len)
    questions, answers, lines = np.empty(shape, np.uint8), np.empty(shape, np.uint8), np.empty(len(chosen), np.int64)
    place = np.full(file.num_rows, -1)
    place[chosen] = np.arange(len(chosen))
    start = 0
    with work("csv rows read", file.num_rows, "row") as done, opened_text(file.path) as text:
        next(text)
        rows = _rows(file.path, text, file.delimiter)
        while block := list(itertools.islice(rows, _BLOCK_ROWS)):
            here = place[start : start + len(block)]
            chosen_here, found = here >= 0, _parsed(file, task, block)
            questions[here[chosen_here]], answers[here[chosen_here]] = found[0][chosen_here], found[1][chosen_here]
            lines[here[chosen_here]] = [line for (line, _), wanted in zip(block, chosen_here, strict=True) if wanted]
            start += len(block)
            done(start)
    return questions, answers, lines.tolist()


def _parsed(file: CsvFile, task: Task, block: list[tuple[int, list[str]]]) -> Split:
    """Questions and answers of rows with their lines: all at once, but one by one where a row is wrong or not plain."""
    columns = (file.question, file.question if file.answer is None else file.answer)
    questions, answers = (_tokens(task, [row[k] if len(row) == len(file.header) else "" for _, row in block]) for k in columns)
    unsolved = []
    for i in np.flatnonzero(~task.check_rows(questions, answers)).tolist():
        try:
            questions[i], answer = _row(file, task, block[i][1])
        except DataError as error:
            raise DataError(f"{file.path}:{block[i][0]}: {error}") from error
        if answer is None:
            unsolved.append(i)
        else:
            answers[i] = answer
    if unsolved:
        solved = task.solved(questions[unsolved])
        if solved is None:
            where = f"{file.path}:{block[unsolved[0]][0]}"
            raise DataError(f"{where}: the row has no answer, and {task.title} cannot be solved here: give a column of answers")
        answers[unsolved], counts = solved
        for i, count in zip(unsolved, counts.tolist(), strict=True):
            found = {0: "no solution", 1: "", -1: "more possibilities than can be tried"}.get(count, "several solutions")
            if found or task.violations(questions[i], answers[i]):
                where = f"{file.path}:{block[i][0]}: the row has no answer"
                raise DataError(f"{where}, and the puzzle has {found or 'no valid one'}: give the answer, or remove the row")
    return questions, answers


def _tokens(task: Task, texts: list[str]) -> NDArray[np.uint8]:
    """Tokens [N, L] of plain texts, one character for each cell; padding where a text is not plain."""
    cells = task.facts.seq_len
    plain = [text if len(text) == cells and text.isascii() else "\0" * cells for text in texts]
    tokens: NDArray[np.uint8] = task.token_of_byte[np.frombuffer("".join(plain).encode(), np.uint8).reshape(-1, cells)]
    return tokens


def _row(file: CsvFile, task: Task, fields: list[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Question and answer of one row, None where the answer is missing. Raises DataError with the reason why it is wrong."""
    if len(fields) != len(file.header):
        raise DataError(f"the row has {len(fields)} fields, not the {len(file.header)} of {','.join(file.header)}")
    grids: list[NDArray[np.uint8]] = []
    for name, column in (("question", file.question), ("answer", file.answer)):
        text = "" if column is None else fields[column]
        if name == "answer" and not text.strip():
            return grids[0], None
        try:
            grids.append(task.parse(text))
        except DataError as error:
            raise DataError(f"the {name}: {error}") from error
    question, answer = grids
    if violations := task.violations(question, answer):
        raise DataError(f"the answer is wrong: {violations[0]}")
    return question, answer


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a name
        return False


def text_of(name: str) -> str:
    """The text of a file with this name, or the name itself. Raises DataError where a file's name names no file."""
    if _exists(name):
        text = read_text(Path(name))
        if not text.strip():
            raise DataError(f"{name}: the file is empty: give a file that holds a puzzle")
        return text
    if _FILE.fullmatch(name.strip()):
        raise DataError(f"{name}: there is no such file: give a puzzle, or a file that holds one")
    return "\n".join(name.removeprefix("\ufeff").splitlines())


def questions_of(name: str, task: Task) -> list[NDArray[np.uint8]]:
    """The questions [L] of a text, or of the file with this name. Raises DataError, which names the file."""
    text = text_of(name)
    try:
        return questions_in(text, task)
    except DataError as error:
        if _exists(name):
            raise DataError(f"{name}: {error}") from error
        raise


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
        return [(0, _cells(plain))]
    if isinstance(plain[0], str) and len(plain[0]) != task.facts.seq_len:
        return [(0, "\n".join(map(str, plain)))]
    if isinstance(plain[0], list) and len(plain[0]) != task.facts.seq_len and not any(isinstance(c, list) for c in plain[0]):
        return [(0, "\n".join(_cells(row) for row in plain))]
    return [(i, text) for i, each in enumerate(plain, 1) for _, text in _grids(each, task)]


def _cells(cells: Any) -> str:
    """The cells of a JSON list as text."""
    if not isinstance(cells, list):
        return str(cells)
    words = ["." if cell is None or cell == "" else f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in cells]
    return ("" if all(len(word) == 1 for word in words) else ",").join(words)
