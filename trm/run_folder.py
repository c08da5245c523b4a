"""The run folder as train.py writes it: one process at a time, a summary that is never half-written."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trm.errors import UserError

SUMMARY_FILE, CONFIG_FILE = "summary.json", "config.yaml"


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold the run folder: a second process that trains there at the same time is refused (UserError).

    The lock is the operating system's and ends with the process, however it ends.
    """
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run_dir}: another process is training in this folder: wait for it, or choose another run_name"
            ) from error
        yield


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """A run's summary.json; None where there is none, or where it is not whole."""
    try:
        summary = json.loads((run_dir / SUMMARY_FILE).read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Replace summary.json as a whole."""
    temporary = run_dir / f".{SUMMARY_FILE}.new"
    temporary.write_text(json.dumps(summary, indent=1) + "\n")
    temporary.replace(run_dir / SUMMARY_FILE)
