"""Host time of a training step: what the Python process does while the devices could be computing.

A virtual CPU device shares the cores with the host and may compute inside the call, so the two are told apart like this: the
devices are drained after each step, and waiting for them is not counted.

`compiled` is the step alone: data and call one after the other, from the devices being idle to the call's return. The state is not
donated there: XLA's CPU client may compute inside the call when buffers are donated.

`loop` is trm.train's own loop, run as it is: batches prefetched in a thread, clock, progress bar (off), logging to metrics.jsonl
every LOG_EVERY_STEPS, and the state donated. Its host time goes from the return of one call to the return of the next, less the
waiting: with what the prefetching thread takes from the main one, without what that thread makes meanwhile. Where the one device
computes inside the call, as it does in some steps because of the donation, that is in it; the recursion is the shallowest so that
this is little (the host hands over the same tensors at any depth, yet its call takes some 0.2 ms less than at T=3 n=6). On the mesh
trm.train waits for the virtual devices inside each call; that waiting is what is left out, since real devices are not waited for.
`bar` is what host ms, a median, may be at most.
"""

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.machine import Row, in_child, median_and_spread, tests_module, turns
from trm.backends.xla import XlaRuntime
from trm.cli import compose
from trm.run.experiment import build

TINY = ["data=sudoku_4x4", "model=tiny", "model.hidden_size=8", "model.num_heads=1", "recursion=t3_n6", "tracking=none"]
TINY += ["train.global_batch_size=8", "train.max_steps=1000000", "data.num_puzzles=64", "data.num_test_puzzles=16"]
MACHINES = {"1 device": ("hardware=cpu_xla", 3), "8 devices": ("hardware=cpu_mesh", 5)}  # settings, bar of the loop in ms
PROGRAMS, STEPS, WARM_UP = ("compiled", "loop"), 200, 5
SHALLOWEST = ["recursion.T=1", "recursion.n=1"]
LOG_EVERY_STEPS = 100


def measure(overrides: list[str]) -> Iterator[Row]:
    """Rows for both machines, compiled and in the loop; milliseconds a step."""
    for (label, (machine, bar)), way in turns(itertools.product(MACHINES.items(), PROGRAMS), "ways"):
        depth = SHALLOWEST if way == "loop" else []
        request = {"overrides": [*TINY, *depth, *overrides, machine], "way": way, "steps": STEPS}
        for row in in_child(__name__, "in_this_process", request):
            yield {"devices": label} | row | ({"bar": bar} if way == "loop" else {})


def in_this_process(request: dict[str, Any]) -> list[Row]:
    """One row of `measure`, but for the bar: of `steps` steps."""
    way, overrides, steps = request["way"], request["overrides"], request["steps"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = [*overrides, f"data.path={folder}/data"]
        if way == "loop":
            # beside the tests, which alone may import the command
            timed_loop = tests_module("timed_loop")
            times, recompiles = timed_loop.in_the_loop(overrides, folder, WARM_UP, steps, LOG_EVERY_STEPS)
        else:
            times, recompiles = _alone(overrides, steps)
    medians = {f"{name} ms": median_and_spread(values)["median"] for name, values in times.items()}
    host = median_and_spread(times["host"])
    spread = {"host low": host["low"], "host high": host["high"], "host max": host["max"]}
    row = {"way": way, **medians, **spread, "max / median": host["max"] / host["median"], "recompiles": recompiles}
    return [row | {"all host ms": times["host"]}]


def _alone(overrides: Sequence[str], steps: int) -> tuple[dict[str, list[float]], int]:
    """Milliseconds of each step, and how often it compiled again."""
    exp = build(compose([*overrides]))
    runtime = exp.runtime
    assert isinstance(runtime, XlaRuntime)
    program = exp.program(exp.cfg.recursion)
    compiled: Any = runtime.compile(program.function, program.rows)
    compiled._drain = None  # waiting is timed by itself
    current, buffers = (exp.to_device(exp.first_state()), exp.sums()), runtime.replicate(exp.buffers)
    compiles = 0
    times: dict[str, list[float]] = {"data": [], "call": [], "host": [], "waiting for the device": []}
    for step in range(WARM_UP + steps):
        began = time.perf_counter()
        batch = runtime.shard_batch(exp.host_batch(step))
        loaded = time.perf_counter()
        current = compiled(current, buffers, batch)
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
