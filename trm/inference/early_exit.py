"""Evaluation with early exit: a row whose puzzle halted takes the next puzzle of a queue, as rows do in training.

The queue and its bookkeeping are on the devices, so that the host need not know which rows halted. A puzzle's answer is frozen at
the supervision step that halted it and counts as its answer after every later step.
Shape legend: B rows of the batch, N puzzles of the queue, S most supervision steps, K samples, C cells, M metrics.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trm.core.metrics import METRICS, MOST_SAMPLES, Shown, eval_metrics, halting_logit, shown_rows, wants_to_halt
from trm.core.model import Architecture, Output, Weights
from trm.core.programs import Program
from trm.core.step import Batch, Carry, empty_carry, eval_forward


class ExitRows(NamedTuple):
    """What belongs to the rows of the batch and is split over the devices as they are."""

    carry: Carry
    puzzle: Tensor  # [B] int32, place in the queue of the row's puzzle


class ExitTotals(NamedTuple):
    """What belongs to the whole pass; every device holds it."""

    next_puzzle: Tensor  # scalar int32, first puzzle of the queue that no row has taken
    sums: Tensor  # [S, M] METRICS over puzzles, with their answers after so many steps
    shown: Shown  # [S, K, ...], the first puzzles of the queue
    answers: Tensor | None  # [N + 1, C] int32, the last answer to each puzzle of the queue; None where nobody asks for them


def first_rows(arch: Architecture, fixed: Weights, local_batch_size: int) -> ExitRows:
    """Before the first step, on the CPU: every row takes a puzzle."""
    return ExitRows(empty_carry(arch, fixed, local_batch_size), torch.zeros(local_batch_size, dtype=torch.int32))


def first_totals(arch: Architecture, batch_size: int, num_steps: int, num_puzzles: int | None = None) -> ExitTotals:
    """Before the first step, on the CPU: nothing counted. `num_puzzles` keeps the answers to so many."""
    places = (num_steps, min(MOST_SAMPLES, batch_size))
    return ExitTotals(
        next_puzzle=torch.zeros((), dtype=torch.int32),
        sums=torch.zeros(num_steps, len(METRICS), dtype=arch.master_dtype),
        shown=Shown(
            predictions=torch.zeros(*places, arch.seq_len, dtype=torch.int32),
            confidence=torch.zeros(*places, arch.seq_len, dtype=arch.loss_dtype),
            q_halt=torch.zeros(places, dtype=arch.master_dtype),
        ),
        answers=None if num_puzzles is None else torch.zeros(num_puzzles + 1, arch.seq_len, dtype=torch.int32),
    )


def early_exit_step(
    arch: Architecture,
    weights: Weights,
    fixed: Weights,
    puzzle_embedding: Tensor | None,
    queue: Batch,
    rows: ExitRows,
    totals: ExitTotals,
) -> tuple[ExitRows, ExitTotals]:
    """One supervision step of every row, after the rows that halted have taken the next puzzles.

    `queue` holds the N puzzles and after them one of padding, without labels, which rows take in the end and which counts nowhere.
    A row halts where the model wants to (as in training, without exploration) or after S steps.
    """
    num_steps, end = totals.sums.shape[0], queue["inputs"].shape[0] - 1
    free = rows.carry.halted.to(torch.int32)
    taken = totals.next_puzzle + torch.cumsum(free, 0, dtype=torch.int32) - 1
    puzzle = torch.where(rows.carry.halted, taken.clamp(max=end), rows.puzzle)
    next_puzzle = (totals.next_puzzle + free.sum(dtype=torch.int32)).clamp(max=end)
    batch = {name: values[puzzle] for name, values in queue.items()}

    carry, out, results = eval_forward(arch, weights, fixed, puzzle_embedding, rows.carry, batch)
    halted = (carry.steps >= num_steps) | wants_to_halt(arch.recursion, out.q_halt, out.q_continue)

    # [S, B]: the steps after which a row's answer of now is its puzzle's answer: this one, and if the row halts all later ones
    after = torch.arange(1, num_steps + 1, dtype=torch.int32, device=halted.device).unsqueeze(1)
    counted = (after == carry.steps) | (halted & (after > carry.steps))

    def metrics_of(counted_B: Tensor) -> Tensor:
        return eval_metrics(arch, out, results, carry.steps, counted_B)

    sums = totals.sums + torch.vmap(metrics_of)(counted)
    shown = _shown(arch, out, totals.shown, puzzle, counted)
    answers = totals.answers
    if answers is not None:  # rows of padding all write to the place after the puzzles'
        answers = answers.index_copy(0, puzzle.long(), out.logits.argmax(-1).to(torch.int32))
    return ExitRows(carry._replace(halted=halted), puzzle), ExitTotals(next_puzzle, sums, shown, answers)


def _shown(arch: Architecture, out: Output, before: Shown, puzzle: Tensor, counted: Tensor) -> Shown:
    """The samples with this step's answers written in: puzzle k of the queue starts in row k and stays there until it halts."""
    now = shown_rows(arch, out.logits, halting_logit(arch.recursion, out.q_halt, out.q_continue))
    count = now.q_halt.shape[0]
    own = puzzle[:count] == torch.arange(count, dtype=torch.int32, device=puzzle.device)
    written = counted[:, :count] & own
    return Shown(
        torch.where(written.unsqueeze(-1), now.predictions, before.predictions),
        torch.where(written.unsqueeze(-1), now.confidence, before.confidence),
        torch.where(written, now.q_halt, before.q_halt),
    )


def early_exit_program(arch: Architecture) -> Program:
    """(weights, fixed, puzzle embedding, queue, rows, totals) -> rows, totals."""

    def early_exit_evaluation_step(
        weights: Weights, fixed: Weights, puzzle_embedding: Tensor | None, queue: Batch, rows: ExitRows, totals: ExitTotals
    ) -> tuple[ExitRows, ExitTotals]:
        return early_exit_step(arch, weights, fixed, puzzle_embedding, queue, rows, totals)

    return Program(early_exit_evaluation_step, lambda results: results[0])
