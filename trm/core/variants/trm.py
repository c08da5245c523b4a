"""The paper's recursion (section 4, figure 3): n updates of z_L with the question, then one of the answer z_H."""

from torch import Tensor

from trm.core.recursion import Latents, Networks, Variant
from trm.core.variants import VARIANTS


def latent_recursion(networks: Networks, latents: Latents, x: Tensor, n: int) -> Latents:
    """z_L <- f_L(z_L + z_H + x), n times; z_H <- f_H(z_H + z_L)."""
    z_H, z_L = latents["z_H"], latents["z_L"]
    injection = z_H + x
    for _ in range(n):
        z_L = networks.f_L(z_L + injection, z_L)
    return {"z_H": networks.f_H(z_H + z_L, z_H), "z_L": z_L}


VARIANTS["trm"] = Variant(lambda n: ("z_H", "z_L"), latent_recursion)
