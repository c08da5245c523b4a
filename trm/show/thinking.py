"""How a model comes to its answer: what it would answer after every latent recursion of every supervision step.

`think` computes it, `Puzzle.marks` says what there is to see in it; trm/show draws both.
Shape legend: C cells, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trm.core.losses import log_probabilities
from trm.core.metrics import halting_logit
from trm.core.model import Architecture, Weights, decode, forward, with_latents
from trm.errors import ConfigError
from trm.tasks.base import Task

Cells = NDArray[np.integer]  # tokens [C]
Flags = NDArray[np.bool_]  # [C]


@dataclass(frozen=True)
class Frame:
    """The answer latent after one latent recursion, decoded by the model's own heads."""

    step: int  # supervision step, from 1
    recursion: int  # latent recursion within the step, from 1; the last one's answer is the step's
    answer: Cells
    confidence: NDArray[np.float64]  # [C] probability of the answer's token under the training loss, 0..1
    halting: float  # probability of halting here, 0..1; above 0.5 the model would stop


@dataclass(frozen=True)
class Marks:
    """What a viewer is told about each cell of a frame."""

    given: Flags
    wrong: (
        Flags  # no answer, a changed given, a clash that is not the question's own, or in a wrong answer unlike the known solution
    )
    changed: Flags  # unlike the frame before
    conflict: Flags  # the cell clashes with another; the given of a clash has this mark as well


@dataclass(frozen=True)
class Puzzle:
    """A question and, where it is known, its solution."""

    name: str
    task: Task
    question: Cells
    solution: Cells | None  # a blank cell, or a label below 0: not known there

    def marks(self, answer: Cells, before: Cells | None) -> Marks:
        """Marks of an answer that follows the answer `before`; nothing has changed where that is None."""
        given = self.task.given(self.question)
        conflict = self.task.conflicts(answer)
        kept = given & (answer == self.question)
        wrong = self.task.blank(answer) | (given & ~kept) | (conflict & ~kept)
        if self.solution is not None and not self._solved_otherwise(answer):
            wrong |= ~self.task.blank(self.solution) & (answer != self.solution)
        changed = np.zeros_like(given) if before is None else answer != before
        return Marks(given, wrong, changed, conflict)

    def _solved_otherwise(self, answer: Cells) -> bool:
        """Whether the answer is as right as the known one, of a task that has several right answers."""
        return bool(self.task.score_names) and not self.task.violations(self.question, answer)

    def marks_of(self, frames: list[Frame]) -> list[Marks]:
        """Marks of frames that follow one another."""
        before = [None, *(frame.answer for frame in frames[:-1])]
        return [self.marks(frame.answer, answer) for frame, answer in zip(frames, before, strict=True)]


def think(
    arch: Architecture, weights: Weights, fixed: Weights, puzzle_embedding: Tensor | None, question: Cells
) -> Iterator[list[Frame]]:
    """Frames of each of N_sup supervision steps, one for each latent recursion, as they are computed; the last is the answer.

    All tensors are on the CPU, where the model runs eagerly: for one puzzle that is faster than compiling. As in evaluation the
    model never halts early. Raises ConfigError where the recursion's variant does not end with f_H (trm/core/recursion.py).
    """
    inputs = torch.from_numpy(question.astype(np.int32))[None]
    vectors = None if puzzle_embedding is None else puzzle_embedding[:1]  # puzzle identifier 0
    latents = {z: value.contiguous() for z, value in with_latents(arch, fixed, 1).items()}
    for step in range(1, arch.recursion.n_sup + 1):
        seen: list[Tensor] = []
        with torch.no_grad():
            latents = forward(arch, weights, fixed, vectors, latents, inputs, seen.append).latents
            if not seen or seen[-1] is not latents[arch.latent_names[0]]:
                raise ConfigError(
                    f"recursion.variant={arch.recursion.variant}: its answer is not what f_H returned last, so that its recursions "
                    "cannot be shown: end each latent recursion with f_H"
                )
            frames = [_frame(arch, weights, step, recursion, z_H) for recursion, z_H in enumerate(seen, start=1)]
        yield frames


def _frame(arch: Architecture, weights: Weights, step: int, recursion: int, answer_BLD: Tensor) -> Frame:
    logits, q_halt, q_continue = decode(arch, weights, answer_BLD)
    tokens = logits[0].argmax(-1)
    shares = log_probabilities(logits[0].to(torch.float64), arch.model.loss).exp()
    confidence = shares.gather(-1, tokens[:, None])[:, 0]
    halting = torch.sigmoid(halting_logit(arch.recursion, q_halt, q_continue)[0])
    return Frame(step, recursion, tokens.numpy(), confidence.numpy(), halting.item())
