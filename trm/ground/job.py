"""One job of a sweep in its folder, which tells how the job ended, whatever happens."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from trm.errors import RunFailure, UserError, described
from trm.ground.folder import SUMMARY_FILE, InUseError, put_summary_away, read_summary, refuse_in_use, write_summary
from trm.ground.rank import process_rank

log = logging.getLogger(__name__)


@contextlib.contextmanager
def job(run_dir: Path) -> Iterator[None]:
    """Around the work of one job: its folder then tells how the job ended.

    An earlier attempt's summary is put away first, unless its status is completed. An error that the run did not write into its own
    summary is written here and raised again; ranks other than 0 leave a note. Where another process trains nothing is written.
    """
    rank, ranks = process_rank()
    if rank == 0:
        refuse_in_use(run_dir)
    summary, note = run_dir / SUMMARY_FILE, run_dir / f"failed_rank_{rank}.txt"
    if rank == 0 and (read_summary(run_dir) or {}).get("status") != "completed":
        put_summary_away(run_dir)
    note.unlink(missing_ok=True)
    before = stamp(summary)
    try:
        yield
    except InUseError:
        raise
    except Exception as error:
        reason = described(error)
        log.error("%s", reason, exc_info=not isinstance(error, (UserError, RunFailure)))
        if rank == 0 and stamp(summary) == before:
            record_failure(run_dir, reason)
        elif rank:
            note.write_text(f"rank {rank} of {ranks}: {reason}\n")
        raise


def stamp(path: Path) -> tuple[int, int] | None:
    """A value that changes when a file is written anew, whatever the machines' clocks say; None where the file is missing."""
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def record_failure(run_dir: Path, reason: str) -> None:
    """Write a summary for a run that could not write its own. It begins with the failure of another rank, if one left a note."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if notes := sorted(run_dir.glob("failed_rank_*.txt")):
        reason = f"{notes[0].read_text().strip()} ({reason})"
    write_summary(run_dir, {"status": "failed", "reason": reason, "run_name": run_dir.name})
