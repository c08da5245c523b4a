"""Answers of a puzzle's variants, whose identifiers the model knows: for one puzzle, on the CPU, without an evaluation's loader."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trm.config import IGNORE_LABEL
from trm.core.model import Architecture, Weights
from trm.core.step import empty_carry, eval_forward
from trm.tasks.base import Ballots, Catalogue, PairsTask, Split

BATCH_ROWS = 32


def ask_variants(
    arch: Architecture,
    weights: Weights,
    fixed: Weights,
    puzzle_embedding: Tensor | None,
    task: PairsTask,
    name: str,
    plain: dict[str, Any],
    rows: Split,
    draws: NDArray[np.uint8],
    identifiers: NDArray[np.int64],
) -> Ballots:
    """The answers to the test rows [R, L] of a puzzle in variants with the given draws [V, D] and identifiers [V].

    `plain` is the puzzle as its file has it. An identifier may be blank, of a puzzle that the model was not trained on.
    """
    of_all = np.concatenate([np.zeros_like(draws[:1]), draws])  # 0 is blank there too
    ballots = task.ballots(Catalogue([name], np.array([-1, *[0] * len(draws)], np.int32), of_all, {name: plain}))
    variants, pairs = (grid.ravel() for grid in np.meshgrid(np.arange(len(draws)), np.arange(len(rows[0])), indexing="ij"))
    questions, _ = task.vary(rows, pairs, draws[variants], None)
    for start in range(0, len(questions), BATCH_ROWS):
        block = slice(start, start + BATCH_ROWS)
        asked = identifiers[variants[block]]
        ballots.add(
            1 + variants[block], questions[block], *_answers(arch, weights, fixed, puzzle_embedding, questions[block], asked)
        )
    return ballots


def _answers(
    arch: Architecture, weights: Weights, fixed: Weights, table: Tensor | None, questions: NDArray[Any], identifiers: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    inputs = torch.from_numpy(questions).int()
    batch = {
        "inputs": inputs,
        "labels": torch.full_like(inputs, IGNORE_LABEL),
        "puzzle_identifiers": torch.from_numpy(identifiers).int(),
    }
    carry = empty_carry(arch, fixed, len(questions))
    with torch.no_grad():
        for _ in range(arch.recursion.n_sup):
            carry, out, _ = eval_forward(arch, weights, fixed, table, carry, batch)
    return out.logits.argmax(-1).numpy(), out.q_halt.to(torch.float64).sigmoid().numpy()
