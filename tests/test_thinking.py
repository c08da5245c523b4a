"""What a model would answer on the way, against the evaluation step that says what it answers; and the marks of its cells."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thinking_fixtures import SIZES, architecture, puzzle, thoughts

from trm.core.initial import init_buffers, init_weights
from trm.core.losses import cell_cross_entropy
from trm.core.step import empty_carry, eval_step
from trm.core.variants import VARIANTS
from trm.show.think import think
from trm.show.thinking import Puzzle
from trm.tasks.sudoku.rules import BLANK
from trm.tasks.sudoku.task import SudokuTask as Sudoku

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = [
    pytest.param({}, id="mlp"),
    pytest.param({"mixer": "attention", "positions": "rope"}, id="attention"),
    pytest.param({"separate_networks": True, "loss": "softmax"}, id="two-networks"),
    pytest.param({"puzzle_emb_ndim": 16, "puzzle_emb_len": 2}, id="prefix"),
    pytest.param({"dtype": torch.bfloat16}, id="bfloat16"),
    pytest.param({"damping": 0.9, "noise": 0.2}, id="damped-and-noisy"),
    pytest.param({"mixer": "attention", "positions": "rope", "mlp": "conv_swiglu"}, id="convolution"),
]


def evaluated(arch, weights, buffers, table, question):
    """Logits [S, C, V] and q_halt [S] of an evaluation of this one puzzle (item 2 of docs/explanation/what_is_computed.md)."""
    batch = {
        "inputs": torch.from_numpy(question.astype(np.int32))[None],
        "labels": torch.full((1, len(question)), -100, dtype=torch.int32),
        "puzzle_identifiers": torch.zeros(1, dtype=torch.int32),
    }
    carry, logits, q_halt = empty_carry(arch, buffers, 1), [], []
    for _ in range(arch.recursion.n_sup):
        carry, out, _ = eval_step(arch, weights, buffers, table, carry, batch)
        logits.append(out.logits[0])
        q_halt.append(out.q_halt[0])
    return torch.stack(logits), torch.stack(q_halt)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("kind", KINDS)
def test_steps_end_with_the_bits_of_evaluation(variant, kind):
    arch = architecture(Sudoku(2, 2), variant=variant, **kind)
    weights, buffers = init_weights(arch, 1), init_buffers(arch, 1)
    weights["q_head.weight"] = torch.linspace(-1, 1, weights["q_head.weight"].numel()).view_as(weights["q_head.weight"])
    table = torch.linspace(-1, 1, 16)[None] if arch.model.puzzle_emb_ndim else None
    question = puzzle(Sudoku(2, 2)).question
    steps = list(think(arch, weights, buffers, table, question))
    logits, q_halt = evaluated(arch, weights, buffers, table, question)

    assert [[(f.step, f.recursion) for f in step] for step in steps] == [[(s, r) for r in (1, 2, 3)] for s in (1, 2, 3, 4)]
    assert [step[-1].halting for step in steps] == torch.sigmoid(q_halt).tolist()
    for step, wanted in zip(steps, logits, strict=True):
        assert np.array_equal(step[-1].answer, wanted.argmax(-1).numpy())
        # the confidence is the probability in the loss: the loss of the model's own answer is its mean surprise
        answer = torch.from_numpy(step[-1].answer)[None].int()
        loss = cell_cross_entropy(wanted[None], answer, arch.model.loss, torch.float64)
        assert -np.log(step[-1].confidence).mean() == pytest.approx(loss.item(), rel=1e-12)
    assert len({f.answer.tobytes() for step in steps for f in step}) > 1  # there is something to see


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_recursion_shows_what_a_step_of_so_many_recursions_would_answer(variant):
    question = puzzle(Sudoku(2, 2)).question
    whole = thoughts(architecture(Sudoku(2, 2), variant=variant, T=4, n_sup=1), question)
    for T in (1, 2, 3, 4):
        last = thoughts(architecture(Sudoku(2, 2), variant=variant, T=T, n_sup=1), question)[-1]
        assert np.array_equal(whole[T - 1].answer, last.answer)
        assert np.array_equal(whole[T - 1].confidence, last.confidence)
        assert whole[T - 1].halting == last.halting


def flags(array) -> str:
    return "".join("x" if flag else "." for flag in array)


def test_marks():
    sudoku = Sudoku(2, 2)
    question, solution = sudoku.parse("1...|..1.|.1..|...1"), sudoku.parse("1234|3412|2143|4321")
    marks = Puzzle("p", sudoku, question, solution).marks(sudoku.parse("1234|3422|3143|432."), before=solution)
    assert flags(marks.given) == "x.....x..x.....x"
    assert flags(marks.changed) == "......x.x......x"
    assert flags(marks.conflict) == "....x.xxx..x.xx."
    assert flags(marks.wrong) == "....x.xxx..x.xxx"


def test_the_given_of_a_clash_is_not_wrong():
    sudoku = Sudoku(2, 2)
    question = sudoku.parse("1...|....|....|....")
    marks = Puzzle("p", sudoku, question, None).marks(sudoku.parse("1234|3412|1143|4321"), None)
    assert flags(marks.conflict) == "x.......xx......"
    assert flags(marks.wrong) == "........xx......"
    assert not marks.changed.any()


def test_a_known_solution_shows_what_breaks_no_rule():
    sudoku = Sudoku(2, 2)
    question, solution = sudoku.parse("." * 16), sudoku.parse("1234|3412|2143|4321")
    other = sudoku.parse("1243|3412|2134|4321")
    assert not Puzzle("p", sudoku, question, None).marks(other, None).wrong.any()
    assert flags(Puzzle("p", sudoku, question, solution).marks(other, None).wrong) == "..xx......xx...."
    partly = np.where(np.arange(16) < 3, solution, BLANK)
    assert flags(Puzzle("p", sudoku, question, partly).marks(other, None).wrong) == "..x............."


@settings(max_examples=60, deadline=None)
@given(sudoku=st.sampled_from(SIZES), seed=st.integers(0, 2**32 - 1), share=st.floats(0, 0.2))
def test_marks_agree_with_the_violations_in_words(sudoku, seed, share):
    random = np.random.default_rng(seed)
    made = puzzle(sudoku, solved=False)
    answer = puzzle(sudoku).solution.copy()
    hit = random.random(sudoku.num_cells) < share
    answer[hit] = random.integers(0, sudoku.vocab_size, hit.sum())
    marks, words = made.marks(answer, None), sudoku.violations(made.question, answer)
    assert marks.wrong.any() == bool(words)
    assert marks.conflict.any() == any("more than once" in word for word in words)
    # cell by cell, from the grid as a square
    square, rows, columns = answer.reshape(sudoku.side, -1), *np.divmod(np.arange(sudoku.num_cells), sudoku.side)
    for cell in np.flatnonzero(marks.conflict):
        row, column = rows[cell], columns[cell]
        top, left = row - row % sudoku.box_rows, column - column % sudoku.box_cols
        box = square[top : top + sudoku.box_rows, left : left + sudoku.box_cols]
        assert max((part == answer[cell]).sum() for part in (square[row], square[:, column], box)) > 1


def test_frames_follow_one_another():
    made = puzzle(Sudoku(2, 3))
    frames = thoughts(architecture(Sudoku(2, 3)), made.question)
    changed = [marks.changed for marks in made.marks_of(frames)]
    assert not changed[0].any()
    for i in range(1, len(frames)):
        assert np.array_equal(changed[i], frames[i].answer != frames[i - 1].answer)
    assert sum(map(np.any, changed)) > 0
