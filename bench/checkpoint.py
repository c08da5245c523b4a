"""What a checkpoint costs: the copy to the host, which training waits for, and the writing, which it does not."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import Row, figures, turns
from trm.cli import compose
from trm.run.checkpoint import CheckpointWriter, flatten, load_checkpoint
from trm.run.experiment import build
from trm.run.record import Record

SIZES = {
    "demo": ["experiment=demo_4x4"],
    "paper": ["data=sudoku_9x9", "data.num_puzzles=32", "data.num_test_puzzles=4", "train.max_steps=1000"],
}
ROUNDS = 5


def measure(overrides: list[str], sizes: list[str], rounds: int) -> Iterator[Row]:
    """One row for each size; seconds are medians and quartiles over the rounds."""
    for size in turns(sizes, "sizes"):
        with tempfile.TemporaryDirectory() as folder:
            exp = build(compose([*SIZES[size], *overrides, f"data.path={folder}/data"]))
        state, record = exp.to_device(exp.first_state()), Record()
        held, written, read = [], [], []
        with tempfile.TemporaryDirectory() as folder:
            writer = CheckpointWriter(Path(folder), keep=1)
            for step in turns(range(rounds), f"{size}: rounds"):
                began = time.perf_counter()
                tensors = flatten(exp.runtime.fetch(state))
                record.step = step
                writer.save(tensors, record.meta(exp))
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
        yield row | {f"all {name}": values for name, values in seconds.items()}
