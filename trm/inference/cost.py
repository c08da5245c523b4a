"""What an evaluation took: the counted work, and its cost for one puzzle."""

from dataclasses import dataclass

from trm.config import Config
from trm.core.architecture import Architecture
from trm.core.flops import count_row_flops, passes


@dataclass(frozen=True)
class Work:
    """What a pass did, for puzzles with a known answer and without."""

    puzzles: int = 0  # questions: of puzzles of pairs their test inputs
    candidates: int = 0  # of all puzzles together; of puzzles of pairs their variants
    row_steps: int = 0  # supervision steps of all candidates together, padding left out
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


def cost(work: Work, cfg: Config, arch: Architecture) -> dict[str, float]:
    """The mean cost of a puzzle: what all of its candidates did together.

    candidates (variants where these vote), candidates_run (row steps over the D supervision steps of a whole candidate: fewer where
    rows halt), passes of the network, flops_per_puzzle (of the matrix products, from the graph).
    """
    puzzles = max(work.puzzles, 1)
    steps, each, candidates = work.row_steps / puzzles, sum(passes(arch)), work.candidates / puzzles
    return {
        "candidates": int(candidates) if candidates.is_integer() else candidates,
        "candidates_run": steps / cfg.inference_steps,
        "passes_per_puzzle": steps * each,
        "flops_per_puzzle": steps * count_row_flops(cfg, arch),
    }


def seconds_per_puzzle(work: Work) -> float:
    """Wall-clock seconds of a puzzle on the devices of the pass."""
    return work.seconds / max(work.puzzles, 1)
