"""How initial values and learning rates follow width and depth, so that one learning rate serves all sizes (mup).

After Tensor Programs V (arXiv 2203.03466), in the form of the spectral condition (arXiv 2310.17813): the effect of an update of a
matrix [R, K] does not depend on the width where its largest singular value is sqrt(R/K). The factor of a weight's learning rate is
that value over the one that the update rule makes (`Optimizer.update_norm`), as a ratio to the same at optimizer.base_hidden_size.
docs/explanation/scaling.md derives each factor.
"""

import math
from dataclasses import replace
from itertools import groupby

from torch import Tensor

from trm.config import OptimizerConfig
from trm.core.architecture import Architecture
from trm.core.initial import weight_shapes
from trm.core.optimizers import OPTIMIZERS, Buffers, Weights, matrices_in, updated
from trm.core.recursion import OWN

BLOCKS = ("net.", "f_L.", "f_H.")
BRANCH_ENDS = (".down", ".attention.out")  # the last matrix of a residual branch


def base_of(optimizer: OptimizerConfig, arch: Architecture) -> Architecture:
    """The same network at the base width: heads of attention of the same size, a prefix of as many tokens."""
    model, base = arch.model, optimizer.base_hidden_size or arch.model.hidden_size
    heads = max(1, base * model.num_heads // model.hidden_size)
    return replace(arch, model=replace(model, hidden_size=base, num_heads=heads, puzzle_emb_len=model.puzzle_len))


def init_factors(optimizer: OptimizerConfig, arch: Architecture) -> dict[str, float]:
    """The factor on the initial values of each weight.

    Blocks start from std 1/sqrt(K) at every width. A head has fewer outputs than inputs: its largest singular value is sqrt(R/K)
    where its std is sqrt(R)/K. A weight whose variant gives its initial values keeps them. With optimizer.base_num_layers the last
    matrix of a branch is divided by the root of the depth's ratio, which is a multiplier on the branch.
    """
    shapes, base = weight_shapes(arch), weight_shapes(base_of(optimizer, arch))
    own, deeper = arch.variant.weights(arch), _deeper(optimizer, arch)
    found = {}
    for name, shape in shapes.items():
        factor = 1.0
        if name.startswith(BLOCKS):
            factor = deeper**-0.5 if name.endswith(BRANCH_ENDS) else 1.0
        elif len(shape) == 2 and not name.startswith("embed_"):
            given = name.startswith(OWN) and own[name.removeprefix(OWN)].init is not None
            std, base_std = (min(1.0, math.sqrt(rows / columns)) for rows, columns in (shape, base[name]))  # over 1/sqrt(K)
            factor = 1.0 if given else std / base_std
        found[name] = factor
    return found


def rate_factors(optimizer: OptimizerConfig, arch: Architecture) -> dict[str, float]:
    """The factor on the learning rate of each weight; 1 for all where the parametrization is standard."""
    shapes = weight_shapes(arch)
    if optimizer.parametrization == "standard":
        return dict.fromkeys(shapes, 1.0)
    base, deeper = weight_shapes(base_of(optimizer, arch)), _deeper(optimizer, arch)

    def rate(name: str, shape: tuple[int, ...]) -> float:
        """The rate at which an update of a weight [R, K] has the largest singular value sqrt(R/K)."""
        rows, columns = shape[0] // matrices_in(name), shape[1]
        return math.sqrt(rows / columns) / OPTIMIZERS[optimizer.name].update_norm(optimizer, name, rows, columns)

    found = {}
    for name, shape in shapes.items():
        factor = 1.0  # of biases and convolutions, whose inputs do not grow
        if name.startswith("embed_"):
            factor = embedding_factor(optimizer, arch)
        elif len(shape) == 2:
            factor = rate(name, shape) / rate(name, base[name])
        if name.startswith(BLOCKS):
            factor *= deeper**-1.0 if name.endswith(BRANCH_ENDS) else deeper**-0.5
        found[name] = factor
    return found


def embedding_factor(optimizer: OptimizerConfig, arch: Architecture) -> float:
    """The factor of embeddings, the puzzle embedding included: their values enter the network times sqrt(D)."""
    return math.sqrt(base_of(optimizer, arch).model.hidden_size / arch.model.hidden_size)


def _deeper(optimizer: OptimizerConfig, arch: Architecture) -> float:
    return arch.model.num_layers / (optimizer.base_num_layers or arch.model.num_layers)


def scaled(optimizer: OptimizerConfig, arch: Architecture, weights: Weights) -> Weights:
    """The initial weights of the parametrization, from those of `init_weights`."""
    if optimizer.parametrization == "standard":
        return weights
    factors = init_factors(optimizer, arch)
    return {name: weight if factors[name] == 1 else weight * factors[name] for name, weight in weights.items()}


def update(
    optimizer: OptimizerConfig, arch: Architecture, weights: Weights, buffers: Buffers, grads: Weights, step: Tensor, lr: Tensor
) -> tuple[Weights, Buffers]:
    """One update of every weight by the rule of the settings, which is applied once for each learning rate."""
    factors, matrices = rate_factors(optimizer, arch), optimizer.matrix_weight_decay
    if set(factors.values()) == {1.0}:
        return updated(optimizer, weights, buffers, grads, step, lr)
    moved: Weights = {}
    kept: Buffers = {key: {} for key in buffers}
    for factor, group in groupby(sorted(factors, key=factors.__getitem__), key=factors.__getitem__):
        names = list(group)
        part = {key: {name: values[name] for name in names if name in values} for key, values in buffers.items()}
        own, gradients = {name: weights[name] for name in names}, {name: grads[name] for name in names}
        decay = 1 if optimizer.decay_with_rate else factor  # else lr * decay stays
        settings = replace(
            optimizer,
            weight_decay=optimizer.weight_decay / decay,
            matrix_weight_decay=None if matrices is None else matrices / decay,
        )
        new, parts = updated(settings, own, part, gradients, step, lr * factor)
        moved |= new
        for key, values in parts.items():
            kept[key] |= values
    return {name: moved[name] for name in weights}, {key: {name: kept[key][name] for name in was} for key, was in buffers.items()}


def puzzle_settings(optimizer: OptimizerConfig, arch: Architecture) -> OptimizerConfig:
    """The settings of the puzzle embedding's update: a sign step is as large as one of Adam, and has the same factor."""
    if optimizer.parametrization == "standard":
        return optimizer
    factor = embedding_factor(optimizer, arch)
    decay = optimizer.puzzle_emb_weight_decay / (1 if optimizer.decay_with_rate else factor)
    return replace(optimizer, puzzle_emb_lr=optimizer.puzzle_emb_lr * factor, puzzle_emb_weight_decay=decay)
