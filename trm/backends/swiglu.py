"""SwiGLU in one pass over the rows on a CPU with AVX-512: swiglu.cpp, compiled by inductor.

As separate products its inner values, many times as wide as a token, go through memory between them: at small sizes half of a step.
Here a tile of rows stays in the cache from the first product to the last, and its gradients compute the inner values again instead
of keeping them. What is inside is as precise as the products: float32, and the inner values rounded to x's type where they are
multiplied.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trm.backends import onednn

NUMBERS = {torch.float32: "float", torch.bfloat16: "at::BFloat16"}
COLUMNS = 256  # of the inner width, a multiple of it, that are in the cache at a time
# The gradients of the weights are added up in the cache of each core. Of larger ones separate products are as fast.
MOST_WEIGHTS = 2**18

_library = torch.library.Library("trm", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("swiglu(Tensor x, Tensor gate_up, Tensor down) -> Tensor")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "swiglu_backward(Tensor x, Tensor gate_up, Tensor down, Tensor grad) -> (Tensor, Tensor, Tensor)"
)


def usable(dtype: torch.dtype) -> bool:
    """Whether processor and compiler have what swiglu.cpp is written for: AVX-512, and for bfloat16 its products."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    needed = {torch.float32: "-mavx512bw", torch.bfloat16: "-mavx512bf16"}.get(dtype)
    return needed is not None and needed in pick_vec_isa().build_arch_flags().split()


def prepare(dtype: torch.dtype) -> threading.Thread:
    """Compile the kernels in a thread, while data are read and the step is traced."""
    from trm.backends import inductor

    def work() -> None:
        inductor.compile_header().join()
        kernels(dtype)

    return inductor.compile_beside("swiglu", work)


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate) * up) of x [..., in] with gate_up [2 * inner, in], gate first, and down [out, inner]: [..., out].

    With gradients, all of one type. By separate products where swiglu.cpp is not for that type or for weights of these sizes.
    """
    if x.dtype not in NUMBERS or down.shape[1] % COLUMNS or max(gate_up.numel(), down.numel()) > MOST_WEIGHTS:
        gate, up = onednn.linear(x, gate_up).chunk(2, dim=-1)
        return onednn.linear(F.silu(gate) * up, down)
    out: Tensor = _SwiGLU.apply(x.reshape(-1, x.shape[-1]), gate_up, down)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], down.shape[0])


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, gate_up, down)
        out: Tensor = torch.ops.trm.swiglu(x_NI, gate_up, down)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.ops.trm.swiglu_backward(*ctx.saved_tensors, grads[0])
        return found


@functools.cache
def kernels(dtype: torch.dtype) -> ctypes.CDLL:
    """swiglu.cpp for numbers of this type. Raises torch's CppCompileError."""
    from torch._inductor.codecache import CppCodeCache  # seconds, for who compiles

    source = Path(__file__).with_suffix(".cpp").read_text()
    library: ctypes.CDLL = CppCodeCache.load(f"#define NUMBER {NUMBERS[dtype]}\n#define COLUMNS {COLUMNS}\n{source}", "cpu")
    return library


def _call(function: Callable[..., Any], *tensors: Tensor) -> None:
    """With the sizes of `tensors`, which are x, gate_up, down and whatever else, and the threads that torch has."""
    (n, k), (o, i) = tensors[0].shape, tensors[2].shape
    sizes = map(ctypes.c_int64, (n, k, i, o, torch.get_num_threads()))
    function(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors), *sizes)


def _forward(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    out = _forward_shape(x, gate_up, down)
    _call(kernels(x.dtype).forward, x.contiguous(), gate_up.contiguous(), down.contiguous(), out)
    return out


def _backward(x: Tensor, gate_up: Tensor, down: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = _backward_shapes(x, gate_up, down, grad)
    _call(kernels(x.dtype).backward, *(tensor.contiguous() for tensor in (x, gate_up, down, grad)), *found)
    return found


def _forward_shape(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], down.shape[0])


def _backward_shapes(x: Tensor, gate_up: Tensor, down: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), gate_up.new_empty(gate_up.shape), down.new_empty(down.shape)


for _name, _on_cpu, _on_meta in (("swiglu", _forward, _forward_shape), ("swiglu_backward", _backward, _backward_shapes)):
    _library.impl(_name, _on_cpu, "CPU")  # type: ignore[no-untyped-call]
    _library.impl(_name, _on_meta, "Meta")  # type: ignore[no-untyped-call]
