"""Optimizers, schedule and EMA as pure functions of tensors (SPEC.md "One training step" items 5 to 7).

The step counter is a tensor on the device, so that the schedule and the bias corrections are part of the compiled step and
nothing is sent from the host at each step.
"""

import math

import torch
from torch import Tensor

from trm.config import OptimizerConfig

Weights = dict[str, Tensor]


def learning_rate(base_lr: float, step: Tensor, cfg: OptimizerConfig, total_steps: int) -> Tensor:
    """The learning rate of a 1-based step: linear warm-up, then constant or cosine down to lr_min_ratio. Scalar like `step`."""
    if cfg.schedule == "cosine":
        progress = (step - cfg.warmup_steps) / max(1, total_steps - cfg.warmup_steps)
        ratio = cfg.lr_min_ratio + (1 - cfg.lr_min_ratio) * 0.5 * (1 + torch.cos(math.pi * progress))
        ratio = ratio.clamp_min(0.0)
    else:
        ratio = torch.ones_like(step)
    return base_lr * torch.where(step < cfg.warmup_steps, step / max(1, cfg.warmup_steps), ratio)


def update_weights(
    cfg: OptimizerConfig, weights: Weights, m: Weights, v: Weights, grads: Weights, step: Tensor, lr: Tensor
) -> tuple[Weights, Weights, Weights]:
    """One update of every weight: the new weights and moments. `step` counts from 1, in the weights' dtype.

    adam_atan2 (arXiv 2407.05872): p -= lr/(1-b1^t) * atan2(m, sqrt(v)/sqrt(1-b2^t)). adamw: the usual quotient with epsilon.
    Both decay first, by lr*weight_decay, and both decay every weight, biases included.
    """
    correction1 = 1 - cfg.beta1**step
    correction2 = torch.sqrt(1 - cfg.beta2**step)
    new_weights, new_m, new_v = {}, {}, {}
    for name, p in weights.items():
        g = grads[name]
        new_m[name] = cfg.beta1 * m[name] + (1 - cfg.beta1) * g
        new_v[name] = cfg.beta2 * v[name] + (1 - cfg.beta2) * g * g
        scale = torch.sqrt(new_v[name]) / correction2
        direction = torch.atan2(new_m[name], scale) if cfg.name == "adam_atan2" else new_m[name] / (scale + cfg.eps)
        new_weights[name] = p * (1 - lr * cfg.weight_decay) - lr / correction1 * direction
    return new_weights, new_m, new_v


def update_puzzle_embedding(
    cfg: OptimizerConfig, table: Tensor, grads: Tensor, identifiers: Tensor, step: Tensor, total_steps: int
) -> Tensor:
    """Sign-SGD on the puzzle embedding [I, E], for the identifiers present in the batch only.

    `grads` [B, E] are summed per identifier over the global batch. The sum is a product with a one-hot matrix: under SPMD that is
    one all-reduce, where a scatter would gather the rows of every device.
    """
    one_hot = (identifiers.unsqueeze(-1) == torch.arange(table.shape[0], device=table.device)).to(table.dtype)  # [B, I]
    summed = one_hot.t() @ grads.to(table.dtype)
    present = one_hot.sum(0).unsqueeze(-1) > 0
    lr = learning_rate(cfg.puzzle_emb_lr, step, cfg, total_steps)
    return torch.where(present, table * (1 - lr * cfg.puzzle_emb_weight_decay) - lr * torch.sign(summed), table)


def update_ema(ema: Weights, weights: Weights, rate: float) -> Weights:
    """The moving average after an update: rate * ema + (1 - rate) * weight. An empty `ema` (EMA off) stays empty."""
    return {name: rate * average + (1 - rate) * weights[name] for name, average in ema.items()}
