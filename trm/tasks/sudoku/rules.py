"""Sudoku as tokens: reading and writing text, the rules, and the symmetries.

A grid is its cells row by row. Token 0 is padding, 1 a blank cell, d + 1 the digit d. Shapes: N rows, L = side * side cells.
"""

import collections
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trm.errors import DataError
from trm.ground.hashing import Stream, hash64, mix64, permutations
from trm.tasks.base import Drawn

PAD = 0
BLANK = 1
DIGITS = "123456789ABCDEFGHIJKLMNOP"
_BLANKS = ".0_*xX"
# Comments and headings of .sdk files, and other marks of a comment or a heading
_NOTE = re.compile(r"#.*|^\s*\[[A-Za-z ]+\]\s*$|^\s*(//|%|;\s*[a-z]{2}).*|^\s*(grid|puzzle|sudoku)\b.*", re.IGNORECASE)
_FRAME = re.compile("[|+:'`\",;(){}\\[\\]\u2500-\u257f]")  # between and around cells; the last ones draw boxes
# Lines around the boxes of a drawn grid: certain ones, and those where - is not a blank
_RULE_WITH_CROSS = re.compile(r"^[-+|=\s]*\+[-+|=\s]*$")
_RULE = re.compile(r"^[-+|=*.:'`\s]*(--|==|\+)[-+|=*.:'`\s]*$")
_FIELDS = re.compile("[,;\t]")
_BARS = re.compile("[|\u2502\u2503\u2551]")
_NO_DIGIT = ("-1", "none", "null", "nan")


@dataclass(frozen=True)
class Sudoku:
    """A puzzle size: boxes of `box_rows` x `box_cols` cells, `side` = box_rows * box_cols digits."""

    box_rows: int
    box_cols: int

    @property
    def side(self) -> int:
        """Cells along one side, and the number of digits."""
        return self.box_rows * self.box_cols

    @property
    def num_cells(self) -> int:
        """Cells of the grid, L."""
        return self.side**2

    @property
    def vocab_size(self) -> int:
        """Tokens: padding, blank and the digits."""
        return self.side + 2

    @cached_property
    def units(self) -> NDArray[np.intp]:
        """Cells of every row, then column, then box: [3 * side, side]."""
        cells = np.arange(self.num_cells).reshape(self.side, self.side)
        boxes = cells.reshape(self.box_cols, self.box_rows, self.box_rows, self.box_cols).swapaxes(1, 2)
        return np.concatenate([cells, cells.T, boxes.reshape(self.side, self.side)])

    def cell_name(self, cell: int) -> str:
        """A cell in words, counted from 1."""
        return f"row {cell // self.side + 1} column {cell % self.side + 1}"

    @cached_property
    def token_of_byte(self) -> NDArray[np.uint8]:
        """The token of every byte of text [256]; 0 (padding) where the byte is not a cell."""
        table = np.full(256, PAD, np.uint8)
        table[[ord(c) for c in _BLANKS]] = BLANK
        for digit, char in enumerate(DIGITS[: self.side], start=1):
            table[ord(char)] = table[ord(char.lower())] = digit + 1
        return table

    def parse(self, text: str) -> NDArray[np.uint8]:
        """Tokens [L] of a puzzle written in one line or as a grid; `.`, `0`, `_`, `*`, `x` and `-` are blank.

        White space, the frames of a drawn grid and the notes of .sdk files are skipped. Between commas or bars cells may be empty,
        and -1, null and None are blanks. A space is a blank where no other blank is used. Separated cells may be numbers of two
        digits or, in a smaller grid, several candidates, which are a blank. A 16x16 grid may have the digits 0 to F where 0 is no
        blank. Raises DataError that names line and column.
        """
        lines = _puzzle_lines(text)
        drawn = [(number, line) for number, line in lines if not _RULE.match(line)]
        uncrossed = [(number, line) for number, line in lines if not _RULE_WITH_CROSS.match(line)]
        # - is part of the frame or a blank
        ways = [_characters(drawn, dashes=False), _characters(drawn, dashes=True), _characters(uncrossed, dashes=True)]
        apart = [self._separated(drawn, _FIELDS), self._separated(drawn, _BARS), self._spaced(drawn)]
        found = next((way for way in (apart[0], *ways, *apart[1:]) if len(way) == self.num_cells), ways[1] or ways[2])
        chars = "".join(char for *_, char in found).upper()
        hexadecimal = self.side == 16 and "0" in chars and "G" not in chars
        hexadecimal &= chars.count("0") == self.side or any(blank in chars for blank in "._-*X")
        tokens = []
        for line, column, char in found:
            token = BLANK if char == "-" else int(self.token_of_byte[ord(char)]) if len(char) == 1 and ord(char) < 256 else PAD
            if hexadecimal and token != PAD and char not in "._-*xX":
                token = BLANK + 1 if char == "0" else token + 1
            if token == PAD and (len(found) == self.num_cells or char.upper() not in DIGITS):
                raise DataError(
                    f"line {line} column {column}: {char!r} is neither a digit 1-{DIGITS[self.side - 1]} nor a blank "
                    f"(one of {_BLANKS}-)"
                )
            tokens.append(token)
        if len(tokens) != self.num_cells:
            counts = collections.Counter(line for line, *_ in found)
            wrong = next((line for line, count in counts.items() if count != self.side), None) if len(counts) > 1 else None
            where = "" if wrong is None else f"; line {wrong} has {counts[wrong]}"
            raise DataError(f"{len(tokens)} cells, but a {self.side}x{self.side} puzzle has {self.num_cells}{where}")
        return np.array(tokens, np.uint8)

    def _spaced(self, lines: list[tuple[int, str]]) -> list[tuple[int, int, str]]:
        """The cells of rows in which a space is a blank, perhaps cut at the end; empty where another blank is used."""
        rows = [(line, _FRAME.sub("", text.rstrip())) for line, text in lines if text.strip()]
        if any(len(row) > self.side or re.search(r"[-.0_*]", row) for _, row in rows) or not any(" " in row for _, row in rows):
            return []
        cells = [(line, column, char) for line, row in rows for column, char in enumerate(row.ljust(self.side), 1)]
        return [(line, column, char.replace(" ", ".")) for line, column, char in cells]

    def _separated(self, lines: list[tuple[int, str]], separator: re.Pattern[str]) -> list[tuple[int, int, str]]:
        """Line, column and character of the cells of lines in which each cell is a field, perhaps an empty field."""
        found = []
        for line, text in lines:
            separated = bool(separator.search(text))
            if separated:
                starts = [0, *(match.end() for match in separator.finditer(text))]
                fields = [
                    (start, _FRAME.sub("", field).strip()) for start, field in zip(starts, separator.split(text), strict=True)
                ]
                fields = fields[1:-1] if separator is _BARS and len(fields) == self.side + 2 else fields
                fields = fields[:-1] if len(fields) % self.side == 1 and not fields[-1][1] else fields  # ends in a separator
            else:
                fields = [(match.start(), match[0]) for match in re.finditer(r"\S+", _FRAME.sub(" ", text))]
            for start, field in fields:
                number = int(field) if field.isdecimal() and len(field) == 2 and self.side > 9 else 0
                candidates = not separated and len(field) > 1 and field.isdecimal() and list(field) == sorted(set(field))
                blank = candidates or not field.strip("-") or field.lower() in _NO_DIGIT
                char = DIGITS[number - 1] if 0 < number <= self.side else "." if blank else field
                found.append((line, start + 1, char))
        return found

    def text(self, tokens: NDArray[np.integer]) -> str:
        """One line of L characters, `.` for a cell without a digit. `parse` reads it, and also the drawings of a GridView."""
        return "".join(DIGITS[t - BLANK - 1] if t > BLANK else "." for t in tokens.tolist())

    def violations(self, question: NDArray[np.integer], answer: NDArray[np.integer]) -> list[str]:
        """What is wrong with an answer [L] to a question [L], in words; empty for a solution."""
        found = []
        blanks = np.flatnonzero(answer <= BLANK)
        if len(blanks):
            cells = "1 cell has" if len(blanks) == 1 else f"{len(blanks)} cells have"
            found.append(f"{cells} no digit, the first in {self.cell_name(int(blanks[0]))}")
        for cell in np.flatnonzero((question > BLANK) & (question != answer)).tolist():
            found.append(f"{self.cell_name(cell)} was given as {self.text(question[[cell]])}, not {self.text(answer[[cell]])}")
        return found + self.contradictions(answer)

    def contradictions(self, question: NDArray[np.integer]) -> list[str]:
        """In words: the digits of a question or an answer [L] that occur more than once in a row, column or box."""
        found = []
        for unit, cells in enumerate(self.units):
            counts = np.bincount(question[cells], minlength=self.vocab_size)
            for token in np.flatnonzero(counts[BLANK + 1 :] > 1).tolist():
                kind = ("row", "column", "box")[unit // self.side]
                found.append(f"{kind} {unit % self.side + 1} has {DIGITS[token]} more than once")
        return found

    def conflicts(self, answer: NDArray[np.integer]) -> NDArray[np.bool_]:
        """The cells [L] of an answer [L] whose digit occurs again in their row, column or box."""
        found = np.zeros(self.num_cells, np.bool_)
        for cells in self.units:
            digits = answer[cells]
            repeated = np.bincount(digits, minlength=self.vocab_size)[digits] > 1
            found[cells[repeated & (digits > BLANK)]] = True
        return found

    def check_rows(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which rows [N] are sound: every token of both [N, L] is a cell, and the answer solves the question."""
        sound: NDArray[np.bool_] = ((questions == BLANK) | (questions == answers)).all(axis=1)
        sound &= (answers > BLANK).all(axis=1) & (answers < self.vocab_size).all(axis=1)
        # Cells first: every operation below then runs over contiguous rows of N.
        bits_LN = np.uint32(1) << answers.T.astype(np.uint32)
        every_digit = np.uint32((1 << self.vocab_size) - (1 << (BLANK + 1)))
        for cells in self.units:
            seen = bits_LN[cells[0]].copy()
            for cell in cells[1:]:
                seen |= bits_LN[cell]
            sound &= seen == every_digit
        return sound


def _puzzle_lines(text: str) -> list[tuple[int, str]]:
    """The lines of a text with their numbers from 1, without notes; only the lines below [Puzzle] where the text has this head."""
    lines = list(enumerate(text.splitlines(), 1))
    heads = [i for i, (_, line) in enumerate(lines) if line.strip().startswith("[")]
    first = next((i for i in heads if lines[i][1].strip().lower() == "[puzzle]"), None)
    if first is not None:
        lines = lines[first : next((i for i in heads if i > first), None)]
    return [(number, _NOTE.sub(lambda note: " " * len(note[0]), line)) for number, line in lines]


def _characters(lines: list[tuple[int, str]], *, dashes: bool) -> list[tuple[int, int, str]]:
    """Line, column and character of all characters but white space and frames; `dashes`: - is not a frame."""
    return [
        (number, column, char)
        for number, line in lines
        for column, char in enumerate(line, 1)
        if not (char.isspace() or _FRAME.match(char)) and (dashes or char != "-")
    ]


class SudokuSymmetry:
    """The symmetries of one size of Sudoku, as in the reference: random ones as augmentation, and a signature that none changes.

    Digits are relabelled; bands, rows within a band, stacks and columns within a stack are permuted; the grid is transposed where
    the boxes are square.
    """

    words = "digits, bands, rows, stacks, columns, transpose"

    def __init__(self, sudoku: Sudoku) -> None:
        self._sudoku = sudoku

    def draw(self, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]) -> Drawn:
        """The symmetries that make the variants [N] of the base puzzles [N]. Half of the variants are transposed."""
        sudoku = self._sudoku
        side, rows, cols = sudoku.side, sudoku.box_rows, sudoku.box_cols
        sizes = np.cumsum([side, cols * (rows + 1), rows * (cols + 1), 1])
        keys = hash64(Stream.AUGMENT, seed, puzzles[:, None], variants[:, None], np.arange(sizes[-1]))
        row_order = _line_order(keys[:, sizes[0] : sizes[1]], cols, rows)
        col_order = _line_order(keys[:, sizes[1] : sizes[2]], rows, cols)
        relabel = np.zeros((len(keys), sudoku.vocab_size), np.uint8)
        relabel[:, BLANK] = BLANK
        relabel[:, BLANK + 1 :] = permutations(keys[:, : sizes[0]]) + BLANK + 1

        same = np.flatnonzero(variants == 0)
        row_order[same] = col_order[same] = np.arange(side)
        relabel[same] = np.arange(sudoku.vocab_size)
        # Transposing swaps the strides with which the two orders step through the base grid.
        transpose = (keys[:, -1] >> np.uint64(63) == 1) & (variants != 0) & (rows == cols)
        row_order *= np.where(transpose, 1, side)[:, None]
        col_order *= np.where(transpose, side, 1)[:, None]
        # in whole rows: broadcasting is slower
        return Drawn(row_order.repeat(side, axis=1) + np.tile(col_order, side), relabel)

    def signature(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """A word for each puzzle [N] that no symmetry changes: puzzles with different words are not symmetric copies.

        (Equal words do not prove the converse.) Colours of cells are refined by the colours that share their row, column,
        box, band, stack or digit, as in the Weisfeiler-Leman test of graph isomorphism; sums forget the order.
        """
        sudoku = self._sudoku
        side, rows, cols = sudoku.side, sudoku.box_rows, sudoku.box_cols
        line = np.arange(side)
        box_of_cell = (line[:, None] // rows * rows + line[None, :] // cols).ravel()
        colour = hash64((questions > BLANK).astype(np.uint64))
        for _ in range(3):
            grid = colour.reshape(-1, side, side)
            row, col = grid.sum(axis=2), grid.sum(axis=1)
            band = mix64(row).reshape(-1, cols, rows).sum(axis=2).repeat(rows, axis=1)
            stack = mix64(col).reshape(-1, rows, cols).sum(axis=2).repeat(cols, axis=1)
            # Rows and columns enter alike, so that transposing changes nothing.
            row, col = hash64(row, band), hash64(col, stack)
            lines = (row[:, :, None] + col[:, None, :]).reshape(colour.shape)
            box = np.stack([colour[:, cells].sum(axis=1) for cells in sudoku.units[2 * side :]], axis=1)
            digit = np.zeros((len(colour), sudoku.vocab_size), np.uint64)
            for token in range(BLANK + 1, sudoku.vocab_size):
                digit[:, token] = np.where(answers == token, colour, 0).sum(axis=1)
            colour = hash64(colour, lines, box[:, box_of_cell], np.take_along_axis(digit, answers.astype(np.intp), axis=1))
        total: NDArray[np.uint64] = mix64(colour).sum(axis=1, dtype=np.uint64)
        return total


def _line_order(keys: NDArray[np.uint64], num_blocks: int, block: int) -> NDArray[np.int64]:
    """Random order of lines that keeps blocks together: keys [N, num_blocks * (block + 1)] -> lines [N, num_blocks * block]."""
    outer = permutations(keys[:, :num_blocks])
    inner = permutations(keys[:, num_blocks:].reshape(-1, num_blocks, block))
    lines: NDArray[np.int64] = (outer * block).repeat(block, axis=1) + inner.reshape(len(keys), -1)
    return lines
