"""The keys of the settings: a dataclass field with its default, its range, words for people, and what it changes.

Units are in the names (`_steps`, `_s`).
"""

from dataclasses import field
from typing import Any

EXACT = "exact"  # of the scores of an evaluation, the one that every task has
SAMPLE_PUZZLES = 10_000  # of an evaluation during training, where evaluate.max_puzzles does not say it
IGNORE_LABEL = -100  # label of a cell that does not count, in batches
# What a key changes: what training computes; how that is done and what evaluations report of it; where data lies; nothing of these.
NUMBERS, RESULTS, PLACE, NOTHING = "numbers", "results", "place", "nothing"
LARGEST_COUNT = 2**31 - 1  # counts end up in int32 arrays and graphs


def key(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    changes: str | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field with its documentation, its range (`low`/`high` inclusive, `above`/`below` exclusive) and its role.

    `changes` is NUMBERS, RESULTS, PLACE or NOTHING; None = as its group says, which is NUMBERS unless Config says otherwise.
    `path`: of a file or folder of this machine: a leading ~ is the home folder, and gs://... is refused.
    """
    rule = {
        "doc": doc,
        "choices": choices,
        "low": low,
        "high": high,
        "above": above,
        "below": below,
        "changes": changes,
        "path": path,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=rule)
    return field(default=default, metadata=rule)
