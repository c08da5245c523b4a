"""The study's sweeper and launchers. What a sweep is stands in trm/study/sweep.py.

The launchers are those of hydra-submitit-launcher, changed in how they wait: a local sweep keeps as many jobs running as there are
slots, a Slurm sweep follows the queue itself (a requeued job is still under way), and neither ends because one job did.
"""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher import submitit_launcher  # type: ignore[import-untyped]
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf

from trm.cli import CONF_DIR, EXIT_FAILED, EXIT_PREEMPTED, invocation, one_line, typed
from trm.config import Config, HardwareConfig, digest
from trm.errors import ConfigError, UserError
from trm.run.folder import read_summary
from trm.run.rank import on_a_pod, process_rank
from trm.study import sweep as study
from trm.study.experiments import aliases
from trm.study.placement import cores_of_slot, environment, expand_indices, place, ray_resources, slots_of_host, slurm_resources

log = logging.getLogger(__name__)

ROOT = CONF_DIR.parent
CHIP_LOCKS = Path("/tmp/trm-tpu-chips")  # one per host: every sweep on it shares the same chips
VISIBLE_GPUS = "TRM_VISIBLE_GPUS"  # the sweep's own CUDA_VISIBLE_DEVICES: submitit's local jobs start with an empty one
POLL_S = 0.2
QUEUE_POLL_S = 2.0
REQUEUE_MARGIN_S = 60


# ------------------------------------------------------------------------------------------------------------------ sweeper


class StudySweeper(BasicSweeper):
    """Hydra's basic grid, made idempotent: records the grid, skips completed jobs, and is judged by the jobs' summaries."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As Hydra's; on a TPU a sweep's jobs get one chip each unless hardware.placement says otherwise."""
        self.implied: list[str] = []
        if config.hardware.platform == "tpu" and config.hardware.placement is None:
            config.hardware.placement = "chip"
            self.implied = ["hardware.placement=chip"]
        try:
            super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        except (RuntimeError, ImportError) as error:
            if "hydra_ray_launcher" not in str(error):
                raise
            raise UserError("hydra/launcher=ray is not installed: pip install -e '.[ray]'") from error

    def sweep(self, arguments: list[str]) -> None:
        """Run what is missing of the grid. Exits with 1 where a job did not complete, with 143 where the sweep was stopped."""
        assert self.config is not None
        assert self.launcher is not None
        if on_a_pod():  # every host would train the same jobs in the same folders
            raise UserError(
                "a sweep cannot run on all hosts of a pod at once: start it on one machine with hydra/launcher=submitit_slurm or "
                "hydra/launcher=ray, or give scripts/launch_pod.sh one run at a time"
            )
        sweep_dir = Path(str(self.config.hydra.sweep.dir)).absolute()
        jobs = self._grid(arguments)
        command = invocation()
        with study.only_once(sweep_dir):
            log.info("%s jobs in %s", len(jobs), self.config.hydra.sweep.dir)
            study.write_grid(sweep_dir, command, jobs)
            OmegaConf.save(self.config, sweep_dir / "multirun.yaml")
            todo = study.left_to_do(sweep_dir, jobs)
            before = study.stamps(sweep_dir, jobs)
            errors, stopped = self._launch(sweep_dir, todo) if todo else ({}, False)
            failed = study.failures(sweep_dir, jobs, before, errors)
        lines = study.closing_lines(Path(str(self.config.hydra.sweep.dir)), jobs, failed, command)
        print("\n".join(lines), file=sys.stderr if failed else sys.stdout, flush=True)
        if failed:
            sys.exit(EXIT_PREEMPTED if stopped else EXIT_FAILED)

    def configs(self, arguments: list[str]) -> dict[str, Config]:
        """The settings of every job of the grid, by its name."""
        return {job.dir: self._compose(job.overrides) for job in self._grid(arguments)}

    def _grid(self, arguments: list[str]) -> list[study.Job]:
        """Every job of the grid, composed and validated before the first one starts. Raises ConfigError."""
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        for override in overrides:
            if override.is_sweep_override() and override.is_discrete_sweep() and not list(override.sweep_string_iterator()):
                options = [name for name in loader.get_group_options(override.key_or_group) if not name.startswith("_")]
                hint = f"choose from {', '.join(options)}" if options else "give it a value"
                raise ConfigError(f"{override.input_line} matches nothing: {hint}")
        (grid,) = self.split_arguments(overrides, None)
        grid = [[override for override in job if not override.startswith("+sweep=")] for job in grid]
        grid = study.without_aliases(grid, aliases())
        if any(override.key_or_group.split(".")[0] == "hardware" and override.is_sweep_override() for override in overrides):
            self._refuse_several_machines(grid)
        return [self._job(name, job) for name, job in zip(study.job_names(grid), grid, strict=True)]

    def _refuse_several_machines(self, grid: list[list[str]]) -> None:
        machines = [self._compose(job).hardware for job in grid]
        if any(machine.platform == "tpu" for machine in machines) and len({place(machine) for machine in machines}) > 1:
            raise ConfigError(
                "hardware.placement and hardware= must be the same for all jobs of a sweep on a TPU: start one sweep for each"
            )

    def _job(self, name: str, overrides: list[str]) -> study.Job:
        try:
            cfg = self._compose(overrides)
        except UserError as error:
            raise ConfigError(f"job {name}: {one_line(error)}") from error
        return study.Job(name, tuple(overrides), digest(cfg))

    def _compose(self, overrides: Sequence[str]) -> Config:
        assert self.hydra_context is not None
        assert self.config is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, [*self.implied, *overrides])
        return typed(composed)

    def _launch(self, sweep_dir: Path, jobs: Sequence[study.Job]) -> tuple[dict[str, str], bool]:
        """Start the jobs and wait for them: the launcher's reason for each that did not end well, and whether it was stopped."""
        assert self.launcher is not None
        batch = [self._launched_overrides(sweep_dir, job) for job in jobs]
        if isinstance(self.launcher, QueueLauncher):
            self.launcher.launch_jobs(sweep_dir, [job.dir for job in jobs], batch)
            return self.launcher.reasons, self.launcher.stopped
        reasons = {}
        try:
            self._ask_ray()
            for job, result in zip(jobs, self.launcher.launch(batch, initial_job_idx=0), strict=True):
                if result.status != JobStatus.COMPLETED:
                    reasons[job.dir] = _one_line(result._return_value)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - a launcher may raise anything for a job that died; the summaries judge
            log.warning("the launcher gave up: %s", _one_line(error))
            reasons = {job.dir: f"no summary; the launcher gave up: {_one_line(error)}" for job in jobs}
        return reasons, False

    def _ask_ray(self) -> None:
        """With hydra/launcher=ray: ask for the chips of hardware.placement, unless the launcher's settings say otherwise."""
        ray = getattr(self.launcher, "ray_cfg", None)
        if ray is None:
            return
        assert self.config is not None
        hardware = _hardware(self.config)
        if place(hardware).processes > 1:
            raise ConfigError(
                "hardware.placement=pod: Ray gives a job one host at most: use placement=host or chip, or submitit_slurm"
            )
        if not ray.remote.get("resources"):
            ray.remote.resources = dict(ray_resources(hardware))

    def _launched_overrides(self, sweep_dir: Path, job: study.Job) -> list[str]:
        """The job's overrides, and where in the sweep it belongs."""
        assert self.config is not None
        own = [*self.implied, *(override for override in job.overrides if not override.startswith("run_name="))]
        own += [f"run_name={_quoted(job.dir)}"]
        own += [f"hydra.sweep.dir={_quoted(str(sweep_dir))}", f"hydra.sweep.subdir={_quoted(job.dir)}"]
        if self._compose(job.overrides).tracking.group is None:
            own.append(f"tracking.group={_quoted(sweep_dir.name)}")
        return own


def _hardware(config: DictConfig) -> HardwareConfig:
    hardware = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(HardwareConfig), config.hardware))
    assert isinstance(hardware, HardwareConfig)
    return hardware


def _quoted(text: str) -> str:
    """A value in the override grammar's quotes."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# ---------------------------------------------------------------------------------------------------------------- launchers


class QueueLauncher(submitit_launcher.BaseSubmititLauncher):  # type: ignore[misc]
    """What the local and the Slurm launcher share: every job is a process of its own, and is followed until it has ended."""

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.params: dict[str, Any]
        self.reasons: dict[str, str] = {}  # job folder -> why it ended without completing
        self.stopped = False

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Not used: the study's sweeper calls `launch_jobs`."""
        raise UserError("hydra/launcher=submitit_local and submitit_slurm work with hydra/sweeper=study: leave hydra/sweeper alone")

    def launch_jobs(self, sweep_dir: Path, names: Sequence[str], job_overrides: Sequence[Sequence[str]]) -> None:
        """Start every job and wait until all have ended; fills `reasons` and `stopped`."""
        raise NotImplementedError

    @property
    def hardware(self) -> HardwareConfig:
        """The machine of the sweep's jobs."""
        assert self.config is not None
        return _hardware(self.config)

    def executor(self, folder: Path) -> Any:
        """submitit's executor with the launcher's settings; those that are null are left to submitit."""
        import submitit

        params = {key: value for key, value in self.params.items() if value is not None and key != "submitit_folder"}
        countdown = params.pop("max_num_timeout", None)
        start = {} if countdown is None else {f"{self._EXECUTOR}_max_num_timeout": countdown}
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self._EXECUTOR, **start)
        except RuntimeError as error:
            raise UserError(f"hydra/launcher=submitit_{self._EXECUTOR}: {one_line(error)}") from error
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        executor.update_parameters(**{key if key in shared else f"{self._EXECUTOR}_{key}": value for key, value in params.items()})
        return executor

    def arguments(self, overrides: Sequence[str], number: int) -> tuple[Any, ...]:
        """The arguments of `__call__` for one job."""
        return list(overrides), "hydra.sweep.dir", number, str(number), Singleton.get_state()

    # ------------------------------------------------------------------------------------------------- inside the job

    def __call__(
        self, sweep_overrides: list[str], job_dir_key: str, job_num: int, job_id: str, singleton_state: dict[type, Singleton]
    ) -> JobReturn | None:
        """The job's process: take a place on the machine, then run as Hydra would.

        In a job of several processes, only rank 0 writes into the run folder, and a rank that fails ends at once: the others would
        wait for it in their next collective, and submitit alone would keep the failure to itself.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the run takes care of it; submitit would ignore it
        rank, ranks = process_rank()
        try:
            with self.placed(_value_of("hydra.sweep.dir", sweep_overrides)) as placement:
                os.environ.update(placement["environment"])
                if rank:
                    sweep_overrides = [*sweep_overrides, "hydra.output_subdir=null", "hydra/job_logging=stdout"]
                else:
                    run_dir = Path(placement["sweep_dir"]) / _value_of("hydra.sweep.subdir", sweep_overrides)
                    run_dir.mkdir(parents=True, exist_ok=True)
                    study.write_json(run_dir / study.PLACEMENT_FILE, placement)
                result = super().__call__(sweep_overrides, job_dir_key, job_num, job_id, singleton_state)
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
        return None  # what the job has to say is in its folder

    def goes_on_later(self, rank: int) -> bool:
        """Called when the run has saved and stopped on a signal: True where the queue starts the job again."""
        return False

    @contextlib.contextmanager
    def placed(self, sweep_dir: str) -> Iterator[dict[str, Any]]:
        """Hold a place on this host while the job runs: what placement.json says about it."""
        yield {}


def _value_of(key: str, overrides: Sequence[str]) -> str:
    (value,) = [override.removeprefix(f"{key}=") for override in overrides if override.startswith(f"{key}=")]
    return re.sub(r"(\\*)\\'", r"\1'", value[1:-1])


class LocalLauncher(QueueLauncher):
    """Jobs side by side on this machine, as many at once as there are slots."""

    _EXECUTOR = "local"

    def launch_jobs(self, sweep_dir: Path, names: Sequence[str], job_overrides: Sequence[Sequence[str]]) -> None:
        """Keep the slots busy until every job has run. SIGINT and SIGTERM let the running jobs save, and start no more."""
        placed = place(self.hardware)
        if placed.processes > 1:  # each host would decide by itself which jobs are done
            raise ConfigError(
                "hardware.placement=pod needs every host: use hydra/launcher=submitit_slurm, or placement=host or chip"
            )
        executor = self.executor(sweep_dir / ".submitit" / socket.gethostname() / "%j")
        waiting = deque(enumerate(names))
        running: dict[int, tuple[str, Any, float]] = {}
        with _job_environment(placed.jobs_per_host), self._stopping() as handler:
            while running or (waiting and not self.stopped):
                while waiting and not self.stopped and len(running) < placed.jobs_per_host:
                    number, name = waiting.popleft()
                    with _ignoring(signal.SIGINT):  # of a terminal: the sweep tells its jobs itself
                        job = executor.submit(self, *self.arguments(job_overrides[number], number))
                    running[number] = (name, job, time.monotonic())
                    log.info("[%s/%s] %s: started", number + 1, len(names), name)
                time.sleep(POLL_S)
                for number, (name, job, began) in list(running.items()):
                    if job.done():
                        del running[number]
                        self._ended(sweep_dir / name, number, len(names), name, job, time.monotonic() - began)
                if self.stopped and handler["told"] is False:
                    handler["told"] = True
                    for _, job, _ in running.values():
                        job._process.send_signal(signal.SIGTERM)  # submitit's controller hands it on to the job
        for _, name in waiting:
            self.reasons[name] = "not started: the sweep was stopped"

    def _ended(self, run_dir: Path, number: int, total: int, name: str, job: Any, seconds: float) -> None:
        summary = read_summary(run_dir) or {}
        status = summary.get("status", "ended without a summary")
        score = summary.get("exact_accuracy")
        log.info(
            "[%s/%s] %s: %s%s after %.0f s", number + 1, total, name, status, "" if score is None else f" at {score:.4f}", seconds
        )
        self.reasons[name] = "stopped with the sweep" if self.stopped else _last_words(job)

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[dict[str, bool]]:
        """While entered, the first SIGINT or SIGTERM sets `stopped`, the second one ends this process."""
        state = {"told": False}

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.stopped:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self.stopped = True
            print("stopping: running jobs save their state first (once more to leave them)", file=sys.stderr, flush=True)

        previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield state
        finally:
            for number, action in previous.items():
                signal.signal(number, action)

    @contextlib.contextmanager
    def placed(self, sweep_dir: str) -> Iterator[dict[str, Any]]:
        """Wait for a free slot and keep it: a TPU chip is shared by every sweep on this host, a CPU slot by this one's jobs."""
        hardware = self.hardware
        slots = slots_of_host(hardware)
        locks = CHIP_LOCKS if hardware.platform == "tpu" else Path(sweep_dir) / ".slots"
        with contextlib.ExitStack() as stack:
            slot = _take_slot(stack, locks, slots)
            if hardware.platform == "cpu" and len(slots) > 1:
                os.sched_setaffinity(0, cores_of_slot(sorted(os.sched_getaffinity(0)), slot, len(slots)))
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[VISIBLE_GPUS]
            if os.environ["CUDA_VISIBLE_DEVICES"] == "all":
                del os.environ["CUDA_VISIBLE_DEVICES"]
            yield {
                "sweep_dir": sweep_dir,
                "host": socket.gethostname(),
                "slot": slot,
                "devices": list(slots[slot]),
                "environment": environment(hardware, slots[slot]),
            }


def _take_slot(stack: contextlib.ExitStack, folder: Path, slots: Sequence[tuple[int, ...]]) -> int:
    """The index of a slot all of whose devices are free, locked until the stack closes; waits for one.

    The locks of chips are those of all users of the host: every one of them may write there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder == CHIP_LOCKS and folder.stat().st_uid == os.geteuid():
        folder.chmod(0o1777)
    while True:
        for index, slot in enumerate(slots):
            with contextlib.ExitStack() as taken:
                try:
                    for device in slot:
                        taken.enter_context(FileLock(folder / f"device_{device}.lock", mode=0o666, blocking=False))
                except Timeout:
                    continue
                stack.push(taken.pop_all())
                return index
        time.sleep(POLL_S)


@contextlib.contextmanager
def _job_environment(jobs: int) -> Iterator[None]:
    """What jobs inherit: the import path, and a fair share of the cores for libraries that count them at start."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [before.get("PYTHONPATH")])])
    os.environ[VISIBLE_GPUS] = before.get("CUDA_VISIBLE_DEVICES", "all")
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _ignoring(number: int) -> Iterator[None]:
    """Processes started while entered do not get this signal's default action."""
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, previous)


def _last_words(job: Any) -> str:
    """The last line that a job wrote to its error stream."""
    try:
        lines = [line for line in (job.stderr() or "").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"the process ended without a summary{': ' + lines[-1].strip() if lines else ''} (log: {job.paths.stderr})"


class SlurmLauncher(QueueLauncher):
    """Jobs as one Slurm array. What a job asks for comes from hardware.placement, unless the launcher's settings say it."""

    _EXECUTOR = "slurm"

    def launch_jobs(self, sweep_dir: Path, names: Sequence[str], job_overrides: Sequence[Sequence[str]]) -> None:
        """Submit what is not in the queue yet, and follow the queue until nothing of the sweep is left in it."""
        hardware = self.hardware
        asked = slurm_resources(hardware)
        self.params = {**self.params, **{key: value for key, value in asked.items() if self.params.get(key) is None}}
        executor = self.executor(sweep_dir / ".submitit" / "%j")
        ids = _Queued(sweep_dir / "slurm_jobs.json")
        queued = _in_queue()
        under_way = {name: ids.known[name] for name in names if ids.known.get(name) in queued}
        for name, job_id in under_way.items():
            log.info("%s: already in the queue as Slurm job %s", name, job_id)
        new = [number for number, name in enumerate(names) if name not in under_way]
        if new:
            with _job_environment(1):
                arguments = [self.arguments(job_overrides[number], number) for number in new]
                jobs = _submitted(executor, self, arguments)
            under_way |= {names[number]: job.job_id for number, job in zip(new, jobs, strict=True)}
            ids.add(under_way)
            first = jobs[0].job_id.partition("_")[0]
            log.info("Slurm job %s: %s jobs, %s, log in %s", first, len(new), _words(self.params), jobs[0].paths.folder.parent)
        try:
            self._follow(sweep_dir, under_way)
        except KeyboardInterrupt:
            self.stopped = True
            log.info(
                "the jobs stay in the queue and the same command waits for them; `scancel %s` ends them",
                " ".join(under_way.values()),
            )
            self.reasons = {}

    def _follow(self, sweep_dir: Path, under_way: dict[str, str]) -> None:
        waiting = dict(under_way)
        while waiting:
            time.sleep(QUEUE_POLL_S)
            queued = _in_queue()
            for name, job_id in [(name, job_id) for name, job_id in waiting.items() if job_id not in queued]:
                del waiting[name]
                summary = read_summary(sweep_dir / name) or {}
                state = _slurm_state(job_id)
                log.info("%s: %s (Slurm job %s: %s)", name, summary.get("status", "ended without a summary"), job_id, state)
                self.reasons[name] = f"Slurm job {job_id} ended as {state} without a summary"

    @contextlib.contextmanager
    def placed(self, sweep_dir: str) -> Iterator[dict[str, Any]]:
        """The chips that Slurm gave to this job on this host."""
        job_id = os.environ["SLURM_JOB_ID"]
        chips = _slurm_chips(job_id, self.hardware)
        yield {
            "sweep_dir": sweep_dir,
            "host": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            "devices": list(chips),
            "environment": environment(self.hardware, chips),
            "slurm_job_id": os.environ.get("SLURM_ARRAY_JOB_ID", job_id)
            + (f"_{os.environ['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_TASK_ID" in os.environ else ""),
            "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "ranks": process_rank()[1],
        }

    def goes_on_later(self, rank: int) -> bool:
        """Requeue the job where it stopped for its time limit, at most max_num_timeout times; no other stop is."""
        left_s = _slurm_seconds_left(os.environ["SLURM_JOB_ID"])
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if (
            left_s is None
            or left_s > self.params.get("signal_delay_s", 0) + REQUEUE_MARGIN_S
            or restarts >= self.params.get("max_num_timeout", 0)
        ):
            return False
        if rank == 0:
            log.info("out of time: requeueing")
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True, timeout=60)
        time.sleep(left_s + REQUEUE_MARGIN_S)  # Slurm ends this process; ending first would count as the job's own end
        return True


def _submitted(executor: Any, function: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """submitit's jobs for the calls. Raises UserError where Slurm refuses them."""
    from submitit.core.utils import FailedJobError

    try:
        jobs: list[Any] = executor.map_array(function, *zip(*arguments, strict=True))
    except FailedJobError as error:
        raise UserError(f"Slurm refuses the jobs: {' '.join(str(error).split())}") from error
    return jobs


class _Queued:
    """Which Slurm job was last submitted for which job folder, kept in the sweep's folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, ids: dict[str, str]) -> None:
        self.known |= ids
        study.write_json(self._path, self.known)


def _in_queue() -> set[str]:
    """The ids of this user's jobs in Slurm's queue, array tasks each. Waits where the controller does not answer."""
    while True:
        answer = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return set(answer.stdout.split())
        log.warning("squeue: %s", " ".join(answer.stderr.split()))
        time.sleep(10 * QUEUE_POLL_S)


def _slurm_show(job_id: str) -> str:
    """What Slurm knows about a job, in one line; empty where it knows nothing."""
    command = ["scontrol", "show", "job", "-d", "-o", job_id]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    # the id of an array's last task is that of the whole array, and shows all of its tasks
    return next((line for line in lines if line.startswith(f"JobId={job_id} ")), lines[0] if lines else "")


def _slurm_seconds_left(job_id: str) -> float | None:
    """Until the time limit of a running job; None where it has none, or where the job is already being ended."""
    line = _slurm_show(job_id)
    end = re.search(r" EndTime=(\d\S+)", line)  # local time
    if end is None or " JobState=RUNNING " not in line:
        return None
    return (datetime.fromisoformat(end[1]) - datetime.now()).total_seconds()


def _slurm_state(job_id: str) -> str:
    """How the job ended, in Slurm's words: its state, and the reason where it gives one."""
    text = _slurm_show(job_id)
    state = re.search(r"JobState=(\S+)", text)
    if state is None:
        answer = subprocess.run(["sacct", "-j", job_id, "-n", "-X", "-o", "State"], capture_output=True, text=True, check=False)
        return " ".join(answer.stdout.split()) or "unknown"
    reason = re.search(r"Reason=(\S+)", text)
    return state[1] + (f" ({reason[1]})" if reason and reason[1] not in ("None", state[1]) else "")


def _slurm_chips(job_id: str, hardware: HardwareConfig) -> tuple[int, ...]:
    """The chips of its host that the job may use. Slurm knows them where its gres.conf names device files.

    One line is enough: a job is on one host, or has all chips of each.
    """
    found = re.search(r"GRES=tpu\S*\(IDX:([-0-9,]+)\)", _slurm_show(job_id))
    if found:
        return expand_indices(found[1])
    wanted = hardware.local_devices
    if wanted == hardware.devices_per_host:
        return tuple(range(wanted))
    raise UserError("Slurm does not say which chip this job has: gres.conf needs File= for tpu, one device file per chip")


def _words(params: dict[str, Any]) -> str:
    return f"{params['nodes']} host(s) each with {params.get('gres') or 'no gres'}, at most {params['array_parallelism']} at once"


OmegaConf.register_new_resolver("trm_sweep_name", study.sweep_name, replace=True)  # of conf/config.yaml
