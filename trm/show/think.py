"""Compute what a model would answer after every latent recursion: the frames of trm/show/thinking.py."""

from collections.abc import Iterator

import torch
from torch import Tensor

from trm.config import InferenceConfig
from trm.core.architecture import Architecture, Weights
from trm.core.candidates import prepared
from trm.core.initial import with_latents
from trm.core.losses import log_probabilities
from trm.core.metrics import halting_logit
from trm.core.model import decode, forward, noise_of
from trm.core.programs import ONE
from trm.core.recursion import Latents
from trm.show.thinking import Cells, Frame


def think(
    arch: Architecture,
    weights: Weights,
    buffers: Weights,
    puzzle_embedding: Tensor | None,
    question: Cells,
    candidate: tuple[InferenceConfig, int] = (ONE, 0),
    num_steps: int | None = None,
    identifier: int = 0,
) -> Iterator[list[Frame]]:
    """Frames of each supervision step, one for each latent recursion, as they are computed; the last is the answer.

    The candidate is one of a way of inference, with its key (trm/core/candidates.py); `num_steps` None = N_sup. All tensors
    are on the CPU, where the model runs eagerly: for one puzzle that is faster than compiling. As in evaluation the model never
    halts early.
    """
    inputs, (way, key) = torch.from_numpy(question).int()[None], candidate
    vectors = None if puzzle_embedding is None else puzzle_embedding[identifier : identifier + 1]
    row = torch.tensor([key])
    latents = {z: value.contiguous() for z, value in with_latents(arch, buffers, 1, row).items()}
    for step in range(1, (num_steps or arch.recursion.n_sup) + 1):
        seen: list[Latents] = []
        frames = []
        with torch.no_grad():
            latents = prepared(arch, way, latents, row, torch.tensor([step - 1]))
            noise = noise_of(arch, buffers, row, torch.tensor([step - 1]))
            latents = forward(arch, weights, buffers, vectors, latents, inputs, seen.append, noise).latents
            for recursion, each in enumerate(seen, start=1):
                logits, q_halt, q_continue = decode(arch, weights, each[arch.latent_names[0]])
                tokens = logits[0].argmax(-1)
                shares = log_probabilities(logits[0].to(torch.float64), arch.model.loss).exp()
                confidence = shares.gather(-1, tokens[:, None])[:, 0]
                halting = torch.sigmoid(halting_logit(arch, q_halt, q_continue)[0])
                frames.append(Frame(step, recursion, tokens.numpy(), confidence.numpy(), halting.item()))
        yield frames
