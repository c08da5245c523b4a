"""Which rows of the global batch a program sees, and how it gets the sums over the rows of other processes."""

from typing import TypeVar

import torch
from torch import Tensor

S = TypeVar("S")
R = TypeVar("R")


class Share:
    """All rows of the global batch. trm/backends/ranks.py has the share of each of several processes that train together."""

    index, count = 0, 1  # the number of this share, and how many equal shares there are

    def places(self, rows: int, device: torch.device) -> Tensor:
        """The places of the program's rows in the global batch, [rows] int64."""
        return torch.arange(self.index * rows, (self.index + 1) * rows, device=device)

    def exchange(self, sums: S, rows: R) -> tuple[S, R]:
        """The whole batch's `sums`, added up, and `rows`, joined in order, from the program's own tensors (two trees).

        All programs of a step must call this together: it is one all-reduce.
        """
        return sums, rows


WHOLE = Share()
