"""AdamATan2 (arXiv 2407.05872) and AdamW: two moments of every weight, decoupled decay of every weight, biases included.

adam_atan2: p -= lr/(1-b1^t) * atan2(m, sqrt(v)/sqrt(1-b2^t)), without an epsilon. adamw: the usual quotient with optimizer.eps.
Both first decay the weights by lr * optimizer.weight_decay (docs/explanation/what_is_computed.md "One training step" item 5).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from trm.config import OptimizerConfig
from trm.core.optimizers import OPTIMIZERS, Buffers, Optimizer, Weights

Direction = Callable[[OptimizerConfig, Tensor, Tensor], Tensor]  # (settings, m, root of the corrected v) -> what is subtracted


def init(cfg: OptimizerConfig, weights: Weights) -> Buffers:
    """First and second moments, zero."""
    return {name: {key: torch.zeros_like(w) for key, w in weights.items()} for name in ("m", "v")}


def update(
    direction: Direction, cfg: OptimizerConfig, weights: Weights, buffers: Buffers, grads: Weights, step: Tensor, lr: Tensor
) -> tuple[Weights, Buffers]:
    """One update of every weight."""
    correction1 = 1 - cfg.beta1**step
    correction2 = torch.sqrt(1 - cfg.beta2**step)
    new_weights, m, v = {}, {}, {}
    for name, p in weights.items():
        g = grads[name]
        m[name] = cfg.beta1 * buffers["m"][name] + (1 - cfg.beta1) * g
        v[name] = cfg.beta2 * buffers["v"][name] + (1 - cfg.beta2) * g * g
        moved = direction(cfg, m[name], torch.sqrt(v[name]) / correction2)
        new_weights[name] = p * (1 - lr * cfg.weight_decay) - lr / correction1 * moved
    return new_weights, {"m": m, "v": v}


OPTIMIZERS["adam_atan2"] = Optimizer(init, partial(update, lambda cfg, m, root: torch.atan2(m, root)))
OPTIMIZERS["adamw"] = Optimizer(init, partial(update, lambda cfg, m, root: m / (root + cfg.eps)))
