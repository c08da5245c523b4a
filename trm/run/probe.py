"""Start a backend and compile a trivial function in another process, since a wrong platform can hang or abort it."""

import contextlib
import dataclasses
import json
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from trm.config import HardwareConfig
from trm.errors import UserError
from trm.ground.child import ended
from trm.ground.progress import work

PROBE_EVERY_S = 0.5
NO_ANSWER = "no answer"


@dataclass(frozen=True)
class Probe:
    """The findings of the process that started the backend and compiled; None = it did not get that far."""

    devices: int | None = None
    runtime: str = ""
    error: str | None = None  # the backend's error line, with its fix
    compile_s: float | None = None
    right: bool = False
    peak_bytes: int = 0
    ended: str = ""  # how the process ended if it failed


def probe_devices(hardware: HardwareConfig, limit_s: float) -> Probe:
    """Start the backend in another process for at most `limit_s` seconds; if the hardware has several ranks, one of them."""
    command = [sys.executable, "-c", "from trm.run.probe import run_probe; run_probe()"]
    one = {"num_devices": 1} if hardware.can.ranks else {}
    asked = json.dumps(dataclasses.asdict(hardware) | one).encode()
    try:
        with work("seconds waited for the devices", int(limit_s), "s") as so_far:
            done = ended(command, PROBE_EVERY_S, lambda seconds: so_far(int(seconds)), given=asked, limit_s=limit_s)
        output, code, last = done.stdout, done.returncode, last_words(done.stderr.decode(errors="replace"))
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        fault = (f"{how}: {last}" if last else how) if code else ""
    except subprocess.TimeoutExpired as late:
        output, fault = late.stdout or b"", f"{NO_ANSWER} within {limit_s:g} s"
    facts: dict[str, Any] = {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError):  # a library may print lines too
            said = json.loads(line)
            facts |= said if isinstance(said, dict) and said.keys() <= Probe.__dataclass_fields__.keys() else {}
    return Probe(**facts | {"ended": fault})


def last_words(stderr: str) -> str:
    """The line that says why a process ended; among XLA's errors, which a list of all flags follows, the one that names a flag."""
    lines = stderr.partition("Fatal Python error")[0].strip().splitlines() or [""]  # Python's dump says where, not why
    errors = [line for line in lines if re.search(r"(^|\s)[EF]\d* .*\w:\d+\] ", line)]
    return next((line for line in errors if "flag" in line.lower()), (errors or lines)[-1]).strip()


def run_probe() -> None:
    """The probe's process: reads HardwareConfig as JSON from stdin, and prints JSON lines with fields of `Probe`."""

    def tell(**facts: object) -> None:
        print(json.dumps(facts), flush=True)

    hardware = HardwareConfig(**json.load(sys.stdin) | {"compile_cache": None})
    import numpy as np
    from torch import Tensor

    from trm.backends import start

    try:
        runtime = start(hardware)
    except UserError as error:
        tell(error=str(error))
        return
    tell(devices=runtime.num_devices, runtime=runtime.describe())

    def twice(rows: Tensor) -> Tensor:
        return 2 * rows

    block = runtime.compile_block(twice)  # as the run's network is compiled

    def double(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        doubled = block(batch["rows"])
        return doubled, doubled.sum()

    rows = hardware.local_devices
    began = time.perf_counter()
    _, total = runtime.compile(double, lambda results: results[0])(runtime.shard_batch({"rows": np.ones(rows, dtype=np.int32)}))
    right = int(runtime.fetch(total)) == 2 * rows * runtime.process_count
    peak_bytes = (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tell(compile_s=time.perf_counter() - began, right=right, peak_bytes=peak_bytes)
