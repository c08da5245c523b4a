"""What the page shows of puzzles of pairs of grids: solved and failed ones with their answers, from the runs' answers.json."""

import json
from dataclasses import dataclass
from typing import Any

from trm.errors import message_of
from trm.report.runs import Run
from trm.report.variants import Comparison, Variant, best_runs
from trm.tasks.pairs import ANSWERS_FILE

MOST_VARIANTS = 6  # on one page
VOTES = {"checkpoint": "votes of the last evaluation's checkpoint", "run": "votes of all evaluations of the run, up to the last"}


@dataclass(frozen=True)
class Answers:
    """A variant's best run as evaluate.best_by says, and the puzzles that it shows, or why it cannot."""

    variant: str
    run: str
    words: str  # how many puzzles are solved, and whose votes these are
    shown: list[dict[str, Any]]  # of trm.tasks.pairs.Ballots.shown
    problem: str = ""


def answers(comparison: Comparison) -> list[Answers]:
    """The puzzles of each variant's best run that has them."""
    return [_answers(*chosen) for chosen in best_runs(comparison, ANSWERS_FILE)[:MOST_VARIANTS]]


def votes_note(comparison: Comparison) -> list[str]:
    """Whose votes the scores are, where puzzles are judged by votes."""
    runs = [run for variant in comparison.variants for run in variant.runs if run.has(ANSWERS_FILE)]
    kinds = sorted({_votes(run) for run in runs})
    return [f"Answers of variants are ranked by {' or '.join(kinds)} (evaluate.votes)."] if kinds else []


def _votes(run: Run) -> str:
    return VOTES.get(str(run.settings.get("evaluate.votes")), VOTES["checkpoint"])


def _answers(variant: Variant, run: Run) -> Answers:
    assert run.folder is not None
    try:
        plain = json.loads((run.folder / ANSWERS_FILE).read_text(encoding="utf-8"))
        words = (
            f"{plain['solved']} of {plain['puzzles']} puzzles solved within two answers; {_votes(run)}, {plain['rows']:,} in all"
        )
        for shown in plain["shown"]:
            _check(shown)
        return Answers(variant.label, run.name, words, plain["shown"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        return Answers(variant.label, run.name, "", [], f"{ANSWERS_FILE} cannot be shown: {message_of(error)}")


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
