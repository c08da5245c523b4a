"""The ways to compute attention agree, and two of them keep no scores for the backward pass."""

import pytest
import torch

from trm.config import HardwareConfig
from trm.core.attention import ATTENTION, BLOCK_TOKENS, attention_for


def drawn(dtype, B=2, H=3, L=2 * BLOCK_TOKENS + 37, K=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, L, K, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for _ in range(4)]


def results(name, tensors):
    *qkv, grad = tensors
    out = ATTENTION[name](*qkv)
    return [out, *torch.autograd.grad(out, qkv, grad.detach())]


@pytest.mark.parametrize("name", ["fused", "blocks"])
@pytest.mark.parametrize("L", [5, BLOCK_TOKENS, 2 * BLOCK_TOKENS + 37])
def test_values_and_gradients_are_those_of_the_formula(name, L):
    tensors = drawn(torch.float64, L=L)
    for found, expected in zip(results(name, tensors), results("scores", tensors), strict=True):
        assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", list(ATTENTION))
def test_half_precision_is_as_near_to_the_truth_whichever_way(name):
    exact = results("scores", drawn(torch.float64))
    for found, truth in zip(results(name, drawn(torch.bfloat16)), exact, strict=True):
        assert ((found.double() - truth).norm() / truth.norm()) < 0.02


def test_blocks_under_vmap_are_those_without():
    q, k, v, grad = (tensor.detach().unflatten(0, (2, 1)).requires_grad_() for tensor in drawn(torch.float64))
    out = torch.vmap(ATTENTION["blocks"])(q, k, v)
    expected = ATTENTION["scores"](q, k, v)
    assert (out - expected).abs().max() < 1e-12
    pairs = zip(torch.autograd.grad(out, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True)
    assert all((found - right).abs().max() < 1e-12 for found, right in pairs)


@pytest.mark.parametrize(("name", "keeps"), [("scores", True), ("fused", False), ("blocks", False)])
def test_what_the_backward_pass_keeps(name, keeps):
    q, k, v, _ = drawn(torch.float32)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor):
        ATTENTION[name](q, k, v)
    assert (max(sizes) >= q.shape[0] * q.shape[1] * q.shape[2] ** 2) == keeps


@pytest.mark.parametrize(
    ("settings", "tokens", "name"),
    [
        ({"backend": "inductor"}, 97, "fused"),
        ({"backend": "inductor"}, 900, "fused"),
        ({"backend": "inductor", "dtype": "bfloat16"}, 97, "scores"),
        ({"backend": "inductor", "dtype": "bfloat16"}, 900, "fused"),
        ({"backend": "inductor", "dtype": "bfloat16", "platform": "cuda"}, 97, "fused"),
        ({"backend": "inductor", "dtype": "float64"}, 900, "blocks"),
        ({"backend": "xla"}, 97, "scores"),
        ({"backend": "xla"}, 900, "blocks"),
        ({"backend": "xla", "attention": "fused"}, 97, "fused"),
    ],
    ids=str,
)
def test_auto_follows_backend_dtype_and_length(settings, tokens, name):
    assert attention_for(HardwareConfig(name="m", **settings), tokens) is ATTENTION[name]
