"""What the page shows of each variant's best run: its thinking (samples.json), and solved and failed puzzles (answers.json).

Thinking is the answers to some held-out puzzles after every supervision step; the solved and failed are puzzles of pairs of grids.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trm.config import IGNORE_LABEL, from_plain, without_others
from trm.errors import ConfigError, message_of
from trm.inference.samples import SAMPLES_FILE, Samples
from trm.report.runs import Run
from trm.report.variants import Comparison, best_runs
from trm.show.page import NO_TOKEN, thinking_data
from trm.show.thinking import of_samples
from trm.tasks.base import Task, task_of
from trm.tasks.pairs import ANSWERS_FILE

MOST_PUZZLES, MOST_PUZZLES_OF_A_RUN = 24, 4  # on one page: about 8 KB each for 9x9 and 16 steps
MOST_VARIANTS = 6  # whose answers are on one page
VOTES = {"checkpoint": "votes of the last evaluation's checkpoint", "run": "votes of all evaluations of the run, up to the last"}


@dataclass(frozen=True)
class Shown:
    """A variant's best run as evaluate.best_by says, and what is shown of it, or why it cannot be."""

    variant: str
    run: str
    data: Any = None  # of trm.show.page.thinking_data, or a list of trm.tasks.pairs.Ballots.shown; None where there is a problem
    words: str = ""  # how many puzzles are solved, and whose votes these are
    problem: str = ""


def thinking(comparison: Comparison) -> list[Shown]:
    """What viewer.js draws, at most MOST_PUZZLES puzzles in all. Runs without samples.json have none."""
    return _of_best_runs(comparison, SAMPLES_FILE, MOST_PUZZLES, _thinking)


def answers(comparison: Comparison) -> list[Shown]:
    """The puzzles of pairs with their answers. Runs without answers.json have none."""
    return _of_best_runs(comparison, ANSWERS_FILE, MOST_VARIANTS, _answers)


def _of_best_runs(comparison: Comparison, file: str, most: int, read: Callable[[str, Run, int], tuple[Any, str]]) -> list[Shown]:
    """What `read` makes of the file's text, of each variant's best run that has one; it is told how many there are."""
    chosen, found = best_runs(comparison, file)[:most], []
    for variant, run in chosen:
        try:
            text = Path(run.folder or "", file).read_text(encoding="utf-8")
            found.append(Shown(variant.label, run.name, *read(text, run, len(chosen))))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            found.append(Shown(variant.label, run.name, problem=f"{file} cannot be shown: {message_of(error)}"))
    return found


def _thinking(text: str, run: Run, runs: int) -> tuple[dict[str, Any], str]:
    samples = Samples.from_json(text)
    known = samples.labels[samples.labels != IGNORE_LABEL]
    tokens = np.concatenate([samples.inputs.ravel(), samples.predictions.ravel(), known])
    if tokens.min() < 0 or tokens.max() >= NO_TOKEN:
        raise ValueError(f"tokens are not within 0 to {NO_TOKEN - 1}")
    if not (np.isfinite(samples.confidence).all() and np.isfinite(samples.q_halt).all()):
        raise ValueError("confidence or q_halt is not finite")
    thoughts = of_samples(samples, _task(run, samples.inputs.shape[1], int(tokens.max())))
    return thinking_data(list(islice(thoughts, min(MOST_PUZZLES_OF_A_RUN, MOST_PUZZLES // runs)))), ""


def _task(run: Run, cells: int, largest: int) -> Task | None:
    """The task that the run's settings say; None where it has not so many cells or tokens."""
    data = {key.removeprefix("data."): value for key, value in run.settings.items() if key.startswith("data.")}
    try:
        own = {"data": without_others(data), "run_name": run.name, "hardware": {"name": "-"}}
        task = task_of(from_plain(own, "the run's settings").data)
    except ConfigError:
        return None
    return task if cells == task.facts.seq_len and largest < task.facts.vocab_size else None


def _answers(text: str, run: Run, runs: int) -> tuple[list[dict[str, Any]], str]:
    plain = json.loads(text)
    solved = f"{plain['solved']} of {plain['puzzles']} puzzles solved within two answers"
    for shown in plain["shown"]:
        _check(shown)
    return plain["shown"], f"{solved}; {_votes(run)}, {plain['rows']:,} in all"


def _check(shown: dict[str, Any]) -> None:
    """Raise ValueError, TypeError or KeyError where this is not what `Ballots.shown` makes."""
    str(shown["name"])
    grids = [pair[side] for pair in shown["train"] for side in ("input", "output")]
    for test in shown["tests"]:
        grids += [test["input"], *([] if test["output"] is None else [test["output"]])]
        for answer in test["answers"]:
            grids.append(answer["grid"])
            float(answer["confidence"]), int(answer["votes"])
    largest = len(shown["colours"])
    if not all(type(cell) is int and 0 <= cell < largest for grid in grids for row in grid for cell in row):
        raise ValueError("a cell is no colour")
    if not all(type(colour) is str and colour[:1] == "#" for colour in shown["colours"]):
        raise ValueError("a colour is none")


def votes_note(comparison: Comparison) -> list[str]:
    """Whose votes the scores are, where puzzles are judged by votes."""
    runs = [run for variant in comparison.variants for run in variant.runs if run.has(ANSWERS_FILE)]
    kinds = sorted({_votes(run) for run in runs})
    return [f"Answers of variants are ranked by {' or '.join(kinds)} (evaluate.votes)."] if kinds else []


def _votes(run: Run) -> str:
    return VOTES.get(str(run.settings.get("evaluate.votes")), VOTES["checkpoint"])
