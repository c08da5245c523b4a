"""Compiling a run's steps for a TPU that is not there: trace in one process, compile in another, judge what comes back.

`python -m trm.plan.compiled STEP FOLDER` is the first process, one for each machine shape. It reads FOLDER/config.json, the run's
settings, and traces the step through torch_xla with as many paper devices as the job has chips; it writes FOLDER/module.hlo.pb
and job.json. It compiles nothing and allocates no state. trm/plan/aot.py is the second process, which compiles with jax's bindings
to libtpu. Steps are compiled one at a time: libtpu takes a lock, and a compile takes both cores for a minute.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor
from tqdm import tqdm

from trm.backends.xla import TracingRuntime
from trm.cli import ROOT, plain_command
from trm.config import Config, from_plain, to_plain
from trm.core.flops import eval_arguments, train_arguments
from trm.core.programs import eval_program, train_program
from trm.errors import ConfigError, RunFailure
from trm.ground.child import ended
from trm.plan import aot
from trm.plan.workload import architecture_of, chip_of, step_config, topology
from trm.run.failures import batch_that_fits, memory_asked_for
from trm.study.placement import place

PLAN_VENV = ROOT / ".venv-plan"
STEPS = ("training", "evaluation")
TELL_EVERY_S = 15.0
SHOWN_BYTES = 1 << 20  # an evaluation gathers the answers of the few puzzles that are shown, which take less than this


@dataclass(frozen=True)
class Compiled:
    """The compiler's answer for one step. Bytes and FLOPs are those of one chip."""

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
    """The step does not fit into a chip's memory."""

    message: str  # the compiler's own
    there: int  # bytes of a chip
    batch: int  # the global batch that does not fit
    devices: int

    @property
    def needed(self) -> float | None:
        """Bytes of a chip that the step would take; None where the compiler does not say."""
        found = memory_asked_for(self.message)
        return None if found is None else found[0]

    @property
    def fits(self) -> int:
        """The largest global batch that should fit; 0 = not even one row a chip, or unknown."""
        return 0 if self.needed is None else batch_that_fits(self.batch, self.devices, self.there / self.needed)


def find_python(wanted: str | None) -> str:
    """An interpreter with jax and libtpu: plan.python, this one, or that of .venv-plan. Raises ConfigError, with how to get one."""
    candidates = [wanted] if wanted else [sys.executable, *map(str, PLAN_VENV.glob("bin/python"))]
    found = []
    for python in candidates:
        script = "import importlib.metadata as m; m.version('libtpu'); print(m.version('jax'))"
        try:
            probe = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
        except OSError as error:
            raise ConfigError(f"plan.python={python}: {error.strerror}: give the path of a python") from error
        if probe.returncode == 0:
            found.append(probe.stdout.strip())
            if found[-1] == aot.JAX_VERSION:
                return python
    which = f"plan.python={wanted}" if wanted else "plan.compile=true"
    has = f"jax {found[0]} is there" if found else "jax and libtpu are not installed" + (" there" if wanted else "")
    raise ConfigError(
        f"{which}: {has}, jax {aot.JAX_VERSION} and libtpu are needed: run make setup-plan, or make setup EXTRAS=dev,plan"
    )


class Compiler:
    """Compiles the steps of runs. A step that several runs share is compiled once."""

    def __init__(self, python: str, folder: Path, say: Callable[[str], None], programs: int) -> None:
        """Modules go to `folder`. `say` prints which of `programs` is being compiled, and every 15 s for how long."""
        self.python, self.folder, self.say, self.programs = python, folder, say, programs
        self.done = 0
        self._began = time.monotonic()
        self._known: dict[str, Compiled | TooBig] = {}

    def compile(self, cfg: Config, step: str, name: str) -> Compiled | TooBig:
        """One of the STEPS of the run `name` on its placement. Raises RunFailure where the result cannot be trusted."""
        (self.folder / "config.json").write_text(json.dumps(to_plain(cfg)))
        what = f"the {step} step of {name}"
        self.say(f"tracing {what} ...")
        self._run_child([sys.executable, "-m", "trm.plan.compiled", step, str(self.folder)], f"tracing {what}")
        job_file = self.folder / "job.json"
        job = json.loads(job_file.read_text())
        key = hashlib.sha256(Path(job["module"]).read_bytes() + repr([job["arguments"], job["topology"]]).encode()).hexdigest()
        if key not in self._known:
            self.say(f"compiling {what} for {job['topology']}, {job['devices']} devices ...")
            self._run_child([self.python, aot.__file__, str(job_file)], f"compiling {what} for the TPU")
            result = json.loads(Path(job["result"]).read_text())
            if "error" in result:
                raise RunFailure(f"compiling for the TPU: {result['error']}")
            if "out_of_memory" in result:
                batch = cfg.train.global_batch_size if step == "training" else cfg.eval_batch_size
                self._known[key] = TooBig(result["out_of_memory"], chip_of(cfg.hardware).memory_bytes, batch, job["devices"])
            else:
                self._known[key] = checked(Compiled(**result), job["devices"])
        self.done += 1
        return self._known[key]

    def _run_child(self, command: list[str], what: str) -> None:
        finished_s = time.monotonic() - self._began

        def tell(seconds: float) -> None:
            left_s = max(0.0, finished_s / self.done * (self.programs - self.done) - seconds) if self.done else None
            left = "" if left_s is None else f", about {tqdm.format_interval(left_s)} left"
            self.say(f"{what}: {tqdm.format_interval(seconds)}; {self.done} of {self.programs} programs are done{left}")

        run = ended(command, TELL_EVERY_S, tell, cwd=ROOT)
        if run.returncode:
            lines = [line for line in (run.stderr + run.stdout).decode(errors="replace").splitlines() if line.strip()]
            raise RunFailure(f"{what} failed (exit code {run.returncode}): {lines[-1] if lines else 'without a message'}")


def checked(compiled: Compiled, devices: int) -> Compiled:
    """Return `compiled`; raise RunFailure where it was not compiled for all chips, as its figures would mean nothing."""
    if compiled.devices != devices or compiled.partitions != devices:
        raise RunFailure(f"compiled for {compiled.partitions} partitions on {compiled.devices} devices, {devices} were asked for")
    if devices > 1 and not compiled.collective_bytes("all-reduce"):
        raise RunFailure(f"the module for {devices} devices holds no all-reduce: the compiler ignored how the batch is split")
    return compiled


def warnings(compiled: Compiled, gradient_bytes: int | None, table_rows_bytes: int = 0) -> list[str]:
    """What is wrong with a compiled step, or slow. An evaluation has no `gradient_bytes`; `table_rows_bytes` may be gathered."""
    found = []
    if compiled.float64_values:
        found.append(f"{compiled.float64_values} float64 values in the module: a TPU emulates them")
    if compiled.aliases < compiled.donated:
        found.append(f"{compiled.donated - compiled.aliases} of {compiled.donated} donated arguments are not reused")
    moved = sum(compiled.collective_bytes(op) for op in aot.COLLECTIVES if op != "all-reduce")
    if moved > (SHOWN_BYTES if gradient_bytes is None else table_rows_bytes):
        found.append(f"collectives other than all-reduce carry {moved:,} bytes: the step should need none")
    reduced = compiled.collective_bytes("all-reduce")
    if gradient_bytes is not None and reduced > 1.05 * gradient_bytes:
        found.append(
            f"the all-reduces carry {reduced / gradient_bytes:.1f} times the gradient's {gradient_bytes:,} bytes: the network's "
            "passes are summed over the chips one by one"
        )
    return found


def lower(cfg: Config, step: str, runtime: TracingRuntime) -> tuple[bytes, list[dict[str, Any]]]:
    """The module of one of the STEPS, and for each tensor that it uses its parameter, whether it is split by rows or donated."""
    arguments: tuple[Any, ...]
    arch = replace(architecture_of(cfg), torch_kernels=runtime.can.torch_kernels)
    if step == "training":
        program = train_program(replace(step_config(cfg), arch=arch))
        arguments = (state, sums), buffers, batch = train_arguments(cfg, arch, votes=place(cfg.hardware).processes > 1)
        parts = {**state._asdict(), "sums": sums, "fixed": buffers, "batch": batch}
        donated = {*state._fields, "sums"}
    else:
        program = eval_program(arch)
        arguments = eval_arguments(cfg, arch, cfg.eval_batch_size)
        parts = dict(zip(("weights", "buffers", "puzzle_embedding", "carry", "batch"), arguments, strict=True))
        donated = set()
    module, parameters = runtime.lower(program.function, program.rows, *arguments)
    names = [name for name, tree in parts.items() for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    return module, [
        {"parameter": number, "rows": name in ("carry", "batch"), "donated": name in donated}
        for number, name in zip(parameters, names, strict=True)
        if number >= 0
    ]


def trace(arguments: list[str]) -> None:
    """Write the module, and what trm/plan/aot.py must know to compile it."""
    step, folder = arguments[0], Path(arguments[1])
    cfg = from_plain(json.loads((folder / "config.json").read_text()), str(folder / "config.json"))
    devices, module_file = place(cfg.hardware).devices, folder / "module.hlo.pb"
    module, entries = lower(cfg, step, TracingRuntime(devices))
    module_file.write_bytes(module)
    job = {"module": str(module_file), "arguments": entries, "devices": devices, "topology": topology(cfg.hardware)}
    (folder / "job.json").write_text(json.dumps(job | {"result": str(folder / "result.json")}))


if __name__ == "__main__":
    plain_command(trace, __doc__)
