"""The candidates of a puzzle inside a supervision step: their random starts, noise and resampling, and how much logits change.

A row's random numbers depend on a counter (trm/ground/rng.py) and on a key that says which candidate of which puzzle the row is.
Shape legend: B rows, G groups of P particles each, L tokens, C cells, V vocabulary, D hidden size.
"""

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trm.config import InferenceConfig
from trm.core.architecture import Architecture
from trm.core.initial import random_starts
from trm.core.recursion import Latents
from trm.ground.rng import RESAMPLING, ROLLOUT_NOISE, normal, uniform

# The bits of a row's key from the low end: rollout, restart, copy (the ranges of trm.config.InferenceConfig), then the puzzle
ROLLOUT_BITS, RESTART_BITS, PUZZLE_SHIFT = 11, 11, 32

Numbers = TypeVar("Numbers", Tensor, NDArray[np.int64])


def row_keys(way: InferenceConfig, puzzles: Numbers, candidates: Numbers) -> Numbers:
    """Keys of candidates (from 0: by copy, restart, rollout) of puzzles (from 0, by place in the test split), both int64."""
    rollouts, particles = way.rollouts, way.particles
    copy, restart, rollout = candidates // particles, candidates % particles // rollouts, candidates % rollouts
    keys: Numbers = (puzzles << PUZZLE_SHIFT) + (copy << (RESTART_BITS + ROLLOUT_BITS)) + (restart << ROLLOUT_BITS) + rollout
    return keys


def started(arch: Architecture, way: InferenceConfig, latents: Latents, keys: Tensor, steps: Tensor) -> Latents:
    """The latents [B, L, D]; rows before their first step (`steps` [B] is 0) get the start of their restart.

    Restart 0 starts as the model does. The others start at random, as in training with latents.init=random (EqR, arXiv
    2605.21488). Rollouts of one restart start alike.
    """
    own = keys & -(1 << ROLLOUT_BITS)
    drawn = (steps == 0) & (own & ((1 << (RESTART_BITS + ROLLOUT_BITS)) - 1) > 0)
    shapes = {name: tuple(value.shape[1:]) for name, value in latents.items()}
    starts = random_starts(way.seed, own, shapes, 0, arch.dtype)
    return {name: torch.where(drawn.view(-1, 1, 1), starts[name], value) for name, value in latents.items()}


def prepared(arch: Architecture, way: InferenceConfig, latents: Latents, keys: Tensor, steps: Tensor) -> Latents:
    """The latents [B, L, D] with which rows with these keys [B] enter a supervision step, after `steps` [B] earlier ones."""
    if way.restarts > 1:
        latents = started(arch, way, latents, keys, steps)
    if way.noise:  # PTRM (arXiv 2605.19943): y += noise * e
        answer = latents[arch.latent_names[0]]
        drawn = normal(way.seed, keys, tuple(answer.shape[1:]), stream=ROLLOUT_NOISE, step=steps, dtype=answer.dtype)
        latents = latents | {arch.latent_names[0]: answer + way.noise * drawn}
    return latents


def change(logits: Tensor, before: Tensor) -> Tensor:
    """How much logits [B, C, V] changed in a step, [B]: mean over the cells of the Euclidean norm over the vocabulary (EqR)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return (logits.to(wide) - before.to(wide)).square().sum(-1).sqrt().mean(-1)


def resampled(way: InferenceConfig, latents: Latents, q_halt: Tensor, keys: Tensor, steps: Tensor) -> Latents:
    """Every particle goes on from one that is drawn from its group with weights sigmoid(q_halt)^beta (arXiv 2605.25230).

    A group is way.particles consecutive rows. Weights are relative to the group's largest, as all of them could underflow.
    """
    logs = F.logsigmoid(q_halt.view(-1, way.particles))
    weights = torch.exp(way.beta * (logs - logs.amax(1, keepdim=True)))
    ends = weights.cumsum(1)
    drawn = uniform(way.seed, keys, (1,), stream=RESAMPLING, step=steps, dtype=weights.dtype).view_as(ends) * ends[:, -1:]
    ancestor = (ends.unsqueeze(1) <= drawn.unsqueeze(2)).sum(-1).clamp(max=way.particles - 1)  # [G, P]
    first = torch.arange(len(ancestor), device=ancestor.device).unsqueeze(1) * way.particles
    return {name: value.index_select(0, (first + ancestor).flatten()) for name, value in latents.items()}
