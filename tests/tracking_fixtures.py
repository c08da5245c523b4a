"""An evaluation of two made-up puzzles."""

import numpy as np

from trm.inference.samples import Samples
from trm.tasks.sudoku.task import SudokuTask as Sudoku
from trm.tracking.evaluation import Evaluation, held_out

SUDOKU = Sudoku(2, 2)


def samples():
    """Two 4x4 puzzles after three supervision steps: one that gets solved after two, one with a wrong cell that never halts."""
    solution = SUDOKU.parse("1234|3412|2143|4321").astype(np.int32)
    question = SUDOKU.parse("1...|..1.|.1..|...1").astype(np.int32)
    wrong = SUDOKU.parse("1134|3412|2143|432.").astype(np.int32)
    return Samples(
        inputs=np.stack([question, question]),
        labels=np.stack([solution, solution]),
        predictions=np.stack([np.stack([wrong, wrong]), np.stack([solution, wrong]), np.stack([solution, wrong])]),
        confidence=np.full((3, 2, 16), 0.5, np.float32),
        q_halt=np.array([[-1, -1], [2, -1], [-3, -1]], np.float32),
    )


def evaluation():
    by_step = [{"exact_accuracy": 0.5 * (s > 0), "accuracy": 0.9} for s in range(3)]
    return Evaluation(by_step, puzzles=held_out(samples(), SUDOKU))
