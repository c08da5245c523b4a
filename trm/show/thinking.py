"""How a model comes to its answer: what it would answer after every latent recursion of every supervision step.

trm/show/think.py computes the answers, `Puzzle.marks` marks their cells, and trm/show draws both.
Shape legend: C cells, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trm.inference.samples import Samples
from trm.tasks.base import GridView, Task
from trm.tasks.pairs import PairsTask

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
    """The marks of each cell of a frame."""

    given: Flags
    wrong: Flags  # not answered, a changed given, in a clash with another answer, or unlike the known solution in a wrong answer
    changed: Flags  # unlike the frame before
    conflict: Flags  # the cell clashes with another, given cells included


@dataclass(frozen=True)
class Puzzle:
    """A question and, where it is known, its solution."""

    name: str
    task: Task | None  # None: not known here, and without rules
    question: Cells
    solution: Cells | None  # not known where it is blank or below 0

    @cached_property
    def view(self) -> GridView:
        """How its grids are shown: without a task as a square of numbers. Raises ValueError where that is not possible."""
        if self.task:
            return self.task.view
        side = math.isqrt(len(self.question))
        if side**2 != len(self.question):
            raise ValueError(f"{len(self.question)} cells do not make a square grid")
        return GridView(side, side, tuple(map(str, range(255))))

    @property
    def known(self) -> Flags:
        """The cells whose solution is known."""
        if self.solution is None:
            return np.zeros(len(self.question), bool)
        known: Flags = self.solution >= 0
        return known & ~self.task.blank(self.solution) if self.task else known

    def violations(self, answer: Cells) -> list[str]:
        """The rules that an answer breaks, in words."""
        return self.task.violations(self.question, answer) if self.task else []

    def verdict(self, answer: Cells) -> str:
        """What the rules say of an answer, in a line; empty without rules."""
        return self.task.verdict(self.question, answer) if self.task else ""

    def marks(self, answer: Cells, before: Cells | None) -> Marks:
        """Marks of an answer that follows the answer `before`; nothing has changed where that is None."""
        nowhere = np.zeros(answer.shape, bool)
        changed = nowhere if before is None else answer != before
        wrong = nowhere if self.solution is None else self.known & (answer != self.solution)
        if self.task is None:
            given = nowhere if self.solution is None else self.known & (self.question == self.solution)
            return Marks(given, wrong, changed, nowhere)
        given, conflict = self.task.given(self.question), self.task.conflicts(answer)
        kept = given & (answer == self.question)
        if self.task.score_names and not isinstance(self.task, PairsTask) and not self.violations(answer):
            wrong = nowhere  # the task has several right answers, and this is one
        return Marks(given, wrong | self.task.blank(answer) | (given & ~kept) | (conflict & ~kept), changed, conflict)

    @property
    def judged(self) -> bool:
        """Whether an answer can be judged: the solution is known, or the rules decide."""
        return (self.solution is not None and bool(self.known.any())) or not isinstance(self.task, PairsTask)

    def marks_of(self, frames: list[Frame]) -> list[Marks]:
        """Marks of frames that follow one another."""
        before = [None, *(frame.answer for frame in frames[:-1])]
        return [self.marks(frame.answer, answer) for frame, answer in zip(frames, before, strict=True)]


def of_samples(samples: Samples, task: Task | None) -> Iterator[tuple[Puzzle, list[Frame]]]:
    """The puzzles of an evaluation, with a frame for each supervision step."""
    halting = 1 / (1 + np.exp(-samples.q_halt.astype(np.float64)))  # [S, K]
    for k, (question, solution) in enumerate(zip(samples.inputs, samples.labels, strict=True)):
        steps = zip(samples.predictions[:, k], samples.confidence[:, k].astype(np.float64), halting[:, k].tolist(), strict=True)
        yield Puzzle(f"test:{k}", task, question, solution), [Frame(step, 1, *found) for step, found in enumerate(steps, start=1)]
