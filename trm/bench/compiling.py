"""Seconds until the first step: tracing, XLA's compile, and the step itself."""

import tempfile
import time
from pathlib import Path
from typing import Any

from trm.bench.machine import Row, in_child
from trm.cli import compose
from trm.step import init_state
from trm.train import Run, train_program

# generated puzzles have the sizes of the paper's
PAPER = ["data=sudoku_9x9", "data.num_puzzles=32", "data.num_test_puzzles=4", "train.global_batch_size=32", "train.max_steps=1000"]
DEPTHS = ((2, 2), (2, 4), (3, 6), (4, 8))  # T, n


def measure(overrides: list[str]) -> list[Row]:
    """One row for each depth; the persistent cache, where the backend has one, is in a folder of its own and used twice."""
    rows = []
    for T, n in DEPTHS:
        request = {"overrides": [*PAPER, f"recursion.T={T}", f"recursion.n={n}", *overrides]}
        cached = compose(request["overrides"]).hardware.compile_cache is not None
        with tempfile.TemporaryDirectory() as folder:
            if cached:
                request["overrides"].append(f"hardware.compile_cache={Path(folder) / 'cache'}")
            row = {"T": T, "n": n, "T*n": T * n} | in_child(__name__, "in_this_process", request)[0]
            again = in_child(__name__, "in_this_process", request)[0]["compile s"] if cached else None
        rows.append(row | {"compile s, cached": again})
    return rows


def in_this_process(request: dict[str, Any]) -> list[Row]:
    """One row of `measure`."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(compose([*request["overrides"], f"data.path={folder}/data"]), Path(folder))
    runtime = run.runtime
    state, fixed = run.place(init_state(run.cfg, run.arch, run.fixed)), runtime.put_replicated(run.fixed)
    batch = runtime.put_batch(run.host_batch(0))
    step = runtime.compile(train_program(runtime, run.step_config), donate=0)
    began = time.perf_counter()
    runtime.prepare(step, state, fixed, batch)
    prepared = time.perf_counter()
    state = step(state, fixed, batch)
    runtime.fetch(state.step)
    ended = time.perf_counter()
    return [{"compile s": prepared - began, "step s": ended - prepared, "first step s": ended - began}]
