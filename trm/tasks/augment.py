"""Symmetries applied to puzzles and undone, and those of a square. Shapes: N rows, L cells, P base puzzles, V tokens."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trm.errors import ConfigError
from trm.ground.hashing import hash64
from trm.tasks.base import Drawn, Split, Task

ORDER = 8  # symmetries of a square


def augment(
    task: Task,
    questions: NDArray[np.uint8],
    answers: NDArray[np.uint8],
    *,
    seed: int,
    puzzles: NDArray[np.integer],
    variants: NDArray[np.integer],
) -> Split:
    """Questions and answers [N, L] of the given variants [N] of the base puzzles [N], from all base rows [P, L].

    Stored and on-the-fly augmentation give the same rows for every split of the work. `seed` is data.seed.
    """
    drawn = _drawn(task, seed, puzzles, variants)
    cells, vocab = drawn.source.shape[1], drawn.relabel.shape[1]
    source = drawn.source + (puzzles * cells)[:, None]
    offset = (np.arange(len(puzzles)) * vocab)[:, None]
    return drawn.relabel.take(questions.take(source) + offset), drawn.relabel.take(answers.take(source) + offset)


def undo(
    task: Task, cells: NDArray[np.integer], *, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Cells [N, L] of the given variants as cells of the base puzzles: the inverse of `augment`."""
    drawn = _drawn(task, seed, puzzles, variants)
    base = np.empty(cells.shape, np.int64)
    tokens = np.take_along_axis(np.argsort(drawn.relabel, axis=1), cells.astype(np.intp), axis=1)
    np.put_along_axis(base, drawn.source, tokens, axis=1)
    return base


def _drawn(task: Task, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]) -> Drawn:
    if task.symmetry is not None:
        return task.symmetry.draw(seed, puzzles, variants)
    if variants.any():
        raise ConfigError(
            f"the symmetries of {task.title} are not known: set data.num_aug=0, data.on_the_fly_aug=0 and inference.copies=1"
        )
    same = (np.arange(size) for size in (task.facts.seq_len, task.facts.vocab_size))
    source, relabel = (np.tile(row, (len(puzzles), 1)) for row in same)
    return Drawn(source, relabel.astype(np.uint8))


class Dihedral:
    """The eight symmetries of a square of `side` cells, which change no token. Variant k is symmetry k modulo 8 for every seed.

    The numbers are those of the released code's `dihedral_transform`: 0 is the grid itself, 1 to 3 are counter-clockwise turns by
    that many right angles, 4 mirrors left to right, 5 top to bottom, 6 transposes, 7 transposes along the other diagonal.
    """

    words = "turned and mirrored"
    order = ORDER

    def __init__(self, side: int, vocab_size: int) -> None:
        self._side, self._vocab_size = side, vocab_size

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """The cell that each cell shows, for every symmetry [8, L]."""
        grid = np.arange(self._side**2).reshape(self._side, self._side)
        turned = [np.rot90(grid, quarter) for quarter in range(4)]
        all_ = [*turned, np.fliplr(grid), np.flipud(grid), grid.T, np.fliplr(turned[1])]
        return np.stack(all_).reshape(ORDER, -1).astype(np.int64)

    def draw(self, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]) -> Drawn:
        """The symmetries of the given variants [N]."""
        same = np.arange(self._vocab_size, dtype=np.uint8)
        return Drawn(self.sources[variants % ORDER], np.tile(same, (len(variants), 1)))

    def signature(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """One word for each puzzle [N]: the smallest hash of its question among all eight copies."""
        words = hash64(np.arange(questions.shape[1])[:, None], np.arange(self._vocab_size))  # [L, V]
        cells = np.arange(questions.shape[1])
        copies = [words[cells, questions[:, source]].sum(axis=1, dtype=np.uint64) for source in self.sources]
        least: NDArray[np.uint64] = np.min(copies, axis=0)
        return least
