"""What inductor needs of the machine before it is imported, so that a run can say at once what is missing."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from trm.config import HardwareConfig
from trm.errors import ConfigError


def require_compiler(hardware: HardwareConfig) -> None:
    """Raise ConfigError where the settings ask for inductor and it cannot compile here.

    It would say so itself, but in a traceback and after tracing the step.
    """
    if hardware.backend != "inductor":
        return
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
