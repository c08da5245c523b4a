"""The symmetries of Sudoku: drawn at random as augmentation, and made invisible by a signature.

As in the reference: digits are relabelled; bands, rows within a band, stacks and columns within a stack are permuted; the grid is
transposed where the boxes are square. Shapes: N rows, L = S * S cells.
"""

import numpy as np
from numpy.typing import NDArray

from trm.ground.hashing import Stream, hash64, mix64, permutations
from trm.tasks.base import Drawn
from trm.tasks.sudoku.rules import BLANK, Sudoku


class SudokuSymmetry:
    """The symmetries of one size of Sudoku."""

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
