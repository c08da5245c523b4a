"""The eight symmetries of a square grid: turned and mirrored. Shapes: N rows, L = side * side cells, V tokens."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trm.ground.hashing import hash64
from trm.tasks.base import Drawn

ORDER = 8


class Dihedral:
    """The symmetries of a square of `side` cells; no token changes. Variant k of any puzzle is symmetry k modulo 8, whatever the
    seed.

    They are numbered as in the released code's `dihedral_transform`: 0 the grid itself, 1 to 3 turned counter-clockwise by so many
    right angles, 4 mirrored left to right, 5 top to bottom, 6 transposed, 7 transposed along the other diagonal.
    """

    words = "turned and mirrored"
    order = ORDER

    def __init__(self, side: int, vocab_size: int) -> None:
        self._side, self._vocab_size = side, vocab_size

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """The cell that each cell shows, of every symmetry [8, L]."""
        grid = np.arange(self._side**2).reshape(self._side, self._side)
        turned = [np.rot90(grid, quarter) for quarter in range(4)]
        all_ = [*turned, np.fliplr(grid), np.flipud(grid), grid.T, np.fliplr(turned[1])]
        return np.stack(all_).reshape(ORDER, -1).astype(np.int64)

    def draw(self, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]) -> Drawn:
        """The symmetries of the given variants [N]."""
        same = np.arange(self._vocab_size, dtype=np.uint8)
        return Drawn(self.sources[variants % ORDER], np.tile(same, (len(variants), 1)))

    def signature(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """One word a puzzle [N]: the least of the hashes of its question in all eight copies."""
        words = hash64(np.arange(questions.shape[1])[:, None], np.arange(self._vocab_size))  # [L, V]
        cells = np.arange(questions.shape[1])
        copies = [words[cells, questions[:, source]].sum(axis=1, dtype=np.uint64) for source in self.sources]
        least: NDArray[np.uint64] = np.min(copies, axis=0)
        return least
