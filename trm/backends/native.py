"""torch without torch_xla on one device, eager; float32 products on a CPU by oneDNN. inductor.py compiles the network's blocks."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from trm.backends import onednn
from trm.backends.base import Rows, T, map_tensors, none
from trm.backends.replay import Replayed
from trm.config import HardwareConfig
from trm.ground.share import WHOLE, Share

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_MAX = -1, -4  # <malloc.h>
Fn = TypeVar("Fn", bound=Callable[..., Any])


class NativeRuntime:
    """torch on one device, eager."""

    process_index, process_count, num_devices = 0, 1, 1
    is_main = True
    share: Share = WHOLE
    linear = staticmethod(onednn.linear)
    swiglu: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def __init__(self, hardware: HardwareConfig) -> None:
        if hardware.platform == "cpu":
            _keep_freed_memory()
            # inductor's look for a CUDA that nothing here uses ends in a warning
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        else:
            torch.backends.cudnn.allow_tf32 = False  # what is float32 is computed as such, as matrix products are by default
        self._device = torch.device(hardware.platform)
        self.can, self._name, self._step_graph = hardware.can, hardware.backend, hardware.step_graph

    def compile_block(self, function: Fn) -> Fn:
        return function

    def replicate_rows(self, rows: Tensor) -> Tensor:
        return rows

    def compile(self, function: Fn, rows: Rows = none, donate: int | None = None) -> Fn:
        """The function itself; with hardware.step_graph that whose state is donated, the training step, as one CUDA graph."""
        return cast(Fn, Replayed(function, donate)) if self._step_graph and donate is not None else function

    def prepare(self, compiled: Callable[..., Any], *args: Any) -> None:
        """Nothing to do."""

    def replicate(self, tree: T) -> T:
        return map_tensors(lambda tensor: tensor.to(self._device), tree)

    def shard(self, tree: T) -> T:
        return self.replicate(tree)

    def shard_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(rows).to(self._device) for name, rows in batch.items()}

    def fetch(self, tree: T) -> T:
        return map_tensors(lambda tensor: tensor.cpu(), tree)

    def wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def compile_count(self) -> int:
        return 0

    def metrics_line(self) -> str:
        return f"compiled {self.compile_count()}"

    @contextlib.contextmanager
    def profile(self, folder: Path) -> Iterator[None]:
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        with torch.profiler.profile(activities=activities) as profiler:
            yield
            self.wait()
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json.gz"))

    def describe(self) -> str:
        threads = f", {torch.get_num_threads()} thread(s)" if self._device.type == "cpu" else ""
        return f"torch {torch.__version__} {self._name} on one {self._device.type} device{threads}"


def _keep_freed_memory() -> None:
    """Have the C library keep memory that is freed, for the next tensor of that size; what is in use is the same at every step.

    Otherwise it gives blocks of 32 MB and more back at once, and the system clears each page of them anew: up to half of a step.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        c_library = ctypes.CDLL(None)
        c_library.mallopt(MALLOPT_MMAP_MAX, 0)  # no blocks apart from the heap
        c_library.mallopt(MALLOPT_TRIM_THRESHOLD, -1)  # never make the heap smaller
