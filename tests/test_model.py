"""The network against numpy float64 and torch's own functions, where the recorded parity cases do not reach."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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
from trm.core.model import attention, embed, forward, network, rms_norm, rotate, swiglu

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


# a second implementation, in numpy float64 -------------------------------------------------------------------------------------


def np_norm(x, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def np_swiglu(x, gate_up, down):
    both = x @ gate_up.T
    gate, up = both[..., : both.shape[-1] // 2], both[..., both.shape[-1] // 2 :]
    return (gate / (1 + np.exp(-gate)) * up) @ down.T


def np_mlp_network(w, name, num_layers, h):
    for i in range(num_layers):
        for row in range(len(h)):
            columns = h[row].T  # [D, L]
            mixed = columns + np_swiglu(columns, w[f"{name}.{i}.token_mlp.gate_up"], w[f"{name}.{i}.token_mlp.down"])
            h[row] = np_norm(mixed).T
        h = np_norm(h + np_swiglu(h, w[f"{name}.{i}.mlp.gate_up"], w[f"{name}.{i}.mlp.down"]))
    return h


# sizes -------------------------------------------------------------------------------------------------------------------------


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


# initial values ----------------------------------------------------------------------------------------------------------------


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


# pieces ------------------------------------------------------------------------------------------------------------------------


def test_rms_norm():
    x = random_tensor(3, 4, 6)
    np.testing.assert_allclose(rms_norm(x, 1e-5), np_norm(x.numpy()), rtol=1e-13)
    np.testing.assert_allclose(rms_norm(x, 0.5), np_norm(x.numpy(), 0.5), rtol=1e-13)
    # in bfloat16 the mean is taken in float32: the result is the rounded exact one
    narrow = (100 * x).to(torch.bfloat16)
    expected = torch.from_numpy(np_norm(narrow.double().numpy())).float()
    assert rms_norm(narrow, 1e-5).dtype == torch.bfloat16
    torch.testing.assert_close(rms_norm(narrow, 1e-5).float(), expected, rtol=2**-8, atol=0)


def test_swiglu_takes_the_gate_first():
    x, gate_up, down = random_tensor(2, 3, 4), random_tensor(10, 4, seed=1), random_tensor(4, 5, seed=2)
    np.testing.assert_allclose(
        swiglu(make_arch(), x, gate_up, down), np_swiglu(x.numpy(), gate_up.numpy(), down.numpy()), rtol=1e-12
    )


@pytest.mark.parametrize("num_layers", [1, 3])
def test_mlp_network_norms_over_the_token_axis(num_layers):
    arch = make_arch(num_layers=num_layers)
    weights = init_weights(arch, seed=1)
    h = 3 * random_tensor(2, arch.num_tokens, 8)
    expected = np_mlp_network({k: w.numpy() for k, w in weights.items()}, "net", num_layers, h.numpy().copy())
    np.testing.assert_allclose(network(arch, weights, {}, "net")(h), expected, rtol=1e-10)


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


def test_rope_scores_depend_on_the_distance_alone():
    arch = make_arch(mixer="attention", positions="rope", hidden_size=16, seq_len=12)
    buffers = init_buffers(arch, 0)
    q, k = (random_tensor(8, seed=s).expand(1, 12, 1, 8) for s in (0, 1))
    turned_q, turned_k = (rotate(t, buffers["rope.cos"], buffers["rope.sin"])[0, :, 0] for t in (q, k))
    scores = (turned_q @ turned_k.T).numpy()
    for offset in range(-5, 6):
        diagonal = np.diagonal(scores, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-9)


@pytest.mark.parametrize("positions", ["none", "rope"])
def test_attention_equals_torch_attention(positions):
    arch = make_arch(mixer="attention", positions=positions, hidden_size=24, num_heads=3, seq_len=6)
    weights, buffers = init_weights(arch, 2), init_buffers(arch, 0)
    h = random_tensor(2, 6, 24, seed=4)
    q, k, v = (h @ part.T for part in weights["net.1.attention.qkv"].split(24))
    q, k, v = (t.view(2, 6, 3, 8).transpose(1, 2) for t in (q, k, v))
    if positions == "rope":
        q, k = (rotate(t.transpose(1, 2), buffers["rope.cos"], buffers["rope.sin"]).transpose(1, 2) for t in (q, k))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 6, 24)
    expected = mixed @ weights["net.1.attention.out"].T
    torch.testing.assert_close(attention(arch, weights, buffers, "net.1", h), expected, rtol=1e-10, atol=1e-12)


def test_attention_network_is_post_norm():
    arch = make_arch(mixer="attention", num_layers=1)
    weights = init_weights(arch, 2)
    h = random_tensor(2, 5, 8)
    middle = np_norm((h + attention(arch, weights, {}, "net.0", h)).numpy())
    expected = np_norm(middle + np_swiglu(middle, weights["net.0.mlp.gate_up"].numpy(), weights["net.0.mlp.down"].numpy()))
    np.testing.assert_allclose(network(arch, weights, {}, "net")(h), expected, rtol=1e-10)


# input embedding ---------------------------------------------------------------------------------------------------------------


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


# forward -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_heads_read_the_answer_after_the_prefix_and_its_first_token(mixer):
    arch = make_arch(mixer=mixer, puzzle_emb_ndim=20)
    weights, buffers = init_weights(arch, 0), init_buffers(arch, 0)
    weights["q_head.weight"] = random_tensor(2, 8, seed=9)
    vectors, tokens = random_tensor(2, 20), random_tokens(arch, 2)
    out = forward(arch, weights, buffers, vectors, with_latents(arch, buffers, 2), tokens)
    z_H = out.latents["z_H"].numpy()
    assert z_H.shape == (2, 3 + 5, 8)
    np.testing.assert_allclose(out.logits, z_H[:, 3:] @ weights["lm_head"].numpy().T, rtol=1e-10)
    q = z_H[:, 0] @ weights["q_head.weight"].numpy().T - 5
    np.testing.assert_allclose(out.q_halt, q[:, 0], rtol=1e-10)
    np.testing.assert_allclose(out.q_continue, q[:, 1], rtol=1e-10)


@pytest.mark.parametrize("separate", [False, True])
def test_forward_equals_numpy(separate):
    arch = make_arch(recursion=RecursionConfig(T=3, n=2), separate_networks=separate)
    weights, buffers, tokens = init_weights(arch, 0), init_buffers(arch, 0), random_tokens(arch, 2)
    w = {k: value.numpy() for k, value in weights.items()}

    def net(name, h):
        return np_mlp_network(w, name if separate else "net", 2, h.copy())

    x = math.sqrt(8) * w["embed_tokens"][tokens.numpy()]
    z_H, z_L = (np.broadcast_to(buffers[f"init.{z}"].numpy(), x.shape) for z in ("z_H", "z_L"))
    for _ in range(3):
        for _ in range(2):
            z_L = net("f_L", z_L + z_H + x)
        z_H = net("f_H", z_H + z_L)
    out = forward(arch, weights, buffers, None, with_latents(arch, buffers, 2), tokens)
    np.testing.assert_allclose(out.latents["z_H"], z_H, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(out.latents["z_L"], z_L, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(out.logits, z_H @ w["lm_head"].T, rtol=1e-8, atol=1e-10)


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


def test_rows_do_not_mix():
    arch = make_arch(puzzle_emb_ndim=8)
    weights, buffers, tokens, vectors = init_weights(arch, 0), init_buffers(arch, 0), random_tokens(arch, 3), random_tensor(3, 8)
    together = forward(arch, weights, buffers, vectors, with_latents(arch, buffers, 3), tokens).logits
    for row in range(3):
        alone = forward(
            arch, weights, buffers, vectors[row : row + 1], with_latents(arch, buffers, 1), tokens[row : row + 1]
        ).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-11, atol=1e-12)


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
