"""Evaluation with early exit: a row whose candidate halted takes the next candidate of a queue, as rows do in training.

The queue and its bookkeeping are on the devices, so that the host need not know which rows halted. A candidate's answer is frozen
at the supervision step that halted it and counts as its answer after every later step. In a race (inference.selection=halt_first)
the candidates of a puzzle are a group of rows that halt together, as soon as one wants to.
Shape legend: B rows of the batch, Q questions of the queue (puzzles with their copies), N candidates (each question as often as
there are particles), G rows of a group, S most supervision steps, K samples, C cells, M metrics, F fields of the record.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trm.config import InferenceConfig
from trm.core.architecture import Architecture, Weights
from trm.core.candidates import row_keys
from trm.core.metrics import (
    METRICS,
    MOST_SAMPLES,
    Shown,
    evaluation_names,
    evaluation_sums,
    first_shown,
    halting_logit,
    shown_rows,
    wants_to_halt,
)
from trm.core.programs import ONE, Program, preparation
from trm.core.step import Batch, Carry, empty_carry, eval_forward

RECORD = ("halts", "q_halt")  # of a candidate, from its last step, before its METRICS


def record_names() -> tuple[str, ...]:
    """The fields F of a candidate's record."""
    return (*RECORD, *METRICS)


class ExitRows(NamedTuple):
    """What belongs to the rows of the batch and is split over the devices as they are."""

    carry: Carry
    candidate: Tensor  # [B] int32, number of the row's candidate


class ExitTotals(NamedTuple):
    """What belongs to the whole pass; every device holds it."""

    next_group: Tensor  # scalar int32, first group of candidates that no rows have taken
    sums: Tensor  # [S, M] by `evaluation_names` over candidates, with their answers after so many steps
    shown: Shown  # [S, K, ...], the first candidates of the first puzzles
    done: Tensor  # [2] int64: candidates that have halted, and the supervision steps that they took
    answers: Tensor | None  # [N + 1, C] int32, the last answer of each candidate; None where nobody asks for them
    record: Tensor | None  # [N + 1, F] `record_names` of each candidate; None as well


def first_rows(arch: Architecture, buffers: Weights, local_batch_size: int) -> ExitRows:
    """Before the first step, on the CPU: every row takes a candidate."""
    return ExitRows(empty_carry(arch, buffers, local_batch_size), torch.zeros(local_batch_size, dtype=torch.int32))


def first_totals(
    arch: Architecture, batch_size: int, num_steps: int, num_candidates: int | None = None, way: InferenceConfig = ONE
) -> ExitTotals:
    """Before the first step, on the CPU: nothing counted. `num_candidates` keeps the answers and records of so many."""
    places = (num_steps, len(range(0, min(MOST_SAMPLES * way.candidates, batch_size), way.candidates)))
    kept = 0 if num_candidates is None else num_candidates + 1
    return ExitTotals(
        next_group=torch.zeros((), dtype=torch.int32),
        sums=torch.zeros(num_steps, len(evaluation_names()), dtype=arch.master_dtype),
        shown=Shown(
            predictions=torch.zeros(*places, arch.seq_len, dtype=torch.int32),
            confidence=torch.zeros(*places, arch.seq_len, dtype=arch.loss_dtype),
            q_halt=torch.zeros(places, dtype=arch.master_dtype),
        ),
        done=torch.zeros(2, dtype=torch.int64),
        answers=torch.zeros(kept, arch.seq_len, dtype=torch.int32) if kept else None,
        record=torch.zeros(kept, len(record_names()), dtype=arch.master_dtype) if kept else None,
    )


def early_exit_step(
    arch: Architecture,
    weights: Weights,
    buffers: Weights,
    puzzle_embedding: Tensor | None,
    queue: Batch,
    rows: ExitRows,
    totals: ExitTotals,
    votes: Tensor | None = None,
    way: InferenceConfig = ONE,
) -> tuple[ExitRows, ExitTotals]:
    """One supervision step of every row, after the groups of rows that halted have taken the next candidates.

    `queue` holds the Q questions and after them one of padding, without labels, which rows take in the end and which counts
    nowhere. A row halts where the model wants to (as in training, without exploration) or after S steps; a group as one.
    `votes` [B] int32 of several hosts say which of them want to stop.
    """
    num_steps, num_questions, together = totals.sums.shape[0], queue["inputs"].shape[0] - 1, way.rows_together
    end = num_questions * way.particles // together  # groups
    _, all_halted = arch.share.exchange((), rows.carry.halted)
    free = all_halted.view(-1, together)[:, 0].to(torch.int32)
    order = torch.cumsum(free, 0, dtype=torch.int32)
    if arch.share.count > 1:  # of the groups of the global batch those of the program's rows
        groups = rows.carry.halted.shape[0] // together
        order = order[arch.share.index * groups : (arch.share.index + 1) * groups]
    taken = ((totals.next_group + order - 1).clamp(max=end) * together).unsqueeze(1)
    taken = (taken + torch.arange(together, dtype=torch.int32, device=taken.device)).flatten()
    candidate = torch.where(rows.carry.halted, taken.clamp(max=end * together), rows.candidate)
    next_group = (totals.next_group + free.sum(dtype=torch.int32)).clamp(max=end)
    question = candidate // way.particles if way.particles > 1 else candidate
    batch = {name: values[question] for name, values in queue.items()}
    if "rows" in batch:
        batch["rows"] = batch["rows"] + row_keys(way, torch.zeros_like(batch["rows"]), candidate.long() % way.particles)

    carry, out, results = eval_forward(arch, weights, buffers, puzzle_embedding, rows.carry, batch, preparation(arch, way, batch))
    wants = wants_to_halt(arch, out.q_halt, out.q_continue)
    halted = (carry.steps >= num_steps) | wants
    if together > 1:
        halted = halted.view(-1, together).any(1, keepdim=True).expand(-1, together).flatten()

    # [S, B]: the steps after which a row's answer of now is its candidate's: this one, and if the row halts all later ones
    after = torch.arange(1, num_steps + 1, dtype=torch.int32, device=halted.device).unsqueeze(1)
    counted = (after == carry.steps) | (halted & (after > carry.steps))

    def metrics_of(counted_B: Tensor) -> Tensor:
        return evaluation_sums(arch, results, counted_B, votes)

    ended = halted & (candidate < end * together)  # not rows of padding
    own_done = torch.stack([ended.sum(), torch.where(ended, carry.steps, 0).sum()])
    now = shown_rows(arch, out.logits, halting_logit(arch, out.q_halt, out.q_continue), way.candidates)
    answers, record, said = totals.answers, totals.record, None
    if answers is not None and record is not None:
        values = (wants, out.q_halt, *results.values.values())
        said = out.logits.argmax(-1).to(torch.int32), torch.stack([value.to(record.dtype) for value in values], dim=1)
    own = torch.vmap(metrics_of)(counted), own_done
    (sums, done), (now, candidates, at, said) = arch.share.exchange(own, (now, candidate, counted.T, said))
    shown = _shown(first_shown(arch, now, way.candidates), totals.shown, candidates, at.T, way.candidates)
    if answers is not None and record is not None and said is not None:
        answers = answers.index_copy(0, candidates.long(), said[0])  # rows of padding all write to the place after the candidates'
        record = record.index_copy(0, candidates.long(), said[1])
    new_totals = ExitTotals(next_group, totals.sums + sums, shown, totals.done + done, answers, record)
    return ExitRows(carry._replace(halted=halted), candidate), new_totals


def _shown(now: Shown, before: Shown, candidate: Tensor, counted: Tensor, every: int) -> Shown:
    """The samples with this step's answers written in: a candidate starts in the row of its number and stays until it halts."""
    first = torch.arange(now.q_halt.shape[0], dtype=torch.int32, device=candidate.device) * every
    rows = slice(0, MOST_SAMPLES * every, every)
    written = counted[:, rows] & (candidate[rows] == first)
    return Shown(
        torch.where(written.unsqueeze(-1), now.predictions, before.predictions),
        torch.where(written.unsqueeze(-1), now.confidence, before.confidence),
        torch.where(written, now.q_halt, before.q_halt),
    )


def early_exit_program(arch: Architecture, way: InferenceConfig = ONE) -> Program:
    """(weights, buffers, puzzle embedding, queue, rows, totals, votes) -> rows, totals."""

    def early_exit_evaluation_step(
        weights: Weights,
        buffers: Weights,
        puzzle_embedding: Tensor | None,
        queue: Batch,
        rows: ExitRows,
        totals: ExitTotals,
        votes: Tensor | None,
    ) -> tuple[ExitRows, ExitTotals]:
        return early_exit_step(arch, weights, buffers, puzzle_embedding, queue, rows, totals, votes, way)

    return Program(early_exit_evaluation_step, lambda results: results[0])
