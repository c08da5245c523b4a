"""Coloured grids of any size as tokens on a square canvas, their symmetries, and the variants of a task.

Tokens: 0 pads, 1 marks the end of a grid, 2 to 11 are colours 0 to 9. The end mark is drawn along the row below the grid and the
column right of it where the canvas has room.
Shapes: N rows, S cells along a side of the canvas, L = S * S; a grid is [rows, columns] of colours.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from trm.ground.hashing import Stream, hash64, mix64, permutations

PAD, END, COLOUR_0 = 0, 1, 2
COLOURS = 10
# as ARC Prize draws them
PALETTE = ("#000000", "#1e93ff", "#f93c31", "#4fcc30", "#ffdc00", "#999999", "#e53aa3", "#ff851b", "#87d8f1", "#921231")
VOCAB = COLOUR_0 + COLOURS
# A variant is a symmetry of the square, with the numbers of trm/tasks/augment.py, and a permutation of colours 1 to 9:
# [symmetry, the colour that 1 becomes, that 2 becomes, ...].
DRAW = COLOURS
ITSELF = np.array([0, *range(1, COLOURS)], np.uint8)
SYMMETRIES = 8
MOST_TRIES = 5  # draws for each variant that is wanted
_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
# What each symmetry does: it swaps rows and columns, then counts the source's rows or columns from the other end.
_SWAPS = np.array([0, 1, 0, 1, 0, 0, 1, 1], bool)
_TURNS_ROWS = np.array([0, 0, 1, 1, 0, 1, 0, 1], bool)
_TURNS_COLUMNS = np.array([0, 1, 1, 0, 1, 0, 0, 1], bool)

Grid = NDArray[np.uint8]
Pairs = list[tuple[Grid, Grid | None]]


def moved(grid: Grid, symmetry: int) -> Grid:
    """A grid turned or mirrored."""
    if symmetry < 4:
        return np.rot90(grid, symmetry)
    return (np.fliplr(grid), np.flipud(grid), grid.T, np.fliplr(np.rot90(grid)))[symmetry - 4]


def unvaried(grid: Grid, draw: NDArray[np.uint8]) -> Grid:
    """The task's own grid from a grid of a variant."""
    colours = np.argsort(np.concatenate([ITSELF[:1], draw[1:]])).astype(np.uint8)
    return colours[moved(grid, _INVERSE[int(draw[0])])]


def placed(grids: list[Grid | None], side: int) -> NDArray[np.uint8]:
    """Grids as rows of tokens [N, L], each in the canvas's corner with its end marks; None is a row of padding."""
    rows = np.zeros((len(grids), side, side), np.uint8)
    for row, grid in zip(rows, grids, strict=True):
        if grid is not None:
            height, width = grid.shape
            row[:height, :width] = grid + COLOUR_0
            row[height : height + 1, :width] = END
            row[:height, width : width + 1] = END
    return rows.reshape(len(grids), side * side)


def sizes(rows: NDArray[np.integer], side: int) -> NDArray[np.int64]:
    """Rows and columns [N, 2] of the largest rectangle of colours from the corner of each canvas [N, L].

    The released rule: for each number of rows the widest prefix without another token; the largest area, the fewest rows on ties.
    """
    squares = rows.reshape(len(rows), side, side)
    others = (squares < COLOUR_0) | (squares >= VOCAB)
    prefix = np.where(others.any(axis=2), others.argmax(axis=2), side)
    widths = np.minimum.accumulate(prefix, axis=1)
    areas = widths * np.arange(1, side + 1)
    best = areas.argmax(axis=1)
    width = widths[np.arange(len(rows)), best]
    return np.stack([np.where(width > 0, best + 1, 0), width], axis=1).astype(np.int64)


def cropped(rows: NDArray[np.integer], side: int) -> list[Grid]:
    """The rectangles of `sizes` as grids of colours."""
    squares = rows.reshape(len(rows), side, side)
    colours = (squares - COLOUR_0).astype(np.uint8)
    return [grid[:height, :width] for grid, (height, width) in zip(colours, sizes(rows, side).tolist(), strict=True)]


def variants(
    rows: NDArray[np.uint8], shapes: NDArray[np.int64], draws: NDArray[np.uint8], offsets: NDArray[np.int64], side: int
) -> NDArray[np.uint8]:
    """The rows [N, L] in the variants `draws` [N, DRAW], with their corner at `offsets` [N, 2].

    `shapes` [N, 2] are the sizes of their grids, which lie in the corner of the canvas; the offsets leave room for them.
    """
    symmetry, (height, width) = draws[:, 0], (size[:, None] for size in shapes.T)
    swaps, turns_rows, turns_columns = (table[symmetry][:, None] for table in (_SWAPS, _TURNS_ROWS, _TURNS_COLUMNS))
    new_height, new_width = np.where(swaps, width, height), np.where(swaps, height, width)
    along = np.arange(side)
    down, right = along - offsets[:, :1], along - offsets[:, 1:]  # [N, S] from the corner
    in_rows, in_columns = ((at >= 0) & (at < size) for at, size in ((down, new_height), (right, new_width)))
    # the source cell's number is a part that depends on the cell's row plus one that depends on its column
    source_row, source_column = np.where(swaps, right, down), np.where(swaps, down, right)
    source_row = np.where(turns_rows, height - 1 - source_row, source_row) * side
    source_column = np.where(turns_columns, width - 1 - source_column, source_column)
    by_row = np.where(swaps, source_column, source_row) + np.arange(len(draws))[:, None] * (side * side)
    by_column = np.where(swaps, source_row, source_column)
    by_row, by_column = np.where(in_rows, by_row, 0), np.where(in_columns, by_column, 0)
    tokens = rows.reshape(-1).take(by_row[:, :, None] + by_column[:, None, :])
    relabel = np.concatenate([np.tile(np.arange(COLOUR_0 + 1, dtype=np.uint8), (len(draws), 1)), draws[:, 1:] + COLOUR_0], axis=1)
    tokens = relabel.reshape(-1).take(tokens + (np.arange(len(draws)) * VOCAB)[:, None, None])
    tokens *= in_rows[:, :, None] & in_columns[:, None, :]
    ends = (down == new_height)[:, :, None] & in_columns[:, None, :]
    ends |= in_rows[:, :, None] & (right == new_width)[:, None, :]
    tokens[ends] = END
    made: NDArray[np.uint8] = tokens.reshape(len(draws), side * side)
    return made


def draw_variants(name: str, pairs: Pairs, count: int, seed: int) -> NDArray[np.uint8]:
    """The task itself and at most `count` variants, which all differ in their grids: [1 + count or fewer, DRAW].

    Symmetries and permutations of colours are drawn at random, and again where they give the same grids. The draws depend only
    on the seed, the task's name and `pairs`, which are all of its pairs, test pairs included.
    """
    word = np.array(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"), np.uint64)
    table = _content_table(pairs)
    kept = [ITSELF[None]]
    seen = {int(_contents(table, ITSELF[None])[0])}
    block = max(64, count + count // 16)
    for start in range(0, MOST_TRIES * count, block):
        tries = np.arange(start, min(start + block, MOST_TRIES * count))
        symmetry = hash64(Stream.SYMMETRY, seed, word, tries) % np.uint64(SYMMETRIES)
        order = permutations(hash64(Stream.COLOURS, seed, word, tries[:, None], np.arange(DRAW - 1)))
        draws = np.concatenate([symmetry[:, None].astype(np.uint8), (order + 1).astype(np.uint8)], axis=1)
        contents = _contents(table, draws)
        first = np.sort(np.unique(contents, return_index=True)[1])
        new = [i for i in first.tolist() if int(contents[i]) not in seen][: count + 1 - len(seen)]
        seen |= {int(contents[i]) for i in new}
        kept.append(draws[new])
        if len(seen) == count + 1:
            break
    return np.concatenate(kept)


def _content_table(pairs: Pairs) -> NDArray[np.uint64]:
    """What a colour of a grid adds to the grid's hash when it becomes another: [symmetries, pairs, 2, colour, new colour].

    A grid's hash is a sum over its cells of a random word of (height, width, row, column, colour), which makes the hash of a
    permutation of colours a sum of ten numbers.
    """
    table = np.zeros((SYMMETRIES, len(pairs), 2, COLOURS, COLOURS), np.uint64)
    for i, pair in enumerate(pairs):
        for j, grid in enumerate(pair):
            if grid is None:
                continue
            cells = np.arange(grid.size)
            for symmetry in range(SYMMETRIES):
                turned = moved(grid, symmetry)
                at = hash64(*turned.shape, cells)[:, None] ^ mix64(np.arange(1, COLOURS + 1, dtype=np.uint64))
                order = np.argsort(turned, axis=None, kind="stable")
                colours, starts = np.unique(turned.reshape(-1)[order], return_index=True)
                table[symmetry, i, j, colours] = np.add.reduceat(mix64(at)[order], starts, axis=0)
    return table


def _contents(table: NDArray[np.uint64], draws: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """One word for the grids of a task in each variant [N]; the order of its pairs does not matter."""
    colours = np.concatenate([np.zeros((len(draws), 1), np.intp), draws[:, 1:].astype(np.intp)], axis=1)
    words = np.empty(len(draws), np.uint64)
    for symmetry in range(SYMMETRIES):
        rows = np.flatnonzero(draws[:, 0] == symmetry)
        # [pairs, 2, colour, new] -> [pairs, 2, rows]
        grids = table[symmetry][:, :, np.arange(COLOURS), colours[rows]].sum(axis=-1, dtype=np.uint64)
        whole = mix64(mix64(grids[:, 0]) + np.uint64(3) * grids[:, 1])
        words[rows] = whole.sum(axis=0, dtype=np.uint64)
    return words
