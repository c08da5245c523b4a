"""Devices, compilation, transfers. trm/backends/xla.py is the only module that imports torch_xla."""

import faulthandler
import importlib
import os
from typing import Any

import torch

from trm.backends.base import Runtime
from trm.backends.machine import require_machine
from trm.config import HardwareConfig
from trm.ground.cores import allowed, cores, quota

__all__ = ["Runtime", "start"]


def start(hardware: HardwareConfig) -> Runtime:
    """Start the backend that the settings name. Raises ConfigError where the machine does not have what they ask for."""
    # The fault handler has signals handled on a stack of their own. oneDNN's kernels for AVX-512 (3.7, in torch 2.9) keep values
    # below the stack pointer: a handler on the same stack overwrites them, and the product then writes anywhere in the heap. A run
    # that was asked to stop could abort, or save NaN.
    if not faulthandler.is_enabled():
        faulthandler.enable(2)
    require_machine(hardware)
    # Threads beyond the CPU quota hold all of them back. Jobs side by side share the cores; a lone job obeys OMP_NUM_THREADS
    if hardware.jobs > 1 or "OMP_NUM_THREADS" not in os.environ:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or "1") if hardware.can.ranks else 1  # as torchrun counts them on this host
        share = int(min(os.cpu_count() or 1, quota())) // (max(hardware.jobs, 1) * ranks)
        torch.set_num_threads(max(1, min(torch.get_num_threads(), len(allowed()), share)))
    if quota() < len(allowed()):
        os.environ.setdefault("PJRT_NPROC", str(cores()))  # XLA's own threads on a CPU
    runtime: Any = hardware.can.runtime
    if isinstance(runtime, str):  # imported only here: each takes seconds that the others do not need
        module, _, name = runtime.partition(":")
        runtime = getattr(importlib.import_module(module), name)
    if hardware.can.ranks and hardware.devices > 1:
        from trm.backends.ranks import Ranks

        runtime = type(f"Ranks{runtime.__name__}", (Ranks, runtime), {})
    started: Runtime = runtime(hardware)
    return started
