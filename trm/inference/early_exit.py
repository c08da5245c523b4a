"""Evaluation with early exit: a row whose candidate halted takes the next candidate of a queue, as rows do in training.

The queue is on the devices, so the host need not know which rows halted. The prediction of the supervision step that halted a
candidate counts as its prediction after every later step. In a race (inference.selection=halt_first) the candidates of a puzzle are
a group of rows: when one halts, all of them halt.
Shape legend: B rows of the batch, Q questions of the queue (puzzles with their copies), S supervision steps, R rows.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trm.config import InferenceConfig
from trm.core.architecture import Architecture, Weights
from trm.core.candidates import row_keys
from trm.core.metrics import Predictions, halting_logit, predictions
from trm.core.programs import Program
from trm.core.step import Batch, Carry, empty_carry, eval_step
from trm.inference.selection import over

ExitRows = tuple[Carry, Tensor]  # both split over devices as the batch is; [B] int32: the number of each row's candidate


def first_rows(arch: Architecture, buffers: Weights, local_batch_size: int) -> ExitRows:
    """The rows before the first step, on the CPU: each of them is free to take a candidate."""
    return empty_carry(arch, buffers, local_batch_size), torch.zeros(local_batch_size, dtype=torch.int32)


def early_exit_program(arch: Architecture, way: InferenceConfig, num_steps: int) -> Program:
    """(weights, buffers, puzzle embedding, queue, rows, next group, stop votes) -> rows, next group, predictions.

    First the groups of rows that halted take the next candidates, then every row does one supervision step. A row halts where the
    model says so (as in training, without exploration) or after `num_steps` steps; a group halts as one. The queue holds the Q
    questions and after them one of padding, without labels, which rows take in the end. `next group` (scalar int32) is the first
    group of candidates that no rows have taken; `stop votes` [B] int32 say which of several hosts want to stop.
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
        if arch.share.count > 1:  # this program's part of the groups of the global batch
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


class EndedRows:
    """Collects the predictions of candidates that halt at different supervision steps, and fills them up to all S steps.

    After the step at which it halted, a candidate keeps its last prediction. `take` returns candidates in order as soon as they and
    all before them have ended, so only the candidates that are still computed need memory.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps, self._first = num_steps, 0  # the first candidate that was not taken yet
        self._rows: Predictions | None = None  # [S, room, ...]
        self._ended = np.zeros(0, np.bool_)  # [room]

    def add(self, rows: Predictions) -> None:
        """Add predictions [R, ...] of one supervision step of R candidates."""
        if not len(rows.candidate):
            return
        at, halted, step = rows.candidate - self._first, rows.halted > 0, rows.values["steps"] - 1
        rows = rows._replace(candidate=None, halted=None)
        if (missing := int(at.max()) + 1 - len(self._ended)) > 0:
            missing = max(missing, len(self._ended))  # twice the room, so that this happens seldom
            empty = over(lambda values: np.zeros((self._num_steps, missing, *values.shape[1:]), values.dtype), rows)
            self._rows = empty if self._rows is None else over(lambda *both: np.concatenate(both, axis=1), self._rows, empty)
            self._ended = np.concatenate([self._ended, np.zeros(missing, np.bool_)])
        later = halted & (np.arange(self._num_steps)[:, None] >= step)  # [S, R]
        later[step, np.arange(len(step))] = True
        s, r = np.nonzero(later)

        def put(room: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
            room[s, at[r]] = values[r]
            return room

        assert self._rows is not None
        over(put, self._rows, rows)
        self._ended[at[halted]] = True

    def take(self) -> Predictions | None:
        """The predictions [S, R, ...] of the candidates that are complete, in order; None if no candidate is."""
        ready = len(self._ended) if self._ended.all() else int(self._ended.argmin())
        if not ready or self._rows is None:
            return None
        taken = over(lambda values: values[:, :ready], self._rows)
        self._rows = over(lambda values: values[:, ready:], self._rows)
        self._ended, self._first = self._ended[ready:], self._first + ready
        return taken
