"""Latent recursion: how one supervision step updates the latents (paper section 4, figure 3; SPEC.md "Network").

A variant is one function here. It gets the two networks (one and the same unless model.separate_networks), the latents and the
embedded question, and returns the updated latents. `f(h, u)` is the new value of the latent u: the network's output on h, of which
recursion.damping and recursion.noise make what they are for (trm/core/model.py). Gradients flow through whatever it does outside
`torch.no_grad()`. f_H is called once in a latent recursion, at its end, and returns the answer latent: trm/show/thinking.py decodes
what passes there. T recursions are T times one, of which all but the last have no gradient.

Shape legend: B rows, L tokens (prefix + cells), D hidden size. Every latent is [B, L, D].
"""

from __future__ import annotations  # torch.compile cannot evaluate the annotations of nested functions

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trm.config import Config, register_check
from trm.errors import ConfigError

Net = Callable[[Tensor, Tensor], Tensor]  # (what the network sees, the latent that its output replaces) -> the new latent
Latents = dict[str, Tensor]
# (f_L, f_H, latents, x_BLD, T, n) -> latents
Recursion = Callable[[Net, Net, Latents, Tensor, int, int], Latents]


@dataclass(frozen=True)
class Variant:
    """A recursion and the names of the latents it carries, given n; the first one is decoded into the answer."""

    run: Recursion
    latent_names: Callable[[int], tuple[str, ...]]


VARIANTS: dict[str, Variant] = {}


def variant(name: str, latent_names: Callable[[int], tuple[str, ...]]) -> Callable[[Recursion], Recursion]:
    """Register a recursion under the name that `recursion.variant` selects."""

    def register(run: Recursion) -> Recursion:
        VARIANTS[name] = Variant(run, latent_names)
        return run

    return register


@register_check
def check_variant(cfg: Config) -> None:
    """Raise ConfigError for a recursion that is not registered, or a curriculum that would change its latents."""
    recursion = cfg.recursion
    if recursion.variant not in VARIANTS:
        raise ConfigError(f"recursion.variant={recursion.variant} is unknown: choose one of {', '.join(VARIANTS)}")
    latent_names, heads = VARIANTS[recursion.variant].latent_names, cfg.latents.heads
    if heads > 1 and len(latent_names(recursion.n)) == 1:
        raise ConfigError(
            f"latents.heads={heads} copies the latents beside the answer, and recursion.variant={recursion.variant} has none: set "
            "latents.heads=1 or recursion.variant=trm"
        )
    if heads > 1 and recursion.act_continue:
        raise ConfigError(f"latents.heads={heads} has no continue loss: set recursion.act_continue=false or latents.heads=1")
    if recursion.variant == "single_state" and cfg.model.separate_networks:
        raise ConfigError("recursion.variant=single_state has one network: set model.separate_networks=false")
    if any(latent_names(phase.n) != latent_names(recursion.n) for phase in recursion.curriculum):
        raise ConfigError(
            f"recursion.curriculum: recursion.variant={recursion.variant} has other latents with another n: give every phase "
            f"n={recursion.n}"
        )


@variant("trm", lambda n: ("z_H", "z_L"))
def trm(f_L: Net, f_H: Net, latents: Latents, x: Tensor, T: int, n: int) -> Latents:
    """The paper's recursion: T-1 latent recursions without gradient, then one with full backpropagation."""
    z_H, z_L = latents["z_H"], latents["z_L"]

    def latent_recursion(z_H: Tensor, z_L: Tensor) -> tuple[Tensor, Tensor]:
        injection = z_H + x
        for _ in range(n):
            z_L = f_L(z_L + injection, z_L)
        return f_H(z_H + z_L, z_H), z_L

    with torch.no_grad():
        for _ in range(T - 1):
            z_H, z_L = latent_recursion(z_H, z_L)
    z_H, z_L = latent_recursion(z_H, z_L)
    return {"z_H": z_H, "z_L": z_L}


@variant("one_step_gradient", lambda n: ("z_H", "z_L"))
def one_step_gradient(f_L: Net, f_H: Net, latents: Latents, x: Tensor, T: int, n: int) -> Latents:
    """HRM's approximation: gradient through the last update of z_L and the last update of z_H only (paper section 3.1)."""
    z_H, z_L = latents["z_H"], latents["z_L"]
    with torch.no_grad():
        for t in range(T):
            injection = z_H + x
            for _ in range(n if t < T - 1 else n - 1):
                z_L = f_L(z_L + injection, z_L)
            if t < T - 1:
                z_H = f_H(z_H + z_L, z_H)
    z_L = f_L(z_L + (z_H + x), z_L)
    return {"z_H": f_H(z_H + z_L, z_H), "z_L": z_L}


@variant("single_z", lambda n: ("z_H",))
def single_z(f_L: Net, f_H: Net, latents: Latents, x: Tensor, T: int, n: int) -> Latents:
    """Ablation "single z" (paper table 2): one latent is answer and reasoning; n updates with the question, one without."""
    z = latents["z_H"]

    def latent_recursion(z: Tensor) -> Tensor:
        for _ in range(n):
            z = f_L(z + x, z)
        return f_H(z, z)

    with torch.no_grad():
        for _ in range(T - 1):
            z = latent_recursion(z)
    return {"z_H": latent_recursion(z)}


@variant("single_state", lambda n: ("z_H",))
def single_state(f_L: Net, f_H: Net, latents: Latents, x: Tensor, T: int, n: int) -> Latents:
    """URM (arXiv 2512.14693): one latent; n updates, each with the question."""
    h = latents["z_H"]

    def latent_recursion(h: Tensor) -> Tensor:
        for _ in range(n - 1):
            h = f_L(h + x, h)
        return f_H(h + x, h)

    with torch.no_grad():
        for _ in range(T - 1):
            h = latent_recursion(h)
    return {"z_H": latent_recursion(h)}


@variant("multi_scale_z", lambda n: ("z_H", *(f"z_L{i}" for i in range(n))))
def multi_scale_z(f_L: Net, f_H: Net, latents: Latents, x: Tensor, T: int, n: int) -> Latents:
    """Ablation "multi-scale z" (paper table 2): n latents beside the answer; update i rewrites latent i from the sum of all."""
    z_H, scales = latents["z_H"], [latents[f"z_L{i}"] for i in range(n)]

    def total(scales: list[Tensor]) -> Tensor:
        out = scales[0]
        for z in scales[1:]:
            out = out + z
        return out

    def latent_recursion(z_H: Tensor, scales: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        injection = z_H + x
        for i in range(n):
            scales = [*scales[:i], f_L(total(scales) + injection, scales[i]), *scales[i + 1 :]]
        return f_H(z_H + total(scales), z_H), scales

    with torch.no_grad():
        for _ in range(T - 1):
            z_H, scales = latent_recursion(z_H, scales)
    z_H, scales = latent_recursion(z_H, scales)
    return {"z_H": z_H} | {f"z_L{i}": z for i, z in enumerate(scales)}
