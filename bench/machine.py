"""What a number was measured on, and how numbers are summed up and shown."""

import contextlib
import importlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from trm.cli import ROOT
from trm.errors import RunFailure
from trm.ground.child import ended
from trm.ground.cores import cores
from trm.run.revision import code
from trm.show.table import named

Row = dict[str, Any]
T = TypeVar("T")

MATMUL_SIZES, MATMUL_REPEATS = {"cpu": (1024, 1536, 2048), "cuda": (8192,)}, 4


_stopped: list[bool] = []  # that somebody has interrupted the measurement


def stopped() -> bool:
    """Whether the measurement was interrupted: what there is will be shown."""
    return bool(_stopped)


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """Around a loop of measurements: SIGINT or SIGTERM ends it and all loops around it, and what was measured is shown."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        _stopped.append(True)
    finally:
        signal.signal(signal.SIGTERM, before)


def turns(items: Iterable[T], what: str) -> Iterator[T]:
    """The items one after the other, until the measurement is stopped; on stderr how far they are and the time left."""
    # a bar on a terminal, else a line now and then
    every_s = 0.1 if sys.stderr.isatty() else 15
    for item in tqdm(
        list(items), desc=what, unit="turn", leave=False, mininterval=every_s, maxinterval=every_s, dynamic_ncols=True
    ):
        if _stopped:
            return
        yield item


def facts() -> dict[str, Any]:
    """Machine, versions and git revision; to be asked before anything is measured, for `load_before`."""
    made_by = code()
    return {
        "cores": cores(),
        "processor": _processor(),
        **_accelerator(),
        "memory_gb": _memory_gb(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: made_by["versions"][name] or "missing" for name in ("torch", "torch_xla")},
        "revision": f"{made_by['revision'][:7]}{'-dirty' if made_by['dirty'] else ''}" if made_by["revision"] else "no git",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:  # not Linux
        names = [platform.processor()]
    return next(filter(None, names), platform.machine())


def _accelerator() -> dict[str, str]:
    """Name of the CUDA device, where torch has one."""
    import torch

    return {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _memory_gb() -> float | None:
    """Memory in units of 1e9 bytes; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def median_and_spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and maximum."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "low": low, "high": high, "max": max(values)}


def figures(measured: Mapping[str, Sequence[float]]) -> Row:
    """Columns for each figure: its median under its name, and its quartiles."""
    row: Row = {}
    for name, values in measured.items():
        found = median_and_spread(values)
        row |= {name: found["median"], f"{name} low": found["low"], f"{name} high": found["high"]}
    return row


def matmul_rate(device: str = "cpu", dtype: str = "float32") -> float:
    """GFLOP/s of matrix products by torch.mm here and now, on a CPU with all threads: the best of several sizes and repeats."""
    import torch  # takes seconds, and not every benchmark needs it

    return _best_rate(torch.mm, MATMUL_SIZES[device], device, dtype)


def onednn_rate() -> float | None:
    """The same of oneDNN's products, as trm/backends/onednn.py has them; None where torch was built without."""
    import torch

    from trm.backends import onednn

    return _best_rate(onednn.linear, MATMUL_SIZES["cpu"]) if onednn.usable(torch.ones(1)) else None


def _best_rate(product: Callable[..., Any], sizes: Sequence[int], device: str = "cpu", dtype: str = "float32") -> float:
    import torch

    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        for _ in range(MATMUL_REPEATS):
            began = time.perf_counter()
            product(a, b)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text; numbers with four digits that count. Lists, the single measurements, are left to the JSON."""
    shown = [{name: _text(value) for name, value in row.items() if not isinstance(value, list)} for row in rows]
    return "\n".join(named(shown, left=0))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_child(module: str, function: str, request: dict[str, Any]) -> list[Row]:
    """Rows that `module.function(request)` returns in a process of its own, which can start another kind of runtime."""
    code = (
        f"import importlib, json; rows = importlib.import_module({module!r}).{function}(json.loads({json.dumps(request)!r})); "
        "print('\\n' + json.dumps(rows))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # bench/ is no part of the installed package
    returned, out, err = child([sys.executable, "-c", code], environment)
    if returned:
        raise RunFailure(f"{module}.{function} of {request} ended with {returned}: {err.strip().splitlines()[-1:]}")
    rows: list[Row] = json.loads(out.splitlines()[-1])
    return rows


def child(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a command to its end: its exit code, output and error output. It ends with this process, and so do its children."""
    done = ended(command, 60, lambda seconds: None, env=environment)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def tests_module(name: str) -> ModuleType:
    """A module of the checkout's tests folder."""
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


class Worker:
    """A process that stays, so that several kinds of runtime can be measured in turns."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        )

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function, which must be a module's, returns or raises there. Raises RunFailure where the process dies."""
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise RunFailure(
                f"{function.__module__}.{function.__qualname__}: its process died, perhaps for want of memory"
            ) from error

    def close(self) -> None:
        """End the process, at once where the measurement was stopped."""
        processes = list(self._pool._processes.values()) if stopped() else []
        for process in processes:
            process.kill()
        self._pool.shutdown(cancel_futures=True)
