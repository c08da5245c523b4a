"""The parts of an update that all rules share: schedule, clipping, EMA, and the sign-SGD of the puzzle embedding.

The formulas are in docs/explanation/what_is_computed.md "One training step" items 5 to 7, the rules in trm/core/optimizers/. The
step counter is a tensor on the device, so that the schedule is part of the compiled step and no step needs a number from the host.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trm.config import OptimizerConfig

Weights = dict[str, Tensor]


def learning_rate(base_lr: float, step: Tensor, cfg: OptimizerConfig, total_steps: int) -> Tensor:
    """The learning rate of a 1-based step: linear warm-up, then constant or cosine down to lr_min_ratio. Scalar like `step`."""
    warmup = cfg.warmup_steps if cfg.warmup_share is None else round(cfg.warmup_share * total_steps)
    if cfg.schedule == "cosine":
        progress = (step - warmup) / max(1, total_steps - warmup)
        ratio = cfg.lr_min_ratio + (1 - cfg.lr_min_ratio) * 0.5 * (1 + torch.cos(math.pi * progress))
        ratio = ratio.clamp_min(0.0)
    else:
        ratio = torch.ones_like(step)
    return base_lr * torch.where(step < warmup, step / max(1, warmup), ratio)


def norm(tensors: Weights) -> Tensor:
    """Euclidean norm of all tensors together, a scalar."""
    return torch.stack([(tensor * tensor).sum() for tensor in tensors.values()]).sum().sqrt()


def clip_gradients(grads: Weights, max_norm: float | None) -> Weights:
    """The gradients, scaled down where the norm of all together is above `max_norm`; None leaves them as they are."""
    if max_norm is None:
        return grads
    scale = (max_norm / (norm(grads) + 1e-6)).clamp_max(1.0)
    return {name: grad * scale for name, grad in grads.items()}


def update_puzzle_embedding(
    cfg: OptimizerConfig,
    table: Tensor,
    grads: Tensor,
    identifiers: Tensor,
    step: Tensor,
    total_steps: int,
    *,
    replicate_rows: Callable[[Tensor], Tensor] = lambda rows: rows,
    in_place: bool = False,
) -> Tensor:
    """Sign-SGD on the puzzle embedding [I, E], for the identifiers present in the batch only.

    `grads` [B, E] are summed per identifier over the global batch. For a table of no more rows than the batch the sum is a product
    with a one-hot matrix, which under SPMD is one all-reduce. In a larger table only the batch's rows are read and written: rows of
    one identifier have one sum, and write the same values. `replicate_rows` first gathers on each device the rows that are split
    over the devices, so that the table is never split or gathered. With `in_place` the new table takes the table's memory.
    """
    grads, lr = grads.to(table.dtype), learning_rate(cfg.puzzle_emb_lr, step, cfg, total_steps)

    def stepped(rows: Tensor, summed: Tensor) -> Tensor:
        return rows * (1 - lr * cfg.puzzle_emb_weight_decay) - lr * torch.sign(summed)

    if table.shape[0] <= len(identifiers):
        one_hot = (identifiers.unsqueeze(-1) == torch.arange(table.shape[0], device=table.device)).to(table.dtype)  # [B, I]
        present = one_hot.sum(0).unsqueeze(-1) > 0
        return torch.where(present, stepped(table, one_hot.t() @ grads), table)
    grads, identifiers = replicate_rows(grads), replicate_rows(identifiers)
    same = (identifiers.unsqueeze(1) == identifiers.unsqueeze(0)).to(table.dtype)  # [B, B]
    rows, places = stepped(table[identifiers], same @ grads), identifiers.to(torch.int64)
    return table.index_copy_(0, places, rows) if in_place else table.index_copy(0, places, rows)


def update_ema(ema: Weights, weights: Weights, rate: float | Tensor) -> Weights:
    """The moving average after an update: rate * ema + (1 - rate) * weight. An empty `ema` (EMA off) stays empty."""
    return {name: rate * average + (1 - rate) * weights[name] for name, average in ema.items()}
