"""What rows that halted take: the rows of the step's batch, or two other ways to hand rows to the step. Pure functions of tensors.

A batch holds either rows as they are (inputs, labels, puzzle_identifiers), or what they are made from on the devices:
- data.augment_on=device: base puzzles and symmetries as indices, of which `augmented` makes the rows;
- data.refill=queue: the next rows of the training stream, of which each row that halted takes one (`taken_from_queue`).
Both can be had at once: a queue of symmetries.

What stays on the devices over many steps (the base puzzles, the queue) comes in the batch too; trm/data/loader.py has the names. It
is the same on every device, and every row looks up its own part, so that neither way asks other devices for rows.

Shape legend: B rows of the global batch, K rows of the queue, P base puzzles, C = S * S cells of a grid of side S, V vocabulary.
"""

from __future__ import annotations  # torch.compile cannot evaluate the annotations of nested functions

import torch
from torch import Tensor

from trm.core.losses import IGNORE_LABEL
from trm.data.loader import BASE_IGNORED, BASE_INPUTS, BASE_LABELS, COL_ORDER, PUZZLES, QUEUE, QUEUE_FIRST, RELABEL, ROW_ORDER

Batch = dict[str, Tensor]


def fresh_rows(batch: Batch, halted: Tensor, taken: Tensor | None) -> tuple[Batch, Tensor | None]:
    """The batch with inputs, labels [B, C] and puzzle_identifiers [B], and how many rows of the stream are taken after this step.

    Args:
        batch: rows, or what they are made from (module docstring).
        halted: [B] bool, the rows that take a new puzzle.
        taken: rows of the training stream taken so far, scalar int32; None where the stream is no queue.
    """
    if taken is not None and QUEUE_FIRST in batch:
        batch, taken = taken_from_queue(batch, halted, taken)
    if RELABEL in batch:
        batch = augmented(batch)
    return batch, taken


def taken_from_queue(batch: Batch, halted: Tensor, taken: Tensor) -> tuple[Batch, Tensor]:
    """Give the rows that halted the next rows of the queue, in order; what other rows are given does not matter.

    The queue must hold as many rows from `taken` on as have halted.
    """
    rank = torch.cumsum(halted.to(torch.int32), 0).to(torch.int32) - 1  # among the halted rows
    own = {name.removeprefix(QUEUE): rows for name, rows in batch.items() if name.startswith(QUEUE)}
    last = next(iter(own.values())).shape[0] - 1
    place = (taken - batch[QUEUE_FIRST] + rank).clamp(0, last)  # a row that did not halt may have a place outside
    rest = {name: rows for name, rows in batch.items() if not name.startswith(QUEUE)}
    return rest | {name: rows[place] for name, rows in own.items()}, taken + halted.sum().to(torch.int32)


def augmented(batch: Batch) -> Batch:
    """Make the rows from base puzzles and symmetries: what trm/tasks/sudoku/symmetry.py `augment` does, on the devices."""
    num_cells = batch[BASE_INPUTS].shape[1]
    source = (batch[ROW_ORDER].unsqueeze(2) + batch[COL_ORDER].unsqueeze(1)).flatten(1)  # [B, C]
    cells = source + (batch[PUZZLES] * num_cells).unsqueeze(1)
    relabel = batch[RELABEL]
    tokens = torch.arange(relabel.shape[1], dtype=torch.int32, device=relabel.device)

    def seen(base: Tensor) -> Tensor:
        picked = base.flatten()[cells].to(torch.int32)
        # a product with a one-hot array rather than a gather, which would have to look at the rows of other devices
        return torch.where(picked.unsqueeze(-1) == tokens, relabel.unsqueeze(1), 0).sum(-1, dtype=torch.int32)

    labels = seen(batch[BASE_LABELS])
    rest = {name: rows for name, rows in batch.items() if name not in (PUZZLES, ROW_ORDER, COL_ORDER, RELABEL)}
    return rest | {
        "inputs": seen(batch[BASE_INPUTS]),
        "labels": torch.where(labels == batch[BASE_IGNORED], IGNORE_LABEL, labels),
    }
