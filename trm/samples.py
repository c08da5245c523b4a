"""A few held-out puzzles with everything the model answered on the way: what an evaluation shows beside its metrics.

Shape legend: S supervision steps, K puzzles, C cells.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLES_FILE = "samples.json"
MOST_SAMPLES = 8  # puzzles of an evaluation that are shown
DIGITS = 4  # decimals of confidence and q_halt in the file


@dataclass(frozen=True)
class Samples:
    """The first puzzles of the test split and the answers after every supervision step."""

    inputs: NDArray[np.int32]  # [K, C] tokens of the questions
    labels: NDArray[np.int32]  # [K, C] tokens of the solutions; trm.losses.IGNORE_LABEL where a cell has none
    predictions: NDArray[np.int32]  # [S, K, C] most probable tokens
    confidence: NDArray[np.float32]  # [S, K, C] probability of the prediction under the training loss, 0..1
    q_halt: NDArray[np.float32]  # [S, K] halting logit: above 0 the model would stop

    def to_json(self) -> str:
        """One JSON object of nested lists; floats rounded to four decimals."""
        values: dict[str, Any] = {
            name: array.tolist() if array.dtype.kind == "i" else np.round(array.astype(np.float64), DIGITS).tolist()
            for name, array in vars(self).items()
        }
        return json.dumps(values) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Samples":
        """What `to_json` wrote. Raises ValueError where the text is something else."""
        values = json.loads(text)
        names = [item.name for item in fields(cls)]
        if not isinstance(values, dict) or values.keys() != set(names):
            raise ValueError(f"not the samples of an evaluation: they have {', '.join(names)}")
        tokens = {name: np.array(values[name], np.int32) for name in ("inputs", "labels", "predictions")}
        floats = {name: np.array(values[name], np.float32) for name in ("confidence", "q_halt")}
        return cls(**tokens, **floats)


def write_samples(run_dir: Path, samples: Samples) -> None:
    """Replace the run folder's samples.json as a whole."""
    temporary = run_dir / f".{SAMPLES_FILE}.new"
    temporary.write_text(samples.to_json())
    temporary.replace(run_dir / SAMPLES_FILE)
