"""Mazes as tokens, the rules of a path, and the generator of perfect mazes.

A maze is its cells row by row. Token 0 is padding; the others are wall, free, start, goal and path, in the released code's order of
the characters `# SGo`. A path goes from a cell to one of its four neighbours. Its length is its number of steps, one more than the
cells between start and goal.
In a perfect maze a single path joins any two free cells. A generated maze of odd side s has (s + 1) / 2 rooms along each side, in
every other row and column. A depth-first walk from one of them opens the walls, and turns back where all rooms around are known (as
in Maze-Unique). On a canvas of even side the last row and column are wall. All mazes are walked at once, in twice as many steps as
there are rooms. Maze number i is a pure function of (seed, i).
Shapes: N or M mazes, S cells along a side, L = S * S, R rooms.
"""

from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from trm.errors import DataError
from trm.ground.hashing import Stream, hash64
from trm.ground.progress import work
from trm.tasks.augment import Dihedral
from trm.tasks.base import Split, first_seen

CHARACTERS = "# SGo"
PAD, WALL, FREE, START, GOAL, PATH = range(len(CHARACTERS) + 1)

Grids = NDArray[np.bool_]  # [N, S, S]
# A cell with its four neighbours. Cells of one maze that touch along an edge are one piece; cells of different mazes never are.
_ADJACENT = np.zeros((3, 3, 3), np.int8)
_ADJACENT[1] = ndimage.generate_binary_structure(2, 1)
_ROUND = 1024  # mazes that are generated at once
_STARTS = 4  # tried in a maze to find a path of a wanted length
_NO_ROOM = -1


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
