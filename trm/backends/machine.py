"""What torch without torch_xla needs of the machine: cheap to ask, so that a run can say it before it builds a dataset."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from trm.config import HardwareConfig
from trm.errors import ConfigError


def require_machine(hardware: HardwareConfig) -> None:
    """Raise ConfigError where the settings ask for a CUDA device, or for inductor, and this machine cannot give it.

    Inductor would say so itself, but in a traceback and after tracing the step.
    """
    if hardware.platform == "cuda" and not torch.cuda.is_available():
        raise ConfigError("hardware.platform=cuda, but torch finds no CUDA device: use hardware=cpu")
    if hardware.backend == "inductor":
        _require_compiler(hardware)


def _require_compiler(hardware: HardwareConfig) -> None:
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as inductor chooses
    missing = None
    if shutil.which(compiler) is None:
        missing = f"a C++ compiler ({compiler})"
    elif not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing = "Python's C headers (python3-dev)"
    if missing:
        raise ConfigError(
            f"hardware={hardware.name} compiles with inductor and this machine lacks {missing}: install it, or use "
            "hardware=cpu_xla or hardware.backend=eager"
        )
