"""Sweeps: which jobs are done, and how a sweep ends.

The same command means the same folder, so giving it again runs only what is missing or incomplete. A sweep is judged by each
job's own summary.json, never by what a launcher or a queue says about it.

    multirun/SWEEP/grid.json          {"sweep", "command", "jobs": [{"dir", "overrides", "digest"}, ...]}
    multirun/SWEEP/JOB/summary.json   written by the job; by the sweep itself where the job could not
    multirun/SWEEP/JOB/placement.json where the job last ran: host, chips, environment, queue's job id
"""

import contextlib
import json
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm.run.folder import GRID_FILE, SUMMARY_FILE, held, read_summary, write_whole
from trm.run.job import record_failure, stamp

log = logging.getLogger(__name__)

PLACEMENT_FILE = "placement.json"


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
    write_whole(path, json.dumps(content, indent=1) + "\n")


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


# --------------------------------------------------------------------------------------------------------------- the sweep


@contextlib.contextmanager
def only_once(sweep_dir: Path) -> Iterator[None]:
    """Hold the sweep's lock: two of the same command at once would train in the same folders. Raises UserError."""
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with held(sweep_dir / f".lock-{socket.gethostname()}", f"{sweep_dir}: this sweep is already running: wait for it or end it"):
        yield


def left_to_do(sweep_dir: Path, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that are not completed; says how many are skipped."""
    done = [job.dir for job in jobs if is_completed(sweep_dir / job.dir, job.digest)]
    if done:
        log.info("skipping %s completed jobs: %s", len(done), ", ".join(done))
    return [job for job in jobs if job.dir not in done]


def stamps(sweep_dir: Path, jobs: Sequence[Job]) -> dict[str, tuple[int, int] | None]:
    """What each job's summary is now, to be compared with what it is when the job has ended."""
    return {job.dir: stamp(sweep_dir / job.dir / SUMMARY_FILE) for job in jobs}


def failures(sweep_dir: Path, jobs: Sequence[Job], before: Mapping[str, object], errors: dict[str, str]) -> list[tuple[Job, str]]:
    """The jobs that are not completed, each with the reason.

    A job that ended without writing a summary since `before`, the `stamps` at the start (killed, or never started), gets one here,
    with the launcher's reason from `errors`, so that reports know it too.
    """
    found = []
    for job in jobs:
        run_dir = sweep_dir / job.dir
        reason = why_incomplete(sweep_dir, job)
        if reason is None:
            continue
        if job.dir in errors and stamp(run_dir / SUMMARY_FILE) in (None, before.get(job.dir)):
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
