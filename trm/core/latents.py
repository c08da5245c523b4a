"""What EqR (arXiv 2605.21488) does to latents: they start at random, and every pass of the network is damped and noisy.

Shape legend: B rows, L tokens, D hidden size.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trm.config import RecursionConfig
from trm.core.recursion import Latents, Net
from trm.ground.rng import RECURSION_NOISE, STARTS, normal

# Standard deviation of a standard normal cut at two sigma
STD_OF_CUT_NORMAL = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
FURTHER_PASSES = 1 << 20  # more than a supervision step has: where the noise of another forward pass of the same step begins


@dataclass
class Noise:
    """The noise of one supervision step: every call draws that of one more pass of the network."""

    seed: Tensor  # int64 scalar
    rows: Tensor  # [B] int64, whose noise is whose
    step: int | Tensor  # scalar or [B]
    passes: int = 0  # of the network, that it has had

    def __call__(self, like: Tensor) -> Tensor:
        """Standard normal numbers for latents [B, L, D], in their dtype."""
        shape, number = tuple(like.shape[1:]), self.passes
        self.passes += 1
        return normal(self.seed, self.rows, shape, stream=RECURSION_NOISE, step=self.step, application=number, dtype=like.dtype)


def damped(net: Callable[[Tensor], Tensor], recursion: RecursionConfig, noise: Noise | None) -> Net:
    """The update of a latent u by a network that sees h: (1 - damping) u + damping net(h) + recursion.noise e."""
    damping = recursion.damping

    def update(h: Tensor, u: Tensor) -> Tensor:
        new = net(h)
        if damping != 1:
            new = (1 - damping) * u + damping * new
        return new if noise is None else new + recursion.noise * noise(new)

    return update


def random_starts(
    seed: int | Tensor, rows: Tensor, shapes: Mapping[str, tuple[int, ...]], step: int | Tensor, dtype: torch.dtype
) -> Latents:
    """Latents [B, *shape] of independent values: normal, cut at two sigma, of standard deviation 1 after the cut."""
    return {
        z: normal(seed, rows, shape, stream=STARTS, step=step, application=i, truncated=True, dtype=dtype) / STD_OF_CUT_NORMAL
        for i, (z, shape) in enumerate(shapes.items())
    }
