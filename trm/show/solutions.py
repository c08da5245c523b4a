"""Answers to puzzles as the Python API returns them, and as text for the terminal."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.tasks.base import Task
from trm.tasks.pairs import PairsTask

MOST_PRINTED = 5  # puzzles


@dataclass(frozen=True)
class Solutions:
    """Answers to N puzzles of L cells; print them to see the grids."""

    task: Task
    questions: NDArray[np.uint8]  # [N, L] tokens
    answers: NDArray[np.uint8]  # [N, L] tokens
    solved: NDArray[np.bool_]  # [N] whether the answer keeps all rules of the task
    halting: NDArray[np.float64]  # [N] the halting probability of the candidate that answers, 0..1
    steps: NDArray[np.integer]  # [N] supervision steps of this candidate
    votes: NDArray[np.integer]  # [N] number of candidates that gave this answer
    cost: dict[str, float]  # mean over the puzzles: candidates, passes_per_puzzle, flops_per_puzzle, seconds_per_puzzle

    @property
    def text(self) -> list[str]:
        """Each answer as a line of L characters."""
        return [self.task.view.text(answer) for answer in self.answers]

    @property
    def verdicts(self) -> list[str]:
        """One line for each answer that lists the rules it breaks."""
        return [self.task.verdict(*pair) for pair in zip(self.questions, self.answers, strict=True)]

    def __len__(self) -> int:
        return len(self.answers)

    def __str__(self) -> str:
        rows = zip(self.questions, self.answers, self.halting, self.steps, strict=True)
        shown = [
            f"{report(self.task, question, answer)}\nhalting probability {halting:.3f} after {steps} supervision steps"
            for question, answer, halting, steps in list(rows)[:MOST_PRINTED]
        ]
        return "\n\n".join([*shown, *([f"{self.solved.sum()} of {len(self)} are solved"] if len(self) > 1 else [])])

    __repr__ = __str__


@dataclass(frozen=True)
class PairSolutions(Solutions):
    """Answers to the N test inputs of one puzzle of pairs (an ARC task), by the votes of its variants.

    `answers`, `halting` (a mean) and `votes` are those of the first answer to each test input. `solved` says whether this answer is
    the known output; it is False where the output is not known.
    """

    name: str
    shown: dict[str, Any]  # `train` pairs, and `tests` with `input`, `output` and ranked `answers` (`grid`, `votes`, `confidence`)
    how: str  # the number of variants, and the identifiers that they used

    @property
    def attempts(self) -> list[list[list[list[int]]]]:
        """For each test input the grids of the ranked answers, best first, as rows of colours."""
        return [[answer["grid"] for answer in test["answers"]] for test in self.shown["tests"]]

    def __str__(self) -> str:
        return f"{pairs_text(self.shown)}\n{self.name}: {self.how}"

    __repr__ = __str__


def pair_solutions(
    task: PairsTask, name: str, shown: dict[str, Any], how: str, steps: int, cost: dict[str, float]
) -> PairSolutions:
    """PairSolutions from a puzzle with its ranked answers (Ballots.shown), whose variants made `steps` supervision steps."""
    tests = shown["tests"]
    first = [test["answers"][0] if test["answers"] else {"grid": [], "votes": 0, "confidence": 0.0} for test in tests]
    # an answer that is not a grid is left out, and becomes a row of padding
    pairs = [
        {"input": test["input"]} | ({"output": answer["grid"]} if answer["grid"] else {})
        for test, answer in zip(tests, first, strict=True)
    ]
    questions, answers = task.read({"train": shown["train"], "test": pairs}, name, name)[1]
    return PairSolutions(
        task,
        questions,
        answers,
        solved=np.array([test["output"] == answer["grid"] for test, answer in zip(tests, first, strict=True)]),
        halting=np.array([answer["confidence"] for answer in first]),
        steps=np.full(len(tests), steps),
        votes=np.array([answer["votes"] for answer in first]),
        cost=cost,
        name=name,
        shown=shown,
        how=how,
    )


def report(task: Task, question: np.ndarray, answer: np.ndarray) -> str:
    """Question and answer side by side, and a line that says whether the answer solves the question."""
    left, right = task.view.grid(question).splitlines(), task.view.grid(answer).splitlines()
    width = max(map(len, left))
    lines = [f"{'question':<{width}}      answer", *(f"{a:<{width}}      {b}" for a, b in zip(left, right, strict=True))]
    # a view without gaps already shows the answer as text that can be copied
    answer_text = task.view.text(answer) if task.view.gap else "answer"
    return "\n".join([*lines, f"{answer_text}: {task.verdict(question, answer)}"])


def pairs_text(shown: dict[str, Any]) -> str:
    """Demonstrations, test inputs and the first answers as rows of digits."""
    lines = []
    for number, pair in enumerate(shown["train"], start=1):
        lines += [f"demonstration {number}:", *_beside(pair["input"], pair["output"]), ""]
    for number, test in enumerate(shown["tests"], start=1):
        lines += [f"test input {number}:", *_beside(test["input"]), ""]
        for place, answer in enumerate(test["answers"], start=1):
            right = "" if test["output"] is None else ", right" if answer["grid"] == test["output"] else ", wrong"
            votes = f"{answer['votes']} vote{'' if answer['votes'] == 1 else 's'}, confidence {answer['confidence']:.3f}{right}"
            lines += [f"answer {place} ({votes}):", *_beside(answer["grid"]), ""]
        lines += [] if test["answers"] else ["no answer", ""]
    return "\n".join(lines).rstrip()


def _beside(left: list[list[int]], right: list[list[int]] | None = None) -> list[str]:
    """Lines of one grid, or of two with an arrow between."""
    ones, others = ([" ".join(map(str, row)) for row in grid] for grid in (left, right or []))
    if right is None:
        return [f"  {one}" for one in ones] or ["  (no grid)"]
    width = max(map(len, ones), default=0)
    rows = enumerate(itertools.zip_longest(ones, others, fillvalue=""))
    return [f"  {one:<{width}}  {'  ' if i else '->'}  {other}".rstrip() for i, (one, other) in rows]
