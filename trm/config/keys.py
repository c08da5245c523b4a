"""A key of the settings: a dataclass field with its default, range and description, and what it changes.

Units are in the names (`_steps`, `_s`).
"""

from dataclasses import field
from typing import Any

EXACT = "exact"  # the score that every task has
SAMPLE_PUZZLES = 10_000  # puzzles of an evaluation during training, unless evaluate.max_puzzles is set
IGNORE_LABEL = -100  # label of a cell that does not count, in batches
# What a key changes: what training computes; how it is computed, and what evaluations report; where data lies; none of these.
NUMBERS, RESULTS, PLACE, NOTHING = "numbers", "results", "place", "nothing"
BOUNDS = ("low", "high", "above", "below")
LARGEST_COUNT = 2**31 - 1  # counts end up in int32 arrays and graphs


def key(
    default: Any, doc: str, *, choices: tuple[str, ...] = (), changes: str | None = None, path: bool = False, **bounds: float
) -> Any:
    """A dataclass field with its documentation, its range and its role.

    `changes` is NUMBERS, RESULTS, PLACE or NOTHING; None = as its group, which is NUMBERS unless Config says otherwise. `path`: a
    file or folder of this machine, where ~ is the home folder. `bounds`: `low` and `high` inclusive, `above` and `below` exclusive.
    """
    assert bounds.keys() <= set(BOUNDS)
    rule = {"doc": doc, "choices": choices, "changes": changes, "path": path, **dict.fromkeys(BOUNDS), **bounds}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=rule)
    return field(default=default, metadata=rule)
