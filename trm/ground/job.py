"""One job of a sweep in its folder: whatever happens, the folder tells how the job ended."""

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
    """Around one job's work: see to it that the job's folder tells how the job ended.

    An earlier attempt's summary is put away first, unless it says completed. An error that the run did not write into its own
    summary is written here, and passed on; ranks other than 0 leave a note. Nothing is written where another process trains.
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
    """What changes when a file is written anew, whatever the clocks of the machines say; None where there is none."""
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def record_failure(run_dir: Path, reason: str) -> None:
    """Write a summary for a run that could not write its own. The failure of another rank, where there is one, comes first."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if notes := sorted(run_dir.glob("failed_rank_*.txt")):
        reason = f"{notes[0].read_text().strip()} ({reason})"
    write_summary(run_dir, {"status": "failed", "reason": reason, "run_name": run_dir.name})
