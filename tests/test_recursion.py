"""Each recursion against a loop written out with .detach() in the place of no_grad: values, gradients, network calls."""

import numpy as np
import pytest
import torch

from trm.core.recursion import Networks
from trm.core.variants import VARIANTS

B, L, D = 2, 3, 4
SIZES = [(1, 1), (1, 3), (2, 1), (3, 2), (4, 3)]


def tensors(n):
    """x, the networks' matrices and the initial latents, all leaves with gradient."""
    random = np.random.default_rng(5)

    def leaf(*shape):
        return torch.from_numpy(random.normal(size=shape)).requires_grad_()

    latents = {name: leaf(B, L, D) for name in ("z_H", "z_L", *(f"z_L{i}" for i in range(n)))}
    return leaf(B, L, D), leaf(D, D), leaf(D, D), latents


class CountingNet:
    """(h, u) -> tanh(h W) + u / 7 that counts its calls, and those inside no_grad."""

    def __init__(self, weight):
        self.weight, self.calls, self.calls_without_gradient = weight, 0, 0

    def __call__(self, h, u):
        self.calls += 1
        self.calls_without_gradient += not torch.is_grad_enabled()
        return torch.tanh(h @ self.weight) + u / 7  # so that it matters which latent is replaced


def written_out(name, f_L, f_H, latents, x, T, n):
    """The paper's pseudo-code: one list of latents, detached where the gradient must not pass."""
    y = latents["z_H"]
    z = [latents[z] for z in VARIANTS[name].latents(n)[1:]]
    for t in range(T):
        for i in range(n):
            if name == "single_state" and i == n - 1:
                break
            if name in ("single_z", "single_state"):
                y = f_L(x + y, y)
            elif name == "multi_scale_z":
                z[i] = f_L(x + y + sum(z), z[i])
            else:
                z = [f_L(x + y + z[0], z[0])]
            if name == "one_step_gradient" and i < n - 1:  # only the last update of z keeps its gradient
                z = [z[0].detach()]
        y = f_H(y + x if name == "single_state" else y + sum(z), y)
        if t < T - 1:
            y, z = y.detach(), [part.detach() for part in z]
    if name in ("single_z", "single_state"):
        return {"z_H": y}
    if name == "multi_scale_z":
        return {"z_H": y} | {f"z_L{i}": part for i, part in enumerate(z)}
    return {"z_H": y, "z_L": z[0]}


def gradients(result, leaves):
    random = np.random.default_rng(6)
    loss = sum((torch.from_numpy(random.normal(size=(B, L, D))) * result[name]).sum() for name in sorted(result))
    return torch.autograd.grad(loss, leaves, allow_unused=True)


@pytest.mark.parametrize(("T", "n"), SIZES)
@pytest.mark.parametrize("separate", [False, True], ids=["one-net", "two-nets"])
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_values_gradients_and_numbers_of_network_calls(name, separate, T, n):
    x, w_L, w_H, all_latents = tensors(n)
    if not separate:
        w_H = w_L
    names = VARIANTS[name].latents(n)
    latents = {z: all_latents[z] for z in names}
    f_L, f_H = CountingNet(w_L), CountingNet(w_H)
    ours = VARIANTS[name].run(Networks(f_L, f_H, {}), latents, x, T, n)
    updates = n - 1 if name == "single_state" else n  # of which URM makes the last one by f_H
    assert (f_L.calls, f_H.calls) == (T * updates, T)
    with_gradient = (f_L.calls - f_L.calls_without_gradient, f_H.calls - f_H.calls_without_gradient)
    assert with_gradient == ((1, 1) if name == "one_step_gradient" else (updates, 1))
    theirs = written_out(name, f_L, f_H, latents, x, T, n)
    assert set(ours) == set(names) == set(theirs)
    for z in names:
        torch.testing.assert_close(ours[z], theirs[z], rtol=1e-12, atol=1e-12)
    leaves = [x, w_L, w_H, *latents.values()] if separate else [x, w_L, *latents.values()]
    for i, (our, their) in enumerate(zip(gradients(ours, leaves), gradients(theirs, leaves), strict=True)):
        our, their = (torch.zeros(()) if g is None else g for g in (our, their))
        assert our.any() == their.any(), i
        if their.any():
            torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-12)


def test_the_answer_comes_first_in_every_variant():
    assert {name: v.latents(3)[0] for name, v in VARIANTS.items()} == dict.fromkeys(VARIANTS, "z_H")
    assert VARIANTS["multi_scale_z"].latents(3) == ("z_H", "z_L0", "z_L1", "z_L2")
    assert len(VARIANTS["multi_scale_z"].latents(6)) == 7  # n+1 latents
    assert VARIANTS["single_z"].latents(6) == ("z_H",)
