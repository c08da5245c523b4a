"""The votes of a task's variants on its answers: pass@K and submission.json, as the released evaluator has them.

An answer is cropped, turned back by its variant's inverse and counted; answers are ranked by (votes, mean confidence), the first
one seen on ties. A task's credit is the share of its test inputs whose answer is among the first K.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.tasks.arc.grids import DRAW, ITSELF, Grid, cropped, unvaried
from trm.tasks.base import Catalogue

PASS = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2
SEPARATOR = "|||"
SUBMISSION = "submission.json"


def variant_name(name: str, draw: NDArray[np.uint8]) -> str:
    """The name of a variant's identifier; that of the task where it is the task itself."""
    if np.array_equal(draw, ITSELF):
        return name
    return SEPARATOR.join([name, f"t{draw[0]}", "0" + "".join(map(str, draw[1:].tolist()))])


def named(identifier: str) -> tuple[str, NDArray[np.uint8]]:
    """The task and the draw that an identifier's name says. Raises ValueError where it says none."""
    name, *rest = identifier.split(SEPARATOR)
    if not rest:
        return name, ITSELF
    symmetry, colours = rest
    draw = np.array([int(symmetry.removeprefix("t")), *map(int, colours[1:])], np.uint8)
    if len(draw) != DRAW or draw[0] > 7 or sorted(draw[1:].tolist()) != ITSELF[1:].tolist() or colours[0] != "0":
        raise ValueError(f"{identifier}: names no symmetry and no permutation of colours")
    return name, draw


@dataclass
class Tally:
    """The answers to one test input."""

    votes: dict[bytes, tuple[int, float, int]] = field(
        default_factory=dict
    )  # by the answer's hash: votes, sum of confidence, order
    best: dict[bytes, Grid] = field(default_factory=dict)  # the first ATTEMPTS by rank

    def add(self, grid: Grid, confidence: float) -> None:
        """One more vote. An answer rises by votes for itself alone, so that the grids of the first ones are always at hand."""
        key = _key(grid)
        votes, total, order = self.votes.get(key, (0, 0.0, len(self.votes)))
        self.votes[key] = votes + 1, total + confidence, order
        self.best[key] = grid
        if len(self.best) > ATTEMPTS:
            del self.best[max(self.best, key=self.rank)]

    def rank(self, key: bytes) -> tuple[int, float, int]:
        """Less for an answer before another."""
        votes, total, order = self.votes[key]
        return -votes, -(total / votes), order

    def place(self, grid: Grid) -> int | None:
        """How many answers are before this one; None where nobody gave it."""
        key = _key(grid)
        if key not in self.votes:
            return None
        rank = self.rank(key)
        return sum(self.rank(other) < rank for other in self.votes)

    def ranked(self) -> list[tuple[Grid, int, float]]:
        """The first answers with their votes and mean confidence."""
        keys = sorted(self.best, key=self.rank)
        return [(self.best[key], self.votes[key][0], self.votes[key][1] / self.votes[key][0]) for key in keys]


class ArcVotes:
    """Votes on the test inputs of some tasks; memory for hashes and counts, and the grids of the first answers alone."""

    def __init__(self, catalogue: Catalogue, side: int) -> None:
        """`catalogue.tests` are the tasks as their files have them."""
        self._catalogue, self._side = catalogue, side
        self._tests = {
            name: [(np.array(pair["input"], np.uint8), _known(pair)) for pair in plain["test"]]
            for name, plain in catalogue.tests.items()
        }
        self.tallies = {name: {_key(question): Tally() for question, _ in pairs} for name, pairs in self._tests.items()}
        self.rows = 0

    def add(
        self,
        identifiers: NDArray[np.integer],
        questions: NDArray[np.integer],
        answers: NDArray[np.integer],
        confidence: NDArray[np.float64],
    ) -> None:
        """The answers [N, L] of variants to their questions [N, L]; rows of padding, with the blank identifier, do not count."""
        rows = zip(
            identifiers.tolist(), cropped(questions, self._side), cropped(answers, self._side), confidence.tolist(), strict=True
        )
        for identifier, question, answer, share in rows:
            if identifier != self._catalogue.blank:
                name, draw = self._catalogue.variant(identifier)
                tally = self.tallies.get(name, {}).get(_key(unvaried(question, draw)))
                if tally is not None:
                    tally.add(np.ascontiguousarray(unvaried(answer, draw)), share)
                    self.rows += 1

    def scores(self) -> dict[str, float]:
        """pass@K: the mean over tasks with a known answer."""
        credits = []
        for name, pairs in self._tests.items():
            places = [self.tallies[name][_key(question)].place(answer) for question, answer in pairs if answer is not None]
            if places:
                credits.append([sum(place is not None and place < k for place in places) / len(places) for k in PASS])
        means = np.mean(credits, axis=0).tolist() if credits else [0.0] * len(PASS)
        return {score_name(k): mean for k, mean in zip(PASS, means, strict=True)}

    def submission(self) -> dict[str, list[dict[str, Any]]]:
        """The answers in the form of Kaggle's competitions; the first one repeated where there is no other."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name, pairs in self._tests.items():
            found[name] = []
            for question, _ in pairs:
                grids = [grid.tolist() for grid, _, _ in self.tallies[name][_key(question)].ranked()]
                if grids:
                    found[name].append({f"attempt_{i + 1}": grids[min(i, len(grids) - 1)] for i in range(ATTEMPTS)})
        return found

    def documents(self) -> dict[str, str]:
        """What is written beside an evaluation's scores, by file name."""
        return {SUBMISSION: json.dumps(self.submission()) + "\n"}


def score_name(k: int) -> str:
    """What pass@K is called among the scores."""
    return f"pass@{k}"


def _known(pair: dict[str, Any]) -> Grid | None:
    return np.array(pair["output"], np.uint8) if pair.get("output") is not None else None


def _key(grid: Grid) -> bytes:
    return hashlib.blake2b(bytes(grid.shape) + grid.tobytes(), digest_size=16).digest()
