"""Ablation "single z" (paper table 2): one latent is answer and reasoning; n updates with the question, one without."""

from torch import Tensor

from trm.core.recursion import Latents, Networks, Variant
from trm.core.variants import VARIANTS


def latent_recursion(networks: Networks, latents: Latents, x: Tensor, n: int) -> Latents:
    """z <- f_L(z + x), n times; z <- f_H(z)."""
    z = latents["z_H"]
    for _ in range(n):
        z = networks.f_L(z + x, z)
    return {"z_H": networks.f_H(z, z)}


VARIANTS["single_z"] = Variant(lambda n: ("z_H",), latent_recursion)
