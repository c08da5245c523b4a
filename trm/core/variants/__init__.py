"""The recursion variants: each file registers its own in VARIANTS; trm.py is the paper's.

To add one, put a file here (or register it before the settings are read) and select it with `recursion.variant=NAME`.
"""

import importlib
import pkgutil

from trm.config import Config, register_check
from trm.core.recursion import Variant
from trm.errors import ConfigError

VARIANTS: dict[str, Variant] = {}  # by the name that recursion.variant selects


@register_check
def check_variant(cfg: Config) -> None:
    """Raise ConfigError for a recursion that is not registered, or for settings with which it cannot be used."""
    recursion = cfg.recursion
    if recursion.variant not in VARIANTS:
        raise ConfigError(f"recursion.variant={recursion.variant} is unknown: choose one of {', '.join(VARIANTS)}")
    variant, num_hypotheses = VARIANTS[recursion.variant], cfg.latents.num_hypotheses
    if num_hypotheses > 1 and len(variant.latents(recursion.n)) == 1:
        raise ConfigError(
            f"latents.num_hypotheses={num_hypotheses} copies the latents beside the answer, and "
            f"recursion.variant={recursion.variant} has none: set latents.num_hypotheses=1 or recursion.variant=trm"
        )
    if num_hypotheses > 1 and recursion.act_continue:
        raise ConfigError(
            f"latents.num_hypotheses={num_hypotheses} has no continue loss: set recursion.act_continue=false or "
            "latents.num_hypotheses=1"
        )
    if any(variant.latents(phase.n) != variant.latents(recursion.n) for phase in recursion.curriculum):
        raise ConfigError(
            f"recursion.curriculum: recursion.variant={recursion.variant} has other latents with another n: give every phase "
            f"n={recursion.n}"
        )
    variant.check(cfg)


for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
