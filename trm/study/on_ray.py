"""hydra/launcher=ray: a sweep's jobs as tasks of a running Ray cluster, each in a worker process of its own.

Ray places a job by what it asks for: cores, and the TPU chips or the GPU of hardware.placement. A job on all hosts of a slice is
one task on each host of a slice placement group, whose ranks are the TPU's own worker numbers.
"""

import contextlib
import logging
import os
import re
import socket
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trm.cli import ROOT
from trm.config.refusals import one_line
from trm.errors import EXIT_FAILED, UserError
from trm.ground.cores import VISIBLE, allowed, pin
from trm.ground.rank import RANK, RANKS, process_rank
from trm.ground.signals import StopSignal
from trm.study.board import Board
from trm.study.placement import environment, place, ray_cores, ray_resources, ray_slice
from trm.study.queue import POLL_S, QueueLauncher, take_slot, without_outer_job

log = logging.getLogger(__name__)

CORE_LOCKS = Path("/tmp/trm-cores")  # one per host: all jobs that Ray places there share its cores
CONNECT_S = 5.0
WORKER_ID = "ray.io/tpu-worker-id"  # a label of a TPU slice's hosts
WHY = {
    "WorkerCrashedError": "its Ray worker died: killed, or out of memory",
    "OutOfMemoryError": "Ray ended it: the host was running out of memory",
    "NodeDiedError": "its Ray node died",
    "TaskUnschedulableError": "no node of the Ray cluster can ever have what it asks for",
}


class RayLauncher(QueueLauncher):
    """Jobs as tasks of a Ray cluster."""

    def launch_jobs(self, sweep_dir: Path, names: Sequence[str], job_overrides: Sequence[Sequence[str]], board: Board) -> None:
        """Hand all jobs to Ray and follow them. A signal lets the running jobs save, and starts no more."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as on_bundle

        processes = place(self.hardware).processes
        at_once = 1 if processes > 1 else len(names)
        waiting = deque(enumerate(names))
        running: dict[Any, tuple[int, str]] = {}  # by task
        slices: dict[str, Any] = {}
        try:
            with StopSignal() as stop, board.shown():
                while running or (waiting and not self.stopped):
                    while waiting and not self.stopped and len(set(running.values())) < at_once:
                        number, name = waiting.popleft()
                        options: list[dict[str, Any]] = [{}]
                        if processes > 1:
                            slices[name] = self._slice()
                            group = slices[name].placement_group
                            options = [{"scheduling_strategy": on_bundle(group, host)} for host in range(processes)]
                        board.started(name, "in the queue")
                        task = self._task(ray, name)
                        arguments = self.arguments(sweep_dir / name, job_overrides[number], number)
                        for where in options:
                            started = task.options(**where).remote(self, arguments, os.getcwd(), _log_file(sweep_dir, name))
                            running[started] = number, name
                    done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
                    board.poll()
                    for task in done:
                        number, name = running.pop(task)
                        reason = f"{_outcome(ray, task)} (log: {_log_file(sweep_dir, name)})"
                        if (number, name) not in running.values():  # the last of its ranks
                            if name in slices:
                                slices.pop(name).shutdown()  # the hosts are free for the next job
                            board.ended(name)
                            self.ended(sweep_dir / name, f"[{number + 1}/{len(names)}]", "", reason)
                    if stop.requested and not self.stopped:
                        self.stop()
                        for task in running:
                            ray.cancel(task)  # the first signal of a run: it saves
            self.reasons |= {name: "not started: the sweep was stopped" for _, name in waiting}
        finally:
            ray.shutdown()

    def get_ready(self) -> None:
        """Connect to the cluster. Raises UserError where there is none."""
        try:
            import ray
        except ImportError as error:
            raise UserError("hydra/launcher=ray is not installed: make setup EXTRAS=dev,ray, or pip install '.[ray]'") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = self.params["address"]
        where = f"hydra.launcher.address={'null' if address is None else address}"
        fix = "`ray start --head` on one host and `ray start --address=HOST:PORT` on the others, or hydra.launcher.address=null"
        if found := re.fullmatch(r"([^/]+):(\d+)", address or ""):  # Ray itself would try for minutes
            try:
                socket.create_connection((found[1], int(found[2])), CONNECT_S).close()
            except OSError as error:
                raise UserError(f"{where}: no Ray cluster answers ({error.strerror or error}): {fix}") from error
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=None if address else False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"{where}: no Ray cluster ({one_line(error)}): {fix}") from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.cpus = self.params["num_cpus"] or ray_cores(self.hardware, nodes)
        self.asked = {"CPU": self.cpus, **ray_resources(self.hardware), **self.params["resources"]}
        words = ", ".join(f"{name} {amount:g}" for name, amount in self.asked.items())
        log.info("Ray cluster of %s node(s), %s asked for each job and host", len(nodes), words)
        if not any(all(node.get(name, 0) >= amount for name, amount in self.asked.items()) for node in nodes):
            log.warning("no node of the Ray cluster has %s: the jobs wait until one joins it", words)

    def _task(self, ray: Any, name: str) -> Any:
        """What a process of a job is to Ray."""
        custom = {key: amount for key, amount in self.asked.items() if key not in ("CPU", "GPU")}
        variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        variables |= {"OMP_NUM_THREADS": str(self.cpus)} | {k: v for k, v in os.environ.items() if k in self.params["pass_on"]}
        options = {"num_cpus": self.cpus, "num_gpus": self.asked.get("GPU", 0), "resources": custom, "name": name}
        return ray.remote(max_calls=1, max_retries=0, runtime_env={"env_vars": variables}, **options)(_job)

    def _slice(self) -> Any:
        """A TPU slice for a job on several hosts, reserved."""
        from ray.util.tpu import slice_placement_group

        try:
            return slice_placement_group(**ray_slice(self.hardware, self.cpus))
        except (RuntimeError, ValueError, TimeoutError) as error:
            words = one_line(error).partition(". ")[0]
            raise UserError(f"hardware.placement={self.hardware.placement}: Ray gives no TPU slice: {words}") from error

    # ------------------------------------------------------------------------------------------------- inside the job

    @contextlib.contextmanager
    def placed(self, sweep_dir: Path) -> Iterator[dict[str, Any]]:
        """The chips or GPUs that Ray gave to this job on this host, and cores of its own."""
        import ray

        context, on_gpus = ray.get_runtime_context(), self.hardware.platform == "cuda"
        names = sorted(context.get_accelerator_ids().get("GPU" if on_gpus else "TPU", []))
        numbers = sorted(int(name) for name in names if name.isdecimal())
        # on GPUs as Ray sets it too, unless it was told not to
        variables = {VISIBLE: ",".join(names)} if on_gpus else environment(self.hardware, numbers)
        cores = allowed()
        slots = [cores[first : first + self.cpus] for first in range(0, len(cores) - self.cpus + 1, self.cpus)]
        with contextlib.ExitStack() as stack:
            if len(slots) > 1:
                pin(slots[take_slot(stack, CORE_LOCKS, slots, shared=True)])
            where = {"host": socket.gethostname(), "ray_node": context.get_node_id(), "devices": numbers or names}
            where |= {"cores": allowed(), "ranks": process_rank()[1]}
            yield where | {"environment": variables}


def _log_file(sweep_dir: Path, name: str) -> Path:
    return sweep_dir / ".ray" / f"{name}.log"


@without_outer_job()  # that Ray was started in
def _job(launcher: RayLauncher, arguments: tuple[Any, ...], folder: str, log_file: Path) -> tuple[int, str]:
    """In a Ray worker: one process of a job. Returns its exit code and its last words."""
    import ray

    os.chdir(folder)
    ranks = place(launcher.hardware).processes
    if ranks > 1:
        rank = ray.get_runtime_context().get_node_labels()[WORKER_ID]
        os.environ |= {RANK: str(rank), RANKS: str(ranks)}
        log_file = log_file.with_suffix(f".{rank}.log")
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        launcher(*arguments)
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else EXIT_FAILED), "" if isinstance(end.code, int) else str(end.code)
    except BaseException as error:  # noqa: BLE001 - whatever it was, the sweep is told; KeyboardInterrupt: stopped before the run began
        traceback.print_exc()
        return EXIT_FAILED, f"{type(error).__name__}: {one_line(error)}"
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0, ""


def _outcome(ray: Any, task: Any) -> str:
    """Why a job without a summary has none."""
    try:
        code, words = ray.get(task)
    except ray.exceptions.RayError as error:
        kind = type(error).__name__
        return WHY.get(kind, f"{kind}: {one_line(error)[:200]}")
    return f"the process ended with exit code {code} and without a summary{': ' + words if words else ''}"
