"""Sweeps: what a grid's folder and jobs are called, which jobs are done, and how a sweep ends.

The same command means the same folder, so giving it again runs only what is missing or incomplete. A sweep is judged by each
job's own summary.json, never by what a launcher or a queue says about it.

    multirun/SWEEP/grid.json          {"sweep", "command", "jobs": [{"dir", "overrides", "digest"}, ...]}
    multirun/SWEEP/JOB/summary.json   written by the job; by the sweep itself where the job could not
    multirun/SWEEP/JOB/placement.json where the job last ran: host, chips, environment, queue's job id
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from trm.config import NOTHING, role
from trm.errors import RunFailure, UserError
from trm.run.folder import SUMMARY_FILE, put_summary_away, read_summary, write_summary

log = logging.getLogger(__name__)

GRID_FILE, PLACEMENT_FILE = "grid.json", "placement.json"
LONGEST_NAME = 70
RANK, RANKS = "TRM_RANK", "TRM_RANKS"  # environment of a process that scripts/launch_pod.sh starts


# -------------------------------------------------------------------------------------------------------------------- names


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value.strip("'\"")


def _is_neutral(key: str) -> bool:
    """Whether it says how to run a sweep, not what it computes: then it is in neither its folder's nor its jobs' names."""
    return role(key) == NOTHING and not key.startswith("recipe")


def _label(override: str) -> str:
    """An override as part of a name: EXPERIMENT, or KEY=VALUE with the last part of a dotted key."""
    key, value = _key_and_value(override)
    return value if key in ("experiment", "sweep") else f"{key.rpartition('.')[2]}={value}"


def _file_name(labels: Sequence[str], overrides: Sequence[str]) -> str:
    """The labels as one name that is a plain file name; a hash of the overrides follows where something had to be left out."""
    full = ",".join(labels)
    shown = list(labels)
    while len(shown) > 1 and len(",".join(shown)) > LONGEST_NAME:
        shown.pop()
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join(shown))[:LONGEST_NAME].strip("_,.")
    return name if name == full else f"{name}-{_short_hash(overrides)}".lstrip("-")


def _short_hash(overrides: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:6]


def sweep_name(overrides: Sequence[str]) -> str:
    """The folder under multirun/ for a sweep of these overrides: equal for equal commands, in whatever order they are given.

    run_name=NAME names it; else it is the name given to +sweep= and the other overrides, or these alone. Overrides of how to run
    (hardware.jobs, tracking, ...) do not count.
    """
    pairs = [(_key_and_value(override), override) for override in overrides]
    for (key, value), _ in pairs:
        if key == "run_name" and value:
            return _file_name([value], [value])
    counted = sorted((key != "sweep", "." in key, key, override) for (key, _), override in pairs if not _is_neutral(key))
    chosen = [override for *_, override in counted]
    return _file_name([_label(override) for override in chosen], chosen) or "defaults"


def job_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """One readable, unique folder name for each job: its overrides that differ between jobs, and its seed where one is given."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for override in job:
            values.setdefault(_key_and_value(override)[0], set()).add(override)
    shown = {key for key, found in values.items() if len(found) > 1 or key == "seed"} - {"sweep"}
    if not shown:
        shown = {key for key in values if not _is_neutral(key) and key != "sweep"}
    names = []
    for job in jobs:
        picked = [override for override in job if _key_and_value(override)[0] in shown]
        names.append(_file_name([_label(override) for override in picked], picked) or "run")
    # two dotted keys may end alike, and long values may be cut alike
    return [name if names.count(name) == 1 else f"{name}-{_short_hash(job)}" for name, job in zip(names, jobs, strict=True)]


# --------------------------------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    """One job of a sweep."""

    dir: str  # its folder inside the sweep's
    overrides: tuple[str, ...]  # what the user's command means for this job
    digest: str  # trm.config.digest of its settings


def write_grid(sweep_dir: Path, command: str, jobs: Sequence[Job]) -> None:
    """Record the grid in the sweep's folder."""
    grid = {
        "sweep": sweep_dir.name,
        "command": command,
        "jobs": [{"dir": job.dir, "overrides": list(job.overrides), "digest": job.digest} for job in jobs],
    }
    write_json(sweep_dir / GRID_FILE, grid)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write as a whole or not at all: other processes read these files."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def is_completed(run_dir: Path, digest: str) -> bool:
    """True where the run folder holds a completed run of the settings with this digest."""
    summary = read_summary(run_dir) or {}
    return summary.get("status") == "completed" and summary.get("config_digest") == digest


def why_incomplete(sweep_dir: Path, job: Job) -> str | None:
    """One line on why a job is not done, from its own folder; None where it is done."""
    run_dir = sweep_dir / job.dir
    if is_completed(run_dir, job.digest):
        return None
    summary = read_summary(run_dir)
    if summary is None:
        return "missing: it left no summary.json"
    status = summary.get("status")
    if status == "preempted":
        return f"preempted at step {summary.get('steps')} of {summary.get('total_steps')}"
    if status == "completed":
        return f"completed with other settings (digest {summary.get('config_digest')}, not {job.digest})"
    return f"{status}: {summary.get('reason')}"


# ----------------------------------------------------------------------------------------------------------- inside one job


def process_rank() -> tuple[int, int]:
    """(rank, ranks) of this process in a job that Slurm, submitit or scripts/launch_pod.sh started; (0, 1) elsewhere."""
    if RANK in os.environ:
        return int(os.environ[RANK]), int(os.environ.get(RANKS, "1"))
    rank = os.environ.get("SLURM_PROCID") or os.environ.get("SUBMITIT_LOCAL_GLOBALID") or "0"
    ranks = os.environ.get("SLURM_NTASKS") or os.environ.get("SUBMITIT_LOCAL_NTASKS") or "1"
    return (int(rank), int(ranks)) if "SUBMITIT_EXECUTOR" in os.environ else (0, 1)


@contextlib.contextmanager
def job(run_dir: Path) -> Iterator[None]:
    """Around one job's work: see to it that the job's folder tells how the job ended.

    An earlier attempt's summary is put away first, unless it says completed (the run then decides whether there is more to do). An
    error that the run did not write into its own summary is written here, and passed on. Ranks other than 0 leave a note of their
    own beside rank 0's files.
    """
    rank, ranks = process_rank()
    summary, note = run_dir / SUMMARY_FILE, run_dir / f"failed_rank_{rank}.txt"
    if rank == 0 and (read_summary(run_dir) or {}).get("status") != "completed":
        put_summary_away(run_dir)
    note.unlink(missing_ok=True)
    before = _stamp(summary)
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        log.error("%s", reason, exc_info=not isinstance(error, (UserError, RunFailure)))
        if rank == 0 and _stamp(summary) == before:
            record_failure(run_dir, reason)
        elif rank:
            note.write_text(f"rank {rank} of {ranks}: {reason}\n")
        raise


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def record_failure(run_dir: Path, reason: str) -> None:
    """Write a summary for a run that could not write its own. The failure of another rank, where there is one, comes first."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for note in sorted(run_dir.glob("failed_rank_*.txt")):
        reason = f"{note.read_text().strip()} ({reason})"
        break
    write_summary(run_dir, {"status": "failed", "reason": reason, "run_name": run_dir.name})


# --------------------------------------------------------------------------------------------------------------- the sweep


@contextlib.contextmanager
def only_once(sweep_dir: Path) -> Iterator[None]:
    """Hold the sweep's lock: two of the same command at once would train in the same folders. Raises UserError."""
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with (sweep_dir / f".lock-{socket.gethostname()}").open("a+") as lock:
        if not try_lock(lock):
            lock.seek(0)
            raise UserError(f"{sweep_dir}: this sweep is already running (process {lock.read().strip()}): wait for it or end it")
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def try_lock(file: TextIO) -> bool:
    """Take the file's lock if it is free. The system frees it when the process ends, however it ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(file: TextIO) -> None:
    """Give a lock back."""
    fcntl.flock(file, fcntl.LOCK_UN)


def left_to_do(sweep_dir: Path, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that are not completed; says how many are skipped."""
    done = [job.dir for job in jobs if is_completed(sweep_dir / job.dir, job.digest)]
    if done:
        log.info("skipping %s completed jobs: %s", len(done), ", ".join(done))
    return [job for job in jobs if job.dir not in done]


def failures(sweep_dir: Path, jobs: Sequence[Job], started_ns: int, errors: dict[str, str]) -> list[tuple[Job, str]]:
    """The jobs that are not completed, each with the reason.

    A job that ended without writing a summary since `started_ns` (killed, or never started) gets one here, with the launcher's
    reason from `errors`, so that reports know it too.
    """
    found = []
    for job in jobs:
        run_dir = sweep_dir / job.dir
        reason = why_incomplete(sweep_dir, job)
        if reason is None:
            continue
        stamp = _stamp(run_dir / SUMMARY_FILE)
        if job.dir in errors and (stamp is None or stamp < started_ns):
            record_failure(run_dir, errors[job.dir])
            reason = why_incomplete(sweep_dir, job) or reason
        found.append((job, reason))
    return found


def closing_lines(sweep_dir: Path, jobs: Sequence[Job], failed: Sequence[tuple[Job, str]], command: str) -> list[str]:
    """What a sweep says at its end."""
    if not failed:
        return [f"all {len(jobs)} jobs completed in {sweep_dir}"]
    return [
        f"{len(failed)} of {len(jobs)} jobs did not complete in {sweep_dir}:",
        *(f"  {job.dir}: {reason}" for job, reason in failed),
        "the same command runs only what is missing:",
        f"  {command}",
    ]
