"""The votes of a task's variants on its answers: pass@K and submission.json, as in the released evaluator.

An answer is cropped, turned back by the inverse of its variant, and counted. Answers are ranked by (votes, mean confidence), and
for ties by which came first. A task's credit is the share of its test inputs whose answer is among the first K.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.tasks.arc.grids import PALETTE, Grid, cropped, unvaried
from trm.tasks.base import Tokens
from trm.tasks.pairs import ANSWERS_FILE, Catalogue

PASS = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2
SUBMISSION = "submission.json"
PARTIAL = "submission_partial_{}_of_{}.json"
MOST_SHOWN = 6  # of the solved and of the failed tasks
KEY_BYTES = 16


@dataclass
class Tally:
    """The answers to one test input."""

    # by the answer's hash: votes, sum of confidence, order
    votes: dict[bytes, tuple[int, float, int]] = field(default_factory=dict)
    best: dict[bytes, Grid] = field(default_factory=dict)  # the first ATTEMPTS by rank

    def add(self, grid: Grid, confidence: float) -> None:
        """Count a vote. An answer rises only by votes for itself, so the grids of the first answers are always kept."""
        key = _key(grid)
        votes, total, order = self.votes.get(key, (0, 0.0, len(self.votes)))
        self.votes[key] = votes + 1, total + confidence, order
        self.best[key] = grid
        if len(self.best) > ATTEMPTS:
            del self.best[max(self.best, key=self.rank)]

    def rank(self, key: bytes) -> tuple[int, float, int]:
        """The sort key: less for a better answer."""
        votes, total, order = self.votes[key]
        return -votes, -(total / votes), order

    def place(self, grid: Grid) -> float:
        """How many answers are better than this one; infinity where no variant gave it."""
        if (key := _key(grid)) not in self.votes:
            return math.inf
        return sum(self.rank(other) < self.rank(key) for other in self.votes)

    def ranked(self) -> list[tuple[Grid, int, float]]:
        """The first answers with their votes and mean confidence."""
        keys = sorted(self.best, key=self.rank)
        return [(self.best[key], self.votes[key][0], self.votes[key][1] / self.votes[key][0]) for key in keys]


class ArcVotes:
    """Votes on the test inputs of tasks. Only hashes, counts and the grids of the first answers are kept in memory."""

    def __init__(self, catalogue: Catalogue, side: int) -> None:
        """`catalogue.tests` are the tasks as in their files."""
        self._catalogue, self._side = catalogue, side
        self._tests = {
            name: [(np.array(pair["input"], np.uint8), _known(pair)) for pair in plain["test"]]
            for name, plain in catalogue.tests.items()
        }
        self.tallies = {name: {_key(question): Tally() for question, _ in pairs} for name, pairs in self._tests.items()}
        self.rows = 0
        there, left_out = len(self._tests), catalogue.left_out
        self._submission_file = PARTIAL.format(there, there + left_out) if left_out else SUBMISSION

    def add(self, identifiers: Tokens, questions: Tokens, answers: Tokens, confidence: NDArray[np.float64]) -> None:
        """Count answers [N, L] of variants to their questions [N, L]; rows of padding, with the blank identifier, do not count."""
        grids = cropped(questions, self._side), cropped(answers, self._side)
        for identifier, question, answer, share in zip(identifiers.tolist(), *grids, confidence.tolist(), strict=True):
            if identifier != self._catalogue.blank:
                name, draw = self._catalogue.variant(identifier)
                tally = self.tallies.get(name, {}).get(_key(unvaried(question, draw)))
                if tally is not None:
                    tally.add(np.ascontiguousarray(unvaried(answer, draw)), share)
                    self.rows += 1

    def scores(self) -> dict[str, float]:
        """pass@K: the mean over tasks with a known answer."""
        found = filter(len, map(self._places, self._tests))
        credits = [[sum(place < k for place in places) / len(places) for k in PASS] for places in found]
        means = np.mean(credits, axis=0).tolist() if credits else [0.0] * len(PASS)
        return {f"pass@{k}": mean for k, mean in zip(PASS, means, strict=True)}

    def documents(self) -> dict[str, str]:
        """The files to write beside an evaluation's scores: text by file name.

        The submission has the form of Kaggle's competitions, with the first answer again where no other was given.
        """
        submission: dict[str, list[dict[str, Any]]] = {name: [] for name in self._tests}
        for name, pairs in self._tests.items():
            for question, _ in pairs:
                grids = [grid.tolist() for grid, _, _ in self.tallies[name][_key(question)].ranked()]
                if grids:
                    submission[name].append({f"attempt_{i + 1}": grids[min(i, len(grids) - 1)] for i in range(ATTEMPTS)})
        names = [name for name, tallies in self.tallies.items() if any(tally.votes for tally in tallies.values())]
        solved = [name for name in names if max(self._places(name), default=math.inf) < ATTEMPTS]
        failed = [name for name in names if name not in solved]
        shown = [self.shown(name) for name in (*solved[:MOST_SHOWN], *failed[:MOST_SHOWN])]
        answers = {"rows": self.rows, "solved": len(solved), "puzzles": len(names), "shown": shown}
        return {self._submission_file: json.dumps(submission) + "\n", ANSWERS_FILE: json.dumps(answers) + "\n"}

    def remark(self) -> str | None:
        """A line where the submission is partial."""
        if self._submission_file == SUBMISSION:
            return None
        every = len(self._tests) + self._catalogue.left_out
        partial = f"{self._submission_file} is partial: it answers {len(self._tests)} of {every} test tasks"
        return f"{partial}, and a submission needs all: leave evaluate.max_puzzles out"

    def _places(self, name: str) -> list[float]:
        """How many answers are better than the right one, for each test input of a task whose answer is known."""
        return [self.tallies[name][_key(question)].place(answer) for question, answer in self._tests[name] if answer is not None]

    def shown(self, name: str) -> dict[str, Any]:
        """A task with the first answers to its test inputs, as `Ballots.shown`."""
        plain, tests = self._catalogue.tests[name], []
        for pair, (question, _) in zip(plain["test"], self._tests[name], strict=True):
            ranked = self.tallies[name][_key(question)].ranked()
            answers = [{"grid": grid.tolist(), "votes": votes, "confidence": share} for grid, votes, share in ranked]
            tests.append({"input": pair["input"], "output": pair.get("output"), "answers": answers})
        return {"name": name, "colours": PALETTE, "train": plain.get("train", []), "tests": tests}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All votes: test input, hash, votes, sum of confidence and order of each answer, and the grids of the first answers."""
        tallies = [tally for each in self.tallies.values() for tally in each.values()]
        entries = [(i, key, *found) for i, tally in enumerate(tallies) for key, found in tally.votes.items()]
        best = [(i, key, grid) for i, tally in enumerate(tallies) for key, grid in tally.best.items()]
        return {
            "inputs": np.array([entry[0] for entry in entries], np.int64),
            "keys": np.frombuffer(b"".join(entry[1] for entry in entries), np.uint8).copy(),
            "votes": np.array([(entry[2], entry[4]) for entry in entries], np.int64).reshape(-1, 2),
            "confidence": np.array([entry[3] for entry in entries], np.float64),
            "best": np.array([(i, *grid.shape) for i, _, grid in best], np.int64).reshape(-1, 3),
            "grids": np.concatenate([np.empty(0, np.uint8), *(grid.ravel() for _, _, grid in best)]),
            "rows": np.array([self.rows]),
        }

    def take(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Continue from these arrays."""
        tallies = [tally for each in self.tallies.values() for tally in each.values()]
        keys = arrays["keys"].reshape(-1, KEY_BYTES)
        entries = zip(arrays["inputs"].tolist(), keys, arrays["votes"].tolist(), arrays["confidence"].tolist(), strict=True)
        for i, key, (votes, order), total in entries:
            tallies[i].votes[key.tobytes()] = votes, total, order
        start = 0
        for i, height, width in arrays["best"].tolist():
            grid = arrays["grids"][start : start + height * width].reshape(height, width)
            tallies[i].best[_key(grid)] = grid
            start += height * width
        self.rows = int(arrays["rows"][0])


def _known(pair: dict[str, Any]) -> Grid | None:
    return np.array(pair["output"], np.uint8) if pair.get("output") is not None else None


def _key(grid: Grid) -> bytes:
    return hashlib.blake2b(bytes(grid.shape) + grid.tobytes(), digest_size=KEY_BYTES).digest()
