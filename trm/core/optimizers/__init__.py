"""Update rules of the weights, registered by name: each file of this folder registers its own in OPTIMIZERS.

To add one, put a file here (or register it before the settings are read) and select it with `optimizer.name=NAME`. Nothing else
knows which buffers a rule has: the training state, checkpoints, the step and the plan take what `init` returns.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from trm.config import Config, OptimizerConfig, register_check
from trm.errors import ConfigError

Weights = dict[str, Tensor]
Buffers = dict[str, Weights]  # by the buffer's name, then by the weight's: {"m": {"lm_head": ...}, "v": {...}}


class Optimizer(NamedTuple):
    """An update rule as two pure functions.

    init: (settings, weights) -> the buffers before the first update, tensors of the weights' master dtype.
    update: (settings, weights, buffers, gradients, step, lr) -> the new weights and buffers. `step` counts from 1 and `lr` is the
        scheduled learning rate; both are scalars in the weights' dtype on the device. Each weight's update is its own: the rule may
        be called with some of the weights (trm/core/parametrization.py).
    update_norm: (settings, name, rows, columns) -> the largest singular value of an update of such a matrix at a learning rate of
        one, up to a constant. The default is that of updates whose values are all about one.
    """

    init: Callable[[OptimizerConfig, Weights], Buffers]
    update: Callable[[OptimizerConfig, Weights, Buffers, Weights, Tensor, Tensor], tuple[Weights, Buffers]]
    update_norm: Callable[[OptimizerConfig, str, int, int], float] = lambda cfg, name, rows, columns: math.sqrt(rows * columns)


def matrices_in(name: str) -> int:
    """The number of matrices that a weight of a block holds, one below the other."""
    return {"gate_up": 2, "qkv": 3}.get(name.rpartition(".")[2], 1)


OPTIMIZERS: dict[str, Optimizer] = {}


def updated(
    cfg: OptimizerConfig, weights: Weights, buffers: Buffers, gradients: Weights, step: Tensor, lr: Tensor
) -> tuple[Weights, Buffers]:
    """`update` of the rule that the settings name. Raises ConfigError if it returns other names or shapes than it was given."""
    new = OPTIMIZERS[cfg.name].update(cfg, weights, buffers, gradients, step, lr)
    if wrong := sorted(_shapes(weights, buffers) ^ _shapes(*new)):
        raise ConfigError(
            f"optimizer.name={cfg.name}: its update changes the name or shape of {wrong[0][0]}: return every weight and every "
            "buffer that init made"
        )
    return new


def _shapes(weights: Weights, buffers: Buffers) -> set[tuple[str, tuple[int, ...]]]:
    kinds = {"weights": weights, **buffers}
    return {(f"{kind}/{name}", tuple(tensor.shape)) for kind, tensors in kinds.items() for name, tensor in tensors.items()}


@register_check
def check_optimizer(cfg: Config) -> None:
    """Raise ConfigError for an update rule that is not registered."""
    if cfg.optimizer.name not in OPTIMIZERS:
        raise ConfigError(f"optimizer.name={cfg.optimizer.name} is not one of {', '.join(sorted(OPTIMIZERS))}")


for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
