"""hydra/launcher=submitit_local: a sweep's jobs side by side on this machine.

Jobs are forks of one process that has imported what all of them need. Each is a process of its own all the same: it has its own
memory, can be killed, and what it breaks is broken for it alone. The imports take their seconds and their memory once.
"""

import contextlib
import functools
import logging
import multiprocessing
import os
import socket
import sys
import tempfile
import time
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import cloudpickle

from trm.cli import command_module
from trm.errors import ConfigError
from trm.ground.cores import allowed, pin
from trm.ground.signals import StopSignal, held_back
from trm.study.board import Board
from trm.study.placement import cores_of_slot, environment, gpu_environment, lock_names, place, slots_of_host
from trm.study.queue import POLL_S, QueueLauncher, job_environment, take_slot

log = logging.getLogger(__name__)

# one per host: every sweep on it shares the same chips
DEVICE_LOCKS = {"tpu": Path("/tmp/trm-tpu-chips"), "cuda": Path("/tmp/trm-gpus")}
LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")  # a socket's path has 107 bytes at most


class LocalLauncher(QueueLauncher):
    """Jobs side by side on this machine, as many at once as there are slots."""

    def launch_jobs(self, sweep_dir: Path, names: Sequence[str], job_overrides: Sequence[Sequence[str]], board: Board) -> None:
        """Keep the slots busy until every job has run. A signal lets the running jobs save, and starts no more."""
        placed = place(self.hardware)
        if placed.processes > 1:  # each host would decide by itself which jobs are done
            raise ConfigError(
                "hardware.placement=pod needs every host: use hydra/launcher=submitit_slurm, or placement=host or chip"
            )
        logs = sweep_dir / ".jobs" / socket.gethostname()
        # on a GPU these modules may look for devices, which a fork could then not use
        preload = self.hardware.can.preload if self.hardware.platform == "cpu" else ()
        waiting = deque(enumerate(names))
        running: dict[int, tuple[str, Fork, float]] = {}
        with job_environment(placed.jobs_per_host), StopSignal() as stop, board.shown():
            while running or (waiting and not self.stopped):
                while waiting and not self.stopped and len(running) < placed.jobs_per_host:
                    number, name = waiting.popleft()
                    work = functools.partial(self, *self.arguments(sweep_dir / name, job_overrides[number], number))
                    job = Fork(work, logs / f"{name}.log", preload=preload)
                    running[number] = (name, job, time.monotonic())
                    board.started(name)
                    log.info("[%s/%s] %s: started", number + 1, len(names), name)
                time.sleep(POLL_S)
                board.poll()
                for number, (name, job, began) in list(running.items()):
                    if not job.process.is_alive():
                        del running[number]
                        board.ended(name)
                        took = f" after {time.monotonic() - began:.0f} s"
                        self.ended(sweep_dir / name, f"[{number + 1}/{len(names)}]", took, job.last_words())
                if stop.requested and not self.stopped:
                    self.stop()
                    for _, job, _ in running.values():
                        job.process.terminate()
        self.reasons |= {name: "not started: the sweep was stopped" for _, name in waiting}

    @contextlib.contextmanager
    def placed(self, sweep_dir: Path) -> Iterator[dict[str, Any]]:
        """Wait for a free slot and keep it. All sweeps on this host share its chips and GPUs; a CPU slot is this sweep's own."""
        hardware = self.hardware
        slots = slots_of_host(hardware)
        with contextlib.ExitStack() as stack:
            locks = DEVICE_LOCKS.get(hardware.platform)
            names = [lock_names(hardware, slot) for slot in slots]
            slot = take_slot(stack, locks or sweep_dir / ".slots", names, shared=locks is not None)
            if hardware.platform == "cpu" and len(slots) > 1:
                pin(cores_of_slot(allowed(), slot, len(slots)))
            where = {"host": socket.gethostname(), "slot": slot, "devices": list(slots[slot])}
            variables = environment(hardware, slots[slot]) | (gpu_environment(hardware, slots[slot]) if locks else {})
            yield where | {"environment": variables}


class Fork:
    """One job: `work` in a process of its own, whose output goes to a file."""

    def __init__(self, work: Callable[[], object], log: Path, *, preload: Sequence[str] = ()) -> None:
        context = multiprocessing.get_context("forkserver")
        command = command_module()  # of the sweep, and so of its jobs; None where a file is run, which is small
        context.set_forkserver_preload([command, *preload] if command else [])
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)  # an earlier attempt's last words are not this one's
        self.process: ForkServerProcess = context.Process(
            target=_run, args=(cloudpickle.dumps(work), str(log), dict(os.environ), os.getcwd())
        )
        resource_tracker.ensure_running()  # which multiprocessing starts first, and lets SIGINT through afterwards
        # a child runs the main module once more, here the sweep's own command: it is given an empty one. And multiprocessing puts
        # its socket in the folder for temporary files, whose path must be short
        before = sys.modules["__main__"], tempfile.tempdir
        folders = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
        short = (each for each in folders if len(os.fsencode(each)) <= LONGEST_FOLDER and os.access(each, os.W_OK))
        sys.modules["__main__"], tempfile.tempdir = types.ModuleType("__main__"), next(short, None)
        try:
            with held_back():
                self.process.start()
        finally:
            sys.modules["__main__"], tempfile.tempdir = before

    def last_words(self) -> str:
        """How the process ended, with the last line that it wrote."""
        code = self.process.exitcode
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()] if self.log.exists() else []
        killed = f" (killed by signal {-code})" if code is not None and code < 0 else ""
        said = f": {lines[-1].strip()}" if lines else ""
        return f"the process ended without a summary{killed}{said} (log: {self.log})"


def _run(pickled: bytes, log: str, environment: dict[str, str], folder: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    cloudpickle.loads(pickled)()
