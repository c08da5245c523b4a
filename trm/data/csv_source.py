"""Puzzles from csv files: as the published ones are (source,question,answer,rating), and as other people's are.

Every row is checked.
The columns are found by their names, in any order and beside others; a rating may be missing. A file compressed with gzip is read.
Well-formed rows are read in bulk; the others go one by one through the csv module, where the words for what is wrong are found.
"""

import csv
import gzip
import hashlib
import io
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trm.errors import DataError
from trm.run.progress import work
from trm.tasks.base import Task

HEADER = "source,question,answer,rating"
# What a column is called here and elsewhere, without regard to case
COLUMNS = {
    "question": ("question", "questions", "puzzle", "puzzles", "quiz", "quizzes", "input", "inputs", "problem", "unsolved"),
    "answer": ("answer", "answers", "solution", "solutions", "output", "outputs", "label", "labels", "solved", "target"),
    "rating": ("rating", "ratings", "difficulty"),
}
DELIMITERS = ",;\t"
GZIP = b"\x1f\x8b"
# How files begin that are no csv
OTHER_FILES = {
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or export the sheet as csv",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: export the sheet as csv",
    b"BZh": "compressed with bzip2: unpack it (gzip is read)",
    b"\xfd7zXZ": "compressed with xz: unpack it (gzip is read)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it (gzip is read)",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!": "a rar archive: unpack it",
    b"PAR1": "a Parquet file: convert it to csv",
    b"\x93NUMPY": "a NumPy array: a csv file is needed",
    b"%PDF": "a PDF: a csv file is needed",
    b"SQLite format 3": "an SQLite database: export the table as csv",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run git lfs pull",
    b"<": "a page or XML, not csv: download the file itself",
    b"{": "JSON, not csv: convert it",
    b"[": "JSON, not csv: convert it",
}
_BLOCK_BYTES = 8 << 20
_TELL_ROWS = 4096
_LONGEST_HEADER = 1 << 20
_NEWLINE, _RETURN = ord("\n"), ord("\r")


@dataclass(frozen=True)
class CsvFile:
    """A csv file: where it is, what is in it (sha256 of its text's bytes), how many puzzles it has and in which columns."""

    path: Path
    sha256: str
    num_rows: int
    header: tuple[str, ...]
    delimiter: str
    question: int  # columns, from 0
    answer: int
    rating: int | None


def scan(path: Path, key: str) -> CsvFile:
    """Count and hash a csv file and read its header; raises DataError naming the config `key` or the file."""
    digest, newlines, last = hashlib.sha256(), 0, b""
    try:
        with _opened(path) as file:
            first = file.readline(_LONGEST_HEADER)
            block = first
            while block:
                digest.update(block)
                newlines += block.count(b"\n")
                last = block[-1:]
                block = file.read(_BLOCK_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is damaged: gzip cannot unpack it ({error}): get it again") from error
    except OSError as error:
        raise DataError(f"{key}={path} cannot be read ({error.strerror}): give the path of a csv file") from error
    header, delimiter = _header(path, first)
    question, answer, rating = (_column(path, header, name) for name in COLUMNS)
    if question is None or answer is None:
        missing = "answer" if question is not None else "question"
        grid = any(len(name) >= 16 and not re.search("[H-Zh-z]", name) for name in header)
        fix = "it seems to be a puzzle: put a line with the columns' names above it" if grid else "it names the columns"
        raise DataError(
            f"{path}:1: the header is {delimiter.join(header)[:80]!r}, in which no column is called {missing}: {fix}, {HEADER} or "
            f"at least question,answer ({', '.join(COLUMNS[missing][2:8:2])} and others are understood too)"
        )
    num_lines = newlines + (last not in (b"", b"\n"))
    if num_lines < 2:
        raise DataError(f"{path}: holds no puzzles: it needs a row for each puzzle after the header")
    return CsvFile(path, digest.hexdigest(), num_lines - 1, header, delimiter, question, answer, rating)


def _opened(path: Path) -> IO[bytes]:
    """The file's text as bytes, unpacked where it is compressed with gzip, whatever it is called."""
    file = path.open("rb")
    packed = file.read(2) == GZIP
    file.seek(0)
    return io.BufferedReader(gzip.GzipFile(fileobj=file)) if packed else file


def _header(path: Path, line: bytes) -> tuple[tuple[str, ...], str]:
    """The names of a file's columns, and what separates them."""
    for start, what in OTHER_FILES.items():
        if line.startswith(start):
            raise DataError(f"{path}: is {what}")
    if b"\0" in line:
        raise DataError(f"{path}: is no text in UTF-8: save it as csv in UTF-8")
    text = line.decode("utf-8-sig", errors="replace").rstrip("\r\n")
    delimiter = next((character for character in DELIMITERS if character in text), DELIMITERS[0])
    try:
        return tuple(name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])) or ("",), delimiter
    except csv.Error as error:
        lines = "its lines end in a carriage return alone: save it with line feeds" if "\r" in text else str(error)
        raise DataError(f"{path}:1: the header cannot be read: {lines}") from error


def _column(path: Path, header: tuple[str, ...], column: str) -> int | None:
    """Where a column stands, from 0: under its own name, else under another one that is the only such; None where there is none."""
    found = [i for i, name in enumerate(header) if name.lower() in COLUMNS[column]]
    own = [i for i in found if header[i].lower() == column]
    found = own or found
    if len(found) > 1 and column != "rating":  # which only data.min_rating reads
        several = " and ".join(header[i] for i in found)
        raise DataError(f"{path}:1: {several} could each be the {column}: call one of them {column} and the others otherwise")
    return found[0] if len(found) == 1 else None


def ratings(file: CsvFile) -> NDArray[np.float64]:
    """How hard each puzzle is [rows], as the file says. Raises DataError where it does not."""
    if file.rating is None:
        raise DataError(f"{file.path}:1: data.min_rating needs a column rating, and the header has none: {','.join(file.header)}")
    found = np.empty(file.num_rows)
    with _opened(file.path) as content, work("csv ratings read", file.num_rows, "row") as done:
        lines = iter(content)
        next(lines)
        for row, line in enumerate(lines):
            if not row % _TELL_ROWS:
                done(row)
            text = ""
            try:
                text = next(csv.reader([line.decode("utf-8", errors="replace")], delimiter=file.delimiter), [])[file.rating]
                found[row] = float(text)
            except (csv.Error, IndexError, ValueError):
                found[row] = math.nan
            if not math.isfinite(found[row]):
                raise DataError(f"{file.path}:{row + 2}: the rating {text[:40]!r} is no number, which data.min_rating needs")
    return found


def read_rows(file: CsvFile, task: Task, chosen: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Questions and answers [len(chosen), L] of the rows with these numbers (from 0, in this order).

    Checks every row of the file, chosen or not; raises DataError "FILE:LINE: reason" for the first that is wrong.
    """
    shape = (len(chosen), task.facts.seq_len)
    questions, answers = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    place = np.full(file.num_rows, -1)
    place[chosen] = np.arange(len(chosen))
    start = 0
    with work("csv rows read", file.num_rows, "row") as done:
        for block in _blocks_of_rows(file.path):
            block_questions, block_answers = _parse_block(file, task, block, first_line=start + 2)
            here = place[start : start + len(block_questions)]
            questions[here[here >= 0]] = block_questions[here >= 0]
            answers[here[here >= 0]] = block_answers[here >= 0]
            start += len(block_questions)
            done(start)
    return questions, answers


def _blocks_of_rows(path: Path) -> Iterator[bytes]:
    """What follows the header, in pieces of whole lines, each line with its newline."""
    rest = b""
    with _opened(path) as file:
        file.readline()
        while block := file.read(_BLOCK_BYTES):
            whole, newline, tail = (rest + block).rpartition(b"\n")
            rest = tail
            if newline:
                yield whole + newline
    if rest:
        yield rest + b"\n"


def _parse_block(file: CsvFile, task: Task, block: bytes, first_line: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    cells, between = task.facts.seq_len, len(file.header) - 1  # delimiters of a row
    # Padded so that a window of one puzzle's length starts at every byte.
    text = np.frombuffer(block + bytes(cells), np.uint8)
    ends = np.flatnonzero(text == _NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    delimiters = np.append(np.flatnonzero(text == ord(file.delimiter)), [len(text)] * between)
    first = np.searchsorted(delimiters, starts)
    regular = np.searchsorted(delimiters, ends) - first == between
    # field k lies between edges k and k + 1
    edges = [starts - 1, *(delimiters[first + k] for k in range(between)), ends - (text[ends - 1] == _RETURN)]
    for k in (file.question, file.answer):
        regular &= edges[k + 1] - edges[k] == cells + 1
    windows = sliding_window_view(text, cells)
    questions, answers = (task.token_of_byte[windows[np.where(regular, edges[k] + 1, 0)]] for k in (file.question, file.answer))
    for row in np.flatnonzero(~(regular & task.check_rows(questions, answers))).tolist():
        line = block[starts[row] : ends[row]].decode("utf-8", errors="replace").rstrip("\r")
        try:
            questions[row], answers[row] = _parse_line(file, task, line)
        except (DataError, csv.Error) as error:
            raise DataError(f"{file.path}:{first_line + row}: {error}") from error
    return questions, answers


def _parse_line(file: CsvFile, task: Task, line: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One row, quoted or not; raises DataError with the reason it is wrong."""
    fields = next(csv.reader([line], strict=True, delimiter=file.delimiter), [])
    if len(fields) != len(file.header):
        raise DataError(f"the row has {len(fields)} fields, not the {len(file.header)} of {','.join(file.header)}")
    grids = []
    for name, text in (("question", fields[file.question]), ("answer", fields[file.answer])):
        if len(text) != task.facts.seq_len:
            raise DataError(f"the {name} has {len(text)} cells, not {task.facts.seq_len}")
        try:
            grids.append(task.parse(text))
        except DataError as error:
            raise DataError(f"the {name}: {error}") from error
    question, answer = grids
    violations = task.violations(question, answer)
    if violations:
        raise DataError(f"the answer is wrong: {violations[0]}")
    return question, answer
