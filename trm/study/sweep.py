"""Sweeps: which folder is a job's, which jobs are done, and how a sweep ends.

The same command means the same folder, so giving it again runs only what is missing or incomplete. A sweep is judged by each
job's own summary.json, never by what a launcher or a queue says about it.

    multirun/SWEEP/grid.json          {"sweep", "command", "jobs": [{"dir", "overrides", "digest"}, ...]}
    multirun/SWEEP/JOB/summary.json   written by the job; by the sweep itself where the job could not
    multirun/SWEEP/JOB/placement.json where the job last ran: host, chips, environment, queue's job id
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from trm.cli import typed
from trm.config import Config, DataConfig, digest, kept, load_yaml, resume_conflicts, to_plain
from trm.data.build import ensure_dataset, is_absent
from trm.data.content import as_read
from trm.data.format import load_dataset, read_build_record
from trm.errors import UserError
from trm.ground.folder import CONFIG_FILE, GRID_FILE, LOCK_FILE, SUMMARY_FILE, held, in_use, make_folder, read_summary, write_whole
from trm.ground.job import record_failure, stamp
from trm.ground.rank import on_a_pod
from trm.tasks.base import task_of

log = logging.getLogger(__name__)

PLACEMENT_FILE = "placement.json"


@dataclass(frozen=True)
class Job:
    """One job of a sweep."""

    dir: str  # its folder inside the sweep's
    overrides: tuple[str, ...]  # of the user's command, for this job
    cfg: Config

    @property
    def digest(self) -> str:
        """The digest that a completed run of these settings has in its summary."""
        return digest(self.as_run)

    @property
    def as_run(self) -> Config:
        """The settings as a run records them: with the counts of its dataset, where that exists and fits the settings."""
        settings = json.dumps([str(Path.cwd()), to_plain(self.cfg)["data"]], sort_keys=True)
        if settings not in _read and not is_absent(Path(self.cfg.data.path)):
            _read[settings] = self.cfg.data
            with contextlib.suppress(UserError):  # the run will report it
                path, task = ensure_dataset(self.cfg.data), task_of(self.cfg.data)
                _read[settings] = as_read(self.cfg.data, load_dataset(path, "train", task), load_dataset(path, "test", task))
        return replace(self.cfg, data=_read.get(settings, self.cfg.data))


_read: dict[str, DataConfig] = {}  # by settings: reading a dataset may take a second, and a sweep's jobs have few datasets


def without_twins(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each once: a value may be given twice, or an experiment under a second name."""
    first: dict[str, Job] = {}
    for job in sorted(jobs, key=lambda job: job.dir):
        settings = json.dumps(to_plain(job.cfg) | {"run_name": ""}, sort_keys=True)
        if first.setdefault(settings, job) is not job:
            log.info("%s is skipped, since it is the same run as %s", job.dir, first[settings].dir)
    kept_jobs = [job for job in jobs if any(job is each for each in first.values())]
    assert len({job.dir for job in kept_jobs}) == len(kept_jobs), "two jobs of one name"
    return kept_jobs


def with_folders(sweep_dir: Path, jobs: Sequence[Job]) -> list[Job]:
    """The jobs with their folders, where the sweep's folder may have runs of an earlier grid.

    A job's name says how it differs from the other jobs of its grid, so the same settings may have another name in another grid.
    Where a run of its settings exists under another name, the job goes on there. Where its name belongs to a run with other
    settings, its name gets a hash.
    """
    folders, otherwise = {}, {}
    for job in jobs:
        there, asked = _settings_in(sweep_dir / job.dir), job.as_run
        wrong = _conflicts(there, asked) if there is not None and asked.train.resume == "auto" else ""
        if there is not None and not wrong:
            folders[job.dir] = job.dir
        else:
            otherwise[job.dir] = f"{job.dir}-{_hash(asked)}" if wrong else job.dir
    if otherwise:
        free = {path.parent.name for path in sweep_dir.glob(f"*/{CONFIG_FILE}")} - set(folders.values())
        others = {name: cfg for name in sorted(free) if (cfg := _settings_in(sweep_dir / name)) is not None}
        for job in sorted((job for job in jobs if job.dir in otherwise), key=lambda job: job.dir):
            asked = job.as_run
            same = [name for name, cfg in others.items() if _hash(cfg) == _hash(asked) and not _conflicts(cfg, asked)]
            folders[job.dir] = same[0] if same else otherwise[job.dir]
            others.pop(folders[job.dir], None)
            if folders[job.dir] != job.dir:
                log.info("%s: its folder is %s", job.dir, folders[job.dir])
    return [replace(job, dir=folders[job.dir]) for job in jobs]


def _settings_in(run_dir: Path) -> Config | None:
    """The settings of the run in a folder; None without a run, or where they cannot be read."""
    try:
        return typed(load_yaml(run_dir / CONFIG_FILE))
    except (UserError, OmegaConfBaseException):
        return None


def _hash(cfg: Config) -> str:
    """A hash of the settings that a run's results depend on, without the machine and the place of the dataset."""
    settings = {key: value for key, value in kept(to_plain(cfg)).items() if key != "hardware"}
    return hashlib.sha256(json.dumps([digest(cfg), settings], sort_keys=True).encode()).hexdigest()[:8]


def _conflicts(there: Config, here: Config) -> str:
    """Why a run with the settings `there` cannot be resumed under those `here`; empty where it can."""
    found, old, new = resume_conflicts(to_plain(there), here), Path(there.data.path), Path(here.data.path)
    if old.exists() and old.resolve() != new.resolve():
        record = read_build_record(old)
        if record is None or record != read_build_record(new):  # otherwise it was moved or copied
            found.append(f"data.path={there.data.path} there, {here.data.path} here")
    return "; ".join(found)


def write_grid(sweep_dir: Path, command: str, jobs: Sequence[Job]) -> None:
    """Record the grid in the sweep's folder."""
    entries = [{"dir": job.dir, "overrides": [o.lstrip("+") for o in job.overrides], "digest": job.digest} for job in jobs]
    write_json(sweep_dir / GRID_FILE, {"sweep": sweep_dir.name, "command": command, "jobs": entries})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write as a whole or not at all: other processes read these files."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def why_incomplete(sweep_dir: Path, job: Job) -> str | None:
    """One line on why a job is not done, from its own folder; None where it is done."""
    summary = read_summary(sweep_dir / job.dir)
    if summary is None:
        return "missing: it left no summary.json"
    status, done = summary.get("status"), summary.get("config_digest")
    if status == "preempted":
        return f"preempted at step {summary.get('steps')} of {summary.get('total_steps')}"
    if status == "completed":
        return None if done == job.digest else f"completed with other settings (digest {done}, not {job.digest})"
    return f"{status}: {summary.get('reason')}"


@contextlib.contextmanager
def only_once(sweep_dir: Path) -> Iterator[None]:
    """Hold the sweep's lock, since two sweeps of one name would train in the same folders. Raises UserError, also on a pod."""
    if on_a_pod():
        raise UserError(
            "a sweep cannot run on all hosts of a pod at once: start it on one machine with hydra/launcher=submitit_slurm or "
            "hydra/launcher=ray, or give scripts/launch_pod.sh one run at a time"
        )
    make_folder(sweep_dir)
    with held(sweep_dir / LOCK_FILE, f"{sweep_dir}: this sweep is already running, here or on another host: wait for it or end it"):
        yield


def left_to_do(sweep_dir: Path, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that are not completed; logs how many are skipped."""
    if done := [job.dir for job in jobs if why_incomplete(sweep_dir, job) is None]:
        log.info("skipping %s completed jobs: %s", len(done), ", ".join(done))
    return [job for job in jobs if job.dir not in done]


def stamps(sweep_dir: Path, jobs: Sequence[Job]) -> dict[str, tuple[int, int] | None]:
    """The stamp of each job's summary now, to be compared with the one at the job's end."""
    return {job.dir: stamp(sweep_dir / job.dir / SUMMARY_FILE) for job in jobs}


def failures(sweep_dir: Path, jobs: Sequence[Job], before: Mapping[str, object], errors: dict[str, str]) -> list[tuple[Job, str]]:
    """The jobs that are not completed, each with the reason.

    A job that was killed or never started has written no summary since the `stamps` of `before`. It gets one here, with the
    launcher's reason from `errors`, so that reports know the reason too, unless another process trains in its folder.
    """
    found = []
    for job in jobs:
        run_dir = sweep_dir / job.dir
        if (reason := why_incomplete(sweep_dir, job)) is None:
            continue
        if in_use(run_dir):
            reason = "another process is training in its folder"
        elif job.dir in errors and stamp(run_dir / SUMMARY_FILE) in (None, before.get(job.dir)):
            record_failure(run_dir, errors[job.dir])
            reason = why_incomplete(sweep_dir, job) or reason
        found.append((job, reason))
    return found
