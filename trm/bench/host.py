"""Host time of a training step: what the Python process does while the devices could be computing.

A virtual CPU device shares the cores with the host and may compute inside the call, so the two are told apart like this: the
devices are drained before each step, the model is so small that computing is negligible, and the time counted ends when the
call returns. The state is not donated here: XLA's CPU client computes inside the call when buffers are donated.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from trm.bench.machine import Row, in_child, median_and_spread
from trm.cli import compose
from trm.runtime import XlaRuntime
from trm.step import init_state
from trm.train import Run, train_program

TINY = ["data=sudoku_4x4", "model=tiny", "model.hidden_size=8", "model.num_heads=1", "recursion=t3_n6", "tracking=none"]
TINY += ["train.global_batch_size=8", "train.max_steps=1000000", "data.num_puzzles=64", "data.num_test_puzzles=16"]
MACHINES = {"1 device": "hardware=cpu_xla", "8 devices": "hardware=cpu_mesh"}
STEPS, LAZY_STEPS, WARM_UP = 200, 20, 5


def measure(overrides: list[str]) -> list[Row]:
    """Rows for both machines, compiled and lazy; milliseconds a step."""
    rows = []
    for label, machine in MACHINES.items():
        for way in ("compiled", "lazy"):
            request = {"overrides": [*TINY, *overrides, machine], "way": way}
            rows += [{"devices": label} | row for row in in_child(__name__, "in_this_process", request)]
    return rows


def in_this_process(request: dict[str, Any]) -> list[Row]:
    """One row of `measure`."""
    lazy = request["way"] == "lazy"
    with tempfile.TemporaryDirectory() as folder:
        run = Run(compose([*request["overrides"], f"data.path={folder}/data"]), Path(folder))
    runtime = run.runtime
    assert isinstance(runtime, XlaRuntime)
    program = train_program(runtime, run.step_config)
    compiled: Any = runtime.compile(program)
    compiled._drain = None  # waiting is timed by itself
    state, fixed = run.place(init_state(run.cfg, run.arch, run.fixed)), runtime.put_replicated(run.fixed)
    resident, compiles = run.resident(state), 0
    times: dict[str, list[float]] = {"data": [], "call": [], "host": [], "waiting for the device": []}
    for step in range(WARM_UP + (LAZY_STEPS if lazy else STEPS)):
        began = time.perf_counter()
        batch = runtime.put_batch(run.host_batch(step)) | resident
        loaded = time.perf_counter()
        state = runtime.run_lazily(program, state, fixed, batch) if lazy else compiled(state, fixed, batch)
        called = time.perf_counter()
        runtime.wait()
        ended = time.perf_counter()
        if step >= WARM_UP:
            parts = (loaded - began, called - loaded, called - began, ended - called)
            for name, seconds in zip(times, parts, strict=True):
                times[name].append(1e3 * seconds)
        else:
            compiles = runtime.compile_count()
    medians = {f"{name} ms": median_and_spread(values)["median"] for name, values in times.items()}
    host = median_and_spread(times["host"])
    spread = {"host low": host["low"], "host high": host["high"], "host max": host["max"]}
    row = {"way": request["way"], **medians, **spread, "recompiles": runtime.compile_count() - compiles}
    return [row | {"all host ms": times["host"]}]
