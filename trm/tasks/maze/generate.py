"""The generator of perfect mazes, in which a single path joins any two free cells.

A maze of odd side s has (s + 1) / 2 rooms along each side, in every other row and column. A depth-first walk from one of them opens
the walls, and turns back where all rooms around are known (as in Maze-Unique). On a canvas of even side the last row and column are
wall. All mazes are walked at once, in twice as many steps as there are rooms. Maze number i is a pure function of (seed, i).
Shapes: M mazes, R rooms.
"""

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from trm.errors import DataError
from trm.ground.hashing import Stream, hash64
from trm.ground.progress import work
from trm.tasks.augment import Dihedral
from trm.tasks.base import Split, first_seen
from trm.tasks.maze.rules import CHARACTERS, FREE, GOAL, START, WALL, distances, grids, solved

_ROUND = 1024
_STARTS = 4  # tried in a maze to find a path of a wanted length
_NO_ROOM = -1


def _perfect(side: int, seed: int, numbers: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """The free cells [M, side * side] of the mazes with these numbers, and the cells of their rooms [R]."""
    rooms_a_side = (side + 1) // 2
    rooms = np.arange(rooms_a_side**2).reshape(rooms_a_side, rooms_a_side)
    cells = (2 * side * np.arange(rooms_a_side)[:, None] + 2 * np.arange(rooms_a_side)).ravel()
    around = np.pad(rooms, 1, constant_values=_NO_ROOM)
    beside = np.stack([around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]], axis=-1).reshape(-1, 4)

    mazes = np.arange(len(numbers))
    known = np.zeros((len(numbers), rooms.size + 1), bool)
    known[:, _NO_ROOM] = True  # the last column stands for the outside
    room = (hash64(Stream.GENERATE, seed, 0, numbers) % np.uint64(rooms.size)).astype(np.intp)
    way = np.zeros((len(numbers), rooms.size), np.intp)  # the rooms from the first one to this one
    way[:, 0], depth = room, np.zeros(len(numbers), np.intp)
    free = np.zeros((len(numbers), side**2), bool)
    known[mazes, room] = True
    free[mazes, cells[room]] = True
    for step in range(1, 2 * rooms.size - 1):
        new = ~known[mazes[:, None], beside[room]]
        noise = hash64(Stream.GENERATE, seed, step, numbers)[:, None] >> np.arange(0, 64, 16, dtype=np.uint64)
        chosen = np.where(new, (noise & np.uint64(0xFFFF)) + np.uint64(1), np.uint64(0)).argmax(axis=1)
        ahead = new.any(axis=1)
        entered = beside[room, chosen]
        on = mazes[ahead]
        known[on, entered[ahead]] = True
        free[on, cells[entered[ahead]]] = True
        free[on, (cells[entered[ahead]] + cells[room[ahead]]) // 2] = True
        depth += np.where(ahead, 1, -1)
        way[on, depth[ahead]] = entered[ahead]
        room = way[mazes, np.maximum(depth, 0)]
    return free, cells


def _make(canvas: int, lengths: tuple[int, int | None], seed: int, numbers: NDArray[np.int64]) -> Split:
    """Questions and answers [at most M, L] of the mazes with these numbers that have a path of one of the lengths."""
    side = canvas - 1 + canvas % 2
    free, rooms = _perfect(side, seed, numbers)
    goal, start = np.full(len(numbers), -1), np.full(len(numbers), -1)
    for turn in range(_STARTS):
        todo = np.flatnonzero(goal < 0)
        noise = hash64(Stream.GENERATE, seed, -1 - turn, numbers[todo, None], np.arange(len(rooms) + 1))
        start[todo] = rooms[noise[:, -1] % np.uint64(len(rooms))]
        sources = np.zeros((len(todo), side**2), bool)
        sources[np.arange(len(todo)), start[todo]] = True
        steps = distances(grids(free[todo]), grids(sources)).reshape(len(todo), side**2)[:, rooms]
        fits = (steps >= lengths[0]) & (steps > 0)
        if lengths[1] is not None:
            fits &= steps <= lengths[1]
        chosen = np.where(fits, noise[:, :-1] >> np.uint64(1) | np.uint64(1), np.uint64(0)).argmax(axis=1)
        goal[todo] = np.where(fits.any(axis=1), rooms[chosen], -1)
    made = np.flatnonzero(goal >= 0)
    questions = np.where(free[made], np.uint8(FREE), np.uint8(WALL))
    questions[np.arange(len(made)), start[made]] = START
    questions[np.arange(len(made)), goal[made]] = GOAL
    pad = ((0, 0), (0, canvas - side), (0, canvas - side))
    questions = np.pad(grids(questions), pad, constant_values=WALL).reshape(len(made), canvas**2)
    return questions, solved(questions)[0]


def generate(canvas: int, lengths: tuple[int, int | None], count: int, seed: int) -> Split:
    """Questions and answers [count, canvas * canvas] of perfect mazes with paths of `lengths` (fewest and most steps).

    No two are symmetric copies. A larger count begins with the same mazes. Raises DataError where fewer are found.
    """
    symmetry = Dihedral(canvas, len(CHARACTERS) + 1)
    kept: list[Split] = []
    seen: set[Hashable] = set()
    next_number, found = 0, 0
    with work("mazes made", count, "maze") as done:
        while found < count:
            numbers = np.arange(next_number, next_number + min(_ROUND, count - found + 16))
            next_number += len(numbers)
            questions, answers = _make(canvas, lengths, seed, numbers)
            new = first_seen(symmetry.signature(questions, answers).tolist(), seen)
            kept.append((questions[new], answers[new]))
            found += len(new)
            done(found)
            if found < count and next_number > 20 * count + 1000:
                most = "null" if lengths[1] is None else lengths[1]
                raise DataError(
                    f"data.num_puzzles and data.num_test_puzzles need {count}, but only {found} different mazes of side "
                    f"{canvas} with data.path_min={lengths[0]} data.path_max={most} were found: lower the numbers, or allow "
                    "other lengths"
                )
    questions, answers = (np.concatenate(parts)[:count] for parts in zip(*kept, strict=True))
    return questions, answers
