"""Text, rules and symmetries of Sudoku, and the puzzles generated here."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trm.errors import DataError
from trm.tasks.augment import augment
from trm.tasks.sudoku.generate import generate
from trm.tasks.sudoku.rules import BLANK
from trm.tasks.sudoku.task import SudokuTask as Sudoku

SIZES = [Sudoku(2, 2), Sudoku(2, 3), Sudoku(3, 2), Sudoku(3, 3)]
QUESTION = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def solutions(sudoku, question, limit=2):
    """Up to `limit` solutions by plain backtracking: shares nothing with the generator's solver."""
    side, grid = sudoku.side, [t - BLANK for t in question.tolist()]
    peers = [{c for unit in sudoku.units.tolist() if cell in unit for c in unit} - {cell} for cell in range(side**2)]
    found = []

    def options(cell):
        return set(range(1, side + 1)) - {grid[p] for p in peers[cell]}

    def search():
        blanks = [c for c in range(side**2) if grid[c] == 0]
        if not blanks:
            found.append(np.array(grid, np.uint8) + BLANK)
            return
        cell = min(blanks, key=lambda c: len(options(c)))
        for digit in options(cell):
            grid[cell] = digit
            search()
            grid[cell] = 0
            if len(found) >= limit:
                return

    search()
    return found


def canonical(sudoku, question):
    """The smallest of all symmetric copies, digits numbered in order of appearance: equal exactly for copies."""
    rows, cols, side = sudoku.box_rows, sudoku.box_cols, sudoku.side

    def orders(num_blocks, block):
        inner = list(itertools.permutations(range(block)))
        for outer in itertools.permutations(range(num_blocks)):
            for choice in itertools.product(inner, repeat=num_blocks):
                yield [b * block + i for b, lines in zip(outer, choice, strict=True) for i in lines]

    grid = question.reshape(side, side)
    best = None
    for g in (grid, grid.T) if rows == cols else (grid,):
        for r in orders(cols, rows):
            for c in orders(rows, cols):
                names = {BLANK: BLANK}
                copy = bytes(names.setdefault(t, len(names) + BLANK) for t in g[np.ix_(r, c)].ravel().tolist())
                best = copy if best is None else min(best, copy)
    return best


def test_tokens_are_value_plus_one():
    assert Sudoku(2, 2).parse("1234 3412 ._.0 4321").tolist() == [2, 3, 4, 5, 4, 5, 2, 3, 1, 1, 1, 1, 5, 4, 3, 2]


def test_units_of_a_6x6_grid():
    units = Sudoku(2, 3).units.tolist()
    assert units[0] == [0, 1, 2, 3, 4, 5]
    assert units[6] == [0, 6, 12, 18, 24, 30]
    assert units[12] == [0, 1, 2, 6, 7, 8]
    assert units[17] == [27, 28, 29, 33, 34, 35]


def test_grid_is_drawn_with_boxes():
    assert (
        Sudoku(2, 2).view.grid(Sudoku(2, 2).parse("12.. .... .... ..43")) == "1 2 | . .\n. . | . .\n----+----\n. . | . .\n. . | 4 3"
    )


def test_digits_of_a_16x16_grid_may_count_from_0():
    """In hexadecimal, unless a G or the lack of another blank says that 0 is one."""
    grid = Sudoku(4, 4)
    row, column = np.divmod(np.arange(256), 16)
    answer = (4 * row + row // 4 + column) % 16 + BLANK + 1
    question = np.where(np.arange(256) % 3 > 0, answer, BLANK)
    counted_from_1 = grid.text(question)
    counted_from_0 = "".join("." if t == BLANK else "0123456789ABCDEF"[t - BLANK - 1] for t in question.tolist())
    solved_from_0 = "".join("0123456789abcdef"[t - BLANK - 1] for t in answer.tolist())
    for text in (counted_from_1, counted_from_0, counted_from_0.replace(".", "-"), counted_from_1.replace(".", "0")):
        assert np.array_equal(grid.parse(text), question)
    assert np.array_equal(grid.parse(solved_from_0), answer)
    with pytest.raises(DataError, match="line 1 column 2: 'G'"):
        Sudoku(3, 3).parse("0G" + "." * 79)


def test_violations_in_words():
    sudoku = Sudoku(3, 3)
    question, answer = sudoku.parse(QUESTION), sudoku.parse(ANSWER)
    assert sudoku.violations(question, answer) == []

    def wrong(cell, char):
        changed = sudoku.parse(ANSWER[:cell] + char + ANSWER[cell + 1 :])
        assert sudoku.violations(question, changed)
        assert not sudoku.check_rows(question[None], changed[None])[0]
        return sudoku.violations(question, changed)

    assert wrong(0, ".")[0] == "1 cell has no digit, the first in row 1 column 1"
    assert "row 1 column 1 was given as 5, not 9" in wrong(0, "9")
    assert any(v.startswith("row 1 has 6") for v in wrong(2, "6"))
    assert any(v.startswith("column 3 has 2") for v in wrong(2, "2"))
    assert any(v.startswith("box 1 has 7") for v in wrong(2, "7"))


@given(cell=st.integers(0, 80), token=st.integers(0, 255))
def test_check_rows_agrees_with_violations(cell, token):
    sudoku = Sudoku(3, 3)
    question, answer = sudoku.parse(QUESTION), sudoku.parse(ANSWER)
    answer[cell] = token
    sound = bool(sudoku.check_rows(question[None], answer[None])[0])
    assert sound == (sudoku.text(answer) == ANSWER if 1 < token < 11 else False)


@pytest.fixture(scope="module")
def puzzles_of():
    made = {sudoku: generate(sudoku, 12, 0) for sudoku in SIZES}
    return made.__getitem__


def test_augmentation_is_a_pure_function_of_seed_puzzle_and_variant(puzzles_of):
    sudoku = SIZES[3]
    base = puzzles_of(sudoku)
    rng = np.random.default_rng(0)
    puzzles, variants = rng.integers(12, size=50), rng.integers(100, size=50)
    whole = augment(sudoku, *base, seed=1, puzzles=puzzles, variants=variants)
    for i in range(50):
        one = augment(sudoku, *base, seed=1, puzzles=puzzles[i : i + 1], variants=variants[i : i + 1])
        assert np.array_equal(one[0][0], whole[0][i])
        assert np.array_equal(one[1][0], whole[1][i])
    other = augment(sudoku, *base, seed=2, puzzles=puzzles, variants=variants)
    assert (other[1] != whole[1]).any(axis=1)[variants > 0].all()


@pytest.mark.parametrize("sudoku", SIZES, ids=str)
def test_augmentation_reaches_every_symmetry_evenly(sudoku):
    """Where cell 0 goes, whether the grid is transposed, and which digit stands for which are uniform."""
    side, n = sudoku.side, 20000
    # A marker grid, not a puzzle: the answer numbers the cells' digits by row, the question marks row 0 with digit 1.
    answers = np.repeat(np.arange(side, dtype=np.uint8) + BLANK + 1, side)[None]
    marked = np.full((1, side**2), BLANK, np.uint8)
    marked[0, 0] = BLANK + 1
    questions, labels = augment(sudoku, marked, answers, seed=0, puzzles=np.zeros(n, int), variants=np.arange(1, n + 1))
    cell = (questions > BLANK).argmax(axis=1)
    expected, spread = n / side**2, 5 * (n / side**2) ** 0.5
    assert (abs(np.bincount(cell, minlength=side**2) - expected) < spread).all()
    digit = questions.max(axis=1) - BLANK - 1
    assert (abs(np.bincount(digit, minlength=side) - n / side) < 5 * (n / side) ** 0.5).all()
    transposed = (labels.reshape(n, side, side)[:, 0, 0] != labels.reshape(n, side, side)[:, 0, 1]).mean()
    assert abs(transposed - (0.5 if sudoku.box_rows == sudoku.box_cols else 0)) < 0.02


@pytest.mark.parametrize("sudoku", SIZES, ids=str)
def test_generated_puzzles_have_one_solution_and_no_spare_clue(sudoku, puzzles_of):
    questions, answers = puzzles_of(sudoku)
    assert sudoku.check_rows(questions, answers).all()
    for question, answer in zip(questions[: 12 if sudoku.side < 9 else 3], answers, strict=False):
        found = solutions(sudoku, question)
        assert len(found) == 1
        assert np.array_equal(found[0], answer)
        for clue in np.flatnonzero(question > BLANK)[: 16 if sudoku.side < 9 else 4]:
            fewer = question.copy()
            fewer[clue] = BLANK
            assert len(solutions(sudoku, fewer)) == 2


def test_generation_is_seeded_and_a_larger_count_begins_with_the_same_puzzles():
    small, large, other = generate(SIZES[1], 10, 3), generate(SIZES[1], 30, 3), generate(SIZES[1], 10, 4)
    assert np.array_equal(small[0], large[0][:10])
    assert not np.array_equal(small[0], other[0])


def test_generated_6x6_puzzles_are_no_symmetric_copies():
    questions, answers = generate(SIZES[1], 8, 0)
    assert len({canonical(SIZES[1], q) for q in questions}) == 8
    # The check itself knows a copy when it sees one.
    copies, _ = augment(SIZES[1], questions[:1], answers[:1], seed=0, puzzles=np.zeros(1, int), variants=np.ones(1, int))
    assert not np.array_equal(copies[0], questions[0])
    assert canonical(SIZES[1], copies[0]) == canonical(SIZES[1], questions[0])


def test_signatures_tell_4x4_classes_apart():
    """Copies have equal signatures, and here (by brute force) the signature loses none of the classes."""
    questions, answers = generate(SIZES[0], 200, 0)
    signatures = SIZES[0].symmetry.signature(questions, answers).tolist()
    classes = [canonical(SIZES[0], q) for q in questions]
    assert len(set(zip(classes, signatures, strict=True))) == len(set(classes))
    assert len(set(signatures)) > 0.8 * len(set(classes))


def test_more_puzzles_than_there_are_is_refused(monkeypatch):
    few = generate(Sudoku(2, 2), 30, 0)
    monkeypatch.setattr("trm.tasks.sudoku.generate._make", lambda *given: tuple(rows[given[2] % 30] for rows in few))
    assert len(generate(Sudoku(2, 2), 30, 0)[0]) == 30
    with pytest.raises(DataError, match=r"data\.num_puzzles.*lower"):
        generate(Sudoku(2, 2), 31, 0)


@pytest.mark.parametrize("sudoku", [Sudoku(1, 4), Sudoku(3, 4), Sudoku(5, 5)], ids=str)
def test_other_sizes_are_refused(sudoku):
    with pytest.raises(DataError, match=r"data\.box_rows"):
        generate(sudoku, 1, 0)
