"""The run folder as train.py writes it: one process at a time, a summary that is never half-written."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trm.errors import UserError

SUMMARY_FILE, CONFIG_FILE = "summary.json", "config.yaml"
LOCK_FILE = ".lock"
PREVIOUS_SUMMARY_FILE = ".summary.previous.json"  # of the start before this one, while a sweep's job has not written its own


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold the run folder: a second process that trains there at the same time is refused (UserError).

    The lock is the operating system's and ends with the process, however it ends.
    """
    with (run_dir / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run_dir}: another process is training in this folder: wait for it, or choose another run_name"
            ) from error
        yield


def in_use(run_dir: Path) -> bool:
    """Whether a process of this machine trains in the folder now."""
    try:
        with (run_dir / LOCK_FILE).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def read_summary(run_dir: Path, name: str = SUMMARY_FILE) -> dict[str, Any] | None:
    """A run's summary.json; None where there is none, or where it is not whole."""
    try:
        summary = json.loads((run_dir / name).read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def put_summary_away(run_dir: Path) -> None:
    """Take the last start's summary.json out of sight; `seconds_before` still finds it."""
    if (run_dir / SUMMARY_FILE).exists():
        (run_dir / SUMMARY_FILE).replace(run_dir / PREVIOUS_SUMMARY_FILE)


def seconds_before(run_dir: Path) -> float:
    """Seconds of training that the earlier starts of a run took; 0.0 where no summary tells."""
    summary = read_summary(run_dir) or read_summary(run_dir, PREVIOUS_SUMMARY_FILE) or {}
    return float(summary.get("seconds") or 0.0)


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Replace summary.json as a whole."""
    temporary = run_dir / f".{SUMMARY_FILE}.new"
    temporary.write_text(json.dumps(summary, indent=1) + "\n")
    temporary.replace(run_dir / SUMMARY_FILE)
