"""The common part of the launchers: jobs as processes of their own, which a launcher follows until they have ended.

The launchers are those of hydra-submitit-launcher, except in how they wait: a local sweep keeps as many jobs running as there are
slots, a Slurm sweep follows the queue itself (a requeued job is still under way), and neither ends because one job did.
"""

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import Timeout
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra_plugins.hydra_submitit_launcher import submitit_launcher  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf, open_dict

from trm.cli import ROOT, command_module, starts_ranks, typed
from trm.config import HardwareConfig
from trm.config.overrides import override
from trm.errors import EXIT_FAILED, EXIT_PREEMPTED, UserError
from trm.ground.child import start_ranks
from trm.ground.cores import cores
from trm.ground.folder import locked, read_summary, refuse_in_use
from trm.ground.rank import RANK, STARTERS, process_rank
from trm.study import sweep as study
from trm.study.board import Board
from trm.study.placement import overlap

log = logging.getLogger(__name__)

POLL_S = 0.2


def hardware_of(config: DictConfig) -> HardwareConfig:
    """The machine that a composed config names."""
    hardware = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(HardwareConfig), config.hardware))
    assert isinstance(hardware, HardwareConfig)
    return hardware


class QueueLauncher(submitit_launcher.BaseSubmititLauncher):  # type: ignore[misc]
    """A launcher that follows every job until it has ended."""

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.params: dict[str, Any]
        self.reasons: dict[str, str] = {}  # job folder -> why it ended without completing
        self.stopped = False

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Refuse another sweeper: the study's calls `launch_jobs`."""
        raise UserError("hydra/launcher=submitit_local, submitit_slurm and ray work with hydra/sweeper=study: leave it alone")

    def get_ready(self) -> None:
        """Called before a sweep's data are built: raises UserError where no job could start."""

    def launch_jobs(self, sweep_dir: Path, names: Sequence[str], job_overrides: Sequence[Sequence[str]], board: Board) -> None:
        """Start every job and wait until all have ended. Fills `reasons` and `stopped`."""
        raise NotImplementedError

    @property
    def hardware(self) -> HardwareConfig:
        """The machine of the sweep's jobs."""
        assert self.config is not None
        return hardware_of(self.config)

    def arguments(self, run_dir: Path, overrides: Sequence[str], number: int) -> tuple[Any, ...]:
        """The arguments of `__call__` for one job."""
        return list(overrides), "hydra.sweep.dir", number, str(run_dir), Singleton.get_state()

    def stop(self) -> None:
        """Print that a signal stops the sweep."""
        self.stopped = True
        print("stopping: running jobs save their state first (interrupt again to stop at once)", file=sys.stderr, flush=True)

    def ended(self, run_dir: Path, count: str, took: str, reason: str) -> None:
        """Log how a job ended, and keep `reason` for the case that its folder has none."""
        summary = read_summary(run_dir) or {}
        status, score = summary.get("status", "ended without a summary"), summary.get("exact_accuracy")
        log.info("%s %s: %s%s", count, run_dir.name, status if score is None else f"{status} at {score:.4f}", took)
        self.reasons[run_dir.name] = "stopped with the sweep" if self.stopped else reason

    # ------------------------------------------------------------------------------------------------- inside the job

    def __call__(
        self, sweep_overrides: list[str], job_dir_key: str, job_num: int, run_dir: str, singleton_state: dict[type, Singleton]
    ) -> JobReturn | None:
        """The job's process: take a place on the machine, then run as Hydra would.

        In a job of several processes only rank 0 writes into the run folder. A rank that fails ends at once, as the others wait for
        it in their next collective and submitit would not report the failure.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the run handles it; submitit would ignore it
        rank, ranks = process_rank()
        try:
            with self.placed(Path(run_dir).parent) as placement:
                os.environ.update(placement["environment"])
                if rank:
                    sweep_overrides = [*sweep_overrides, "hydra.output_subdir=null", "hydra/job_logging=stdout"]
                else:
                    Path(run_dir).mkdir(parents=True, exist_ok=True)
                    refuse_in_use(Path(run_dir))
                    study.write_json(Path(run_dir) / study.PLACEMENT_FILE, {"sweep_dir": str(Path(run_dir).parent)} | placement)
                result = self.run(sweep_overrides, job_dir_key, job_num, run_dir, singleton_state)
            failed = result.status != JobStatus.COMPLETED
        except SystemExit as end:
            if end.code == EXIT_PREEMPTED and self.goes_on_later(rank):
                return None
            failed = bool(end.code)
            if failed and ranks == 1:
                raise
        except Exception:
            if ranks == 1:
                raise
            traceback.print_exc()
            failed = True
        if failed and ranks > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_FAILED)
        if failed:
            sys.exit(EXIT_FAILED)  # so that the queue knows it too
        return None  # the results are in the job's folder

    def run(
        self, sweep_overrides: list[str], job_dir_key: str, job_num: int, run_dir: str, state: dict[type, Singleton]
    ) -> JobReturn:
        """Run as Hydra would, in the job's process."""
        Singleton.set_state(state)
        setup_globals()
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.task_function is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, sweep_overrides)
        with open_dict(config.hydra.job):
            config.hydra.job.id = config.hydra.job.num = job_num
        if config.hardware.num_devices != 1 and starts_ranks(cfg := typed(config)):  # a process for each device of the job
            given = [word for word in sweep_overrides if not word.startswith("run_name=")]
            given += [override("run_name", cfg.run_name), override("hydra.run.dir", run_dir)]
            sys.exit(start_ranks(cfg.hardware.devices, command_module() or "trm.train", given))
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key=job_dir_key,
            job_subdir_key="hydra.sweep.subdir",
        )

    def goes_on_later(self, rank: int) -> bool:
        """Called when the run has saved and stopped on a signal. Returns whether the queue starts the job again."""
        return False

    def placed(self, sweep_dir: Path) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Hold a place on this host while the job runs; gives the content of placement.json."""
        raise NotImplementedError


def take_slot(stack: contextlib.ExitStack, folder: Path, slots: Sequence[Sequence[object]], *, shared: bool = False) -> int:
    """Wait for a free slot, lock it until the stack closes, and return its index. All users may write in a `shared` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if shared and folder.stat().st_uid == os.geteuid():
        folder.chmod(0o1777)
    while True:
        with locked(folder / "choice.lock", mode=0o666):  # one process at a time looks at the places of all others
            for index, slot in enumerate(slots):
                with contextlib.ExitStack() as taken:
                    try:
                        for device in map(str, slot):
                            taken.enter_context(locked(folder / f"device_{device}.lock", limit_s=0, mode=0o666))
                            _refuse_overlap(folder, device)
                    except Timeout:
                        continue
                    stack.push(taken.pop_all())
                    return index
        time.sleep(POLL_S)


def _refuse_overlap(folder: Path, device: str) -> None:
    """Raise Timeout where another process holds a place that has a part of a device in common with this one."""
    for file in folder.glob("device_*.lock"):
        name = file.stem.removeprefix("device_")
        if name != device and overlap(name, device):
            with locked(file, limit_s=0, mode=0o666):
                pass


# Variables by which a process knows its place in a job: of the starters of trm/ground/rank.py, of a W&B agent and its client
OUTER_JOB = (RANK, *STARTERS, *STARTERS.values(), "OMPI_", "PMI_", "PMIX_", "TORCHELASTIC_", "WANDB_RUN_ID", "WANDB_SWEEP_")
OUTER_JOB += ("WANDB_RESUME", "WANDB_LAUNCH", "WANDB_SERVICE")


@contextlib.contextmanager
def without_outer_job() -> Iterator[None]:
    """The environment without the variables of a job that this process is in: a job that is started here would take them over.

    SLURM_CONF stays, and so do the user's options of sbatch (SBATCH_ACCOUNT), unless they were set inside a job.
    """
    from submitit.helpers import clean_env  # a slow import, for commands that start jobs

    own = "SLURM_CONF" if "SLURM_JOB_ID" in os.environ else ("SLURM_CONF", "SBATCH_")
    kept = {name: value for name, value in os.environ.items() if name.startswith(own)}
    with clean_env([name for name in os.environ if name.startswith(OUTER_JOB)]):
        os.environ.update(kept)
        yield


@contextlib.contextmanager
def job_environment(jobs: int) -> Iterator[None]:
    """The environment of jobs: the import path, and an equal share of the cores for libraries that count them at start."""
    before = dict(os.environ)
    with without_outer_job():
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [before.get("PYTHONPATH")])])
        if jobs > 1:
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
