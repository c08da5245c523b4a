"""Which variants a task has: symmetries and permutations of colours drawn at random, those that give the same grids drawn again.

All is a function of (seed, name of the task, its grids): no other task matters.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from trm.ground.hashing import Stream, hash64, mix64, permutations
from trm.tasks.arc.grids import COLOURS, DRAW, ITSELF, Grid, moved

MOST_TRIES = 5  # draws for each variant that is wanted
SYMMETRIES = 8

Pairs = list[tuple[Grid, Grid | None]]


def draw_variants(name: str, pairs: Pairs, count: int, seed: int) -> NDArray[np.uint8]:
    """The task itself and at most `count` variants of it that all differ in their grids, [1 + count or fewer, DRAW].

    `pairs` are all of the task's, those to be answered included.
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
