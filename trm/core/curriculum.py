"""A curriculum over recursion depth: the phases of a run and how deeply each recurses.

After "Accelerating Training Speed of Tiny Recursive Models with Curriculum Guided Adaptive Recursion" (arXiv 2511.08653): a shallow
recursion is cheap, and early in training it teaches as much as a deep one. Only training follows the phases. Each is a graph of its
own.
"""

from dataclasses import dataclass, replace

from trm.config import RecursionConfig


@dataclass(frozen=True)
class Stage:
    """Training steps `start` to `stop` (0-based, `stop` excluded) and the recursion they run with."""

    start: int
    stop: int
    recursion: RecursionConfig


def stages(recursion: RecursionConfig, total_steps: int) -> list[Stage]:
    """The run's stages in order: one for each phase of recursion.curriculum, and one at full depth for the rest of the run.

    A phase ends at the step nearest to its share of the run; one that is too short for a step is left out. The last step has full
    depth however short the run is.
    """
    depths = [(min(round(phase.until * total_steps), total_steps - 1), phase.T, phase.n) for phase in recursion.curriculum]
    found, start = [], 0
    for stop, T, n in [*depths, (total_steps, recursion.T, recursion.n)]:
        if stop > start:
            found.append(Stage(start, stop, replace(recursion, T=T, n=n, curriculum=[])))
            start = stop
    return found
