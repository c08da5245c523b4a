"""What the page shows of the thinking: answers for some held-out puzzles after every supervision step, from samples.json.

A cell is wrong where it is unlike its label, and given where the question has the label.
Shape legend as in trm/inference/samples.py: S supervision steps, K puzzles, C cells.
"""

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.config import IGNORE_LABEL, from_plain
from trm.errors import ConfigError
from trm.inference.samples import SAMPLES_FILE, Samples
from trm.report.runs import Run
from trm.report.variants import Comparison, Variant
from trm.tasks.base import GridView, task_of

MOST_PUZZLES, MOST_PUZZLES_OF_A_RUN = 24, 4  # on one page: about 4 KB each for 9x9 and 16 steps
NO_LABEL = 255  # stands for IGNORE_LABEL in the page's bytes; tokens are below it


@dataclass(frozen=True)
class Thinking:
    """A variant's best run, and what the page's script draws of it, or why it cannot."""

    variant: str
    run: str
    grids: dict[str, Any] | None  # ready for JSON; None where there is a problem
    problem: str = ""


def thinking(comparison: Comparison) -> list[Thinking]:
    """The thinking of each variant's best run, at most MOST_PUZZLES puzzles in all. Runs without samples.json have none."""
    chosen = [(variant, run) for variant in comparison.variants if (run := _best_run(variant)) is not None][:MOST_PUZZLES]
    return [_thinking(variant, run, min(MOST_PUZZLES_OF_A_RUN, MOST_PUZZLES // len(chosen))) for variant, run in chosen]


def _best_run(variant: Variant) -> Run | None:
    """The counted run with the highest final accuracy; of a variant without one, a run that is not done."""
    runs = [run for run in variant.counted or variant.runs if run.folder and (run.folder / SAMPLES_FILE).is_file()]
    return max(runs, key=lambda run: run.exact_accuracy or 0.0, default=None)


def _thinking(variant: Variant, run: Run, count: int) -> Thinking:
    assert run.folder is not None
    try:
        samples = Samples.from_json((run.folder / SAMPLES_FILE).read_text(encoding="utf-8"))
        return Thinking(variant.label, run.name, _grids(samples, _view(run, samples), count))
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Thinking(variant.label, run.name, None, f"{SAMPLES_FILE} cannot be shown: {reason}")


def _view(run: Run, samples: Samples) -> GridView:
    """How the run's puzzles are drawn; as a square of numbers where they are not those that its settings say."""
    data = {key.removeprefix("data."): value for key, value in run.settings.items() if key.startswith("data.")}
    largest = int(max(samples.inputs.max(), samples.labels.max(), samples.predictions.max()))
    cells = samples.inputs.shape[1]
    try:
        task = task_of(from_plain({"data": data, "run_name": run.name, "hardware": {"name": "-"}}, "the run's settings").data)
        if (task.facts.seq_len, largest < task.facts.vocab_size) == (cells, True):
            return task.view
    except ConfigError:
        pass
    side = math.isqrt(cells)
    if side**2 != cells:
        raise ValueError(f"{cells} cells are no square grid")
    return GridView(side, side, tuple(str(token) for token in range(largest + 1)))


def _grids(samples: Samples, view: GridView, count: int) -> dict[str, Any]:
    """Grids as base64 of one byte a cell: tokens, and confidence in 255ths. Raises ValueError where they do not fit that."""
    tokens = np.concatenate([samples.inputs.ravel(), samples.predictions.ravel(), samples.labels[samples.labels != IGNORE_LABEL]])
    if tokens.min() < 0 or tokens.max() >= NO_LABEL:
        raise ValueError(f"tokens are not within 0 to {NO_LABEL - 1}")
    if not (np.isfinite(samples.confidence).all() and np.isfinite(samples.q_halt).all()):
        raise ValueError("confidence or q_halt is not finite")
    labels = np.where(samples.labels == IGNORE_LABEL, NO_LABEL, samples.labels)
    shares = np.rint(255 * np.clip(samples.confidence, 0, 1))
    halting = 1 / (1 + np.exp(-samples.q_halt.astype(np.float64)))
    return {
        "rows": view.rows,
        "columns": view.columns,
        "heavy_rows": view.heavy_rows,
        "heavy_columns": view.heavy_columns,
        "symbols": view.symbols,
        "steps": len(samples.predictions),
        "puzzles": [
            {
                "question": _base64(samples.inputs[k]),
                "solution": _base64(labels[k]),
                "answers": [_base64(answer) for answer in samples.predictions[:, k]],
                "confidence": [_base64(share) for share in shares[:, k]],
                "halting": halting[:, k].round(4).tolist(),
            }
            for k in range(min(count, len(samples.inputs)))
        ],
    }


def _base64(cells: NDArray[Any]) -> str:
    return base64.b64encode(cells.astype(np.uint8).tobytes()).decode()
