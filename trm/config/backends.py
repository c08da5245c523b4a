"""What each value of hardware.backend can do. The checks, the core, the study and the doctor ask this, and never for a name.

It imports no torch, so that settings are refused without waiting for it.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "backends"


@dataclass(frozen=True)
class Backend:
    """How a backend is started, and what it can do."""

    runtime: Callable[[Any], Any] | str  # (HardwareConfig) -> trm.backends.Runtime; or "module:name" of it, imported at the start
    platforms: tuple[str, ...]  # values of hardware.platform on which it runs
    float64: tuple[str, ...] = ()  # those of them on which it computes in float64
    compile_cache: tuple[str, ...] = ()  # those of them on which it keeps compiled graphs in hardware.compile_cache
    multi_device: bool = False  # a program may run on several devices
    multi_process: bool = False  # and these may belong to several hosts
    ranks: bool = False  # several devices are as many processes, each of which runs the program on its own rows
    in_place: bool = False  # a program may change a tensor of the argument that is donated; else all of it is a pure function
    attention: str = "blocks"  # what hardware.attention=auto takes where the scores are not to be kept
    fused_float64: bool = True  # whether hardware.attention=fused runs in float64, where there is float64
    torch_kernels: bool = False  # torch's own kernels and threads compute, as precisely as the tensors' dtypes say
    cpp_compiler: bool = False  # needs a C++ compiler on the machine
    step_graph: tuple[str, ...] = ()  # platforms on which the training step can be recorded and replayed (hardware.step_graph)
    # by platform: what the inner size of a fast matrix product is a multiple of (hardware.token_multiple)
    token_multiple: Mapping[str, int] = field(default_factory=dict)
    packages: tuple[str, ...] = ()  # distributions that it needs beside torch
    preload: tuple[str, ...] = ()  # modules that every run on a CPU imports, which a sweep imports once for all its jobs


NATIVE: dict[str, Any] = {
    "platforms": ("cpu", "cuda"),
    "ranks": True,
    "float64": ("cpu", "cuda"),
    "in_place": True,
    "attention": "fused",
    "torch_kernels": True,
    "step_graph": ("cuda",),
    "token_multiple": {"cuda": 8},  # rows of 16 bytes in bfloat16, which its fastest kernels ask for
}
BACKENDS = {
    "xla": Backend(
        "trm.backends.xla:XlaRuntime",
        platforms=("cpu", "tpu"),
        float64=("cpu",),
        compile_cache=("tpu",),
        multi_device=True,
        multi_process=True,
        packages=("torch_xla",),
    ),
    "eager": Backend("trm.backends.native:NativeRuntime", **NATIVE),
    "inductor": Backend(
        "trm.backends.inductor:InductorRuntime",
        fused_float64=False,  # torch 2.9 mistakes the type of what the kernel keeps
        cpp_compiler=True,
        preload=("torch._dynamo", "torch._inductor.compile_fx"),
        **NATIVE,
    ),
}


def find_backend(name: str) -> Backend | None:
    """The backend of this name; None where there is none. trm/backends/NAME.py is imported if need be, and registers itself."""
    if name not in BACKENDS and name.isidentifier() and (FOLDER / f"{name}.py").exists():
        importlib.import_module(f"trm.backends.{name}")
    return BACKENDS.get(name)
