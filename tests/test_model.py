"""The network where neither the recorded parity cases nor the ordinary trainer (test_step.py) reach."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trm.config import Config, HardwareConfig, ModelConfig, RecursionConfig
from trm.core.architecture import Architecture, architecture
from trm.core.initial import (
    init_buffers,
    init_puzzle_embedding,
    init_weights,
    num_parameters,
    swiglu_width,
    truncated_normal,
    weight_shapes,
    with_latents,
)
from trm.core.model import embed, forward, rms_norm, rotate

pytestmark = pytest.mark.usefixtures("one_thread")


def make_arch(dtype=torch.float64, seq_len=5, recursion=None, identifiers=3, **model):
    settings = {"hidden_size": 8, "num_heads": 2, "puzzle_emb_ndim": 0, "puzzle_emb_len": 0, **model}
    return Architecture(
        model=ModelConfig(**settings),
        recursion=recursion or RecursionConfig(T=2, n=2, n_sup=2),
        seq_len=seq_len,
        vocab_size=7,
        num_puzzle_identifiers=identifiers,
        dtype=dtype,
        loss_dtype=torch.float64,
    )


def random_tensor(*shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def random_tokens(arch, rows):
    return torch.from_numpy(np.random.default_rng(1).integers(0, arch.vocab_size, (rows, arch.seq_len)).astype(np.int32))


def np_norm(x, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ({}, 5_028_866),
        ({"mixer": "attention", "positions": "rope"}, 6_828_034),
        ({"positions": "learned"}, 5_028_866 + 97 * 512),
        ({"separate_networks": True}, 2 * 5_028_866 - 2 * 11 * 512 - 2 * 512 - 2),
        ({"num_layers": 4}, 2 * 5_028_866 - 2 * 11 * 512 - 2 * 512 - 2),
    ],
)
def test_parameter_counts_of_the_paper(model, count):
    cfg = Config(model=ModelConfig(**model), hardware=HardwareConfig(name="cpu"))
    arch = architecture(cfg, seq_len=81, vocab_size=11, num_puzzle_identifiers=1)
    assert num_parameters(arch) == count
    assert arch.num_tokens == 97


@pytest.mark.parametrize(
    ("in_features", "expansion", "width"),
    # by hand: 4*97*2/3 = 258.7 -> 259 -> 512; 4*96*2/3 = 256; 4*512*2/3 = 1365.3 -> 1536; 1.5*512*2/3 = 512; tiny -> 256
    [(97, 4.0, 512), (96, 4.0, 256), (512, 4.0, 1536), (512, 1.5, 512), (1024, 4.0, 2816), (1, 4.0, 256), (384, 4.0, 1024)],
)
def test_swiglu_width(in_features, expansion, width):
    assert swiglu_width(in_features, expansion) == width


def test_initial_weights_have_the_declared_shapes_and_dtype():
    for arch in (make_arch(), make_arch(dtype=torch.bfloat16, mixer="attention", positions="rope", separate_networks=True)):
        weights = init_weights(arch, seed=0)
        assert {k: tuple(w.shape) for k, w in weights.items()} == weight_shapes(arch)
        assert {w.dtype for w in weights.values()} == {arch.master_dtype}


@pytest.mark.parametrize("std", [1.0, 0.044])
def test_truncated_normal_bounds_and_spread(std):
    values = truncated_normal((1000, 400), std, 0, "w", torch.float64).numpy().ravel()
    assert abs(values.std() / std - 1) < 0.01  # `std` is the spread after the cut, not before
    assert abs(values.mean()) < 0.01 * std
    # uncut sigma: numerically, from the density on [-2, 2]
    grid = np.linspace(-2, 2, 200_001)
    density = np.exp(-(grid**2) / 2)
    sigma = std / math.sqrt((grid**2 * density).sum() / density.sum())
    assert np.abs(values).max() <= 2 * sigma * (1 + 1e-9)
    assert np.abs(values).max() > 1.99 * sigma
    for share, bound in ((0.6827, 1), (0.3829, 0.5)):  # of the uncut normal
        assert abs((np.abs(values) < bound * sigma).mean() - share / 0.9545) < 0.003


def test_truncated_normal_depends_on_seed_and_name_alone():
    def draw(seed, name):
        return truncated_normal((50, 4), 1.0, seed, name, torch.float64)

    first = draw(3, "a")
    torch.manual_seed(99)
    torch.rand(5)
    before = torch.random.get_rng_state()
    assert torch.equal(first, draw(3, "a"))
    assert torch.equal(before, torch.random.get_rng_state())
    for other in (draw(4, "a"), draw(3, "b")):
        assert abs(np.corrcoef(first.flatten(), other.flatten())[0, 1]) < 0.3


def test_variants_leave_the_other_tensors_as_they_were():
    base = init_weights(make_arch(), seed=7)
    for change in ({"positions": "learned"}, {"num_layers": 4}, {"mixer": "attention"}, {"separate_networks": True}):
        other = init_weights(make_arch(**change), seed=7)
        shared = base.keys() & other.keys()
        assert {"embed_tokens", "lm_head"} <= shared
        assert all(torch.equal(base[name], other[name]) for name in shared)
    assert not torch.equal(base["lm_head"], init_weights(make_arch(), seed=8)["lm_head"])


def test_spread_of_initial_weights_is_one_over_root_fan_in():
    arch = make_arch(hidden_size=64, seq_len=100)
    for name, weight in init_weights(arch, seed=0).items():
        if weight.numel() > 5000:
            assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.03), name


def test_q_head_starts_at_minus_five():
    arch = make_arch()
    weights = init_weights(arch, seed=0)
    assert not weights["q_head.weight"].any()
    assert weights["q_head.bias"].tolist() == [-5.0, -5.0]
    buffers = init_buffers(arch, 0)
    out = forward(arch, weights, buffers, None, with_latents(arch, buffers, 2), random_tokens(arch, 2))
    assert out.q_halt.tolist() == out.q_continue.tolist() == [-5.0, -5.0]


def test_latents_start_at_one_vector_each_in_the_forward_dtype():
    arch = make_arch(dtype=torch.bfloat16, hidden_size=512)
    buffers = init_buffers(arch, 0)
    assert buffers.keys() == {"init.z_H", "init.z_L"}
    assert not torch.equal(buffers["init.z_H"], buffers["init.z_L"])
    latents = with_latents(arch, buffers, 3)
    for name, vector in buffers.items():
        assert vector.dtype == torch.bfloat16
        assert vector.float().std().item() == pytest.approx(1, abs=0.1)
        latent = latents[name.removeprefix("init.")]
        assert latent.shape == (3, arch.num_tokens, 512)
        assert (latent == vector).all()


def test_rms_norm():
    x = random_tensor(3, 4, 6)
    np.testing.assert_allclose(rms_norm(x, 1e-5), np_norm(x.numpy()), rtol=1e-13)
    np.testing.assert_allclose(rms_norm(x, 0.5), np_norm(x.numpy(), 0.5), rtol=1e-13)
    # in bfloat16 the mean is taken in float32: the result is the rounded exact one
    narrow = (100 * x).to(torch.bfloat16)
    expected = torch.from_numpy(np_norm(narrow.double().numpy())).float()
    assert rms_norm(narrow, 1e-5).dtype == torch.bfloat16
    torch.testing.assert_close(rms_norm(narrow, 1e-5).float(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize("theta", [10000.0, 100.0])
def test_rope_turns_pairs_as_complex_numbers(theta):
    arch = make_arch(mixer="attention", positions="rope", rope_theta=theta, hidden_size=24, seq_len=9)
    buffers = init_buffers(arch, 0)
    x = random_tensor(2, 9, 2, 12)
    z = x.numpy()[..., :6] + 1j * x.numpy()[..., 6:]  # entry j is paired with j + K/2
    position, j = np.arange(9)[:, None, None], np.arange(6)
    z = z * np.exp(1j * position * theta ** (-2 * j / 12))
    expected = np.concatenate((z.real, z.imag), axis=-1)
    np.testing.assert_allclose(rotate(x, buffers["rope.cos"], buffers["rope.sin"]), expected, rtol=1e-11, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    ndim=st.integers(0, 40),
    extra_tokens=st.integers(0, 2),
    length_from_ndim=st.booleans(),
    positions=st.sampled_from(["none", "learned"]),
)
def test_embedding(ndim, extra_tokens, length_from_ndim, positions):
    D, rows = 8, 3
    needed = math.ceil(ndim / D)
    length = 0 if length_from_ndim or ndim == 0 else needed + extra_tokens
    prefix_len = 0 if ndim == 0 else length or needed
    arch = make_arch(puzzle_emb_ndim=ndim, puzzle_emb_len=length, positions=positions)
    assert arch.model.prefix_len == prefix_len
    weights, tokens = init_weights(arch, 0), random_tokens(arch, rows)
    vectors = random_tensor(rows, ndim) if ndim else None
    expected = np.zeros((rows, prefix_len + 5, D))
    for row in range(rows):
        for j in range(ndim):
            expected[row, j // D, j % D] = vectors[row, j]
        for c in range(5):
            expected[row, prefix_len + c] = weights["embed_tokens"][tokens[row, c]]
    if positions == "learned":
        expected = (expected + weights["embed_positions"].numpy()) * math.sqrt(1 / 2)
    result = embed(arch, weights, vectors, tokens)
    np.testing.assert_allclose(result, math.sqrt(D) * expected, rtol=1e-12)


def test_puzzle_embedding_table():
    assert init_puzzle_embedding(make_arch()) is None
    table = init_puzzle_embedding(make_arch(puzzle_emb_ndim=12, identifiers=4))
    assert table.shape == (4, 12)
    assert not table.any()


@pytest.mark.parametrize("model", [{}, {"mixer": "attention", "positions": "rope"}, {"positions": "learned"}])
def test_bfloat16_forward(model):
    narrow = make_arch(dtype=torch.bfloat16, hidden_size=64, puzzle_emb_ndim=64, **model)
    wide = replace(narrow, dtype=torch.float64)
    assert narrow.master_dtype == torch.float32
    weights, buffers = init_weights(narrow, 0), init_buffers(narrow, 0)
    weights["q_head.weight"] = random_tensor(2, 64, dtype=torch.float32)
    before = {k: w.clone() for k, w in weights.items()}
    vectors, tokens = random_tensor(2, 64, dtype=torch.float32), random_tokens(narrow, 2)
    out = forward(narrow, weights, buffers, vectors, with_latents(narrow, buffers, 2), tokens)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[k], before[k]) for k in weights)
    assert out.logits.dtype == torch.bfloat16
    assert {z.dtype for z in out.latents.values()} == {torch.bfloat16}
    assert out.q_halt.dtype == out.q_continue.dtype == torch.float32
    exact_fixed = init_buffers(wide, 0) | {k: f.double() for k, f in buffers.items() if k.startswith("init.")}
    exact = forward(
        wide,
        {k: w.double() for k, w in weights.items()},
        exact_fixed,
        vectors.double(),
        with_latents(wide, exact_fixed, 2),
        tokens,
    )
    assert (out.logits.double() - exact.logits).abs().max() < 0.05 * exact.logits.abs().max()


def test_float64_forward_is_float64_throughout():
    arch = make_arch(mixer="attention", positions="rope")
    weights, buffers, tokens = init_weights(arch, 0), init_buffers(arch, 0), random_tokens(arch, 2)
    out = forward(arch, weights, buffers, None, with_latents(arch, buffers, 2), tokens)
    assert {t.dtype for t in (*out.latents.values(), *buffers.values(), out.logits, out.q_halt)} == {torch.float64}


@pytest.mark.parametrize(("mixer", "positions"), [("mlp", "none"), ("attention", "rope")])
def test_weights_of_each_device_compute_the_same_and_their_gradients_add_up(mixer, positions):
    """Where rows are split over devices the gradient is summed over them once, after the recursion's passes."""
    arch = make_arch(mixer=mixer, positions=positions)
    inputs, buffers = random_tokens(arch, 6), init_buffers(arch, 0)
    found = []
    for devices in (1, 3):
        split = replace(arch, num_devices=devices)
        weights = {name: weight.requires_grad_() for name, weight in init_weights(arch, 0).items()}
        out = forward(split, weights, buffers, None, with_latents(split, buffers, 6), inputs)
        names = [name for name in weights if name.startswith("net.")]
        grads = torch.autograd.grad(out.logits.square().sum() + out.latents["z_L"].sum(), [weights[name] for name in names])
        found.append({"logits": out.logits, **dict(zip(names, grads, strict=True))})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-10, atol=1e-12)
