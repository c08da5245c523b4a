"""Mazes as tokens, and the rules of a path.

A maze is its cells row by row. Token 0 is padding; the others are wall, free, start, goal and path, in the released code's order of
the characters `# SGo`. A path goes from a cell to one of its four neighbours. Its length is its number of steps, one more than the
cells between start and goal.
Shapes: N mazes, S cells along a side, L = S * S.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

CHARACTERS = "# SGo"
PAD, WALL, FREE, START, GOAL, PATH = range(len(CHARACTERS) + 1)

Grids = NDArray[np.bool_]  # [N, S, S]
# A cell with its four neighbours. Cells of one maze that touch along an edge are one piece; cells of different mazes never are.
_ADJACENT = np.zeros((3, 3, 3), np.int8)
_ADJACENT[1] = ndimage.generate_binary_structure(2, 1)


def grids(tokens: NDArray[Any]) -> NDArray[Any]:
    """Mazes [N, L] as squares [N, S, S]."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(len(tokens), side, side)


def distances(free: Grids, sources: Grids) -> NDArray[np.int16]:
    """Steps from the nearest source through free cells [N, S, S]; -1 where no way leads. All mazes are flooded at once."""
    # With a wall after each row and each maze, neighbours have fixed distances in one row of all cells, which is quick.
    size = free.shape[1] + 1
    closed = ((0, 0), (0, 1), (0, 1))
    open_, rim = np.pad(free & ~sources, closed).ravel(), np.pad(sources, closed).ravel()
    found, step = np.where(rim, 0, -1).astype(np.int16), 0
    while rim.any():
        step += 1
        beside = np.zeros_like(rim)
        for away in (1, size):
            beside[away:] |= rim[:-away]
            beside[:-away] |= rim[away:]
        rim = beside & open_
        open_ ^= rim
        np.copyto(found, step, where=rim)
    squares: NDArray[np.int16] = found.reshape(-1, size, size)[:, :-1, :-1]
    return squares


def shortest(questions: NDArray[np.integer]) -> tuple[NDArray[np.int16], Grids]:
    """Steps of the shortest paths of mazes [N, L], -1 where no path exists, and the cells on any of these paths [N, S, S].

    Each maze has one start and one goal.
    """
    squares = grids(questions)
    free = (squares != WALL) & (squares != PAD)
    start, goal = squares == START, squares == GOAL
    there, back = distances(free, start), distances(free, goal)
    steps = there[goal]
    on_one = (there >= 0) & (back >= 0) & (there + back == steps[:, None, None])
    return steps, on_one


def solved(questions: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    """The mazes [N, L] with the cells of all shortest paths, and how many such paths each maze has: 0, 1, or 2 for several."""
    steps, on_one = shortest(questions)
    answers = np.where(on_one.reshape(questions.shape) & (questions == FREE), np.uint8(PATH), questions)
    return answers, np.where(steps < 0, 0, np.where(on_one.sum(axis=(1, 2)) == steps + 1, 1, 2))


def with_one_start_and_goal(questions: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which mazes [N] have no padding and no path cells, and exactly one start and one goal."""
    cells = ((questions >= WALL) & (questions <= GOAL)).all(axis=1)
    flags: NDArray[np.bool_] = cells & ((questions == START).sum(axis=1) == 1) & ((questions == GOAL).sum(axis=1) == 1)
    return flags


def ways(answers: NDArray[np.integer]) -> NDArray[np.int8]:
    """The surplus of neighbours on the path of each start, goal and path cell [N, S, S]; negative where they are too few, else 0.

    Start and goal have one neighbour on the path, and a path cell has two.
    """
    squares = grids(answers)
    line = (squares >= START).astype(np.int8)
    with_itself = ndimage.convolve(line, _ADJACENT[1:2], mode="constant")
    surplus: NDArray[np.int8] = line * (with_itself - np.where(squares == PATH, 3, 2).astype(np.int8))
    return surplus


def optimal(questions: NDArray[np.integer], answers: NDArray[np.integer], steps: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which answers [N] are a path of `steps` [N] steps, the number of a shortest path.

    No flood is needed. With one neighbour on the path at start and goal and two at all other path cells there is a path, and
    perhaps rings beside it; but a path has at least `steps` steps, which leaves no cell for a ring. A shortest path has no other
    neighbours, since they would shorten it.
    """
    flags = _without_ends(questions, answers)
    flags &= (answers == PATH).sum(axis=1) == steps - 1
    return flags


def _without_ends(questions: NDArray[np.integer], answers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which answers [N] change only free cells of their mazes into path, with the right number of neighbours for each cell."""
    unchanged = ((answers == questions) | ((questions == FREE) & (answers == PATH))).all(axis=1)
    flags: NDArray[np.bool_] = unchanged & (ways(answers) == 0).all(axis=(1, 2))
    return flags


def pieces(answers: NDArray[np.integer]) -> NDArray[np.int32]:
    """The number of the piece of each start, goal and path cell, from 1 on over all mazes; 0 elsewhere [N, S, S]."""
    numbers: NDArray[np.int32] = ndimage.label(grids(answers) >= START, _ADJACENT)[0]
    return numbers


def one_path(questions: NDArray[np.integer], answers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which answers [N] are exactly one simple path of any length from start to goal through free cells.

    Only free cells are changed, and start, goal and path cells are one piece in which each has the right number of neighbours. A
    path that touches itself does not count: its cells have a second, shorter path, which would be two answers at once.
    """
    flags = _without_ends(questions, answers)
    labels = pieces(answers[flags])  # without other ends the other pieces are rings
    flags[flags] = ((labels == labels.max(axis=(1, 2), initial=0)[:, None, None]) == (labels > 0)).all(axis=(1, 2))
    return flags
