"""What a checkpoint costs: the copy to the host, which training waits for, and the writing, which it does not."""

import tempfile
import time
from pathlib import Path

from bench.machine import Row, figures
from trm.cli import compose
from trm.config import digest, to_plain
from trm.core.step import init_state
from trm.run.checkpoint import CheckpointWriter, Meta, flatten, load_checkpoint
from trm.train import Run

SIZES = {
    "demo": ["experiment=demo_4x4"],
    "paper": ["data=sudoku_9x9", "data.num_puzzles=32", "data.num_test_puzzles=4", "train.max_steps=1000"],
}
ROUNDS = 5


def measure(overrides: list[str], sizes: list[str], rounds: int) -> list[Row]:
    """One row for each size; seconds are medians and quartiles over the rounds."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(compose([*SIZES[size], *overrides, f"data.path={folder}/data"]), Path(folder))
        state = run.place(init_state(run.cfg, run.arch, run.fixed))
        held, written, read = [], [], []
        with tempfile.TemporaryDirectory() as folder:
            writer = CheckpointWriter(Path(folder), keep=1)
            for step in range(rounds):
                began = time.perf_counter()
                tensors = flatten(run.runtime.fetch(state))
                writer.save(tensors, _meta(run, step), is_best=False)
                held.append(time.perf_counter() - began)
                writer.wait()
                written.append(time.perf_counter() - began)
                began = time.perf_counter()
                load_checkpoint(Path(folder) / "checkpoints" / f"step_{step}")
                read.append(time.perf_counter() - began)
            writer.close()
            size_mb = sum(p.stat().st_size for p in (Path(folder) / "checkpoints" / f"step_{rounds - 1}").iterdir()) / 1e6
        seconds = {"held up s": held, "on disk after s": written, "read and verified s": read}
        row: Row = {"size": size, "MB": size_mb} | figures(seconds)
        rows.append(row | {f"all {name}": values for name, values in seconds.items()})
    return rows


def _meta(run: Run, step: int) -> Meta:
    return Meta(step, to_plain(run.cfg), digest(run.cfg), None, None, None, None, run.data_sizes, None)
