"""hydra/launcher=submitit_local: a sweep's jobs side by side on this machine."""

import contextlib
import functools
import logging
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trm.errors import ConfigError
from trm.ground.cores import allowed, pin
from trm.ground.signals import StopSignal
from trm.study.board import Board
from trm.study.forks import Fork
from trm.study.placement import cores_of_slot, environment, gpu_environment, place, slots_of_host
from trm.study.queue import POLL_S, QueueLauncher, job_environment, take_slot

log = logging.getLogger(__name__)

# one per host: every sweep on it shares the same chips
DEVICE_LOCKS = {"tpu": Path("/tmp/trm-tpu-chips"), "cuda": Path("/tmp/trm-gpus")}


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
                    if job.done():
                        del running[number]
                        board.ended(name)
                        took = f" after {time.monotonic() - began:.0f} s"
                        self.ended(sweep_dir / name, f"[{number + 1}/{len(names)}]", took, job.last_words())
                if stop.requested and not self.stopped:
                    self.stop()
                    for _, job, _ in running.values():
                        job.terminate()
        self.reasons |= {name: "not started: the sweep was stopped" for _, name in waiting}

    @contextlib.contextmanager
    def placed(self, sweep_dir: Path) -> Iterator[dict[str, Any]]:
        """Wait for a free slot and keep it: a chip or GPU is shared by every sweep on this host, a CPU slot by this one's jobs."""
        hardware = self.hardware
        slots = slots_of_host(hardware)
        with contextlib.ExitStack() as stack:
            locks = DEVICE_LOCKS.get(hardware.platform)
            slot = take_slot(stack, locks or sweep_dir / ".slots", slots, shared=locks is not None)
            if hardware.platform == "cpu" and len(slots) > 1:
                pin(cores_of_slot(allowed(), slot, len(slots)))
            where = {"host": socket.gethostname(), "slot": slot, "devices": list(slots[slot])}
            variables = environment(hardware, slots[slot]) | (gpu_environment(hardware, slots[slot]) if locks else {})
            yield where | {"environment": variables}
