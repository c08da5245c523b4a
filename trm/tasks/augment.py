"""The symmetries of a task, applied to puzzles and undone. Shapes: N rows, L cells, P base puzzles."""

import numpy as np
from numpy.typing import NDArray

from trm.errors import ConfigError
from trm.tasks.base import Drawn, Split, Task


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

    Stored and on-the-fly augmentation give the same rows however the work is split. `seed` is data.seed.
    """
    drawn = _drawn(task, seed, puzzles, variants)
    cells, vocab = drawn.source.shape[1], drawn.relabel.shape[1]
    source = drawn.source + (puzzles * cells)[:, None]
    offset = (np.arange(len(puzzles)) * vocab)[:, None]
    return drawn.relabel.take(questions.take(source) + offset), drawn.relabel.take(answers.take(source) + offset)


def undo(
    task: Task, cells: NDArray[np.integer], *, seed: int, puzzles: NDArray[np.integer], variants: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Cells [N, L] of the given variants as cells of the base puzzles: what `augment` did, done backwards."""
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
            f"{task.title} has no symmetries that are known: set data.num_aug=0, data.on_the_fly_aug=0 and inference.copies=1"
        )
    same = (np.arange(size) for size in (task.facts.seq_len, task.facts.vocab_size))
    source, relabel = (np.tile(row, (len(puzzles), 1)) for row in same)
    return Drawn(source, relabel.astype(np.uint8))
