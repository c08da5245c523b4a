"""Sudoku as tokens: text in and out, and the rules.

A grid is its cells row by row. Token 0 is padding, 1 a blank cell, d + 1 the digit d. Shapes: N rows, L = side * side cells.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trm.errors import DataError

PAD = 0
BLANK = 1
DIGITS = "123456789ABCDEFGHIJKLMNOP"
_BLANKS = ".0_"
_SEPARATORS = "|+"
_RULE = re.compile(r"^[-+| \t]*\+[-+| \t]*$", re.MULTILINE)  # between the boxes of a drawn grid


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

    def unit_name(self, unit: int) -> str:
        """`units[unit]` in words, counted from 1."""
        return f"{('row', 'column', 'box')[unit // self.side]} {unit % self.side + 1}"

    def cell_name(self, cell: int) -> str:
        """A cell in words, counted from 1."""
        return f"row {cell // self.side + 1} column {cell % self.side + 1}"

    @cached_property
    def token_of_byte(self) -> NDArray[np.uint8]:
        """Token of every byte of text [256]; 0 (padding) where the byte is no cell."""
        table = np.full(256, PAD, np.uint8)
        table[[ord(c) for c in _BLANKS]] = BLANK
        for digit, char in enumerate(DIGITS[: self.side], start=1):
            table[ord(char)] = table[ord(char.lower())] = digit + 1
        return table

    def parse(self, text: str) -> NDArray[np.uint8]:
        """Tokens [L] of a puzzle written in one line or as a grid; `.`, `0`, `_` and `-` are blank.

        White space and the lines of a drawn grid (`|`, `-`, `+`) are skipped. Of a 16x16 grid, digits from 0 to F are understood
        where another blank than 0 is used. Raises DataError naming the position.
        """
        rules = {i for match in _RULE.finditer(text) for i in range(*match.span())}
        found = [(i, char) for i, char in enumerate(text) if not char.isspace() and char not in _SEPARATORS and i not in rules]
        cells = [(i, char) for i, char in found if char != "-"]
        if len(cells) != self.num_cells == len(found):
            cells = found  # no lines, but blanks
        chars = "".join(char for _, char in cells).upper()
        hexadecimal = self.side == 16 and "0" in chars and "G" not in chars
        hexadecimal &= chars.count("0") == self.side or any(blank in chars for blank in "._-")
        tokens = []
        for position, char in cells:
            token = BLANK if char == "-" else int(self.token_of_byte[ord(char)]) if ord(char) < 256 else PAD
            if hexadecimal and char not in "._-":
                token = BLANK + 1 if char == "0" else token + 1 if token else PAD
            if token == PAD:
                raise DataError(
                    f"position {position + 1}: {char!r} is neither a digit 1-{DIGITS[self.side - 1]} nor a blank "
                    f"(one of {_BLANKS}-)"
                )
            tokens.append(token)
        if len(tokens) != self.num_cells:
            dashes = f" ({len(found)} with - as a blank)" if len(found) > len(cells) else ""
            raise DataError(f"{len(tokens)} cells{dashes}, but a {self.side}x{self.side} puzzle has {self.num_cells}")
        return np.array(tokens, np.uint8)

    def text(self, tokens: NDArray[np.integer]) -> str:
        """One line of L characters, `.` for a cell without a digit; `parse` reads it back, and what a GridView draws."""
        return "".join(DIGITS[t - BLANK - 1] if t > BLANK else "." for t in tokens.tolist())

    def violations(self, question: NDArray[np.integer], answer: NDArray[np.integer]) -> list[str]:
        """What is wrong with an answer [L] to a question [L], in words; empty when it solves it."""
        found = []
        blanks = np.flatnonzero(answer <= BLANK)
        if len(blanks):
            cells = "1 cell has" if len(blanks) == 1 else f"{len(blanks)} cells have"
            found.append(f"{cells} no digit, the first in {self.cell_name(int(blanks[0]))}")
        for cell in np.flatnonzero((question > BLANK) & (question != answer)).tolist():
            found.append(f"{self.cell_name(cell)} was given as {self.text(question[[cell]])}, not {self.text(answer[[cell]])}")
        return found + self.repeated(answer)

    def repeated(self, answer: NDArray[np.integer]) -> list[str]:
        """The digits of an answer [L] that stand more than once in a row, column or box, in words."""
        found = []
        for unit, cells in enumerate(self.units):
            counts = np.bincount(answer[cells], minlength=self.vocab_size)
            for token in np.flatnonzero(counts[BLANK + 1 :] > 1).tolist():
                found.append(f"{self.unit_name(unit)} has {DIGITS[token]} more than once")
        return found

    def conflicts(self, answer: NDArray[np.integer]) -> NDArray[np.bool_]:
        """The cells [L] of an answer [L] whose digit stands a second time in their row, column or box."""
        found = np.zeros(self.num_cells, np.bool_)
        for cells in self.units:
            digits = answer[cells]
            repeated = np.bincount(digits, minlength=self.vocab_size)[digits] > 1
            found[cells[repeated & (digits > BLANK)]] = True
        return found

    def check_rows(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which rows [N] are sound: every token of both [N, L] is a cell and the answer solves the question."""
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
