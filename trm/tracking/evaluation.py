"""What the dashboards show of an evaluation besides its metrics: accuracy by supervision step, and some held-out puzzles.

Shape legend: S supervision steps, K puzzles, C cells.
"""

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trm.inference.samples import Samples
from trm.show.pictures import contact_sheet
from trm.show.thinking import Frame, Puzzle, of_samples
from trm.tasks.base import Task

PNG_LEVEL = 3  # of 9: half the time of zlib's own 6, a third more bytes


@dataclass(frozen=True)
class HeldOut:
    """One held-out puzzle with the model's answers, one frame for each supervision step."""

    puzzle: Puzzle
    frames: list[Frame]

    @property
    def steps_used(self) -> int:
        """The supervision step after which the model would have stopped; the last one if it would never have."""
        return next((frame.step for frame in self.frames if frame.halting > 0.5), self.frames[-1].step)

    @property
    def wrong_cells(self) -> int:
        """Cells of the last answer that are wrong."""
        return int(self._wrong.sum())

    @property
    def texts(self) -> list[str]:
        """The question, the last answer and the solution as lines of text; wrong cells of the answer stand in brackets."""
        view, solution = self.puzzle.view, self.puzzle.solution
        assert solution is not None
        found = []
        for tokens, marked in ((self.puzzle.question, None), (self.frames[-1].answer, self._wrong), (solution, None)):
            cells = [f"[{char}]" if marked is not None and marked[i] else f" {char} " for i, char in enumerate(view.text(tokens))]
            rows = range(0, len(cells), view.columns)
            found.append("\n".join("".join(cells[start : start + view.columns]) for start in rows))
        return found

    @cached_property
    def png(self) -> bytes:
        """A picture of the grid after every supervision step; drawn once for all views."""
        buffer = io.BytesIO()
        contact_sheet(self.puzzle, self.frames).save(buffer, "PNG", compress_level=PNG_LEVEL)
        return buffer.getvalue()

    @property
    def _wrong(self) -> np.ndarray:
        return self.puzzle.marks(self.frames[-1].answer, None).wrong


def held_out(samples: Samples, task: Task | None) -> list[HeldOut]:
    """The puzzles of an evaluation's samples; none where the task is not known."""
    return [HeldOut(*thought) for thought in of_samples(samples, task)] if task else []


@dataclass(frozen=True)
class Evaluation:
    """One evaluation as the dashboards get it."""

    by_step: list[dict[str, float]]  # metrics after each supervision step
    puzzles: list[HeldOut]
    score_names: tuple[str, ...] = ()  # the task's own scores, which the metrics have too
