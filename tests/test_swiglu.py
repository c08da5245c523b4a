"""SwiGLU in one kernel against the same in float64: values and gradients, whatever the number of rows and the widths."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.codecache import CppCodeCache
from torch._inductor.exc import CppCompileError

from trm.backends import start, swiglu
from trm.cli import compose
from trm.config import HardwareConfig
from trm.core.architecture import architecture
from trm.core.initial import init_buffers, init_weights, with_latents
from trm.core.model import forward

DTYPES = [torch.float32, torch.bfloat16]
# largest error as a share of the largest value: bfloat16 has 8 bits, and the weights' gradients are rounded once
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def on_this_machine(dtype):
    start(
        HardwareConfig(name="cpu", backend="inductor", dtype=str(dtype).removeprefix("torch."))
    )  # its folders and the number of its threads
    if not swiglu.usable(dtype):
        pytest.skip(f"this processor has no AVX-512 for {dtype}")


def plain(x, gate_up, down):
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def operands(dtype, rows, width, inner, out):
    random = torch.Generator().manual_seed(width)
    shapes = {"x": (*rows, width), "gate_up": (2 * inner, width), "down": (out, inner), "grad": (*rows, out)}
    scales = {"gate_up": 2 * width**-0.5, "down": inner**-0.5}
    return {name: (torch.randn(shape, generator=random) * scales.get(name, 1)).to(dtype) for name, shape in shapes.items()}


@pytest.fixture
def kernel_calls(monkeypatch):
    """How often the kernel was called."""
    calls, call = [], swiglu._call
    monkeypatch.setattr(swiglu, "_call", lambda function, *tensors: (calls.append(function), call(function, *tensors)))
    return calls


def computed(function, given):
    leaves = [given[name].detach().requires_grad_() for name in ("x", "gate_up", "down")]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, given["grad"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(  # rows: no whole tile, an odd one, some whole ones and a rest
    ("rows", "width", "inner", "out"), [((1,), 97, 512, 97), ((2, 33), 7, 256, 40), ((129,), 97, 512, 97), ((4, 64), 16, 256, 16)]
)
def test_values_and_gradients(dtype, rows, width, inner, out, kernel_calls):
    on_this_machine(dtype)
    given = operands(dtype, rows, width, inner, out)
    ours = computed(swiglu.swiglu, given)
    assert len(kernel_calls) == 2  # there and back
    reference = computed(plain, {name: tensor.double() for name, tensor in given.items()})
    for found, exact in zip(ours, reference, strict=True):
        assert (found.shape, found.dtype) == (exact.shape, dtype)
        assert (found.double() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max()
    assert all(torch.equal(once, again) for once, again in zip(ours, computed(swiglu.swiglu, given), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_gates_and_what_is_not_finite(dtype):
    on_this_machine(dtype)
    given = operands(dtype, (40,), 16, 256, 16)
    given["gate_up"][:256] *= 1000  # gates of some thousands, either way
    ours, reference = computed(swiglu.swiglu, given), computed(plain, {name: tensor.double() for name, tensor in given.items()})
    for found, exact in zip(ours, reference, strict=True):
        assert (found.double() - exact).abs().max() <= 2 * TOLERANCE[dtype] * exact.abs().max()
    given["x"][3, 5] = torch.nan
    broken = swiglu.swiglu(given["x"], given["gate_up"], given["down"]).isnan().any(-1)
    assert broken.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_of_any_size(dtype):
    """silu(gate) is the gate itself or nothing, and its slope 1 or 0, from a hundred up to where numbers end."""
    on_this_machine(dtype)
    gates = torch.tensor([sign * 10.0**power for power in (2, 5, 13, 14, 15, 18, 25, 30, 37) for sign in (1, -1)])
    x = torch.zeros(len(gates), 16, dtype=dtype)
    x[:, 0], x[:, 1] = gates, 1
    gate_up, down = torch.zeros(512, 16, dtype=dtype), torch.zeros(16, 256, dtype=dtype)
    gate_up[0, 0] = gate_up[256, 1] = down[0, 0] = 1  # out[:, 0] = silu(gate) * 1
    grad = torch.zeros_like(x)
    grad[:, 0] = 1
    out, d_x, *_ = computed(swiglu.swiglu, {"x": x, "gate_up": gate_up, "down": down, "grad": grad})
    wanted = torch.where(gates > 0, x[:, 0], 0)
    torch.testing.assert_close(out[:, 0], wanted)
    torch.testing.assert_close(d_x[:, 0], (gates > 0).to(dtype))
    torch.testing.assert_close(d_x[:, 1], wanted)


def without_microkernels(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # read by the process that tries, which aborts


def broken_compiler(monkeypatch):
    def load(*_):
        raise CppCompileError(["g++"], "no room on the disk")

    monkeypatch.setattr(CppCodeCache, "load", load)


def another_kernel(monkeypatch):
    monkeypatch.setattr(swiglu, "NUMBERS", {torch.bfloat16: "float"})


def too_slow(monkeypatch):
    monkeypatch.setattr(swiglu, "TRIAL_S", 0.01)


def no_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.mark.parametrize("fault", [without_microkernels, broken_compiler, another_kernel, too_slow, no_onednn])
def test_where_the_kernel_does_not_work_products_are_separate(fault, monkeypatch, kernel_calls):
    on_this_machine(torch.bfloat16)
    told = []
    monkeypatch.setattr(swiglu, "_tried", functools.cache(swiglu._tried.__wrapped__))  # in this process it was tried
    monkeypatch.setattr(swiglu.log, "warning", lambda text, *args: told.append(text % args))
    fault(monkeypatch)
    given = operands(torch.bfloat16, (3, 5), 16, 256, 24)
    ours = computed(swiglu.swiglu, given)
    for found, exact in zip(ours, computed(plain, {name: tensor.double() for name, tensor in given.items()}), strict=True):
        assert (found.double() - exact).abs().max() <= TOLERANCE[torch.bfloat16] * exact.abs().max()
    assert kernel_calls == []
    assert len(told) == (fault is not no_onednn)  # once a process; who switches oneDNN off knows


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_those_beside_it(dtype):
    on_this_machine(dtype)
    given = operands(dtype, (100,), 36, 256, 36)
    x, weights = given["x"], (given["gate_up"], given["down"])
    whole = swiglu.swiglu(x, *weights)
    for rows in (slice(0, 1), slice(10, 43), slice(64, 100)):
        assert torch.equal(swiglu.swiglu(x[rows], *weights), whole[rows])


@pytest.mark.parametrize(
    ("dtype", "width", "inner"), [(torch.float64, 16, 256), (torch.float32, 16, 100), (torch.float32, 512, 1536)]
)
def test_what_the_kernel_is_not_for_is_computed_by_products(dtype, width, inner, monkeypatch):
    monkeypatch.setattr(swiglu, "kernels", None)
    given = operands(dtype, (5,), width, inner, width)
    exact = plain(*(given[name].double() for name in ("x", "gate_up", "down")))
    torch.testing.assert_close(swiglu.swiglu(given["x"], given["gate_up"], given["down"]).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mlp", "calls"), [("swiglu", 2 * 2 * 6), ("conv_swiglu", 0)])
def test_every_pass_of_the_network_calls_it(mlp, calls):
    """Two blocks of two MLPs, T (n + 1) = 6 passes; another MLP than swiglu is not what it computes."""
    shapes = []

    def counted(x, gate_up, down):
        shapes.append((gate_up.shape, down.shape))
        assert x.dtype == gate_up.dtype == down.dtype == torch.bfloat16
        return plain(x, gate_up, down)

    cfg = compose(["data=sudoku_4x4", "recipe=tiny", "recursion=t2_n2", "hardware.dtype=bfloat16", f"model.mlp={mlp}"])
    arch = architecture(cfg, seq_len=16, vocab_size=6, num_puzzle_identifiers=1)
    weights, buffers = init_weights(arch, 0), init_buffers(arch, 0)
    given = with_latents(arch, buffers, 3), torch.ones(3, 16, dtype=torch.int32)
    own = forward(dataclasses.replace(arch, swiglu=counted), weights, buffers, None, *given)
    assert len(shapes) == calls
    assert torch.equal(own.logits, forward(arch, weights, buffers, None, *given).logits)


def test_whose_runtime_has_it():
    def of(**settings):
        return start(HardwareConfig(name="cpu", **settings)).swiglu

    assert of(backend="eager") is None
    assert of(backend="inductor", dtype="float64") is None
    assert (of(backend="inductor") is not None) == swiglu.usable(torch.float32)
