"""Mazes as tokens, and the rules of a path.

A maze is its cells row by row. Token 0 is padding; the others are wall, free, start, goal and path, as the released code numbers
the characters `# SGo`. A path goes from a cell to one of its four neighbours; its length is counted in steps, one more than the
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
# Cells of one maze that touch along an edge are one piece; those of different mazes never.
_ADJACENT = np.zeros((3, 3, 3), bool)
_ADJACENT[1] = ndimage.generate_binary_structure(2, 1)


def grids(tokens: NDArray[Any]) -> NDArray[Any]:
    """Mazes [N, L] as squares [N, S, S]."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(len(tokens), side, side)


def neighbours(cells: Grids) -> NDArray[np.uint8]:
    """How many of the four neighbours of each cell are in `cells` [N, S, S]."""
    count = np.zeros(cells.shape, np.uint8)
    count[:, 1:] += cells[:, :-1]
    count[:, :-1] += cells[:, 1:]
    count[:, :, 1:] += cells[:, :, :-1]
    count[:, :, :-1] += cells[:, :, 1:]
    return count


def distances(free: Grids, sources: Grids) -> NDArray[np.int16]:
    """Steps from the nearest source through free cells [N, S, S]; -1 where there is no way. All mazes are flooded in step."""
    # With a wall after each row and each maze the neighbours are so many places away in one row of all cells, which is quick.
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
    """Steps of the shortest paths of mazes [N, L], -1 where there is none, and the cells on any of them [N, S, S].

    Each maze has one start and one goal.
    """
    squares = grids(questions)
    free = (squares != WALL) & (squares != PAD)
    start, goal = squares == START, squares == GOAL
    there, back = distances(free, start), distances(free, goal)
    steps = there[goal]
    on_one = (there >= 0) & (back >= 0) & (there + back == steps[:, None, None])
    return steps, on_one


def with_one_start_and_goal(questions: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which mazes [N] are cells other than path cells, with exactly one start and one goal."""
    cells = ((questions >= WALL) & (questions <= GOAL)).all(axis=1)
    flags: NDArray[np.bool_] = cells & ((questions == START).sum(axis=1) == 1) & ((questions == GOAL).sum(axis=1) == 1)
    return flags


def unchanged(questions: NDArray[np.integer], answers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which answers [N] differ from their mazes only in path cells where those are free."""
    flags: NDArray[np.bool_] = ((answers == questions) | ((questions == FREE) & (answers == PATH))).all(axis=1)
    return flags


def optimal(questions: NDArray[np.integer], answers: NDArray[np.integer], steps: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which answers [N] are a path as short as `steps` [N], those of a shortest one.

    No flood is needed: with one neighbour on the path at start and goal and two at all other path cells there is a path, and
    perhaps rings apart from it; but a path has at least `steps` steps, which leaves no cell for a ring. A shortest path has no
    other neighbours, since they would shorten it.
    """
    squares = grids(answers)
    line = squares >= START
    wanted = np.where(squares == PATH, 2, 1)
    joined = (~line | (neighbours(line) == wanted)).all(axis=(1, 2))
    flags: NDArray[np.bool_] = unchanged(questions, answers) & joined & ((answers == PATH).sum(axis=1) == steps - 1)
    return flags


def pieces(line: Grids) -> NDArray[np.int32]:
    """The number of the piece that each cell of `line` belongs to, from 1 on over all mazes; 0 elsewhere [N, S, S]."""
    labels, _ = ndimage.label(line, _ADJACENT)
    numbers: NDArray[np.int32] = labels
    return numbers


def euler(line: Grids) -> NDArray[np.intp]:
    """How many pieces of the mazes [N] each of `line` has less how often it encloses something: Euler's number of its cells.

    Each is counted from its corners: cells, less the edges between neighbours, plus the squares of four.
    """
    cells = line.sum(axis=(1, 2))
    across, down = line[:, :, 1:] & line[:, :, :-1], line[:, 1:] & line[:, :-1]
    squares = across[:, 1:] & across[:, :-1]
    number: NDArray[np.intp] = cells - across.sum(axis=(1, 2)) - down.sum(axis=(1, 2)) + squares.sum(axis=(1, 2))
    return number


def dead_ends(answers: NDArray[np.integer]) -> Grids:
    """The path cells [N, S, S] that have fewer than two neighbours on the path: where it ends or begins without start or goal."""
    squares = grids(answers)
    ends: Grids = (squares == PATH) & (neighbours(squares >= START) < 2)
    return ends


def valid(questions: NDArray[np.integer], answers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which answers [N] are a path from start to goal through free cells, of whatever length.

    That is: nothing but free cells is changed, and start, goal and path cells are one piece, with no dead end, that encloses
    nothing. (A path may run beside itself, but one that comes back to itself around other cells counts as a loop.)
    """
    squares = grids(answers)
    line = squares >= START
    flags: NDArray[np.bool_] = unchanged(questions, answers) & ~dead_ends(answers).any(axis=(1, 2)) & (euler(line) == 1)
    flags[flags] = _one_piece(line[flags])
    return flags


def _one_piece(line: Grids) -> NDArray[np.bool_]:
    """Which mazes [N] have all cells of `line`, of which each has some, in one piece."""
    labels = pieces(line)
    last = labels.max(axis=(1, 2), initial=0)
    one: NDArray[np.bool_] = ((labels == last[:, None, None]) == line).all(axis=(1, 2))
    return one
