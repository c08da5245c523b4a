"""Small untrained models and made-up puzzles of any size, for what is drawn of a model's thinking."""

import numpy as np
import torch

from trm.config import ModelConfig, RecursionConfig
from trm.core.architecture import Architecture
from trm.core.initial import init_buffers, init_weights
from trm.show.think import think
from trm.show.thinking import Frame, Puzzle
from trm.tasks.sudoku.rules import BLANK
from trm.tasks.sudoku.task import SudokuTask as Sudoku

SIZES = [Sudoku(2, 2), Sudoku(2, 3), Sudoku(3, 3), Sudoku(4, 4), Sudoku(5, 5)]


def architecture(sudoku: Sudoku, *, dtype=torch.float32, **settings) -> Architecture:
    """`settings` go to the recursion or the model by name."""
    recursion = {"T": 3, "n": 2, "n_sup": 4}
    model = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "puzzle_emb_ndim": 0}
    for name, value in settings.items():
        (recursion if hasattr(RecursionConfig, name) else model)[name] = value
    return Architecture(
        model=ModelConfig(**model),
        recursion=RecursionConfig(**recursion),
        seq_len=sudoku.num_cells,
        vocab_size=sudoku.vocab_size,
        num_puzzle_identifiers=1,
        dtype=dtype,
        loss_dtype=torch.float64,
    )


def puzzle(sudoku: Sudoku, *, solved: bool = True, name: str = "made up") -> Puzzle:
    """Every third cell of a pattern that fulfils the rules is given."""
    row, column = np.divmod(np.arange(sudoku.num_cells), sudoku.side)
    shift = sudoku.box_cols * (row % sudoku.box_rows) + row // sudoku.box_rows
    solution = (shift + column) % sudoku.side + BLANK + 1
    question = np.where(np.arange(sudoku.num_cells) % 3 == 0, solution, BLANK)
    assert not sudoku.violations(question, solution)
    return Puzzle(name, sudoku, question, solution if solved else None)


def thoughts(arch: Architecture, question: np.ndarray) -> list[Frame]:
    """All frames of an untrained model whose halting head has been given something to say, near one half."""
    weights = init_weights(arch, 0)
    weights["q_head.weight"] = torch.linspace(-1, 1, weights["q_head.weight"].numel()).view_as(weights["q_head.weight"])
    weights["q_head.bias"] = torch.zeros(2)
    return [frame for step in think(arch, weights, init_buffers(arch, 0), None, question) for frame in step]
