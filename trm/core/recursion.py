"""Recursion variants and the curriculum. A variant has latents, a rule that moves them, and whatever else it owns.

A variant (paper section 4, figure 3) is one file of trm/core/variants that registers a `Variant`; nothing outside asks which one
runs. `f(h, u)` is the new value of the latent u: the network's output on h, damped and noisy as the settings say (`damped` of
trm/core/model.py).

Shape legend: B rows, L tokens (prefix + cells), D hidden size, C cells, V vocabulary. Every latent is [B, L, D].
"""

from __future__ import annotations  # torch.compile cannot evaluate the annotations of nested functions

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trm.config import Config, RecursionConfig

if TYPE_CHECKING:
    from trm.core.architecture import Architecture

OWN = "variant."  # before the name of a weight that a variant adds

Weights = dict[str, Tensor]
Net = Callable[[Tensor, Tensor], Tensor]  # (what the network sees, the latent that its output replaces) -> the new latent
Latents = dict[str, Tensor]


class Networks(NamedTuple):
    """The networks of a latent recursion."""

    f_L: Net
    f_H: Net  # the same as f_L unless model.separate_networks
    own: Weights  # the variant's own weights in the master dtype, by the names that `Variant.weights` gives them


LatentRecursion = Callable[[Networks, Latents, Tensor, int], Latents]  # (networks, latents, x [B, L, D], n) -> latents


class OwnWeight(NamedTuple):
    """A weight that a variant adds. It is trained, averaged, saved and counted like all others."""

    shape: tuple[int, ...]
    init: Callable[[tuple[int, ...]], Tensor] | None = None  # None = truncated normal of std 1/sqrt(last axis)


@dataclass(frozen=True)
class Variant:
    """A recursion and everything that it owns.

    Attributes:
        latents: the names of its latents, given n; the first one is decoded into the answer.
        recursion: one latent recursion with its full gradient, made of tensor operations, since it is compiled into the step.
        last: the last latent recursion of a supervision step, for a variant that cuts its gradient; None = `recursion`.
        weights: the added weights by name.
        decode: (architecture, weights, answer [B, L, D]) -> logits [B, C, V], q_halt [B], q_continue [B]; None = the two heads.
        halting_logit: (settings, q_halt [B], q_continue [B]) -> a logit [B] that is above 0 where the model wants to stop. By
            default the paper's: with a continue head the halting value must exceed it, without one it must be above 0.
        check: raises ConfigError for settings with which it cannot be used.
    """

    latents: Callable[[int], tuple[str, ...]]
    recursion: LatentRecursion
    last: LatentRecursion | None = None
    weights: Callable[[Architecture], dict[str, OwnWeight]] = lambda arch: {}
    decode: Callable[[Architecture, Weights, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    halting_logit: Callable[[RecursionConfig, Tensor, Tensor], Tensor] = lambda recursion, q_halt, q_continue: (
        q_halt - q_continue if recursion.act_continue else q_halt
    )
    check: Callable[[Config], None] = lambda cfg: None

    def run(
        self,
        networks: Networks,
        latents: Latents,
        x: Tensor,
        T: int,
        n: int,
        observe: Callable[[Latents], None] | None = None,
    ) -> Latents:
        """T latent recursions, all but the last without gradient. `observe` is called with the latents after each one."""
        with torch.no_grad():
            for _ in range(T - 1):
                latents = self.recursion(networks, latents, x, n)
                if observe is not None:
                    observe(latents)
        latents = (self.last or self.recursion)(networks, latents, x, n)
        if observe is not None:
            observe(latents)
        return latents


@dataclass(frozen=True)
class Stage:
    """Training steps `start` to `stop` (0-based, `stop` excluded) and the recursion they run with, a graph of its own."""

    start: int
    stop: int
    recursion: RecursionConfig


def stages(recursion: RecursionConfig, total_steps: int) -> list[Stage]:
    """The stages of a run in order: one for each phase of recursion.curriculum, and one at full depth for the rest of the run.

    A shallow recursion is cheap, and early in training it teaches as much as a deep one (arXiv 2511.08653). Evaluation has full
    depth. A phase ends at the step nearest to its share of the run; one that is too short for a step is left out. The last step
    has full depth however short the run is.
    """
    depths = [(min(round(phase.until * total_steps), total_steps - 1), phase.T, phase.n) for phase in recursion.curriculum]
    found, start = [], 0
    for stop, T, n in [*depths, (total_steps, recursion.T, recursion.n)]:
        if stop > start:
            found.append(Stage(start, stop, replace(recursion, T=T, n=n, curriculum=[])))
            start = stop
    return found
