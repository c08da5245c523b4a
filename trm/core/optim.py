"""Optimizers, schedule and EMA as pure functions of tensors (SPEC.md "One training step" items 5 to 7).

The step counter is a tensor on the device, so that the schedule and the bias corrections are part of the compiled step and
nothing is sent from the host at each step.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trm.config import OptimizerConfig

Weights = dict[str, Tensor]

# a, b, c of x -> a x + b x^3 + c x^5, which pushes singular values in (0, 1] towards one (the values of the Muon post)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def learning_rate(base_lr: float, step: Tensor, cfg: OptimizerConfig, total_steps: int) -> Tensor:
    """The learning rate of a 1-based step: linear warm-up, then constant or cosine down to lr_min_ratio. Scalar like `step`."""
    if cfg.schedule == "cosine":
        progress = (step - cfg.warmup_steps) / max(1, total_steps - cfg.warmup_steps)
        ratio = cfg.lr_min_ratio + (1 - cfg.lr_min_ratio) * 0.5 * (1 + torch.cos(math.pi * progress))
        ratio = ratio.clamp_min(0.0)
    else:
        ratio = torch.ones_like(step)
    return base_lr * torch.where(step < cfg.warmup_steps, step / max(1, cfg.warmup_steps), ratio)


def second_moments(cfg: OptimizerConfig, weights: Weights) -> Weights:
    """The second moments before the first update: of every weight but those that muon moves, which needs none."""
    return {name: torch.zeros_like(w) for name, w in weights.items() if not _by_muon(cfg, name, w)}


def update_weights(
    cfg: OptimizerConfig, weights: Weights, m: Weights, v: Weights, grads: Weights, step: Tensor, lr: Tensor
) -> tuple[Weights, Weights, Weights]:
    """One update of every weight: the new weights and moments. `step` counts from 1, in the weights' dtype.

    adam_atan2 (arXiv 2407.05872): p -= lr/(1-b1^t) * atan2(m, sqrt(v)/sqrt(1-b2^t)). adamw: the usual quotient with epsilon.
    muon: `muon_direction` for the matrices of the blocks, with a rate and decay of their own where these are set, and cfg.others
    for embeddings and heads.
    All decay first, by lr*weight_decay, and decay every weight, biases included.
    """
    correction1 = 1 - cfg.beta1**step
    correction2 = torch.sqrt(1 - cfg.beta2**step)
    rule = cfg.others if cfg.name == "muon" else cfg.name
    matrix_lr = lr if cfg.matrix_lr is None else lr * (cfg.matrix_lr / cfg.lr)
    matrix_decay = cfg.weight_decay if cfg.matrix_weight_decay is None else cfg.matrix_weight_decay
    new_weights, new_m, new_v = {}, {}, {}
    for name, p in weights.items():
        g = grads[name]
        if _by_muon(cfg, name, p):
            new_m[name] = cfg.momentum * m[name] + (1 - cfg.momentum) * g
            nesterov = cfg.momentum * new_m[name] + (1 - cfg.momentum) * g
            direction = muon_direction(nesterov, _matrices_in(name), cfg.matrix_scale)
            new_weights[name] = p * (1 - matrix_lr * matrix_decay) - matrix_lr * direction
            continue
        new_m[name] = cfg.beta1 * m[name] + (1 - cfg.beta1) * g
        new_v[name] = cfg.beta2 * v[name] + (1 - cfg.beta2) * g * g
        scale = torch.sqrt(new_v[name]) / correction2
        direction = torch.atan2(new_m[name], scale) if rule != "adamw" else new_m[name] / (scale + cfg.eps)
        new_weights[name] = p * (1 - lr * cfg.weight_decay) - lr / correction1 * direction
    return new_weights, new_m, new_v


def _by_muon(cfg: OptimizerConfig, name: str, weight: Tensor) -> bool:
    return cfg.name == "muon" and weight.ndim == 2 and not name.startswith(("embed_", "lm_head", "q_head"))


def _matrices_in(name: str) -> int:
    """Matrices that a weight of a block holds, one below the other."""
    return {"gate_up": 2, "qkv": 3}.get(name.rpartition(".")[2], 1)


def muon_direction(momentum: Tensor, num_matrices: int = 1, scale: str = "adam") -> Tensor:
    """What Muon subtracts for a learning rate of 1, from the (Nesterov) momentum [R, K] of matrices that lie one below the other.

    Each matrix is made orthogonal and scaled (Jordan 2024, https://kellerjordan.github.io/posts/muon). "adam": by 0.2 * sqrt(its
    longer side), so that its values are as large as those of an Adam update and one learning rate and decay do for all weights
    (arXiv 2502.16982). "aspect": by sqrt(max(1, rows/columns)), as in the post.
    """
    parts = momentum.reshape(num_matrices, -1, momentum.shape[1])
    rows, columns = parts.shape[1:]
    factor = 0.2 * math.sqrt(max(rows, columns)) if scale == "adam" else math.sqrt(max(1, rows / columns))
    return (orthogonalized(parts) * factor).reshape(momentum.shape)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices [..., R, K] with their singular values pushed to about one (0.7 to 1.2): five quintic Newton-Schulz iterations."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.square().sum((-2, -1), keepdim=True).sqrt().clamp_min(1e-7)  # the Frobenius norm bounds the largest singular value
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = NEWTON_SCHULZ[0] * x + (NEWTON_SCHULZ[1] * gram + NEWTON_SCHULZ[2] * (gram @ gram)) @ x
    return x.mT if tall else x


def norm(tensors: Weights) -> Tensor:
    """Euclidean norm of all tensors together, a scalar."""
    return torch.stack([(tensor * tensor).sum() for tensor in tensors.values()]).sum().sqrt()


def clip_gradients(grads: Weights, max_norm: float | None) -> Weights:
    """The gradients, scaled down where the norm of all together is above `max_norm`; as they are where that is None."""
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
    whole: Callable[[Tensor], Tensor] = lambda rows: rows,
    in_place: bool = False,
) -> Tensor:
    """Sign-SGD on the puzzle embedding [I, E], for the identifiers present in the batch only.

    `grads` [B, E] are summed per identifier over the global batch. A table with more rows than the batch is read and written in the
    batch's rows alone: rows of one identifier have one sum, and write the same values. `whole` has rows that are split over devices
    come together on each first, so that the table is never split or gathered; `in_place`: the new table takes the table's memory.
    In a smaller table the sum is a product with a one-hot matrix, which under SPMD is one all-reduce.
    """
    grads, lr = grads.to(table.dtype), learning_rate(cfg.puzzle_emb_lr, step, cfg, total_steps)
    if table.shape[0] <= len(identifiers):
        one_hot = (identifiers.unsqueeze(-1) == torch.arange(table.shape[0], device=table.device)).to(table.dtype)  # [B, I]
        present = one_hot.sum(0).unsqueeze(-1) > 0
        return torch.where(present, _stepped(cfg, table, one_hot.t() @ grads, lr), table)
    grads, identifiers = whole(grads), whole(identifiers)
    same = (identifiers.unsqueeze(1) == identifiers.unsqueeze(0)).to(table.dtype)  # [B, B]
    rows = _stepped(cfg, table[identifiers], same @ grads, lr)
    places = identifiers.to(torch.int64)
    return table.index_copy_(0, places, rows) if in_place else table.index_copy(0, places, rows)


def _stepped(cfg: OptimizerConfig, rows: Tensor, summed: Tensor, lr: Tensor) -> Tensor:
    return rows * (1 - lr * cfg.puzzle_emb_weight_decay) - lr * torch.sign(summed)


def averaging_rate(rate: float, step: Tensor, start_step: int) -> float | Tensor:
    """The EMA's rate at an update (from 1): 0, so that the average is the weights, up to `start_step`, then `rate`."""
    return torch.where(step > start_step, rate, 0.0) if start_step else rate


def update_ema(ema: Weights, weights: Weights, rate: float | Tensor) -> Weights:
    """The moving average after an update: rate * ema + (1 - rate) * weight. An empty `ema` (EMA off) stays empty."""
    return {name: rate * average + (1 - rate) * weights[name] for name, average in ema.items()}
