"""Puzzles from csv files: the published ones (source,question,answer,rating) and those of other people. Every row is checked.

The columns are found by their names, in any order and beside other columns. The rating may be missing, and so may the answer where
the task finds that a puzzle has exactly one.
"""

import contextlib
import csv
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trm.errors import DataError
from trm.ground.files import opened_text, sha256_of
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
                found.append(_rating(row[rating] if rating is not None and rating < len(row) else "", f"{path}:{line}"))
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


def _rating(text: str, where: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return float(text)
    raise DataError(f"{where}: the rating {text[:40]!r} is not a number, but data.min_rating needs one")


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
        answers[unsolved], counts = task.solved(questions[unsolved])
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
