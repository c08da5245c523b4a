"""Compiling a run's steps for a TPU that is not there: trace in one process, compile in another, judge what comes back.

trm/plan/lowering.py traces with torch_xla, trm/plan/aot.py compiles with jax's bindings to libtpu. One at a time: libtpu takes
a lock, and a compile takes both cores for a minute.
"""

import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trm.cli import CONF_DIR
from trm.config import Config
from trm.errors import ConfigError, RunFailure
from trm.plan import aot
from trm.plan.estimate import chip_of, topology
from trm.plan.lowering import request
from trm.study.placement import place

PLAN_VENV = CONF_DIR.parent / ".venv-plan"
STEPS = ("training", "evaluation")
SHOWN_BYTES = 1 << 20  # an evaluation gathers the answers to the few puzzles that are shown: less than this


@dataclass(frozen=True)
class Compiled:
    """What the compiler says about one step. Bytes and FLOPs are those of one chip."""

    seconds: float
    devices: int
    device_kind: str
    libtpu: str
    memory: dict[str, int]  # arguments, outputs, aliased, temporaries, code
    flops: float
    bytes_accessed: float  # on-chip memories included
    collectives: list[dict[str, Any]]  # {"op", "bytes", "dtypes"}
    partitions: int
    aliases: int  # outputs that take an argument's memory
    donated: int  # arguments that may be taken
    float64_values: int  # in the module before it was compiled

    @property
    def memory_bytes(self) -> int:
        """Memory of a chip while the step runs."""
        kinds = self.memory
        return kinds["arguments"] + kinds["outputs"] - kinds["aliased"] + kinds["temporaries"] + kinds["code"]

    def collective_bytes(self, op: str) -> int:
        """Bytes that all collectives of this kind carry."""
        return sum(item["bytes"] for item in self.collectives if item["op"] == op)


@dataclass(frozen=True)
class TooBig:
    """The step does not fit: what the compiler says, and the batches found by bisection."""

    message: str
    seconds: float
    fits: int  # largest global batch that was compiled; 0 = none
    too_big: int  # smallest global batch that was refused
    compiles: int


def find_python(wanted: str | None) -> str:
    """An interpreter with jax and libtpu: plan.python, this one, or that of .venv-plan. Raises ConfigError with how to get one."""
    candidates = [wanted] if wanted else [sys.executable, str(PLAN_VENV / "bin" / "python")]
    found = []
    for python in candidates:
        try:
            probe = subprocess.run(
                [python, "-c", "import importlib.metadata as m; m.version('libtpu'); print(m.version('jax'))"],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            if wanted:
                raise ConfigError(f"plan.python={wanted}: {error.strerror}: give the path of a python") from error
            continue
        if probe.returncode == 0:
            found.append(probe.stdout.strip())
            if found[-1] == aot.JAX_VERSION:
                return python
    which = f"plan.python={wanted}" if wanted else "plan.compile=true"
    has = (
        f"jax {found[0]} is there"
        if found
        else "jax and libtpu are not installed there"
        if wanted
        else "jax and libtpu are not installed"
    )
    raise ConfigError(
        f"{which}: {has}, jax {aot.JAX_VERSION} and libtpu are needed: run make setup-plan, or make setup EXTRAS=dev,plan"
    )


class Compiler:
    """Compiles the steps of runs; a step that another run has too is compiled once."""

    def __init__(self, python: str, folder: Path, say: Callable[[str], None]) -> None:
        """`folder` takes the modules; `say` is told what is being compiled."""
        self.python, self.folder, self.say = python, folder, say
        self._known: dict[str, Compiled | TooBig] = {}

    def compile(self, cfg: Config, step: str) -> Compiled | TooBig:
        """One of the STEPS of a run on its placement, and the largest batch that fits where its own does not.

        Raises RunFailure where the result cannot be trusted.
        """
        job = self._lower(cfg, step)
        key = hashlib.sha256(Path(job["module"]).read_bytes() + repr([job["arguments"], job["topology"]]).encode()).hexdigest()
        if key not in self._known:
            self.say(f"compiling the {step} step for {job['topology']}, {job['devices']} devices ...")
            result = self._run(job)
            if "out_of_memory" in result:
                self._known[key] = self._bisect(cfg, step, result)
            else:
                self._known[key] = checked(Compiled(**result), job["devices"])
        return self._known[key]

    def _lower(self, cfg: Config, step: str) -> dict[str, Any]:
        path = self.folder / "request.json"
        path.write_text(json.dumps(request(cfg, [step], self.folder)))
        _run_child([sys.executable, "-m", "trm.plan.lowering", str(path)], f"tracing the {step} step")
        return {
            "module": str(self.folder / f"{step}.hlo.pb"),
            "arguments": json.loads((self.folder / f"{step}.json").read_text()),
            "devices": place(cfg.hardware).devices,
            "topology": topology(cfg.hardware),
            "result": str(self.folder / "result.json"),
        }

    def _run(self, job: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / "job.json"
        path.write_text(json.dumps(job))
        _run_child([self.python, aot.__file__, str(path)], "compiling for the TPU")
        result: dict[str, Any] = json.loads(Path(job["result"]).read_text())
        if "error" in result:
            raise RunFailure(f"compiling for the TPU: {result['error']}")
        return result

    def _bisect(self, cfg: Config, step: str, failed: dict[str, Any]) -> TooBig:
        chip, devices = chip_of(cfg.hardware), place(cfg.hardware).devices
        batch = cfg.train.global_batch_size if step == "training" else cfg.eval_batch_size
        compiles = 0

        def needs(rows: int) -> float:
            nonlocal compiles
            compiles += 1
            self.say(f"out of memory: trying a global batch of {rows * devices} ...")
            result = self._run(self._lower(with_batch(cfg, step, rows * devices), step))
            if "out_of_memory" in result:
                return max(memory_asked_for(result["out_of_memory"]), chip.memory_bytes + 1)
            return min(Compiled(**result).memory_bytes, chip.memory_bytes)

        rows, message = batch // devices, failed["out_of_memory"]
        fitting, refused = largest_fitting(needs, chip.memory_bytes, rows, memory_asked_for(message))
        return TooBig(message, failed["seconds"], fitting * devices, refused * devices, compiles)


def with_batch(cfg: Config, step: str, batch: int) -> Config:
    """The run with another batch of the given step."""
    if step == "training":
        return replace(cfg, train=replace(cfg.train, global_batch_size=batch))
    return replace(cfg, evaluate=replace(cfg.evaluate, batch_size=batch))


def memory_asked_for(message: str) -> float:
    """Bytes that a program would need, from "Used 48.98G of 30.75G hbm" in the compiler's message; inf where it does not say so."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return float(found[1]) * {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[found[2]] if found else math.inf


def largest_fitting(needs: Callable[[int], float], memory: float, failing: int, failing_needs: float) -> tuple[int, int]:
    """By bisection (largest number found to fit or 0, smallest found not to), at most 1/16 of the first apart.

    `needs` gives the bytes that a number of rows needs (a compile, minutes near the limit); `failing` is known not to fit. Until
    one fits, every other guess takes memory as growing in proportion to the rows.
    """
    low, high, high_needs = 0, failing, failing_needs
    in_proportion = True
    while high - low > max(1, low // 16):
        guess = (low + high) // 2
        if low == 0 and in_proportion and high_needs < math.inf:
            guess = min(max(int(high * memory / high_needs), 1), high - 1)
        found = needs(guess)
        if found <= memory:
            low = guess
        else:
            high, high_needs = guess, found
        in_proportion = not in_proportion
    return low, high


def checked(compiled: Compiled, devices: int) -> Compiled:
    """The same, or RunFailure where the module was not compiled for all chips: its figures would mean nothing."""
    if compiled.devices != devices or compiled.partitions != devices:
        raise RunFailure(f"compiled for {compiled.partitions} partitions on {compiled.devices} devices, {devices} were asked for")
    if devices > 1 and not compiled.collective_bytes("all-reduce"):
        raise RunFailure(f"the module for {devices} devices holds no all-reduce: the compiler ignored how the batch is split")
    return compiled


def warnings(compiled: Compiled, gradient_bytes: int | None) -> list[str]:
    """What is wrong or slower than it needs to be; `gradient_bytes` is None where there is no gradient."""
    found = []
    if compiled.float64_values:
        found.append(f"{compiled.float64_values} float64 values in the module: a TPU emulates them")
    if compiled.aliases < compiled.donated:
        found.append(f"{compiled.donated - compiled.aliases} of {compiled.donated} donated arguments are not reused")
    moved = sum(compiled.collective_bytes(op) for op in aot.COLLECTIVES if op != "all-reduce")
    if moved > (SHOWN_BYTES if gradient_bytes is None else 0):
        found.append(f"collectives other than all-reduce carry {moved:,} bytes: the step should need none")
    reduced = compiled.collective_bytes("all-reduce")
    if gradient_bytes is not None and reduced > 1.05 * gradient_bytes:
        found.append(
            f"the all-reduces carry {reduced / gradient_bytes:.1f} times the gradient's {gradient_bytes:,} bytes: the network's "
            "passes are summed over the chips one by one"
        )
    return found


def _run_child(command: list[str], what: str) -> None:
    done = subprocess.run(command, cwd=CONF_DIR.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise RunFailure(f"{what} failed (exit code {done.returncode}): {lines[-1] if lines else 'without a message'}")
