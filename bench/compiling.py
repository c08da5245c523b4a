"""Seconds until the first step: tracing, compiling, and the step itself.

XLA compiles before it steps. Inductor compiles within the first step: what a second step does not take is called compiling.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from bench.machine import Row, figures, in_child, turns
from trm.cli import compose
from trm.run.experiment import build

# generated puzzles have the sizes of the paper's
PAPER = ["data=sudoku_9x9", "data.num_puzzles=32", "data.num_test_puzzles=4", "train.global_batch_size=32", "train.max_steps=1000"]
DEPTHS = ((2, 2), (2, 4), (3, 6), (4, 8))  # T, n
ROUNDS = 2
FIGURES = ("compile s", "step s", "first step s")


def measure(overrides: list[str], rounds: int) -> Iterator[Row]:
    """One row for each depth, medians and quartiles over the rounds.

    Each starts twice: caches, where the backend has one, are empty at first.
    """
    for T, n in turns(DEPTHS, "depths"):
        depth = [*PAPER, f"recursion.T={T}", f"recursion.n={n}", *overrides]
        hardware = compose(depth).hardware
        cached = hardware.compile_cache is not None or hardware.backend == "inductor"
        measured: dict[str, list[float]] = {}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                if hardware.compile_cache is not None:
                    depth = [*depth, f"hardware.compile_cache={cache}"]
                starts = [in_child(__name__, "in_this_process", {"overrides": depth, "cache": cache})[0] for _ in range(1 + cached)]
            values = {name: starts[0][name] for name in FIGURES}
            if cached:
                values["first step s, cached"] = starts[1]["first step s"]
            for name, value in values.items():
                measured.setdefault(name, []).append(value)
        row: Row = {"T": T, "n": n, "T*n": T * n, "backend": hardware.backend}
        row |= figures(measured)
        yield row | {f"all {name}": values for name, values in measured.items()}


def in_this_process(request: dict[str, Any]) -> list[Row]:
    """One start: a row of FIGURES."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = request["cache"]
    with tempfile.TemporaryDirectory() as folder:
        exp = build(compose([*request["overrides"], f"data.path={folder}/data"]))
    runtime = exp.runtime
    current, buffers = (exp.to_device(exp.first_state()), exp.sums()), runtime.replicate(exp.buffers)
    batch = runtime.shard_batch(exp.host_batch(0))
    step = runtime.compile(*exp.program(exp.cfg.recursion))
    began = time.perf_counter()
    if exp.cfg.hardware.backend == "xla":
        runtime.prepare(step, current, buffers, batch)
        compiled_s = time.perf_counter() - began
        runtime.fetch(step(current, buffers, batch)[0].step)
        first_s = time.perf_counter() - began
        return [{"compile s": compiled_s, "step s": first_s - compiled_s, "first step s": first_s}]
    current = step(current, buffers, batch)  # compiles in passing
    first_s = time.perf_counter() - began
    step(current, buffers, batch)
    step_s = time.perf_counter() - began - first_s
    return [{"compile s": first_s - step_s, "step s": step_s, "first step s": first_s}]
