"""The page, with what it shows of the best run of each variant: its thinking (samples.json), and solved and failed puzzles
(answers.json).

Thinking is the answers to some held-out puzzles after every supervision step; the solved and failed are puzzles of pairs of grids.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trm.config import IGNORE_LABEL, from_plain, without_others
from trm.errors import ConfigError, message_of
from trm.inference.samples import SAMPLES_FILE, Samples
from trm.report import tables
from trm.report.runs import Run
from trm.report.variants import Comparison
from trm.show.charts import Theme
from trm.show.page import NO_TOKEN, VIEWER, render, thinking_data
from trm.show.thinking import of_samples
from trm.tasks.base import Task, task_of
from trm.tasks.pairs import ANSWERS_FILE

MOST_PUZZLES, MOST_PUZZLES_OF_A_RUN = 24, 4  # on one page: about 8 KB each for 9x9 and 16 steps
MOST_VARIANTS = 6  # whose answers are on one page


class Shown(NamedTuple):
    """A variant's best run as evaluate.best_by says, and what is shown of it, or why it cannot be."""

    variant: str
    run: str
    data: Any = None  # of trm.show.page.thinking_data, or a list of trm.tasks.pairs.Ballots.shown; None where there is a problem
    words: str = ""  # how many puzzles are solved, and whose votes these are
    problem: str = ""


def page(comparison: Comparison, title: str, drawn: Mapping[str, Mapping[Theme, bytes]]) -> str:
    """The page as one self-contained HTML file: pictures, as trm.report.plots has `drawn` them, style and scripts are inside."""
    shown = thinking(comparison)
    here = Path(__file__).parent
    return render(
        here / "report.html",
        [here / "sort.js", *([VIEWER] if shown else [])],
        title=title,
        comparison=comparison,
        statuses=Counter(run.status for run in comparison.runs),
        tables=tables,
        pictures=drawn,
        thinking=shown,
        answers=answers(comparison),
        symbol=next((item.data["view"]["symbols"][-1] for item in shown if item.data), "5"),  # in the legend
        most_puzzles=MOST_PUZZLES,
    )


def thinking(comparison: Comparison) -> list[Shown]:
    """What viewer.js draws, at most MOST_PUZZLES puzzles in all. Runs without samples.json have none."""

    def read(text: str, run: Run, runs: int) -> tuple[dict[str, Any], str]:
        samples = Samples.from_json(text)
        known = samples.labels[samples.labels != IGNORE_LABEL]
        tokens = np.concatenate([samples.inputs.ravel(), samples.predictions.ravel(), known])
        if tokens.min() < 0 or tokens.max() >= NO_TOKEN:
            raise ValueError(f"tokens are not within 0 to {NO_TOKEN - 1}")
        if not (np.isfinite(samples.confidence).all() and np.isfinite(samples.q_halt).all()):
            raise ValueError("confidence or q_halt is not finite")
        thoughts = of_samples(samples, _task(run, samples.inputs.shape[1], int(tokens.max())))
        return thinking_data(list(islice(thoughts, min(MOST_PUZZLES_OF_A_RUN, MOST_PUZZLES // runs)))), ""

    return _of_best_runs(comparison, SAMPLES_FILE, MOST_PUZZLES, read)


def answers(comparison: Comparison) -> list[Shown]:
    """The puzzles of pairs with their answers. Runs without answers.json have none."""

    def read(text: str, run: Run, runs: int) -> tuple[list[dict[str, Any]], str]:
        plain = json.loads(text)
        solved = f"{plain['solved']} of {plain['puzzles']} puzzles solved within two answers"
        for shown in plain["shown"]:
            _check(shown)
        return plain["shown"], f"{solved}; {tables.votes_of(run)}, {plain['rows']:,} in all"

    return _of_best_runs(comparison, ANSWERS_FILE, MOST_VARIANTS, read)


def _of_best_runs(comparison: Comparison, file: str, most: int, read: Callable[[str, Run, int], tuple[Any, str]]) -> list[Shown]:
    """What `read` makes of the text of this file, its run and the number of such runs, for the best run of each variant.

    The best run has the best final score (evaluate.best_by) of the counted runs with such a file, or of all if none is counted.
    """
    having = ((variant, [run for run in variant.counted or variant.runs if run.has(file)]) for variant in comparison.variants)
    chosen, found = [(variant, max(runs, key=attrgetter("deciding_score"))) for variant, runs in having if runs][:most], []
    for variant, run in chosen:
        try:
            text = Path(run.folder or "", file).read_text(encoding="utf-8")
            found.append(Shown(variant.label, run.name, *read(text, run, len(chosen))))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            found.append(Shown(variant.label, run.name, problem=f"{file} cannot be shown: {message_of(error)}"))
    return found


def _task(run: Run, cells: int, largest: int) -> Task | None:
    """The task that the run's settings say; None where its puzzles have another number of cells, or fewer tokens."""
    data = {key.removeprefix("data."): value for key, value in run.settings.items() if key.startswith("data.")}
    try:
        own = {"data": without_others(data), "run_name": run.name, "hardware": {"name": "-"}}
        task = task_of(from_plain(own, "the run's settings").data)
    except ConfigError:
        return None
    return task if cells == task.facts.seq_len and largest < task.facts.vocab_size else None


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
