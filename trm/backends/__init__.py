"""Devices, compilation, transfers. trm/backends/xla.py is the only module that imports torch_xla."""

import faulthandler
import importlib
from typing import Any

from trm.backends.base import Runtime
from trm.backends.machine import require_machine, take_share
from trm.config import HardwareConfig

__all__ = ["Runtime", "start"]


def start(hardware: HardwareConfig) -> Runtime:
    """Start the backend that the settings name. Raises ConfigError where the machine does not have what they ask for."""
    # The fault handler has signals handled on a stack of their own. oneDNN's kernels for AVX-512 (3.7, in torch 2.9) keep values
    # below the stack pointer: a handler on the same stack overwrites them, and the product then writes anywhere in the heap. A run
    # that was asked to stop could abort, or save NaN.
    if not faulthandler.is_enabled():
        faulthandler.enable(2)
    require_machine(hardware)
    take_share(hardware)
    runtime: Any = hardware.can.runtime
    if isinstance(runtime, str):  # imported only here: each takes seconds that the others do not need
        module, _, name = runtime.partition(":")
        runtime = getattr(importlib.import_module(module), name)
    if hardware.can.ranks and hardware.devices > 1:
        from trm.backends.ranks import Ranks

        runtime = type(f"Ranks{runtime.__name__}", (Ranks, runtime), {})
    started: Runtime = runtime(hardware)
    return started
