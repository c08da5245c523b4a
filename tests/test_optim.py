"""Schedule, update rules and EMA against formulas written out in numpy and against torch.optim."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trm.config import OptimizerConfig
from trm.core.optim import learning_rate, update_ema, update_puzzle_embedding
from trm.core.optimizers import OPTIMIZERS


def scalar(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def lr_at(step, total_steps=10_000, dtype=torch.float64, **settings):
    return learning_rate(1e-4, scalar(step, dtype), OptimizerConfig(**settings), total_steps).item()


def random_tensors(seed, shapes):
    random = np.random.default_rng(seed)
    return {name: torch.from_numpy(random.normal(size=shape)) for name, shape in shapes.items()}


SHAPES = {"matrix": (4, 3), "q_head.bias": (2,)}


# schedule ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warm_up(schedule, dtype):
    for step, expected in ((1, 1e-4 / 2000), (2, 1e-4 / 1000), (500, 2.5e-5), (1999, 1e-4 * 1999 / 2000), (2000, 1e-4)):
        assert lr_at(step, dtype=dtype, schedule=schedule) == pytest.approx(expected, rel=1e-6)


def test_constant_after_warm_up():
    assert lr_at(2001) == lr_at(10**7) == 1e-4


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warm_up(warmup):
    for step in (1, 2, 100):
        assert lr_at(step, warmup_steps=warmup) == 1e-4
    assert math.isfinite(lr_at(1, total_steps=1, warmup_steps=warmup, schedule="cosine"))


@pytest.mark.parametrize("min_ratio", [0.0, 0.1, 1.0])
def test_cosine(min_ratio):
    def at(step):
        return lr_at(step, total_steps=1100, warmup_steps=100, schedule="cosine", lr_min_ratio=min_ratio)

    assert at(100) == pytest.approx(1e-4)
    assert at(600) == pytest.approx(1e-4 * (1 + min_ratio) / 2)  # halfway between
    assert at(350) == pytest.approx(1e-4 * (min_ratio + (1 - min_ratio) * (1 + math.sqrt(0.5)) / 2))
    assert at(1100) == pytest.approx(1e-4 * min_ratio, abs=1e-18)


# weights -----------------------------------------------------------------------------------------------------------------------


def run_updates(cfg, weights, grads_of_steps, lr):
    rule = OPTIMIZERS[cfg.name]
    buffers = rule.init(cfg, weights)
    for t, grads in enumerate(grads_of_steps, 1):
        weights, buffers = rule.update(cfg, weights, buffers, grads, scalar(float(t)), scalar(lr))
    return weights, buffers["m"], buffers["v"]


def test_adamw_equals_torch():
    cfg = OptimizerConfig(name="adamw", weight_decay=0.7, beta1=0.8, beta2=0.9, eps=1e-3)
    start, grads = random_tensors(0, SHAPES), [random_tensors(10 + t, SHAPES) for t in range(5)]
    theirs = {name: w.clone().requires_grad_() for name, w in start.items()}
    optimizer = torch.optim.AdamW(theirs.values(), lr=0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.7)
    for step in grads:
        for name, w in theirs.items():
            w.grad = step[name]
        optimizer.step()
    ours, m, v = run_updates(cfg, start, grads, 0.05)
    for name in SHAPES:  # every weight decays, biases too
        torch.testing.assert_close(ours[name], theirs[name].detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(m[name], optimizer.state[theirs[name]]["exp_avg"], rtol=1e-12, atol=0)
        torch.testing.assert_close(v[name], optimizer.state[theirs[name]]["exp_avg_sq"], rtol=1e-12, atol=0)


def test_adam_atan2_by_hand():
    cfg = OptimizerConfig(weight_decay=0.5, beta1=0.9, beta2=0.95)
    start, grads = random_tensors(0, SHAPES), [random_tensors(20 + t, SHAPES) for t in range(3)]
    grads[1]["matrix"][0, 0] = grads[0]["matrix"][0, 0] = 0  # atan2(0, 0) = 0
    ours, _, _ = run_updates(cfg, start, grads, 0.03)
    for name, w in start.items():
        for index in np.ndindex(*w.shape):
            p, m, v = w[index].item(), 0.0, 0.0
            for t in (1, 2, 3):
                g = grads[t - 1][name][index].item()
                m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
                p *= 1 - 0.03 * 0.5
                p -= 0.03 / (1 - 0.9**t) * math.atan2(m, math.sqrt(v) / math.sqrt(1 - 0.95**t))
            assert ours[name][index].item() == pytest.approx(p, rel=1e-12)


def test_first_adam_atan2_step_is_lr_times_arctan():
    """At step 1 m = 0.1 g and v/(1-b2) = g^2: a step of lr/0.1 * atan(0.1), whatever the gradient's size."""
    cfg = OptimizerConfig(weight_decay=0.0)
    ours, _, _ = run_updates(cfg, {"w": torch.zeros(3).double()}, [{"w": torch.tensor([1e-12, -3.0, 1e9]).double()}], 0.01)
    expected = 0.01 / 0.1 * math.atan(0.1)
    np.testing.assert_allclose(ours["w"], [-expected, expected, -expected], rtol=1e-9)


@settings(deadline=None, max_examples=25)
@given(scale=st.sampled_from([1e-6, 1e-3, 0.1, 7.0, 1e4]), seed=st.integers(0, 100))
def test_adam_atan2_does_not_see_the_scale_of_gradients(scale, seed):
    start, grads = random_tensors(seed, SHAPES), [random_tensors(seed + t, SHAPES) for t in range(4)]
    plain, _, _ = run_updates(OptimizerConfig(), start, grads, 0.02)
    scaled, _, _ = run_updates(OptimizerConfig(), start, [{k: scale * g for k, g in step.items()} for step in grads], 0.02)
    for name in SHAPES:
        torch.testing.assert_close(plain[name], scaled[name], rtol=1e-9, atol=1e-12)


def test_zero_gradient_decays_only():
    start = random_tensors(0, SHAPES)
    zeros = {k: torch.zeros_like(w) for k, w in start.items()}
    for name in ("adam_atan2", "adamw"):
        ours, _, _ = run_updates(OptimizerConfig(name=name, weight_decay=2.0), start, [zeros, zeros], 0.1)
        for k, w in start.items():
            torch.testing.assert_close(ours[k], w * 0.8 * 0.8, rtol=1e-12, atol=0)


def test_update_is_pure():
    start, grads = random_tensors(0, SHAPES), random_tensors(1, SHAPES)
    copies = [{k: t.clone() for k, t in tree.items()} for tree in (start, grads)]
    run_updates(OptimizerConfig(), start, [grads, grads], 0.1)
    for tree, copy in zip((start, grads), copies, strict=True):
        assert all(torch.equal(tree[k], copy[k]) for k in tree)


# puzzle embedding --------------------------------------------------------------------------------------------------------------

PUZZLE = OptimizerConfig(puzzle_emb_lr=0.1, puzzle_emb_weight_decay=0.5, warmup_steps=4)


def test_sign_sgd_sums_duplicates_and_touches_present_identifiers_alone():
    table = torch.arange(1, 11, dtype=torch.float64).view(5, 2)
    identifiers = torch.tensor([3, 0, 3, 3], dtype=torch.int32)
    grads = torch.tensor([[1.0, -2.0], [0.5, -9.0], [1.0, -2.0], [-2.0, 7.0]], dtype=torch.float64)
    # row 3 sums to (0, +3): the mean of signs or the last row would say otherwise; row 0 is (+, -)
    new = update_puzzle_embedding(PUZZLE, table, grads, identifiers, scalar(100.0), 1000)
    decayed = table * (1 - 0.1 * 0.5)
    expected = table.clone()
    expected[0] = decayed[0] - 0.1 * torch.tensor([1.0, -1.0]).double()
    expected[3] = decayed[3] - 0.1 * torch.tensor([0.0, 1.0]).double()  # a sum of zero still decays
    torch.testing.assert_close(new, expected, rtol=1e-12, atol=0)
    assert torch.equal(new[[1, 2, 4]], table[[1, 2, 4]])
    assert torch.equal(table, torch.arange(1, 11, dtype=torch.float64).view(5, 2))


def test_puzzle_embedding_warms_up_too():
    table = torch.ones(2, 3, dtype=torch.float64)
    new = update_puzzle_embedding(PUZZLE, table, torch.ones(1, 3).double(), torch.tensor([1]), scalar(1.0), 1000)
    np.testing.assert_allclose(new[1], 1 - 0.025 * 0.5 - 0.025, rtol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_sign_sgd_equals_a_loop(data):
    rows, num = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    identifiers = data.draw(st.lists(st.integers(0, num - 1), min_size=rows, max_size=rows))
    # small integers, so that sums are exact and often cancel
    grads = np.array(data.draw(st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=rows, max_size=rows)), dtype=np.float64)
    table = np.random.default_rng(0).normal(size=(num, 3))
    expected = table.copy()
    for identifier in set(identifiers):
        summed = sum(grads[row] for row in range(rows) if identifiers[row] == identifier)
        expected[identifier] = table[identifier] * (1 - 0.1 * 0.5) - 0.1 * np.sign(summed)
    new = update_puzzle_embedding(
        PUZZLE, torch.from_numpy(table), torch.from_numpy(grads), torch.tensor(identifiers, dtype=torch.int32), scalar(9.0), 1000
    )
    np.testing.assert_allclose(new, expected, rtol=1e-12)


# EMA ---------------------------------------------------------------------------------------------------------------------------


def test_ema():
    start = random_tensors(0, SHAPES)
    ema, expected = start, {k: w.numpy() for k, w in start.items()}
    for t in range(1, 4):  # no warm-up: the same rate from the first update
        weights = random_tensors(t, SHAPES)
        ema = update_ema(ema, weights, 0.999)
        expected = {k: 0.999 * expected[k] + 0.001 * weights[k].numpy() for k in SHAPES}
    for name in SHAPES:
        np.testing.assert_allclose(ema[name], expected[name], rtol=1e-12)
    assert update_ema({}, start, 0.999) == {}
