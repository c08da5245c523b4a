"""Evaluation with early exit: a row whose candidate halted takes the next candidate of a queue, as rows do in training.

The queue is on the devices, so that the host need not know which rows halted. A candidate's prediction of the supervision step
that halted it counts as its prediction after every later step. In a race (inference.selection=halt_first) the candidates of a
puzzle are a group of rows that halt together, as soon as one wants to.
Shape legend: B rows of the batch, Q questions of the queue (puzzles with their copies), G rows of a group.
"""

import torch
from torch import Tensor

from trm.config import InferenceConfig
from trm.core.architecture import Architecture, Weights
from trm.core.candidates import row_keys
from trm.core.metrics import Predictions, halting_logit, predictions
from trm.core.programs import Program
from trm.core.step import Batch, Carry, empty_carry, eval_step

ExitRows = tuple[Carry, Tensor]  # of the rows of the batch, and split as they are; [B] int32: whose candidate a row is


def first_rows(arch: Architecture, buffers: Weights, local_batch_size: int) -> ExitRows:
    """Before the first step, on the CPU: every row takes a candidate."""
    return empty_carry(arch, buffers, local_batch_size), torch.zeros(local_batch_size, dtype=torch.int32)


def early_exit_program(arch: Architecture, way: InferenceConfig, num_steps: int) -> Program:
    """(weights, buffers, puzzle embedding, queue, rows, next group, stop votes) -> rows, next group, predictions.

    One supervision step of every row, after the groups of rows that halted have taken the next candidates. A row halts where the
    model wants to (as in training, without exploration) or after `num_steps` steps; a group as one. The queue holds the Q questions
    and after them one of padding, without labels, which rows take in the end. `next group` (scalar int32) is the first group of
    candidates that no rows have taken; `stop votes` [B] int32 of several hosts say which of them want to stop.
    """

    def early_exit_step(
        weights: Weights,
        buffers: Weights,
        puzzle_embedding: Tensor | None,
        queue: Batch,
        rows: ExitRows,
        next_group: Tensor,
        stop: Tensor | None,
    ) -> tuple[ExitRows, Tensor, Predictions]:
        (carry, candidate), together = rows, way.rows_together
        end = (queue["inputs"].shape[0] - 1) * way.particles // together  # groups
        _, all_halted = arch.share.exchange((), carry.halted)
        free = all_halted.view(-1, together)[:, 0].to(torch.int32)
        order = torch.cumsum(free, 0, dtype=torch.int32)
        if arch.share.count > 1:  # of the groups of the global batch those of the program's rows
            groups = carry.halted.shape[0] // together
            order = order[arch.share.index * groups : (arch.share.index + 1) * groups]
        taken = ((next_group + order - 1).clamp(max=end) * together).unsqueeze(1)
        taken = (taken + torch.arange(together, dtype=torch.int32, device=taken.device)).flatten()
        candidate = torch.where(carry.halted, taken.clamp(max=end * together), candidate)
        next_group = (next_group + free.sum(dtype=torch.int32)).clamp(max=end)
        question = candidate // way.particles if way.particles > 1 else candidate
        batch = {name: values[question] for name, values in queue.items()}
        if "rows" in batch:
            batch["rows"] = batch["rows"] + row_keys(way, torch.zeros_like(batch["rows"]), candidate.long() % way.particles)

        carry, out, values = eval_step(arch, weights, buffers, puzzle_embedding, carry, batch, way)
        halting = halting_logit(arch, out.q_halt, out.q_continue)
        halted = (carry.steps >= num_steps) | (halting > 0)
        if together > 1:
            halted = halted.view(-1, together).any(1, keepdim=True).expand(-1, together).flatten()
        own = Predictions(values, halting + 0, out.q_halt, candidate=candidate.long(), halted=halted.to(torch.int32))
        found = predictions(arch, out, own, way.candidates, stop)
        return (carry._replace(halted=halted), candidate), next_group, found

    return Program(early_exit_step, lambda results: results[0])
