"""Ablation "multi-scale z" (paper table 2): n latents beside the answer; update i rewrites latent i from the sum of all."""

from torch import Tensor

from trm.core.recursion import Latents, Networks, Variant
from trm.core.variants import VARIANTS


def _total(scales: list[Tensor]) -> Tensor:
    return sum(scales[1:], scales[0])


def latent_recursion(networks: Networks, latents: Latents, x: Tensor, n: int) -> Latents:
    """z_i <- f_L(sum of all z + z_H + x) for each i; z_H <- f_H(z_H + sum of all z)."""
    z_H, scales = latents["z_H"], [latents[f"z_L{i}"] for i in range(n)]
    injection = z_H + x
    for i in range(n):
        scales[i] = networks.f_L(_total(scales) + injection, scales[i])
    return {"z_H": networks.f_H(z_H + _total(scales), z_H)} | {f"z_L{i}": z for i, z in enumerate(scales)}


VARIANTS["multi_scale_z"] = Variant(lambda n: ("z_H", *(f"z_L{i}" for i in range(n))), latent_recursion)
