"""SwiGLU in one pass over the rows on a CPU with AVX-512: swiglu.cpp, compiled by inductor.

Separate products send the inner values, many times as wide as a token, through memory: at small sizes that is half of a step.
Here a tile of rows stays in the cache from the first product to the last. The gradients compute the inner values again instead of
keeping them, in float32, rounded to x's type where they are multiplied.
"""

import ctypes
import functools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
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
TRIAL_ERROR = 0.03  # as a share of the largest value: bfloat16 has 8 bits
TRIAL_S = 120  # a process that imports torch, on a machine that is busy

log = logging.getLogger(__name__)
_finding = threading.Lock()

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


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate) * up) of x [..., in] with gate_up [2 * inner, in], gate first, and down [out, inner]: [..., out].

    It has gradients; all tensors have one type. Separate products serve the types and the sizes that swiglu.cpp is not for.
    """
    if x.dtype not in NUMBERS or down.shape[1] % COLUMNS or max(gate_up.numel(), down.numel()) > MOST_WEIGHTS:
        return _products(x, gate_up, down, linear=onednn.linear)
    out: Tensor = _SwiGLU.apply(x.reshape(-1, x.shape[-1]), gate_up, down)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], down.shape[0])


def _products(x: Tensor, gate_up: Tensor, down: Tensor, *, linear: Callable[[Tensor, Tensor], Tensor] = F.linear) -> Tensor:
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate) * up, down)


def _gradients_by_products(x: Tensor, gate_up: Tensor, down: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    silu, d_inner = F.silu(gate), grad @ down
    d_both = torch.cat([torch.ops.aten.silu_backward(d_inner * up, gate), d_inner * silu], dim=-1)
    return d_both @ gate_up, d_both.t() @ x, grad.t() @ (silu * up)


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


def kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The library of swiglu.cpp for numbers of this type, tried once; None where the products are to be separate."""
    with _finding:  # the first step waits for the thread that compiles
        library = _tried(dtype)
    return library if torch.backends.mkldnn.enabled else None


@functools.cache
def _tried(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled library; None, with a warning, where it does not compile, load, or compute what products do."""
    try:
        from torch._inductor.codecache import CppCodeCache  # takes seconds

        source = Path(__file__).with_suffix(".cpp").read_text()
        library: ctypes.CDLL = CppCodeCache.load(f"#define NUMBER {NUMBERS[dtype]}\n#define COLUMNS {COLUMNS}\n{source}", "cpu")
        # in a process of its own: it aborts where oneDNN lacks its microkernels (ONEDNN_MAX_CPU_ISA, another build of torch)
        code = f"from trm.backends.swiglu import try_library; try_library({library._name!r}, {str(dtype)!r})"
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TRIAL_S,
            check=False,
            start_new_session=True,  # a terminal's interruption is not its
        )
        if done.returncode:
            raise RuntimeError(f"a process that tried it ended with {done.returncode}")
    except Exception as error:  # noqa: BLE001 - the kernel is only faster: whatever is wrong with it, the run goes on
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        log.warning("SwiGLU is computed by separate products, which is slower: its kernel does not work here (%s)", reason)
        return None
    return library


def try_library(path: str, dtype: str) -> None:
    """Exit with 1 where the library at `path` and products in float64 disagree on a few rows."""
    torch.set_num_threads(1)
    library, number = ctypes.CDLL(path), getattr(torch, dtype.removeprefix("torch."))
    random = torch.Generator().manual_seed(0)
    shapes = ((65, 16), (2 * COLUMNS, 16), (24, COLUMNS), (65, 24))  # more than a tile of rows
    given = [torch.randn(shape, generator=random).to(number) for shape in shapes]
    given[1][: COLUMNS // 2] *= 1000  # large gates, either way
    found = (_forward_shape(*given[:3]), *_backward_shapes(*given))
    _call(library.forward, given[:3], found[:1])
    _call(library.backward, given, found[1:])
    x, gate_up, down, grad = (tensor.double() for tensor in given)
    exact = _products(x, gate_up, down), *_gradients_by_products(x, gate_up, down, grad)
    for ours, reference in zip(found, exact, strict=True):
        if not (ours.double() - reference).abs().max() <= TRIAL_ERROR * reference.abs().max():
            sys.exit(1)


def _call(function: Callable[..., Any], given: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Have a function of the library fill `found` from `given`: x, gate_up, down, and for the gradients that of the output."""
    tensors = [*(tensor.contiguous() for tensor in given), *found]
    (n, k), (o, i) = given[0].shape, given[2].shape
    sizes = map(ctypes.c_int64, (n, k, i, o, torch.get_num_threads()))
    function(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors), *sizes)


def _forward(*given: Tensor) -> Tensor:
    if (library := kernels(given[0].dtype)) is None:
        return _products(*given)
    out = _forward_shape(*given)
    _call(library.forward, given, [out])
    return out


def _backward(*given: Tensor) -> tuple[Tensor, ...]:
    if (library := kernels(given[0].dtype)) is None:
        return _gradients_by_products(*given)
    found = _backward_shapes(*given)
    _call(library.backward, given, found)
    return found


def _forward_shape(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], down.shape[0])


def _backward_shapes(x: Tensor, gate_up: Tensor, down: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), gate_up.new_empty(gate_up.shape), down.new_empty(down.shape)


for _name, _on_cpu, _on_meta in (("swiglu", _forward, _forward_shape), ("swiglu_backward", _backward, _backward_shapes)):
    _library.impl(_name, _on_cpu, "CPU")  # type: ignore[no-untyped-call]
    _library.impl(_name, _on_meta, "Meta")  # type: ignore[no-untyped-call]
