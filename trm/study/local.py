"""hydra/launcher=submitit_local: a sweep's jobs side by side on this machine."""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from trm.errors import ConfigError
from trm.run.folder import read_summary
from trm.study.board import Board
from trm.study.placement import cores_of_slot, environment, place, slots_of_host
from trm.study.queue import VISIBLE_GPUS, QueueLauncher, job_environment

log = logging.getLogger(__name__)

CHIP_LOCKS = Path("/tmp/trm-tpu-chips")  # one per host: every sweep on it shares the same chips
POLL_S = 0.2


class LocalLauncher(QueueLauncher):
    """Jobs side by side on this machine, as many at once as there are slots."""

    _EXECUTOR = "local"

    def launch_jobs(self, sweep_dir: Path, names: Sequence[str], job_overrides: Sequence[Sequence[str]], board: Board) -> None:
        """Keep the slots busy until every job has run. SIGINT and SIGTERM let the running jobs save, and start no more."""
        placed = place(self.hardware)
        if placed.processes > 1:  # each host would decide by itself which jobs are done
            raise ConfigError(
                "hardware.placement=pod needs every host: use hydra/launcher=submitit_slurm, or placement=host or chip"
            )
        executor = self.executor(sweep_dir / ".submitit" / socket.gethostname() / "%j")
        waiting, told = deque(enumerate(names)), False
        running: dict[int, tuple[str, Any, float]] = {}
        with job_environment(placed.jobs_per_host), _signals(self._stop, signal.SIGINT, signal.SIGTERM), board.shown():
            while running or (waiting and not self.stopped):
                while waiting and not self.stopped and len(running) < placed.jobs_per_host:
                    number, name = waiting.popleft()
                    with _signals(signal.SIG_IGN, signal.SIGINT):  # of a terminal: the sweep tells its jobs itself
                        job = executor.submit(self, *self.arguments(sweep_dir / name, job_overrides[number], number))
                    running[number] = (name, job, time.monotonic())
                    board.started(name)
                    log.info("[%s/%s] %s: started", number + 1, len(names), name)
                time.sleep(POLL_S)
                board.poll()
                for number, (name, job, began) in list(running.items()):
                    if job.done():
                        del running[number]
                        board.ended(name)
                        self._ended(sweep_dir / name, f"[{number + 1}/{len(names)}]", job, time.monotonic() - began)
                if self.stopped and not told:
                    told = True
                    for _, job, _ in running.values():
                        job._process.send_signal(signal.SIGTERM)  # submitit's controller hands it on to the job
        self.reasons |= {name: "not started: the sweep was stopped" for _, name in waiting}

    def _ended(self, run_dir: Path, count: str, job: Any, seconds: float) -> None:
        summary = read_summary(run_dir) or {}
        status, score = summary.get("status", "ended without a summary"), summary.get("exact_accuracy")
        result = status if score is None else f"{status} at {score:.4f}"
        log.info("%s %s: %s after %.0f s", count, run_dir.name, result, seconds)
        self.reasons[run_dir.name] = "stopped with the sweep" if self.stopped else _last_words(job)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """The first SIGINT or SIGTERM sets `stopped`, the second one ends this process."""
        if self.stopped:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.stopped = True
        print("stopping: running jobs save their state first (once more to leave them)", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def placed(self, sweep_dir: Path) -> Iterator[dict[str, Any]]:
        """Wait for a free slot and keep it: a TPU chip is shared by every sweep on this host, a CPU slot by this one's jobs."""
        hardware = self.hardware
        slots = slots_of_host(hardware)
        with contextlib.ExitStack() as stack:
            slot = _take_slot(stack, CHIP_LOCKS if hardware.platform == "tpu" else sweep_dir / ".slots", slots)
            if hardware.platform == "cpu" and len(slots) > 1:
                os.sched_setaffinity(0, cores_of_slot(sorted(os.sched_getaffinity(0)), slot, len(slots)))
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[VISIBLE_GPUS]
            if os.environ["CUDA_VISIBLE_DEVICES"] == "all":
                del os.environ["CUDA_VISIBLE_DEVICES"]
            where = {"host": socket.gethostname(), "slot": slot, "devices": list(slots[slot])}
            yield where | {"environment": environment(hardware, slots[slot])}


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
def _signals(action: Any, *numbers: signal.Signals) -> Iterator[None]:
    """What signals do while entered. Processes that are started then inherit it where they are ignored."""
    previous = {number: signal.signal(number, action) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _last_words(job: Any) -> str:
    """The last line that a job wrote to its error stream."""
    try:
        lines = [line for line in (job.stderr() or "").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"the process ended without a summary{': ' + lines[-1].strip() if lines else ''} (log: {job.paths.stderr})"
