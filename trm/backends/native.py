"""torch without torch_xla on one device, eager; float32 products on a CPU by oneDNN. inductor.py compiles the network's blocks."""

import contextlib
import ctypes
import logging
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from trm.backends import onednn
from trm.backends.base import Fn, Rows, Runtime, T, map_tensors
from trm.backends.replay import Replayed
from trm.config import HardwareConfig

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_MAX = -1, -4  # <malloc.h>


class NativeRuntime(Runtime):
    """torch on one device, eager."""

    linear = staticmethod(onednn.linear)

    def __init__(self, hardware: HardwareConfig) -> None:
        if hardware.platform == "cpu":
            _keep_freed_memory()
            # inductor looks for a CUDA that nothing here uses, and warns
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        else:
            torch.backends.cudnn.allow_tf32 = False  # what is float32 is computed as such, as matrix products are by default
        self._device = torch.device(hardware.platform)
        self.can, self._name, self._step_graph = hardware.can, hardware.backend, hardware.step_graph

    def compile(self, function: Fn, rows: Rows | None = None, donate: int | None = None) -> Fn:
        """The function itself; with hardware.step_graph the training step, which donates its state, as one CUDA graph."""
        return cast(Fn, Replayed(function, donate)) if self._step_graph and donate is not None else function

    def prepare(self, compiled: Callable[..., Any], *args: Any) -> None:
        """Nothing to do."""

    def replicate(self, tree: T) -> T:
        return map_tensors(lambda tensor: tensor.to(self._device), tree)

    def shard(self, tree: T) -> T:
        return self.replicate(tree)

    def fetch(self, tree: T) -> T:
        return map_tensors(lambda tensor: tensor.cpu(), tree)

    def wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

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
    """Have the C library keep freed memory. It gives large blocks back, and clearing them anew takes up to half of a step."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        c_library = ctypes.CDLL(None)
        c_library.mallopt(MALLOPT_MMAP_MAX, 0)  # no blocks apart from the heap
        c_library.mallopt(MALLOPT_TRIM_THRESHOLD, -1)  # never make the heap smaller
