"""HRM's approximation: gradient through the last update of z_L and the last update of z_H alone (paper section 3.1)."""

import torch
from torch import Tensor

from trm.core.recursion import Latents, Networks, Variant
from trm.core.variants import VARIANTS
from trm.core.variants.trm import latent_recursion


def last(networks: Networks, latents: Latents, x: Tensor, n: int) -> Latents:
    """The paper's latent recursion with its first n - 1 updates cut off from the gradient."""
    z_H, z_L = latents["z_H"], latents["z_L"]
    with torch.no_grad():
        injection = z_H + x
        for _ in range(n - 1):
            z_L = networks.f_L(z_L + injection, z_L)
    z_L = networks.f_L(z_L + (z_H + x), z_L)
    return {"z_H": networks.f_H(z_H + z_L, z_H), "z_L": z_L}


VARIANTS["one_step_gradient"] = Variant(lambda n: ("z_H", "z_L"), latent_recursion, last=last)
