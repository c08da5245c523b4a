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

from trm.tasks.arc.grids import DRAW, ITSELF, PALETTE, Grid, cropped, unvaried
from trm.tasks.pairs import ANSWERS_FILE, Catalogue

PASS = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2
SEPARATOR = "|||"
SUBMISSION = "submission.json"
PARTIAL = "submission_partial_{}_of_{}.json"
MOST_SHOWN = 6  # of the solved and of the failed tasks
KEY_BYTES = 16


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
        names = [name for name, tallies in self.tallies.items() if any(tally.votes for tally in tallies.values())]
        solved = [name for name in names if self._solved(name)]
        failed = [name for name in names if name not in solved]
        shown = [self.shown(name) for name in (*solved[:MOST_SHOWN], *failed[:MOST_SHOWN])]
        answers = {"rows": self.rows, "solved": len(solved), "puzzles": len(names), "shown": shown}
        return {self._submission_file(): json.dumps(self.submission()) + "\n", ANSWERS_FILE: json.dumps(answers) + "\n"}

    def _submission_file(self) -> str:
        there, left_out = len(self._tests), self._catalogue.left_out
        return PARTIAL.format(there, there + left_out) if left_out else SUBMISSION

    def remark(self) -> str | None:
        """That the submission is partial."""
        there, left_out = len(self._tests), self._catalogue.left_out
        if not left_out:
            return None
        return (
            f"{self._submission_file()} is partial: it answers {there} of {there + left_out} test tasks, and a submission needs "
            "all: leave evaluate.max_puzzles out"
        )

    def _solved(self, name: str) -> bool:
        """Whether all test inputs of a task have the right answer among the first ones."""
        places = [self.tallies[name][_key(question)].place(answer) for question, answer in self._tests[name] if answer is not None]
        return bool(places) and all(place is not None and place < ATTEMPTS for place in places)

    def shown(self, name: str) -> dict[str, Any]:
        """A task with the first answers to its test inputs."""
        plain, tests = self._catalogue.tests[name], []
        for pair, (question, _) in zip(plain["test"], self._tests[name], strict=True):
            ranked = self.tallies[name][_key(question)].ranked()
            answers = [{"grid": grid.tolist(), "votes": votes, "confidence": share} for grid, votes, share in ranked]
            tests.append({"input": pair["input"], "output": pair.get("output"), "answers": answers})
        return {"name": name, "colours": PALETTE, "train": plain.get("train", []), "tests": tests}

    # ------------------------------------------------------------------------------------------------------ in a checkpoint

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All votes: of each answer its test input, hash, votes, sum of confidence and order; the grids of the first ones."""
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
        """Go on from these."""
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


def score_name(k: int) -> str:
    """What pass@K is called among the scores."""
    return f"pass@{k}"


def _known(pair: dict[str, Any]) -> Grid | None:
    return np.array(pair["output"], np.uint8) if pair.get("output") is not None else None


def _key(grid: Grid) -> bytes:
    return hashlib.blake2b(bytes(grid.shape) + grid.tobytes(), digest_size=KEY_BYTES).digest()
