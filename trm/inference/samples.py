"""A few held-out puzzles with the model's answers after each supervision step, which an evaluation keeps beside its metrics.

Shape legend: S supervision steps, K puzzles, C cells.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch takes seconds, which a report need not wait for
    from trm.core.metrics import Predictions

SAMPLES_FILE = "samples.json"
REAL, DIGITS = ("confidence", "q_halt"), 4  # decimals of these in the file


@dataclass(frozen=True)
class Samples:
    """The first puzzles of the test split and the answers after every supervision step."""

    inputs: NDArray[np.int32]  # [K, C] tokens of the questions
    labels: NDArray[np.int32]  # [K, C] tokens of the solutions; trm.core.losses.IGNORE_LABEL where a cell has none
    predictions: NDArray[np.int32]  # [S, K, C] most probable tokens
    confidence: NDArray[np.float32]  # [S, K, C] probability of the prediction under the training loss, 0..1
    q_halt: NDArray[np.float32]  # [S, K] `halting_logit`: above 0 the model would stop

    @classmethod
    def of(cls, puzzles: dict[str, NDArray[np.int32]], shown: Predictions) -> Samples:
        """Samples of the given puzzles (a batch of the loader) and their predictions, which are arrays [S, K, ...]."""
        count = min(len(puzzles["inputs"]), shown.halting.shape[1])
        return cls(
            inputs=puzzles["inputs"][:count],
            labels=puzzles["labels"][:count],
            predictions=shown.answers[:, :count],
            confidence=shown.confidence[:, :count].astype(np.float32),
            q_halt=shown.halting[:, :count].astype(np.float32),
        )

    def to_json(self) -> str:
        """One JSON object of nested lists; floats rounded to four decimals."""
        own = {name: np.round(array.astype(np.float64), DIGITS) if name in REAL else array for name, array in vars(self).items()}
        return json.dumps({name: array.tolist() for name, array in own.items()}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Samples:
        """The samples that `to_json` wrote. Raises ValueError for any other text."""
        values = json.loads(text)
        names = [item.name for item in fields(cls)]
        if not isinstance(values, dict) or values.keys() != set(names):
            raise ValueError(f"not the samples of an evaluation: they have {', '.join(names)}")
        arrays: dict[str, Any] = {name: np.array(values[name], np.float32 if name in REAL else np.int32) for name in names}
        found = cls(**arrays)
        answers = found.predictions.shape  # [S, K, C]
        shapes = [array.shape for array in (found.inputs, found.labels, found.confidence, found.q_halt)]
        if len(answers) != 3 or shapes != [answers[1:], answers[1:], answers, answers[:2]] or not found.predictions.size:
            raise ValueError(f"the samples' shapes do not agree: predictions {answers}, and {shapes}")
        return found
