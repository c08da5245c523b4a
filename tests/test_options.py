"""The options that may be faster to the same accuracy (conf/option/): each against a plain reference, and their bad input."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_step import make, make_batch

from trm.cli import compose
from trm.config import OptimizerConfig, Phase, RecursionConfig
from trm.core.architecture import architecture
from trm.core.initial import init_weights
from trm.core.losses import binary_cross_entropy, cell_cross_entropy
from trm.core.optim import clip_gradients
from trm.core.optimizers import OPTIMIZERS
from trm.core.optimizers.muon import direction, orthogonalized
from trm.core.recursion import stages
from trm.core.step import loss_and_grads, supervision_weights, train_step
from trm.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["data=sudoku_4x4", "model=tiny", "recursion=t3_n6", "run_name=r"]


def random_matrix(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# the options -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("recursion.curriculum=[{until:0.6,T:1,n:2},{until:0.3,T:2,n:4}]", "[0.6, 0.3]"),
        ("recursion.curriculum=[{until:1,T:1,n:2}]", "recursion.curriculum[0].until=1.0"),
        ("recursion.curriculum=[{until:0.3,T:0,n:2}]", "recursion.curriculum[0].T=0"),
        ("recursion.curriculum=[{until:0.3,T:1}]", "recursion.curriculum[0].n"),
        ("recursion.curriculum=[{until:0.3,T:1,n:2,m:3}]", "recursion.curriculum: its entries have no key m"),
        ("recursion.curriculum=[7]", "recursion.curriculum[0]"),
        ("recursion={variant:multi_scale_z,curriculum:[{until:0.3,T:1,n:2}]}", "give every phase n=6"),
    ],
)
def test_bad_input_is_named(override, words):
    with pytest.raises(ConfigError) as raised:
        compose([*SMALL, override])
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


# curriculum --------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 0.99), unique=True, max_size=4), st.integers(1, 10**6))
@settings(deadline=None)
def test_stages_cover_every_step_once_and_end_at_full_depth(ends, total_steps):
    phases = [Phase(until, T, 1) for T, until in enumerate(sorted(ends), 1)]
    found = stages(RecursionConfig(curriculum=phases), total_steps)
    assert (found[0].start, found[-1].stop) == (0, total_steps)
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))
    assert all(stage.start < stage.stop for stage in found)
    assert (found[-1].recursion.T, found[-1].recursion.n) == (3, 6)
    for stage in found[:-1]:
        assert abs(stage.stop - phases[stage.recursion.T - 1].until * total_steps) <= (0.5 if stage.stop < total_steps - 1 else 1)


def test_without_a_curriculum_the_one_stage_is_the_run():
    cfg = RecursionConfig()
    (stage,) = stages(cfg, 10)
    assert (stage.start, stage.stop, stage.recursion) == (0, 10, cfg)


# weights of supervision steps --------------------------------------------------------------------------------------------------


def test_supervision_weights():
    steps = torch.arange(1, 17, dtype=torch.int32)
    weights = supervision_weights(RecursionConfig(supervision_decay=0.7), steps, torch.float64)
    np.testing.assert_allclose(
        weights[1:] / weights[:-1], 0.7, rtol=1e-12
    )  # in the master dtype, not that of a Python float times an int32 tensor
    assert weights.mean().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("act_continue", [False, True])
def test_each_row_is_weighted_by_its_own_supervision_step(act_continue):
    cfg, state, buffers = make(rows=6, supervision_decay=0.5, act_continue=act_continue)
    plain = dataclasses.replace(
        cfg, arch=dataclasses.replace(cfg.arch, recursion=dataclasses.replace(cfg.arch.recursion, supervision_decay=1.0))
    )
    for seed in range(3):  # by then the rows are in different steps
        state, _ = train_step(cfg, state, buffers, make_batch(6, seed))
    batch = make_batch(6, 3)
    _, carry, out = loss_and_grads(cfg, state, buffers, batch)
    assert len(set(carry.steps.tolist())) > 1
    weights = supervision_weights(cfg.arch.recursion, carry.steps, torch.float64)
    if act_continue:  # its losses are not in the outputs: the weighted loss lies between the smallest and the largest weight
        loss = loss_and_grads(plain, state, buffers, batch)[2].loss
        assert weights.min() * loss < out.loss < weights.max() * loss
        return
    labelled = carry.labels != -100
    exact = ((out.logits.argmax(-1) == carry.labels) | ~labelled).all(-1)
    rows = cell_cross_entropy(out.logits, carry.labels, "stablemax", torch.float64) + 0.5 * binary_cross_entropy(out.q_halt, exact)
    assert out.loss.item() == pytest.approx(((weights * rows).sum() / 6).item(), rel=1e-9)


def test_rows_in_one_supervision_step_have_its_weight():
    cfg, state, buffers = make(rows=4, supervision_decay=0.5, n_sup=3)
    plain = dataclasses.replace(
        cfg, arch=dataclasses.replace(cfg.arch, recursion=dataclasses.replace(cfg.arch.recursion, supervision_decay=1.0))
    )
    batch = make_batch()
    (grads, _), _, out = loss_and_grads(cfg, state, buffers, batch)
    (plain_grads, _), _, plain_out = loss_and_grads(plain, state, buffers, batch)
    weight = 3 / (1 + 0.5 + 0.25)
    assert out.loss.item() == pytest.approx(weight * plain_out.loss.item(), rel=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, weight * plain_grads[name], rtol=1e-6, atol=1e-12)
    terms = slice(0, -2)  # logged losses stay those of the paper; the norms are of the weighted gradient
    torch.testing.assert_close(out.sums[terms], plain_out.sums[terms], rtol=0, atol=0)


# muon and clipping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5), (64, 16)])
def test_orthogonalized_keeps_directions_and_evens_out_lengths(shape):
    matrix = random_matrix(0, *shape)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalized(matrix) @ vt.T  # diagonal where the singular vectors are kept
    values = inner.diagonal()
    torch.testing.assert_close(inner, values.diag(), rtol=0, atol=1e-9)
    assert 0.6 < values.min() <= values.max() < 1.3
    torch.testing.assert_close(orthogonalized(1e6 * matrix), orthogonalized(matrix), rtol=1e-9, atol=1e-9)
    assert torch.equal(orthogonalized(0 * matrix), 0 * matrix)


def test_muon_moves_as_torch_does():
    """torch iterates in bfloat16, so its directions are right to two digits; the momentum is equal."""
    shapes = {"net.0.mlp.down": (24, 16), "net.0.token_mlp.down": (10, 32)}
    start = {name: random_matrix(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    theirs = {name: w.clone().requires_grad_() for name, w in start.items()}
    optimizer = torch.optim.Muon(theirs.values(), lr=0.1, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    cfg = OptimizerConfig(name="muon", weight_decay=0.3, momentum=0.9)
    muon = OPTIMIZERS["muon"]
    ours, buffers = start, muon.init(cfg, start)
    assert buffers["v"] == {}
    for t in range(1, 5):
        grads = {name: random_matrix(10 * t + i, *shape) for i, (name, shape) in enumerate(shapes.items())}
        for name, w in theirs.items():
            w.grad = grads[name]
        optimizer.step()
        ours, buffers = muon.update(cfg, ours, buffers, grads, torch.tensor(float(t)).double(), torch.tensor(0.1).double())
    for name, w in theirs.items():
        torch.testing.assert_close(buffers["momentum"][name], optimizer.state[w]["momentum_buffer"], rtol=1e-12, atol=1e-12)
        moved, moved_theirs = ours[name] - start[name], w.detach() - start[name]
        assert (moved - moved_theirs).norm() < 0.02 * moved.norm()


def test_matrices_that_share_a_weight_are_made_orthogonal_each_by_itself():
    gate, up = random_matrix(0, 12, 5), 100 * random_matrix(1, 12, 5)
    both = direction(torch.cat([gate, up]), 2)
    torch.testing.assert_close(both, torch.cat([direction(gate), direction(up)]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", ["mlp", "attention"])
def test_muon_is_for_the_matrices_of_the_blocks_alone(model):
    cfg = compose(["data=sudoku_4x4", "run_name=r", f"model={model}", "model.hidden_size=32", "model.positions=learned"])
    arch = architecture(cfg, seq_len=16, vocab_size=6, num_puzzle_identifiers=1)
    weights = init_weights(arch, 0) | {"variant.head": torch.ones(4, 32)}
    grads = {name: torch.randn(w.shape, generator=torch.Generator().manual_seed(0)) for name, w in weights.items()}
    muon, step, lr = dataclasses.replace(cfg.optimizer, name="muon"), torch.tensor(1.0), torch.tensor(0.1)
    rules = [OPTIMIZERS[name] for name in ("muon", "adam_atan2")]
    (moved, buffers), (as_adam, _) = (rule.update(muon, weights, rule.init(muon, weights), grads, step, lr) for rule in rules)
    same = {name for name in weights if torch.equal(moved[name], as_adam[name])}
    assert (
        same
        == {"embed_tokens", "embed_positions", "lm_head", "q_head.weight", "q_head.bias", "variant.head"}
        == buffers["v"].keys()
    )
    for name in weights.keys() - same:  # as large as an update of Adam: 0.2 of the learning rate for each value
        change = (moved[name] - weights[name] * (1 - 0.1 * muon.weight_decay)) / 0.1
        assert 0.1 < change.square().mean().sqrt() < 0.3


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e6])
def test_clipping_equals_torch(max_norm):
    grads = {"a": random_matrix(0, 4, 3), "b": random_matrix(1, 5)}
    theirs = {name: torch.zeros_like(grad).requires_grad_() for name, grad in grads.items()}
    for name, w in theirs.items():
        w.grad = grads[name].clone()
    torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm)
    for name, grad in clip_gradients(grads, max_norm).items():
        torch.testing.assert_close(grad, theirs[name].grad, rtol=1e-12, atol=0)
    assert clip_gradients(grads, None) is grads


def test_the_step_clips_what_the_optimizer_gets():
    cfg, state, buffers = make(puzzle_emb_ndim=0)
    batch = make_batch()
    state, out = train_step(cfg, state, buffers, batch)
    clipped = dataclasses.replace(cfg, optimizer=dataclasses.replace(cfg.optimizer, clip_grad_norm=1e-3))
    new, out = train_step(clipped, state, buffers, batch)
    scaled = clip_gradients(out.grads, 1e-3)
    step, lr = torch.tensor([2.0, 0.01 * 2 / 3], dtype=torch.float64)
    expected, _ = OPTIMIZERS[cfg.optimizer.name].update(cfg.optimizer, state.weights, state.optimizer, scaled, step, lr)
    for name, w in expected.items():
        torch.testing.assert_close(new.weights[name], w, rtol=1e-9, atol=1e-12)
    assert out.sums[-2].item() == pytest.approx(math.sqrt(sum((g**2).sum().item() for g in out.grads.values())))
