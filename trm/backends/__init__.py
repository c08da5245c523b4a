"""Devices, compilation, transfers. trm/backends/xla.py is the only module that imports torch_xla."""

from trm.backends.base import Runtime
from trm.config import HardwareConfig

__all__ = ["Runtime", "start"]


def start(hardware: HardwareConfig) -> Runtime:
    """Start the backend that the settings name. Raises ConfigError where the machine does not have what they ask for."""
    if hardware.backend == "xla":
        from trm.backends.xla import XlaRuntime

        return XlaRuntime(hardware)
    from trm.backends.native import NativeRuntime

    return NativeRuntime(hardware)
