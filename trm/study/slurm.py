"""hydra/launcher=submitit_slurm: a sweep's jobs as one Slurm array."""

import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf  # type: ignore[import-untyped]
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from trm.config.refusals import one_line
from trm.errors import UserError
from trm.ground.folder import read_summary
from trm.ground.rank import process_rank
from trm.study import sweep as study
from trm.study.board import Board
from trm.study.placement import environment, expand_indices, slurm_resources
from trm.study.queue import QueueLauncher, job_environment

log = logging.getLogger(__name__)

QUEUE_POLL_S = 2.0
REQUEUE_MARGIN_S = 60


class SlurmLauncher(QueueLauncher):
    """Jobs as one Slurm array. hardware.placement says what a job asks for, unless the launcher's settings do."""

    def launch_jobs(self, sweep_dir: Path, names: Sequence[str], job_overrides: Sequence[Sequence[str]], board: Board) -> None:
        """Submit the jobs that are not in the queue yet, and follow the queue until none of the sweep's jobs is left in it."""
        from submitit.core.utils import FailedJobError

        self.params |= {key: value for key, value in slurm_resources(self.hardware).items() if self.params.get(key) is None}
        executor = self._executor(sweep_dir / ".submitit" / "%j")
        ids_file, queued = sweep_dir / "slurm_jobs.json", _in_queue()
        known: dict[str, str] = json.loads(ids_file.read_text()) if ids_file.exists() else {}
        under_way = {name: known[name] for name in names if known.get(name) in queued}
        for name, job_id in under_way.items():
            log.info("%s: already in the queue as Slurm job %s", name, job_id)
        if new := [number for number, name in enumerate(names) if name not in under_way]:
            arguments = [self.arguments(sweep_dir / names[number], job_overrides[number], number) for number in new]
            try:
                with job_environment(1):
                    jobs = executor.map_array(self, *zip(*arguments, strict=True))
            except FailedJobError as error:
                raise UserError(f"Slurm refuses the jobs: {' '.join(str(error).split())}") from error
            under_way |= {names[number]: job.job_id for number, job in zip(new, jobs, strict=True)}
            study.write_json(ids_file, known | under_way)
            first, asked = jobs[0].job_id.partition("_")[0], self.params
            words = f"{asked['nodes']} host(s) each with {asked.get('gres') or 'no gres'}"
            words += f", at most {asked['array_parallelism']} at once"
            log.info("Slurm job %s: %s jobs, %s, log in %s", first, len(new), words, jobs[0].paths.folder.parent)
        waiting = dict(under_way)
        try:
            with board.shown():
                for name in waiting:
                    board.started(name, "in the queue")
                while waiting:
                    time.sleep(QUEUE_POLL_S)
                    board.poll()
                    queued = _in_queue()
                    for name, job_id in [(name, job_id) for name, job_id in waiting.items() if job_id not in queued]:
                        del waiting[name]
                        board.ended(name)
                        status = (read_summary(sweep_dir / name) or {}).get("status", "ended without a summary")
                        state = _slurm_state(job_id)
                        log.info("%s: %s (Slurm job %s: %s)", name, status, job_id, state)
                        self.reasons[name] = f"Slurm job {job_id} ended as {state} without a summary"
        except KeyboardInterrupt:
            self.stopped, self.reasons, ids = True, {}, " ".join(under_way.values())
            log.info("the jobs stay in the queue and the same command waits for them; `scancel %s` ends them", ids)

    def _executor(self, folder: Path) -> Any:
        """submitit's executor with the launcher's settings; submitit chooses those that are null."""
        import submitit

        params = {key: value for key, value in self.params.items() if value is not None and key != "submitit_folder"}
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=params.pop("max_num_timeout", 0))
        except RuntimeError as error:
            raise UserError(f"hydra/launcher=submitit_slurm: {one_line(error)}") from error
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": value for key, value in params.items()})
        return executor

    def run(self, *arguments: Any) -> JobReturn:
        """Run as submitit's launcher does, which knows the job's id."""
        result: JobReturn = BaseSubmititLauncher.__call__(self, *arguments)
        return result

    @contextlib.contextmanager
    def placed(self, sweep_dir: Path) -> Iterator[dict[str, Any]]:
        """The chips or GPUs that Slurm gave to this job on this host. Slurm knows them where gres.conf names device files.

        One line of Slurm's is enough: a job is on one host, or has all devices of each. Slurm itself tells CUDA which GPUs.
        """
        env, job_id, local = os.environ, os.environ["SLURM_JOB_ID"], self.hardware.local_devices
        kind = "gpu" if self.hardware.platform == "cuda" else "tpu"
        if found := re.search(rf"GRES={kind}\S*\(IDX:([-0-9,]+)\)", _slurm_show(job_id)):
            devices = expand_indices(found[1])
        elif local == self.hardware.devices_per_host:
            devices = tuple(range(local))
        else:
            raise UserError("Slurm does not say which chip this job has: gres.conf needs File= for tpu, one device file per chip")
        task = f"_{env['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_TASK_ID" in env else ""
        yield {
            "host": env.get("SLURMD_NODENAME", socket.gethostname()),
            "devices": list(devices),
            "environment": environment(self.hardware, devices),
            "slurm_job_id": env.get("SLURM_ARRAY_JOB_ID", job_id) + task,
            "restarts": int(env.get("SLURM_RESTART_COUNT", "0")),
            "ranks": process_rank()[1],
        }

    def goes_on_later(self, rank: int) -> bool:
        """Requeue a job that stopped for its time limit, at most max_num_timeout times. After any other stop it is not requeued."""
        line, restarts = _slurm_show(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        end = re.search(r" EndTime=(\d\S+)", line)  # local time
        if end is None or " JobState=RUNNING " not in line:  # without a limit, or being ended already
            return False
        left_s = (datetime.fromisoformat(end[1]) - datetime.now()).total_seconds()
        late = left_s <= self.params.get("signal_delay_s", 0) + REQUEUE_MARGIN_S
        if not late or restarts >= self.params.get("max_num_timeout", 0):
            return False
        if rank == 0:
            log.info("out of time: requeueing")
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True, timeout=60)
        time.sleep(left_s + REQUEUE_MARGIN_S)  # Slurm ends this process; if it ended first, the job itself would have ended
        return True


def _in_queue() -> set[str]:
    """The ids of this user's jobs in Slurm's queue, array tasks each. Waits where the controller does not answer."""
    while True:
        answer = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return set(answer.stdout.split())
        log.warning("squeue: %s", " ".join(answer.stderr.split()))
        time.sleep(10 * QUEUE_POLL_S)


def _slurm_show(job_id: str) -> str:
    """Slurm's line about a job; empty where it knows nothing."""
    command = ["scontrol", "show", "job", "-d", "-o", job_id]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    # the id of an array's last task is that of the whole array, and shows all of its tasks
    return next((line for line in lines if line.startswith(f"JobId={job_id} ")), lines[0] if lines else "")


def _slurm_state(job_id: str) -> str:
    """How the job ended: its state, and the reason where Slurm gives one."""
    text = _slurm_show(job_id)
    state = re.search(r"JobState=(\S+)", text)
    if state is None:
        answer = subprocess.run(["sacct", "-j", job_id, "-n", "-X", "-o", "State"], capture_output=True, text=True, check=False)
        return " ".join(answer.stdout.split()) or "unknown"
    reason = re.search(r"Reason=(\S+)", text)
    return state[1] + (f" ({reason[1]})" if reason and reason[1] not in ("None", state[1]) else "")
