"""Devices, compilation, transfers. trm/backends/xla.py is the only module that imports torch_xla."""

import faulthandler

from trm.backends.base import Runtime
from trm.backends.machine import require_machine, take_share
from trm.config import HardwareConfig

__all__ = ["Runtime", "start"]


def start(hardware: HardwareConfig) -> Runtime:
    """Start the backend that the settings name. Raises ConfigError where the machine does not have what they ask for."""
    _signals_on_their_own_stack()
    require_machine(hardware)
    take_share(hardware)
    if hardware.backend == "xla":
        from trm.backends.xla import XlaRuntime

        return XlaRuntime(hardware)
    from trm.backends.native import NativeRuntime

    return NativeRuntime(hardware)


def _signals_on_their_own_stack() -> None:
    """Give the main thread, which gets a process's signals, another stack for handling them, as the fault handler has one.

    oneDNN's kernels for AVX-512 (3.7, in torch 2.9) keep values below the stack pointer: a handler on the same stack overwrites
    them, and the product then writes anywhere in the heap. A run that was asked to stop could so end in an abort, or save NaN.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(2)
