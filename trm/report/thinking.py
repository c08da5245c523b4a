"""What the page shows of the thinking: answers for some held-out puzzles after every supervision step, from samples.json.

For any square grid, not for Sudoku alone: a cell is wrong where it is unlike its label, and given where the question has the label.
Shape legend as in trm/inference/samples.py: S supervision steps, K puzzles, C cells.
"""

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.core.losses import IGNORE_LABEL
from trm.inference.samples import SAMPLES_FILE, Samples
from trm.report.runs import Run
from trm.report.variants import Comparison, Variant
from trm.tasks.sudoku.rules import Sudoku

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
        return Thinking(variant.label, run.name, _grids(samples, _sudoku(run, samples), count))
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Thinking(variant.label, run.name, None, f"{SAMPLES_FILE} cannot be shown: {reason}")


def _sudoku(run: Run, samples: Samples) -> Sudoku | None:
    """The run's kind of Sudoku where its puzzles are one."""
    rows, cols = run.settings.get("data.box_rows"), run.settings.get("data.box_cols")
    if not (isinstance(rows, int) and isinstance(cols, int) and rows > 0 and cols > 0):
        return None
    sudoku = Sudoku(rows, cols)
    largest = max(samples.inputs.max(), samples.labels.max(), samples.predictions.max())
    return sudoku if samples.inputs.shape[1] == sudoku.num_cells and largest < sudoku.vocab_size else None


def _grids(samples: Samples, sudoku: Sudoku | None, count: int) -> dict[str, Any]:
    """Grids as base64 of one byte a cell: tokens, and confidence in 255ths. Raises ValueError where they do not fit that."""
    side = math.isqrt(samples.inputs.shape[1])
    tokens = np.concatenate([samples.inputs.ravel(), samples.predictions.ravel(), samples.labels[samples.labels != IGNORE_LABEL]])
    if side**2 != samples.inputs.shape[1]:
        raise ValueError(f"{samples.inputs.shape[1]} cells are no square grid")
    if tokens.min() < 0 or tokens.max() >= NO_LABEL:
        raise ValueError(f"tokens are not within 0 to {NO_LABEL - 1}")
    if not (np.isfinite(samples.confidence).all() and np.isfinite(samples.q_halt).all()):
        raise ValueError("confidence or q_halt is not finite")
    labels = np.where(samples.labels == IGNORE_LABEL, NO_LABEL, samples.labels)
    shares = np.rint(255 * np.clip(samples.confidence, 0, 1))
    halting = 1 / (1 + np.exp(-samples.q_halt.astype(np.float64)))
    known = np.arange(tokens.max() + 1)
    return {
        "side": side,
        "box_rows": sudoku.box_rows if sudoku else side,
        "box_cols": sudoku.box_cols if sudoku else side,
        "symbols": list(sudoku.text(known)) if sudoku else [str(token) for token in known],
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
