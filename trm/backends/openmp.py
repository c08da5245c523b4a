"""How OpenMP's threads wait for one another: busily while the cores are this process's own, briefly while others use them too.

libgomp's threads spin for milliseconds before they sleep. Alone that is fastest; beside another busy process they burn the time in
which the thread that they wait for could run, and a run keeps a quarter of its speed (bench/RESULTS.md). libgomp spins briefly by
itself while it manages more threads than there are cores, which can be had at any moment: a team that a thread of its own begins
adds to their number, and is gone with that thread. What is computed is the same, to the bit.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import time
from pathlib import Path

import torch

LOOK_EVERY_S = 0.5
OTHERS = 0.25  # cores that others may take of those that this process fills, before it gives way
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PROCESSORS = Path("/proc/stat")


def wait_policy() -> str | None:
    """How the threads wait: what the environment says of it, else "adaptive" where the cores are watched."""
    said = (f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ)
    return next(said, "adaptive" if share_cores() else None)


@functools.cache
def share_cores() -> bool:
    """Watch from now on who uses the cores, and wait accordingly. False where the environment says how, or nobody waits so."""
    library, threads = _libgomp(), torch.get_num_threads()
    if library is None or threads < 2 or set(VARIABLES) & os.environ.keys():
        return False
    threading.Thread(target=_watch, args=(library, threads), name="cores", daemon=True).start()
    return True


def _libgomp() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded, where it is GNU's and the only one."""
    if sys.platform != "linux":
        return None
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
    return ctypes.CDLL(loaded.pop()) if len(loaded) == 1 else None


def _watch(library: ctypes.CDLL, threads: int) -> None:
    cores = os.sched_getaffinity(0)
    crowd: Crowd | None = None
    before = _seconds(cores)
    while True:
        time.sleep(LOOK_EVERY_S)
        now = _seconds(cores)
        wall, busy, own = (b - a for a, b in zip(before, now, strict=True))
        before = now
        if (busy - own) / wall > len(cores) - threads + OTHERS:
            crowd = crowd or Crowd(library, threads)
        elif crowd:
            crowd.end()
            crowd = None


def _seconds(cores: set[int]) -> tuple[float, float, float]:
    """Seconds: of the clock, those that these cores have spent on any process, those that this process has used."""
    return time.monotonic(), busy_seconds(cores), time.process_time()


def busy_seconds(cores: set[int]) -> float:
    """What these cores have spent on any process since the machine started."""
    ticks = 0
    for line in PROCESSORS.read_text().splitlines():
        name, *times = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _waiting, interrupt, soft, *_ = map(int, times)
            ticks += user + nice + system + interrupt + soft
    return ticks / os.sysconf("SC_CLK_TCK")


class Crowd:
    """A team of OpenMP threads, asleep until `end`, with which libgomp manages more threads than it knows cores."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._leave = threading.Event()
        size = max(2, (os.cpu_count() or 1) - threads + 2)  # `threads` are there already, and the team's first is not counted
        self._thread = threading.Thread(target=self._be_there, args=(library, size), name="crowd", daemon=True)
        self._thread.start()

    def _be_there(self, library: ctypes.CDLL, size: int) -> None:
        nothing = ctypes.cast(library.omp_get_level, ctypes.c_void_p)  # for each thread of the team to call
        library.GOMP_parallel(nothing, None, ctypes.c_uint(size), ctypes.c_uint(0))
        self._leave.wait()

    def end(self) -> None:
        """Have the team's threads end, and wait for it."""
        self._leave.set()
        self._thread.join()
