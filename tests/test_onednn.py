"""The linear layer through oneDNN against float64: values and gradients, whatever the shapes and strides."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from running import environment

from trm.backends import onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.mark.parametrize(("rows", "transposed"), [((7,), False), ((3, 5), False), ((3, 5), True)])
@pytest.mark.parametrize(("inner", "outer"), [(16, 512), (64, 8), (3, 3)])
def test_values_and_gradients(rows, inner, outer, transposed):
    random = torch.Generator().manual_seed(inner * outer)
    x = torch.randn(*rows, inner, generator=random, dtype=torch.float64)
    if transposed:
        x = x.transpose(0, 1)
    weight = torch.randn(outer, inner, generator=random, dtype=torch.float64)
    wanted = torch.randn(*x.shape[:-1], outer, generator=random, dtype=torch.float64)
    results = []
    for function, dtype in ((F.linear, torch.float64), (onednn.linear, torch.float32)):
        leaves = [x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        out = function(*leaves)
        results.append((out, *torch.autograd.grad((out * wanted.to(dtype)).sum(), leaves)))
    for reference, ours in zip(*results, strict=True):
        assert (ours.shape, ours.dtype) == (reference.shape, torch.float32)
        torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-4)


def test_products_are_as_precise_as_float32_is():
    a, b = torch.randn(256, 300), torch.randn(200, 300)
    exact = F.linear(a.double(), b.double())
    error = (onednn.linear(a, b) - exact).abs().max() / exact.abs().max()
    assert error < 1e-6  # bfloat16 would be wrong by 1e-3


def test_only_float32_on_a_cpu():
    assert onednn.usable(torch.zeros(1))
    assert not onednn.usable(torch.zeros(1, dtype=torch.float64))
    assert not onednn.usable(torch.zeros(1, dtype=torch.bfloat16))
    assert not onednn.usable(torch.zeros(1, device="meta"))


def test_signals_leave_products_and_the_heap_as_they_are(tmp_path):
    """In a process of its own: pytest has a stack for signals already."""
    program = """
import signal
import torch
from trm.backends import start
from trm.config import HardwareConfig

torch.set_num_threads(1)
linear = start(HardwareConfig(name="cpu", backend="eager")).linear
hits = []
signal.signal(signal.SIGALRM, lambda number, frame: hits.append(number))
x, weight = torch.randn(256, 256), torch.randn(64, 256)
wanted = linear(x, weight)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
while len(hits) < 1000:
    assert torch.equal(linear(x, weight), wanted)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
