"""What the page shows of the thinking: answers for some held-out puzzles after every supervision step, from samples.json."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from trm.config import IGNORE_LABEL, from_plain, without_others
from trm.errors import ConfigError, message_of
from trm.inference.samples import SAMPLES_FILE, Samples
from trm.report.runs import Run
from trm.report.variants import Comparison, Variant, best_runs
from trm.show.page import NO_TOKEN, thinking_data
from trm.show.thinking import of_samples
from trm.tasks.base import Task, task_of

MOST_PUZZLES, MOST_PUZZLES_OF_A_RUN = 24, 4  # on one page: about 8 KB each for 9x9 and 16 steps


@dataclass(frozen=True)
class Thinking:
    """A variant's best run, and what viewer.js draws of it, or why it cannot."""

    variant: str
    run: str
    data: dict[str, Any] | None  # of trm.show.page.thinking_data; None where there is a problem
    problem: str = ""


def thinking(comparison: Comparison) -> list[Thinking]:
    """The thinking of each variant's best run, at most MOST_PUZZLES puzzles in all. Runs without samples.json have none."""
    chosen = best_runs(comparison, SAMPLES_FILE)[:MOST_PUZZLES]
    return [_thinking(variant, run, min(MOST_PUZZLES_OF_A_RUN, MOST_PUZZLES // len(chosen))) for variant, run in chosen]


def _thinking(variant: Variant, run: Run, count: int) -> Thinking:
    assert run.folder is not None
    try:
        samples = Samples.from_json((run.folder / SAMPLES_FILE).read_text(encoding="utf-8"))
        tokens = np.concatenate(
            [samples.inputs.ravel(), samples.predictions.ravel(), samples.labels[samples.labels != IGNORE_LABEL]]
        )
        if tokens.min() < 0 or tokens.max() >= NO_TOKEN:
            raise ValueError(f"tokens are not within 0 to {NO_TOKEN - 1}")
        if not (np.isfinite(samples.confidence).all() and np.isfinite(samples.q_halt).all()):
            raise ValueError("confidence or q_halt is not finite")
        thoughts = of_samples(samples, _task(run, samples.inputs.shape[1], int(tokens.max())))
        return Thinking(variant.label, run.name, thinking_data(list(islice(thoughts, count))))
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        return Thinking(variant.label, run.name, None, f"{SAMPLES_FILE} cannot be shown: {message_of(error)}")


def _task(run: Run, cells: int, largest: int) -> Task | None:
    """The task that the run's settings say; None where it has not so many cells or tokens."""
    data = {key.removeprefix("data."): value for key, value in run.settings.items() if key.startswith("data.")}
    try:
        own = {"data": without_others(data), "run_name": run.name, "hardware": {"name": "-"}}
        task = task_of(from_plain(own, "the run's settings").data)
    except ConfigError:
        return None
    return task if cells == task.facts.seq_len and largest < task.facts.vocab_size else None
