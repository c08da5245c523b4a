"""Schedule, update rules and EMA against formulas written out in numpy and against torch.optim."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trm.config import OptimizerConfig
from trm.core.optim import learning_rate, update_puzzle_embedding
from trm.core.optimizers import OPTIMIZERS


def scalar(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def lr_at(step, total_steps=10_000, dtype=torch.float64, **settings):
    return learning_rate(1e-4, scalar(step, dtype), OptimizerConfig(**settings), total_steps).item()


def random_tensors(seed, shapes):
    random = np.random.default_rng(seed)
    return {name: torch.from_numpy(random.normal(size=shape)) for name, shape in shapes.items()}


SHAPES = {"matrix": (4, 3), "q_head.bias": (2,)}


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


PUZZLE = OptimizerConfig(puzzle_emb_lr=0.1, puzzle_emb_weight_decay=0.5, warmup_steps=4)


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
