"""Checks of the machine and its environment, cheap enough that a run makes them before it builds a dataset."""

import os
import re
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch

from trm.config import HardwareConfig
from trm.errors import ConfigError
from trm.ground.cores import cores

# Variables of torch, torch_xla and XLA that change numbers, by the library that reads them (docs/explanation/backends.md). Those of
# REFUSED make a run compute something else than its settings say, so they are refused unless they say no. Those of RECORDED change
# last bits and are recorded.
REFUSED = {
    "xla": r"XLA_(USE|DOWNCAST)_(BF16|FP16)|XLA_USE_32BIT_LONG",
    "cpu": r"(ONEDNN|DNNL)_DEFAULT_FPMATH_MODE",
    "cuda": r"NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
}
SAYS_NO = ("", "0", "false", "no", "off", "strict")
INDUCTOR = r"TORCHINDUCTOR_(?!CACHE_DIR$|COMPILE_THREADS$)\w+"
RECORDED = {
    "xla": r"XLA_FLAGS|LIBTPU_INIT_ARGS|TPU_MEGACORE|XLA_(NO_SPECIAL_SCALARS|DENSE_GATHER_FACTOR|DENSE_SCATTER_FACTOR|LAYOUTS"
    r"|DISABLE_FUNCTIONALIZATION|EXPERIMENTAL|STABLEHLO_COMPILE)",
    "cpu": rf"ATEN_CPU_CAPABILITY|(ONEDNN|DNNL|TORCH_MKLDNN)_\w+|MKL_(?!NUM_THREADS$)\w+|TORCH_LINEAR_FLATTEN_3D|{INDUCTOR}",
    "cuda": rf"(CUBLAS|CUDNN|TORCH_BLAS|TORCH_CUDNN|TORCH_CUBLASLT|PYTORCH_TUNABLEOP)_\w+|NVIDIA_TF32_OVERRIDE|{INDUCTOR}",
}


def require_machine(hardware: HardwareConfig) -> None:
    """Raise ConfigError where this machine or its environment cannot do what the settings ask for."""
    for name, value in _variables(REFUSED, hardware).items():
        if value.strip().lower() not in SAYS_NO:
            raise ConfigError(
                f"{name}={value} in the environment changes the numbers that the settings ask for: unset it; to compute in "
                "bfloat16 set hardware.dtype=bfloat16"
            )
    if hardware.platform == "cuda" and not torch.cuda.is_available():
        raise ConfigError("hardware.platform=cuda, but torch finds no CUDA device: use hardware=cpu")
    if not hardware.can.cpp_compiler:
        return
    name, missing = compiler(), None
    if shlex.quote(name) != name or (os.path.dirname(name) and shutil.which(name) is None):  # with flags, by ccache, elsewhere
        raise ConfigError(
            f"CXX={name} in the environment: inductor starts one program by its name or path, without flags or another before it, "
            "and finds none by this: set CXX=g++ or unset it, or use hardware=cpu_xla or hardware.backend=eager"
        )
    if shutil.which(name) is None:
        missing = f"a C++ compiler ({name})"
    elif not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing = "Python's C headers (python3-dev)"
    if missing:
        raise ConfigError(
            f"hardware={hardware.name} compiles with inductor and this machine lacks {missing}: install it, or use "
            "hardware=cpu_xla or hardware.backend=eager"
        )


def surroundings(hardware: HardwareConfig) -> dict[str, Any]:
    """What the last bits of numbers depend on beside settings and data: threads on a CPU, and environment variables."""
    native = hardware.can.torch_kernels
    threads = {"threads": torch.get_num_threads() if native else cores()} if hardware.platform == "cpu" else {}
    return {**threads, **_variables(RECORDED, hardware)}


def _variables(patterns: dict[str, str], hardware: HardwareConfig) -> dict[str, str]:
    pattern = re.compile(patterns[hardware.platform if hardware.can.torch_kernels else "xla"])
    return {name: value.strip() for name, value in sorted(os.environ.items()) if pattern.fullmatch(name)}


def compiler() -> str:
    """The C++ compiler that inductor uses."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
