"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) for the matrices of the blocks, optimizer.others for the rest.

The matrices have one buffer, their momentum, and may have a learning rate and a decay of their own (optimizer.matrix_lr,
optimizer.matrix_weight_decay). Embeddings and heads are moved by optimizer.others, with its buffers.
"""

import math

import torch
from torch import Tensor

from trm.config import OptimizerConfig
from trm.core.optimizers import OPTIMIZERS, Buffers, Optimizer, Weights, matrices_in
from trm.core.recursion import OWN

# a, b, c of x -> a x + b x^3 + c x^5, which pushes singular values in (0, 1] towards one (the values of the Muon post)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def _in_blocks(name: str) -> bool:
    return not name.startswith(("embed_", "lm_head", "q_head", OWN))


def _split(weights: Weights) -> tuple[Weights, Weights]:
    """The matrices of the blocks, which Muon moves, and the rest: embeddings, heads, vectors, and the weights of a variant."""
    matrices = {name: w for name, w in weights.items() if w.ndim == 2 and _in_blocks(name)}
    return matrices, {name: w for name, w in weights.items() if name not in matrices}


def init(cfg: OptimizerConfig, weights: Weights) -> Buffers:
    """The momentum of the matrices, zero, and the buffers of the rule for the rest."""
    matrices, rest = _split(weights)
    momentum = {name: torch.zeros_like(w) for name, w in matrices.items()}
    return {"momentum": momentum, **OPTIMIZERS[cfg.others].init(cfg, rest)}


def update(
    cfg: OptimizerConfig, weights: Weights, buffers: Buffers, grads: Weights, step: Tensor, lr: Tensor
) -> tuple[Weights, Buffers]:
    """One update of every weight: `direction` of the Nesterov momentum for the matrices."""
    matrices, rest = _split(weights)
    matrix_lr = lr if cfg.matrix_lr is None else lr * (cfg.matrix_lr / cfg.lr)
    decay = cfg.weight_decay if cfg.matrix_weight_decay is None else cfg.matrix_weight_decay
    moved, momentum = {}, {}
    for name, p in matrices.items():
        g = grads[name]
        momentum[name] = cfg.momentum * buffers["momentum"][name] + (1 - cfg.momentum) * g
        nesterov = cfg.momentum * momentum[name] + (1 - cfg.momentum) * g
        moved[name] = p * (1 - matrix_lr * decay) - matrix_lr * direction(nesterov, matrices_in(name), cfg.matrix_scale)
    others, rest_buffers = OPTIMIZERS[cfg.others].update(cfg, rest, buffers, grads, step, lr)
    both = moved | others
    return {name: both[name] for name in weights}, {"momentum": momentum, **rest_buffers}


def direction(momentum: Tensor, num_matrices: int = 1, scale: str = "adam") -> Tensor:
    """Muon's step at a learning rate of 1, from the (Nesterov) momentum [R, K] of matrices that lie one below the other.

    Each matrix is made orthogonal and scaled. "adam": by 0.2 * sqrt(its longer side), so that its values are as large as those of
    an Adam update and one learning rate and decay do for all weights (arXiv 2502.16982). "aspect": by sqrt(max(1, rows/columns)),
    as in the post.
    """
    parts = momentum.reshape(num_matrices, -1, momentum.shape[1])
    rows, columns = parts.shape[1:]
    return (orthogonalized(parts) * _factor(rows, columns, scale)).reshape(momentum.shape)


def _factor(rows: int, columns: int, scale: str) -> float:
    return 0.2 * math.sqrt(max(rows, columns)) if scale == "adam" else math.sqrt(max(1, rows / columns))


def update_norm(cfg: OptimizerConfig, name: str, rows: int, columns: int) -> float:
    """The largest singular value of an update: that of an orthogonal matrix times its factor, or of the rule for the rest."""
    if not _in_blocks(name):
        return OPTIMIZERS[cfg.others].update_norm(cfg, name, rows, columns)
    return _factor(rows, columns, cfg.matrix_scale)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices [..., R, K] with their singular values pushed to about one (0.7 to 1.2): five quintic Newton-Schulz iterations."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.square().sum((-2, -1), keepdim=True).sqrt().clamp_min(1e-7)  # the Frobenius norm bounds the largest singular value
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = NEWTON_SCHULZ[0] * x + (NEWTON_SCHULZ[1] * gram + NEWTON_SCHULZ[2] * (gram @ gram)) @ x
    return x.mT if tall else x


OPTIMIZERS["muon"] = Optimizer(init, update, update_norm)
