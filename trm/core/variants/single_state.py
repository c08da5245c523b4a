"""URM (arXiv 2512.14693): one latent; n updates, each with the question. It has one network."""

from torch import Tensor

from trm.config import Config
from trm.core.recursion import Latents, Networks, Variant
from trm.core.variants import VARIANTS
from trm.errors import ConfigError


def latent_recursion(networks: Networks, latents: Latents, x: Tensor, n: int) -> Latents:
    """h <- f(h + x), n times."""
    h = latents["z_H"]
    for _ in range(n - 1):
        h = networks.f_L(h + x, h)
    return {"z_H": networks.f_H(h + x, h)}


def check(cfg: Config) -> None:
    """Raise ConfigError for two networks."""
    if cfg.model.separate_networks:
        raise ConfigError("recursion.variant=single_state has one network: set model.separate_networks=false")


VARIANTS["single_state"] = Variant(lambda n: ("z_H",), latent_recursion, check=check)
