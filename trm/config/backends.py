"""What each value of hardware.backend can do. Other code asks for an ability, never for a name.

This module does not import torch, which takes seconds, so wrong settings are refused at once.
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

    runtime: Callable[[Any], Any] | str  # (HardwareConfig) -> trm.backends.Runtime; or its "module:name", imported at the start
    platforms: tuple[str, ...]  # values of hardware.platform on which it runs
    float64: tuple[str, ...] = ()  # platforms on which it computes in float64
    compile_cache: tuple[str, ...] = ()  # platforms on which it keeps compiled graphs in hardware.compile_cache
    multi_device: bool = False  # a program may run on several devices
    multi_process: bool = False  # and these may belong to several hosts
    ranks: bool = False  # each of several devices has its own process, which runs the program on its own rows
    in_place: bool = False  # a program may change tensors of its donated argument; otherwise it is a pure function
    attention: str = "blocks"  # what hardware.attention=auto takes if the scores are not kept
    fused_float64: bool = True  # hardware.attention=fused runs in float64 too
    torch_kernels: bool = False  # torch's own kernels and threads compute, as precisely as the tensors' dtypes say
    cpp_compiler: bool = False  # needs a C++ compiler on the machine
    step_graph: tuple[str, ...] = ()  # platforms on which the training step can be recorded and replayed (hardware.step_graph)
    token_multiple: Mapping[str, int] = field(default_factory=dict)  # by platform: hardware.token_multiple=null
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
    "token_multiple": {"cuda": 8},  # rows of 16 bytes in bfloat16, which the fastest kernels need
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
    """The backend of this name, or None. trm/backends/NAME.py is imported if necessary, and registers itself."""
    if name not in BACKENDS and name.isidentifier() and (FOLDER / f"{name}.py").exists():
        importlib.import_module(f"trm.backends.{name}")
    return BACKENDS.get(name)
