"""metrics.jsonl: the record of a run."""

import json
import logging
import math
from pathlib import Path

from trm.ground.folder import write_whole

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class JsonlTracker:
    """One strict-JSON object a line: kind, global_step, then the values; NaN and infinities are null.

    Each line is handed to the system as it is logged, so kill -9 tears at most the last one.
    Raises OSError when the file cannot be written.
    """

    def __init__(self, path: Path, resume_step: int | None) -> None:
        """Open `path` to append after `resume_step` (None = a fresh run): the steps of later lines come again, so those go."""
        if path.exists():
            _cut_lines(path, -1 if resume_step is None else resume_step)
        self._file = path.open("ab", buffering=0)

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Append one line."""
        assert not {"kind", "global_step"} & values.keys(), values
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"kind": kind, "global_step": global_step, **finite}, allow_nan=False).encode() + b"\n"
        while line:  # a nearly full disk may take only a part: the next write then raises OSError
            line = line[self._file.write(line) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut_lines(path: Path, last_step: int) -> None:
    """Rewrite `path`, all or nothing, without the lines after `last_step` and without torn ones."""
    kept, torn = [], 0
    for line in path.read_bytes().splitlines():
        try:
            text = line.decode()
            keep = json.loads(text)["global_step"] <= last_step
        except (ValueError, TypeError, KeyError):  # ValueError: not JSON, or not even UTF-8
            torn += 1
            continue
        if keep:
            kept.append(f"{text}\n")
    if torn:
        log.info("%s: left out %d unreadable line(s), as a killed run leaves one", path, torn)
    write_whole(path, "".join(kept))
