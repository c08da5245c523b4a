"""The generator of Sudoku: random puzzles with one solution each and without a clue to spare.

Each step works on many puzzles. A state is the candidates of every cell as bits, cells first: [L, M] uint16 for M states, so that
NumPy works on long contiguous rows. Puzzle number i is a pure function of (seed, i).
"""

import itertools
from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray

from trm.errors import DataError
from trm.ground.hashing import Stream, hash64, mix64, permutations
from trm.ground.progress import work
from trm.tasks.base import Split, candidates_for, first_seen, split_of
from trm.tasks.sudoku.rules import BLANK, Sudoku, SudokuSymmetry

States = NDArray[np.uint16]

# With fewer digits nearly all puzzles are symmetric copies of each other.
SMALLEST_SIDE_WITH_CLASSES = 6
# From this side on millions of solutions are not copies of each other, and taking clues away takes nearly all of the time. So the
# solution decides to which split a puzzle belongs, and clues are taken away only where the puzzle is needed.
SMALLEST_SIDE_SPLIT_BY_SOLUTION = 8
_LARGEST_SIDE = 9
_ROUND = 2048
FEW_GUESSES, MOST_GUESSES = 256, 20_000  # to find whether a puzzle has several solutions; to find its answer


def _propagate(sudoku: Sudoku, states: States) -> tuple[States, NDArray[np.bool_]]:
    """Fill in naked and hidden singles until nothing changes; returns states [L, M] and which [M] contradict the rules."""
    side = sudoku.side
    every = np.uint16((1 << side) - 1)
    units_of_cell = np.argsort(sudoku.units.reshape(3, -1), axis=1) // side + side * np.arange(3)[:, None]
    dead = np.zeros(states.shape[1], bool)
    while True:
        singles = np.where(states & (states - np.uint16(1)), np.uint16(0), states)
        fixed, fixed_twice = _once_and_twice(singles[sudoku.units])
        once, twice = _once_and_twice(states[sudoku.units])
        dead |= (fixed_twice != 0).any(axis=0) | (once != every).any(axis=0)
        hidden = once & ~twice
        row, col, box = units_of_cell
        taken = fixed[row] | fixed[col] | fixed[box]
        only = states & (hidden[row] | hidden[col] | hidden[box])
        # A cell that is the only place of two digits keeps one; the other is then found missing in its unit.
        new = np.where(only, only & -only, np.where(singles, states, states & ~taken))
        changed = (new != states).any(axis=0) & ~dead
        states = new
        if not changed.any():
            return states, dead | (states == 0).any(axis=0)


def _once_and_twice(units: States) -> tuple[States, States]:
    """Bits seen at least once and at least twice along axis 1 of [units, side, M]."""
    once, twice = units[:, 0].copy(), np.zeros_like(units[:, 0])
    for cell in range(1, units.shape[1]):
        twice |= once & units[:, cell]
        once |= units[:, cell]
    return once, twice


def _branch_cell(states: States, tie_break: NDArray[np.uint64] | None = None) -> NDArray[np.intp]:
    """An open cell with fewest candidates in each state [M]: the first one, or the lowest by `tie_break` [L, M] (below 2**32)."""
    count = np.bitwise_count(states).astype(np.uint64)
    count[count == 1] = 255
    if tie_break is not None:
        count = (count << np.uint64(32)) + tie_break
    cells: NDArray[np.intp] = np.argmin(count, axis=0)
    return cells


def _guess(states: States) -> tuple[States, States]:
    """The states without the lowest candidate of an open cell, and with only that candidate; overwrites `states`."""
    place = (_branch_cell(states), np.arange(states.shape[1]))
    guess = states[place] & -states[place]
    without = states.copy()
    without[place] &= ~guess
    states[place] = guess
    return without, states


def _solvable(sudoku: Sudoku, states: States) -> NDArray[np.bool_]:
    """Which states [M] have a solution, by depth-first search on all of them at once."""
    found = np.zeros(states.shape[1], bool)
    stack = [(states, np.arange(states.shape[1]))]
    while stack:
        states, owner = stack.pop()
        open_ = ~found[owner]
        states, owner = states[:, open_], owner[open_]
        if not len(owner):
            continue
        states, dead = _propagate(sudoku, states)
        solved = ~dead & (np.bitwise_count(states) == 1).all(axis=0)
        found[owner[solved]] = True
        states, owner = states[:, ~dead & ~solved], owner[~dead & ~solved]
        if not len(owner):
            continue
        stack += [(guessed, owner) for guessed in _guess(states)]
    return found


def _random_solutions(sudoku: Sudoku, seed: int, numbers: NDArray[np.int64]) -> States:
    """Full grids as bits [L, M], one for each puzzle number [M]: by random guesses, which begin again after a contradiction."""
    every = np.uint16((1 << sudoku.side) - 1)
    grids = np.full((sudoku.num_cells, len(numbers)), every)
    todo = np.arange(len(numbers))
    cells = np.arange(sudoku.num_cells)[:, None]
    turn = 0
    while len(todo):
        states, dead = _propagate(sudoku, grids[:, todo])
        states[:, dead] = every
        open_ = np.flatnonzero((np.bitwise_count(states) > 1).any(axis=0))
        grids[:, todo] = states
        todo, states = todo[open_], states[:, open_]
        noise = hash64(Stream.GENERATE, seed, turn, numbers[todo], cells)
        place = (_branch_cell(states, noise >> np.uint64(32)), np.arange(len(todo)))
        options = states[place]
        # The n-th candidate, by taking away the lowest n of them.
        skip = (noise[place] & np.uint64(0xFFFF)) % np.bitwise_count(options)
        for n in range(sudoku.side - 1):
            options = np.where(n < skip, options & (options - np.uint16(1)), options)
        grids[place[0], todo] = options & -options
        turn += 1
    return grids


def solution_classes(sudoku: Sudoku, grids: States) -> NDArray[np.uint64]:
    """A word for each full grid [L, M] that no symmetry changes.

    Two lines of a band or stack are a permutation of the digits; the digits that its powers leave in place give its cycles.
    """
    side, num_grids = sudoku.side, grids.shape[1]
    digits = np.bitwise_count(grids - np.uint16(1)).T.astype(np.intp).reshape(num_grids, side, side)
    total = np.zeros(num_grids, np.uint64)
    for lines, block in ((digits, sudoku.box_rows), (digits.swapaxes(1, 2), sudoku.box_cols)):
        for start in range(0, side, block):
            cycles = np.zeros(num_grids, np.uint64)
            for one, other in itertools.permutations(range(start, start + block), 2):
                step = np.empty((num_grids, side), np.intp)
                np.put_along_axis(step, lines[:, one], lines[:, other], axis=1)
                power, stay = step, []
                for _ in range(side):
                    stay.append((power == np.arange(side)).sum(axis=1))
                    power = np.take_along_axis(step, power, axis=1)
                cycles += hash64(block, *stay)
            total += mix64(cycles)
    return total


def _make(sudoku: Sudoku, seed: int, numbers: NDArray[np.int64], grids: States, before: int, tell: Callable[[int], None]) -> Split:
    """Questions and answers [M, L] of the puzzles with these numbers [M] and solutions [L, M].

    `tell` gets the number of puzzles done, including those `before`.
    """
    every = np.uint16((1 << sudoku.side) - 1)
    order = permutations(hash64(Stream.GENERATE, seed, -1, numbers[:, None], np.arange(sudoku.num_cells)))
    given = np.ones(grids.shape, bool)
    columns = np.arange(len(numbers))
    for turn, cells in enumerate(order.T):
        # the search takes longer with fewer clues: this is how the time of 9x9 puzzles passes
        tell(before + int(len(numbers) * (turn / sudoku.num_cells) ** 5))
        # A clue can go where no solution has another digit in its place.
        states = np.where(given, grids, every)
        states[cells, columns] = every & ~grids[cells, columns]
        given[cells, columns] = _solvable(sudoku, states)
    answers = (np.bitwise_count(grids - np.uint16(1)) + np.uint8(BLANK + 1)).T
    return np.where(given.T, answers, np.uint8(BLANK)), np.ascontiguousarray(answers)


def solved(sudoku: Sudoku, questions: NDArray[np.integer], guesses: int) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Answers [N, L] to questions [N, L], and how many each has: 0, 1, 2 for several, or -1 where `guesses` are too few."""
    answers, counts = np.zeros(questions.shape, np.uint8), np.zeros(len(questions), np.intp)
    if sudoku.side > np.iinfo(np.uint16).bits:
        return answers, counts - 1
    every = np.uint16((1 << sudoku.side) - 1)
    for start in range(0, len(questions), _ROUND):
        given = questions[start : start + _ROUND].T.astype(np.uint16)
        states = np.where(given > BLANK, np.uint16(1) << np.maximum(given, BLANK + 1) - np.uint16(BLANK + 1), every)
        owner = np.arange(start, start + given.shape[1])
        for _ in range(guesses):
            # the last state of every puzzle: depth first
            last = len(owner) - 1 - np.unique(owner[::-1], return_index=True)[1]
            now, owners = states[:, last], owner[last]
            now, dead = _propagate(sudoku, now)
            full = ~dead & (np.bitwise_count(now) == 1).all(axis=0)
            counts[owners[full]] += 1
            answers[owners[full]] = (np.bitwise_count(now[:, full] - np.uint16(1)) + np.uint8(BLANK + 1)).T
            now, owners = now[:, ~dead & ~full], owners[~dead & ~full]
            states = np.concatenate([np.delete(states, last, axis=1), *_guess(now)], axis=1)
            owner = np.concatenate([np.delete(owner, last), owners, owners])
            open_ = counts[owner] < 2
            states, owner = states[:, open_], owner[open_]
            if not len(owner):
                break
        counts[owner] = -1
    return answers, counts


def generate(sudoku: Sudoku, count: int, seed: int, split: str | None = None) -> Split:
    """Questions and answers [count, L] of puzzles with one solution and no clue to spare, no two alike.

    From side 6 on symmetric copies are alike too (by their signature). A larger count begins with the same puzzles. With `split`
    only the puzzles whose solution belongs to that split are made. Raises DataError for a size that cannot be generated, and for a
    count of puzzles that is not found.
    """
    if not (min(sudoku.box_rows, sudoku.box_cols) >= 2 and sudoku.side <= _LARGEST_SIDE):
        raise DataError(
            f"data.box_rows={sudoku.box_rows} data.box_cols={sudoku.box_cols}: puzzles are generated for boxes 2x2, 2x3, 2x4 "
            "(either way round) and 3x3 only"
        )
    symmetry, by_signature = SudokuSymmetry(sudoku), sudoku.side >= SMALLEST_SIDE_WITH_CLASSES
    candidates = candidates_for({split: count}) if split else count
    kept: list[Split] = []
    seen: set[Hashable] = set()
    next_number, found = 0, 0
    with work("puzzles made", count, "puzzle") as done:
        while found < count:
            missing = -(-(count - found) * candidates // count)
            numbers = np.arange(next_number, next_number + min(_ROUND, missing + 16))
            next_number += len(numbers)
            grids = _random_solutions(sudoku, seed, numbers)
            if split:
                own = split_of(solution_classes(sudoku, grids)) == split
                numbers, grids = numbers[own], grids[:, own]
            questions, answers = _make(sudoku, seed, numbers, grids, found, done)
            keys = symmetry.signature(questions, answers).tolist() if by_signature else [row.tobytes() for row in questions]
            new = first_seen(keys, seen)
            if found + len(new) < count and next_number > 3 * candidates + 1000:
                raise DataError(
                    f"data.num_puzzles and data.num_test_puzzles need {count} different {sudoku.side}x{sudoku.side} puzzles, but "
                    f"only {len(seen)} were found: lower them"
                )
            kept.append((questions[new], answers[new]))
            found += len(new)
    questions, answers = (np.concatenate(parts)[:count] for parts in zip(*kept, strict=True))
    return questions, answers
