"""Which rows of the global batch a program sees, and how it learns what those of other processes come to."""

from typing import TypeVar

import torch
from torch import Tensor

S = TypeVar("S")
R = TypeVar("R")


class Share:
    """All rows of the global batch. Where several processes train together, trm/backends/ranks.py has the share of each."""

    index, count = 0, 1  # which of the equal shares of the global batch this is, and how many there are

    def places(self, rows: int, device: torch.device) -> Tensor:
        """The places of the program's rows in the global batch, [rows] int64."""
        return torch.arange(self.index * rows, (self.index + 1) * rows, device=device)

    def exchange(self, sums: S, rows: R) -> tuple[S, R]:
        """Two trees of the program's own tensors as those of the whole batch: `sums` added up, `rows` of all shares in order.

        All programs of a step must call it together; it is one all-reduce.
        """
        return sums, rows


WHOLE = Share()
