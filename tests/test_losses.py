"""Losses against numpy float64 and torch's cross_entropy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trm.config import IGNORE_LABEL
from trm.core.losses import binary_cross_entropy, cell_cross_entropy, log_stablemax

finite = st.floats(-1e4, 1e4, allow_nan=False)


def np_log_stablemax(x):
    s = np.array([1 / (1 - v) if v < 0 else v + 1 for v in x.ravel()]).reshape(x.shape)
    return np.log(s) - np.log(s.sum(-1, keepdims=True))


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=finite))
def test_stablemax_is_the_formula_and_a_distribution(x):
    ours = log_stablemax(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, np_log_stablemax(x), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(np.exp(ours).sum(-1), 1, rtol=1e-9)


def test_stablemax_gradient():
    x = torch.tensor([[-2.0, -0.5, 0.0, 1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.3, -1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    (ours,) = torch.autograd.grad((log_stablemax(x) * weights).sum(), x)
    values = x.detach().numpy()[0]  # 1.0 among them: 1/(1-x) of the other branch has its pole there
    s = np.where(values < 0, 1 / (1 + np.abs(values)), values + 1)
    slope = np.where(values < 0, s**2, 1.0)  # both sides of 0 have slope 1
    expected = slope * (weights.numpy() / s - weights.numpy().sum() / s.sum())
    np.testing.assert_allclose(ours[0], expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["stablemax", "softmax"])
def test_gradient_is_finite_for_large_logits(kind, dtype):
    logits = torch.tensor([[[-1e4, 1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]]], dtype=dtype, requires_grad=True)
    for label in range(3):
        loss = cell_cross_entropy(logits, torch.full((1, 3), label, dtype=torch.int32), kind, dtype)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()
        assert gradient.any()


@pytest.mark.parametrize("kind", ["stablemax", "softmax"])
def test_ignored_cells_have_no_loss_and_no_gradient(kind):
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(3, 4, 5))).requires_grad_()
    labels = torch.tensor([[1, IGNORE_LABEL, 0, IGNORE_LABEL], [IGNORE_LABEL] * 4, [4, 3, 2, 1]], dtype=torch.int32)
    loss = cell_cross_entropy(logits, labels, kind, torch.float64)
    values = logits.detach().numpy()
    shares = np_log_stablemax(values) if kind == "stablemax" else values - np.log(np.exp(values).sum(-1, keepdims=True))
    expected = [
        -(shares[0, 0, 1] + shares[0, 2, 0]) / 2,  # the mean is over the labelled cells
        0,
        -(shares[2, 0, 4] + shares[2, 1, 3] + shares[2, 2, 2] + shares[2, 3, 1]) / 4,
    ]
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    ignored = (labels == IGNORE_LABEL).numpy()
    assert not gradient.numpy()[ignored].any()
    assert gradient.numpy()[~ignored].any(-1).all()


@pytest.mark.parametrize(("forward", "loss"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_logits_are_widened_before_the_loss(forward, loss):
    logits = (3 * torch.from_numpy(np.random.default_rng(2).normal(size=(2, 3, 4)))).to(forward)
    labels = torch.tensor([[0, 1, 2], [3, IGNORE_LABEL, 0]], dtype=torch.int32)
    ours = cell_cross_entropy(logits, labels, "stablemax", loss)
    exact = cell_cross_entropy(logits.double(), labels, "stablemax", torch.float64)
    assert ours.dtype == loss
    np.testing.assert_allclose(ours.double(), exact, rtol=1e-6 if loss == torch.float32 else 1e-13)


@settings(deadline=None)
@given(hnp.arrays(np.float64, 4, elements=finite), hnp.arrays(np.float64, 4, elements=st.floats(0, 1)))
def test_binary_cross_entropy(x, target):
    ours = binary_cross_entropy(torch.from_numpy(x), torch.from_numpy(target)).numpy()
    expected = target * np.logaddexp(0, -x) + (1 - target) * np.logaddexp(0, x)
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12 + 1e-15 * np.abs(x).max())  # a difference of terms like x


def test_binary_cross_entropy_takes_boolean_targets():
    ours = binary_cross_entropy(torch.tensor([-5.0, -5.0], dtype=torch.float64), torch.tensor([True, False]))
    np.testing.assert_allclose(ours, [np.log1p(np.exp(5)), np.log1p(np.exp(-5))], rtol=1e-12)
