"""Host time of a training step: what the Python process does while the devices could be computing.

A virtual CPU device shares the cores with the host and may compute inside the call, so the two are told apart like this: the
devices are drained after each step, and waiting for them is not counted.

`compiled` and `lazy` are the step alone: data and call one after the other, from the devices being idle to the call's return. The
state is not donated there: XLA's CPU client may compute inside the call when buffers are donated.

`loop` is trm.train's own loop, run as it is: batches prefetched in a thread, clock, progress bar (off), logging to metrics.jsonl
every LOG_EVERY_STEPS, and the state donated. Its host time goes from the return of one call to the return of the next, less the
waiting: with what the prefetching thread takes from the main one, without what that thread makes meanwhile. Where the one device
computes inside the call, as it does in some steps because of the donation, that is in it; the recursion is the shallowest so that
this is little (the host hands over the same tensors at any depth, yet its call takes some 0.2 ms less than at T=3 n=6). On the mesh
trm.train waits for the virtual devices inside each call; that waiting is what is left out, since real devices are not waited for.
`bar` is what host ms, a median, may be at most.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.machine import Row, in_child, median_and_spread
from trm.backends.xla import XlaRuntime
from trm.cli import compose
from trm.core.curriculum import Stage
from trm.core.model import Weights
from trm.core.programs import train_program
from trm.core.step import Batch, TrainState
from trm.run.clock import Clock
from trm.run.experiment import build
from trm.run.outputs import Outputs
from trm.run.record import Record
from trm.run.signals import StopSignal
from trm.train import StepFunction, Training

TINY = ["data=sudoku_4x4", "model=tiny", "model.hidden_size=8", "model.num_heads=1", "recursion=t3_n6", "tracking=none"]
TINY += ["train.global_batch_size=8", "train.max_steps=1000000", "data.num_puzzles=64", "data.num_test_puzzles=16"]
MACHINES = {"1 device": ("hardware=cpu_xla", 3), "8 devices": ("hardware=cpu_mesh", 5)}  # settings, bar of the loop in ms
STEPS, WARM_UP = {"compiled": 200, "lazy": 20, "loop": 200}, 5
SHALLOWEST = ["recursion.T=1", "recursion.n=1"]
LOG_EVERY_STEPS = 100


def measure(overrides: list[str]) -> list[Row]:
    """Rows for both machines, compiled, lazy and in the loop; milliseconds a step."""
    rows = []
    for label, (machine, bar) in MACHINES.items():
        for way, steps in STEPS.items():
            depth = SHALLOWEST if way == "loop" else []
            request = {"overrides": [*TINY, *depth, *overrides, machine], "way": way, "steps": steps}
            found = in_child(__name__, "in_this_process", request)
            rows += [{"devices": label} | row | ({"bar": bar} if way == "loop" else {}) for row in found]
    return rows


def in_this_process(request: dict[str, Any]) -> list[Row]:
    """One row of `measure`, but for the bar: of `steps` steps."""
    way, overrides, steps = request["way"], request["overrides"], request["steps"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = [*overrides, f"data.path={folder}/data"]
        if way == "loop":
            times, recompiles = _in_the_loop(overrides, steps, folder)
        else:
            times, recompiles = _alone(overrides, steps, lazy=way == "lazy")
    medians = {f"{name} ms": median_and_spread(values)["median"] for name, values in times.items()}
    host = median_and_spread(times["host"])
    spread = {"host low": host["low"], "host high": host["high"], "host max": host["max"]}
    row = {"way": way, **medians, **spread, "max / median": host["max"] / host["median"], "recompiles": recompiles}
    return [row | {"all host ms": times["host"]}]


def _alone(overrides: Sequence[str], steps: int, *, lazy: bool) -> tuple[dict[str, list[float]], int]:
    """Milliseconds of each step, and how often it compiled again."""
    exp = build(compose([*overrides]))
    runtime = exp.runtime
    assert isinstance(runtime, XlaRuntime)
    program = train_program(exp.step_config)
    compiled: Any = runtime.compile(program.function, program.rows)
    compiled._drain = None  # waiting is timed by itself
    state, fixed = exp.place(exp.first_state()), runtime.put_replicated(exp.fixed)
    compiles = 0
    times: dict[str, list[float]] = {"data": [], "call": [], "host": [], "waiting for the device": []}
    for step in range(WARM_UP + steps):
        began = time.perf_counter()
        batch = runtime.put_batch(exp.host_batch(step))
        loaded = time.perf_counter()
        state = runtime.run_lazily(*program[:2], state, fixed, batch) if lazy else compiled(state, fixed, batch)
        called = time.perf_counter()
        runtime.wait()
        ended = time.perf_counter()
        if step >= WARM_UP:
            parts = (loaded - began, called - loaded, called - began, ended - called)
            for name, seconds in zip(times, parts, strict=True):
                times[name].append(1e3 * seconds)
        else:
            compiles = runtime.compile_count()
    return times, runtime.compile_count() - compiles


# --------------------------------------------------------------------------------------------------------------------- the loop


class _NotingClock(Clock):
    """A clock that also notes when each call began and ended."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, float]] = []

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        began = time.perf_counter()
        with super().calling():
            yield
        self.calls.append((began, time.perf_counter()))


class _NotingTraining(Training):
    """A loop that notes its times; the devices are drained at the end of each call."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.clock = self.noting = _NotingClock()
        self.waited_s, self.compile_counts = list[float](), list[int]()

    def _enter_stage(self, state: TrainState, fixed: Weights, batch: Batch) -> tuple[Stage, StepFunction]:
        stage, step_function = super()._enter_stage(state, fixed, batch)
        compiled: Any = step_function
        compiled._drain = self._drain
        return stage, step_function

    def _drain(self) -> None:
        began = time.perf_counter()
        self.runtime.wait()
        self.compile_counts.append(self.runtime.compile_count())
        self.waited_s.append(time.perf_counter() - began)


def _in_the_loop(overrides: Sequence[str], steps: int, folder: Path) -> tuple[dict[str, list[float]], int]:
    """Milliseconds of each step, and how often something compiled again."""
    length = ["train.progress=off", f"train.max_steps={WARM_UP + steps}", f"train.log_every_steps={LOG_EVERY_STEPS}"]
    exp = build(compose([*overrides, *length, "train.eval_every_steps=null", "train.checkpoint_every_steps=null"]))
    assert isinstance(exp.runtime, XlaRuntime)
    record = Record()
    outputs = Outputs(exp, folder, record)
    run = _NotingTraining(exp, folder, record, outputs, StopSignal())  # nobody asks it to stop
    run.loop(exp.first_state())
    outputs.close()
    times: dict[str, list[float]] = {"between calls": [], "call": [], "host": [], "waiting for the device": []}
    for step in range(WARM_UP, WARM_UP + steps):
        (began, ended), waited_s = run.noting.calls[step], run.waited_s[step]
        before = run.noting.calls[step - 1][1]
        parts = (began - before, ended - began - waited_s, ended - before - waited_s, waited_s)
        for name, seconds in zip(times, parts, strict=True):
            times[name].append(1e3 * seconds)
    return times, run.compile_counts[-1] - run.compile_counts[WARM_UP - 1]
