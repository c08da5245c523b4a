"""Puzzles from csv files with the header source,question,answer,rating, as the published puzzles have. Every row is checked.

Well-formed rows are read in bulk; the others go one by one through the csv module, where the words for what is wrong are found.
"""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trm.errors import DataError
from trm.tasks.base import Task

HEADER = "source,question,answer,rating"
_BLOCK_BYTES = 8 << 20
_NEWLINE, _COMMA = ord("\n"), ord(",")


@dataclass(frozen=True)
class CsvFile:
    """A csv file: where it is, what is in it (sha256 of its bytes), and how many puzzles it has."""

    path: Path
    sha256: str
    num_rows: int


def scan(path: Path, key: str) -> CsvFile:
    """Count and hash a csv file and check its header; raises DataError naming the config `key` or the file."""
    digest, newlines, last = hashlib.sha256(), 0, b""
    try:
        with path.open("rb") as file:
            header = file.readline().decode("utf-8-sig", errors="replace").strip()
            file.seek(0)
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                newlines += block.count(b"\n")
                last = block[-1:]
    except OSError as error:
        raise DataError(f"{key}={path} cannot be read ({error.strerror}): give the path of a csv file") from error
    if header != HEADER:
        raise DataError(f"{path}:1: the header is {header[:80]!r}, not {HEADER}")
    num_lines = newlines + (last not in (b"", b"\n"))
    if num_lines < 2:
        raise DataError(f"{path}: holds no puzzles: it needs a row for each puzzle after the header")
    return CsvFile(path, digest.hexdigest(), num_lines - 1)


def read_rows(file: CsvFile, task: Task, chosen: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Questions and answers [len(chosen), L] of the rows with these numbers (from 0, in this order).

    Checks every row of the file, chosen or not; raises DataError "FILE:LINE: reason" for the first that is wrong.
    """
    shape = (len(chosen), task.facts.seq_len)
    questions, answers = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    place = np.full(file.num_rows, -1)
    place[chosen] = np.arange(len(chosen))
    start = 0
    for block in _blocks_of_rows(file.path):
        block_questions, block_answers = _parse_block(file.path, task, block, first_line=start + 2)
        here = place[start : start + len(block_questions)]
        questions[here[here >= 0]] = block_questions[here >= 0]
        answers[here[here >= 0]] = block_answers[here >= 0]
        start += len(block_questions)
    return questions, answers


def _blocks_of_rows(path: Path) -> Iterator[bytes]:
    """What follows the header, in pieces of whole lines, each line with its newline."""
    rest = b""
    with path.open("rb") as file:
        file.readline()
        while block := file.read(_BLOCK_BYTES):
            whole, newline, tail = (rest + block).rpartition(b"\n")
            rest = tail
            if newline:
                yield whole + newline
    if rest:
        yield rest + b"\n"


def _parse_block(path: Path, task: Task, block: bytes, first_line: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    cells = task.facts.seq_len
    # Padded so that a window of one puzzle's length starts at every byte.
    text = np.frombuffer(block + bytes(cells), np.uint8)
    ends = np.flatnonzero(text == _NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    commas = np.append(np.flatnonzero(text == _COMMA), [len(text)] * 3)
    first = np.searchsorted(commas, starts)
    one, two, three = commas[first], commas[first + 1], commas[first + 2]
    regular = (np.searchsorted(commas, ends) - first == 3) & (two - one == cells + 1) & (three - two == cells + 1)
    windows = sliding_window_view(text, cells)
    questions = task.token_of_byte[windows[np.where(regular, one + 1, 0)]]
    answers = task.token_of_byte[windows[np.where(regular, two + 1, 0)]]
    for row in np.flatnonzero(~(regular & task.check_rows(questions, answers))).tolist():
        line = block[starts[row] : ends[row]].decode("utf-8", errors="replace").rstrip("\r")
        try:
            questions[row], answers[row] = _parse_line(task, line)
        except (DataError, csv.Error) as error:
            raise DataError(f"{path}:{first_line + row}: {error}") from error
    return questions, answers


def _parse_line(task: Task, line: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One row, quoted or not; raises DataError with the reason it is wrong."""
    fields = next(csv.reader([line], strict=True), [])
    num_fields = HEADER.count(",") + 1
    if len(fields) != num_fields:
        raise DataError(f"the row has {len(fields)} fields, not the {num_fields} of {HEADER}")
    grids = []
    for name, text in (("question", fields[1]), ("answer", fields[2])):
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
