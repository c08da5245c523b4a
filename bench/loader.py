"""Batches per second of the loader alone, against what consumes them.

The loader is one host's share of the global batch, augmented on the fly (data.num_aug=1000 measures stored variants). A CPU's
appetite is measured in turns with the loader, by the training step at the paper's size; a TPU's is the plan's roofline, which no
real chip reaches. hardware.* settings are the CPU's alone.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable

from bench import step
from bench.machine import Row, Worker, median_and_spread, turns, until_stopped
from trm.cli import compose
from trm.config import Config
from trm.core.step import draw_min_steps
from trm.data.build import ensure_dataset
from trm.data.format import load_dataset
from trm.data.loader import Host, TrainLoader
from trm.plan.settings import PlanSettings
from trm.plan.workload import estimate, workload
from trm.study.placement import place
from trm.tasks.base import task_of

PAPER = ["data=sudoku_9x9", "recursion=t3_n6", "train.global_batch_size=768", "data.num_test_puzzles=64", "train.max_steps=1000"]
MACHINES = ("v4_8", "v4_64")
STEP_ROWS = 32  # of the measured step: 768 rows do not fit into a small machine's memory
ROUNDS = 5
BLOCK_S = 1.0
BAR = 20  # times what is consumed


def measure(overrides: list[str], rounds: int) -> list[Row]:
    """One row for this CPU and one for each TPU."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [*PAPER, *overrides, f"data.path={folder}/data"]
        cfg = compose(settings)
        host_batch = host_batches(cfg)
        worker = Worker()
        rates, consumed = [], []
        with contextlib.closing(worker), until_stopped():
            worker.call(step.prepare, [*settings, f"train.global_batch_size={STEP_ROWS}"], step.CONFIGURED, cfg.hardware.backend)
            for _ in turns(range(rounds), "rounds"):
                rate, seconds = batches_per_s(host_batch), worker.call(step.block, "train", 1)
                rates.append(rate)
                consumed.append(STEP_ROWS / seconds / cfg.train.global_batch_size)
        if not consumed:
            return []  # stopped before the first round was whole
        rows = [_row("cpu", cfg, rates, consumed, f"measured, a step of {STEP_ROWS} rows")]
        for machine in MACHINES:
            cfg = compose([*(s for s in settings if not s.startswith("hardware")), f"hardware={machine}"])
            host_batch = host_batches(cfg)
            rates = [batches_per_s(host_batch) for _ in range(rounds)]
            roofline = estimate(workload(cfg), cfg.hardware, PlanSettings.host_ms_per_step / 1e3).train_step.roofline
            rows.append(_row(machine, cfg, rates, [1 / roofline] * rounds, "the plan's roofline"))
    return rows


def host_batches(cfg: Config) -> Callable[[int], object]:
    """The batch of a step as trm.train makes it on the first of the job's hosts."""
    hosts = place(cfg.hardware).processes
    loader = TrainLoader(
        load_dataset(ensure_dataset(cfg.data), "train", task_of(cfg.data)),
        seed=cfg.seed,
        global_batch_size=cfg.train.global_batch_size,
        on_the_fly_aug=cfg.data.on_the_fly_aug if cfg.data.num_aug == 0 else 0,
        data_seed=cfg.data.seed,
        host=Host(0, hosts),
    )
    local = cfg.train.global_batch_size // hosts

    def make(step: int) -> object:
        min_steps = draw_min_steps(cfg.recursion, cfg.seed, step, cfg.train.global_batch_size)
        return loader.batch(step) | {"min_steps": min_steps[:local]}

    return make


def batches_per_s(make: Callable[[int], object]) -> float:
    """Batches a second, over BLOCK_S."""
    began, made = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < BLOCK_S:
        make(made)
        made += 1
    return made / seconds


def _row(machine: str, cfg: Config, rates: list[float], consumed: list[float], source: str) -> Row:
    hosts, found = place(cfg.hardware).processes, median_and_spread(rates)
    row: Row = {"machine": machine, "hosts": hosts, "rows of a host": cfg.train.global_batch_size // hosts}
    row |= {"batches/s": found["median"], "low": found["low"], "high": found["high"]}
    row |= {"consumed batches/s": median_and_spread(consumed)["median"], "consumed": source}
    times = [rate / eaten for rate, eaten in zip(rates, consumed, strict=True)]
    return row | {"times": median_and_spread(times)["median"], "bar": BAR, "all batches/s": rates}
