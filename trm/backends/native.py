"""torch without torch_xla on one device: eager, or compiled by inductor; float32 products on a CPU by oneDNN."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from trm.backends import onednn
from trm.backends.base import Rows, T, map_tensors, none
from trm.backends.machine import require_machine
from trm.config import HardwareConfig
from trm.errors import ConfigError

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_MAX = -1, -4  # <malloc.h>
Fn = TypeVar("Fn", bound=Callable[..., Any])


class NativeRuntime:
    """torch without torch_xla on one device: eager, or compiled by inductor."""

    process_index, process_count, num_devices = 0, 1, 1
    is_main = True
    linear = staticmethod(onednn.linear)

    def __init__(self, hardware: HardwareConfig) -> None:
        require_machine(hardware)
        if hardware.backend == "inductor":
            _require_folders()
            torch._dynamo.config.recompile_limit = 64  # each batch size and each network is compiled once more, on purpose
            # trm/backends/onednn.py's function is part of the cache's key, backward and all
            torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
        if hardware.jobs > 1:  # jobs side by side share the cores
            torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // hardware.jobs)))
        # part of the key of inductor's cache: kernels for two threads on the one core of a sweep's job would be 20 times slower
        torch._inductor.config.cpp.threads = torch.get_num_threads()
        if hardware.platform == "cpu":
            _keep_freed_memory()
            # inductor's look for a CUDA that nothing here uses ends in a warning
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            vectors = torch._inductor.config.cpp  # vec_isa_ok is None until the environment or an earlier runtime has set it
            if hardware.backend == "inductor" and vectors.vec_isa_ok is None and _compiler_knows_vectors():
                vectors.vec_isa_ok = True
        self._device = torch.device(hardware.platform)
        self._backend = hardware.backend

    def compile_block(self, function: Fn) -> Fn:
        return _compiled_block(function) if self._backend == "inductor" else function

    def whole(self, rows: Tensor) -> Tensor:
        return rows

    def compile(self, function: Fn, rows: Rows = none, donate: int | None = None) -> Fn:
        """The function itself: with inductor the network's blocks are compiled, which are nearly all of the work."""
        return function

    def prepare(self, compiled: Callable[..., Any], *args: Any) -> None:
        """Inductor compiles at the first call."""
        if self._backend == "inductor":
            compiled(*args)

    def put_replicated(self, tree: T) -> T:
        return map_tensors(lambda tensor: tensor.to(self._device), tree)

    def put_rows(self, tree: T) -> T:
        return self.put_replicated(tree)

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(rows).to(self._device) for name, rows in batch.items()}

    def fetch(self, tree: T) -> T:
        return map_tensors(lambda tensor: tensor.cpu(), tree)

    def wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def compile_count(self) -> int:
        if self._backend == "eager":
            return 0
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

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
        return f"torch {torch.__version__} {self._backend} on one {self._device.type} device"


@functools.cache
def _compiled_block(function: Fn) -> Fn:
    """Compiled once a process: the block takes as long at T=4 n=6 as at T=2 n=2, and every run of the same sizes finds it again."""
    return cast(Fn, torch.compile(function, fullgraph=True, dynamic=False))


def _keep_freed_memory() -> None:
    """Have the C library keep memory that is freed, for the next tensor of that size; what is in use is the same at every step.

    Otherwise it gives blocks of 32 MB and more back at once, and the system clears each page of them anew: up to half of a step.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        c_library = ctypes.CDLL(None)
        c_library.mallopt(MALLOPT_MMAP_MAX, 0)  # no blocks apart from the heap
        c_library.mallopt(MALLOPT_TRIM_THRESHOLD, -1)  # never make the heap smaller


def _require_folders() -> None:
    """Raise ConfigError where inductor's own folders break its commands: it would say so in a hundred lines, at the first step.

    It writes command lines and splits them again, so that names with white space, quotes or backslashes fall apart; what it has
    compiled is loaded from where it lies.
    """
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        folder = Path(named or default_cache_dir())
    except (KeyError, OSError) as error:  # a container's user may have no name
        raise ConfigError(
            f"inductor finds no name for this user, so no folder to compile in ({error}): set TORCHINDUCTOR_CACHE_DIR to a folder"
        ) from error
    variable = "TORCHINDUCTOR_CACHE_DIR" if named else "TMPDIR"
    fix = "set TORCHINDUCTOR_CACHE_DIR to a folder like /var/tmp/inductor, or use hardware.backend=eager"
    if not _is_one_word(str(folder)):
        raise ConfigError(f"{variable}: inductor cannot compile in {folder}, with white space, a quote or a backslash in it: {fix}")
    libraries = Path(torch.__file__).parent
    if not _is_one_word(str(libraries)):
        raise ConfigError(
            f"torch lies in {libraries}: inductor cannot link to a folder with white space, a quote or a backslash in its name: "
            "make setup in another folder, or use hardware.backend=eager or hardware=cpu_xla"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            flags = os.statvfs(folder).f_flag
    except OSError as error:
        raise ConfigError(f"{variable}: inductor cannot write to {folder} ({error.strerror}): {fix}") from error
    if flags & os.ST_NOEXEC:
        raise ConfigError(f"{variable}: what inductor compiles in {folder} cannot be run there (mounted noexec): {fix}")


def _is_one_word(path: str) -> bool:
    """Whether a path stays whole when a command line is split as a shell does."""
    try:
        return shlex.split(path) == [path]
    except ValueError:  # an open quote
        return False


def _compiler_knows_vectors() -> bool:
    """Whether the C++ compiler takes the flags of all vector instructions that inductor may choose on this x86 processor.

    Inductor finds out by building and loading a library for each, in processes that import torch: 4 s of every start.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.cpu_vec_isa import supported_vec_isa_list, x86_isa_checker

    here = set(x86_isa_checker())
    flags = [flag for isa in supported_vec_isa_list if set(str(isa).split()) <= here for flag in isa.build_arch_flags().split()]
    command = [get_cpp_compiler(), *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return bool(flags) and subprocess.run(command, capture_output=True, check=False).returncode == 0
