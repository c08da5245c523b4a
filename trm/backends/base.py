"""The interface of a backend: a `Runtime` compiles a pure function into one graph, puts state and batches on the devices, and
fetches results.

Under SPMD (several devices) a program sees global tensors: rows are split over a 1-D mesh, weights are on every device, and the
compiler inserts the all-reduce of the gradient. Backends know no model. They may replace two functions of plain torch, with which
the network is then built.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor

from trm.config import Backend
from trm.ground.share import WHOLE, Share

Fn = TypeVar("Fn", bound=Callable[..., Any])
T = TypeVar("T")
Rows = Callable[[Any], Any]  # picks a part of a function's results


class Runtime(ABC):
    """A backend that has been started; the defaults are those of one plain device.

    Trees are nested dicts, tuples and NamedTuples of tensors (None allowed).
    """

    can: Backend  # the abilities that the rest of the project asks for
    process_index, process_count, num_devices = 0, 1, 1
    share: Share = WHOLE  # which rows of the global batch a program sees
    # The network's product without bias, of [..., in] and [out, in] to [..., out]
    linear: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)
    # down(silu(gate) * up) of [..., in], gate_up [2 * inner, in] and down [out, inner] in one kernel; None without such a kernel
    swiglu: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and logs."""
        return self.process_index == 0

    def compile_block(self, function: Fn) -> Fn:
        """The part of the network that the recursion repeats; compiled by itself where the backend gains by it."""
        return function

    def replicate_rows(self, rows: Tensor) -> Tensor:
        """Inside a compiled function: gather on each device all rows of a tensor that is split over the devices."""
        return rows

    @abstractmethod
    def compile(self, function: Fn, rows: Rows | None = None, donate: int | None = None) -> Fn:
        """The pure function as one compiled graph; compiles at the first call for given shapes.

        `rows` picks the results whose first axis is split over the devices, as `shard` splits it; all other results are whole on
        every device, so that every process can fetch them. `donate` is the position of an argument whose tensors the caller does
        not use again: the results take their memory.
        """

    @abstractmethod
    def prepare(self, compiled: Callable[..., Any], *args: Any) -> None:
        """Compile a result of `compile` for these arguments now, where the backend can. The arguments do not change."""

    @abstractmethod
    def replicate(self, tree: T) -> T:
        """A CPU tree on the devices; each device holds all of it."""

    @abstractmethod
    def shard(self, tree: T) -> T:
        """A CPU tree on the devices, the first axis (this process's rows of the global batch) split over them."""

    def shard_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """A host batch (this process's rows, int32 arrays) on the devices, split over its rows."""
        return self.shard({name: torch.from_numpy(rows) for name, rows in batch.items()})

    @abstractmethod
    def fetch(self, tree: T) -> T:
        """A tree of device tensors as CPU tensors. Waits for the devices."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until the devices have nothing left to do."""

    def compile_count(self) -> int:
        """Graphs compiled so far in this process."""
        return 0

    def metrics_line(self) -> str:
        """The backend's counts in this process: compiles, executions, transfers, each with its seconds."""
        return f"compiled {self.compile_count()}"

    @abstractmethod
    def profile(self, folder: Path) -> AbstractContextManager[None]:
        """While entered, trace the work, and write the trace into `folder` for TensorBoard or Perfetto."""

    @abstractmethod
    def describe(self) -> str:
        """One line: backend, devices, processes."""


def map_tensors(function: Callable[[Tensor], Tensor], tree: T) -> T:
    """The tree with the function applied to each tensor."""
    result: T = pytree.tree_map_only(Tensor, function, tree)
    return result


def extremes_over_hosts(runtime: Runtime, numbers: list[int]) -> tuple[list[int], list[int]]:
    """The least and the largest of each number, below 2**31, over all processes, which must call it together (an all-reduce)."""
    local = runtime.num_devices // runtime.process_count
    rows = runtime.fetch(runtime.shard(torch.tensor([numbers] * local, dtype=torch.int32)))
    return rows.amin(0).tolist(), rows.amax(0).tolist()
