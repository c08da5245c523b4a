"""Samples per second of the training step and of the evaluation step, in several ways, beside the rates of matrix products.

Each way is a process that keeps its programs; they are measured in turns (A B A B ...), so that whatever else the machine does
meets all alike. A sample is one row in one supervision step, in training as in evaluation. Batches are made beforehand: this is
the step alone, as trm.train and trm.evaluate compile it.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import Row, Worker, matmul_rate, median_and_spread, onednn_rate, stopped, tests_module, turns, until_stopped
from trm.cli import compose
from trm.config import Config
from trm.core.flops import count_eval_flops, network_flops
from trm.core.programs import eval_program
from trm.core.step import empty_carry
from trm.data.loader import Batch
from trm.errors import ConfigError
from trm.inference.evaluator import candidate_loader
from trm.plan.workload import architecture_of, step_config
from trm.run.experiment import Experiment, build

COMMON = ["tracking=none", "train.max_steps=1000000", "data.num_puzzles=256", "data.num_test_puzzles=64"]
PAPER = ["data=sudoku_9x9", "recursion=t3_n6", "train.global_batch_size=32"]  # generated puzzles have the sizes of the paper's
SIZES = {
    "demo": ["experiment=demo_4x4"],
    "6x6": ["data=sudoku_6x6", "model=tiny", "recursion=t3_n6", "train.global_batch_size=64"],
    "paper_mlp": [*PAPER, "model=mlp"],
    "paper_attention": [*PAPER, "model=attention"],
}
CONFIGURED, ORDINARY, ORDINARY_COMPILED = "configured", "ordinary", "ordinary_compiled"
WAYS = (CONFIGURED, "xla", "inductor", "eager", ORDINARY, ORDINARY_COMPILED)
DEFAULT_WAYS = (CONFIGURED, ORDINARY)
KINDS = ("train", "eval")
ROUNDS = 7
BLOCK_S = 0.5  # a block of steps lasts at least this long
NUM_BATCHES = 4


def measure(overrides: list[str], sizes: Sequence[str], ways: Sequence[str], rounds: int) -> Iterator[Row]:
    """Rows for every size, kind of step and way; figures are medians over the rounds, ratios are of the same round."""
    with tempfile.TemporaryDirectory() as folder:
        for size in turns(sizes, "sizes"):
            yield from _size(size, [*COMMON, *SIZES[size], *overrides], ways, rounds, Path(folder))


def _size(size: str, overrides: list[str], ways: Sequence[str], rounds: int, folder: Path) -> list[Row]:
    cfg = compose(overrides)
    if {ORDINARY, ORDINARY_COMPILED} & {*ways}:
        _check_ordinary(cfg)
    backend = {CONFIGURED: cfg.hardware.backend, ORDINARY: "eager", ORDINARY_COMPILED: "inductor"}
    products_of: dict[str, Callable[[], float | None]] = {"matmul": matmul_rate, "oneDNN": onednn_rate}
    if cfg.hardware.platform == "cuda":
        products_of = {"matmul": partial(matmul_rate, "cuda", cfg.hardware.dtype)}
    arch = architecture_of(cfg)
    flops = {"train": network_flops(cfg, step_config(cfg)), "eval": count_eval_flops(cfg, arch, cfg.eval_batch_size)}
    rows_of = {"train": cfg.train.global_batch_size, "eval": cfg.eval_batch_size}
    workers = {way: Worker() for way in ways}
    seconds: dict[tuple[str, str], list[float]] = {(way, kind): [] for kind in KINDS for way in ways}
    products: dict[str, list[float]] = {}  # GFLOP/s
    peak_gb: dict[str, float | None] = dict.fromkeys(ways)
    with contextlib.ExitStack() as stack, until_stopped():
        for worker in workers.values():
            stack.callback(worker.close)
        steps: dict[tuple[str, str], int] = {}
        for way, worker in workers.items():
            first = worker.call(prepare, [*overrides, f"data.path={folder}/{size}"], way, backend.get(way, way))
            steps |= {(way, kind): max(1, round(BLOCK_S / seconds)) for kind, seconds in first.items()}
        for _ in turns(range(rounds), f"{size}: rounds"):
            now = {name: measure_rate() for name, measure_rate in products_of.items()}
            found = {pair: workers[pair[0]].call(block, pair[1], steps[pair]) for pair in seconds}
            for pair, measured in found.items():
                seconds[pair].append(measured)
            for name, rate in now.items():
                if rate is not None:
                    products.setdefault(name, []).append(rate)
        peak_gb |= {way: worker.call(peak_memory_gb) for way, worker in workers.items() if not stopped()}
    if not all(seconds.values()):
        return []  # stopped before the first round was whole
    rows = []
    for kind, way in itertools.product(KINDS, ways):
        row: Row = {"size": size, "step": kind, "way": way, "backend": backend.get(way, way), "batch": rows_of[kind]}
        spread = median_and_spread([1e3 * s for s in seconds[way, kind]])
        row |= {"ms": spread["median"], "low": spread["low"], "high": spread["high"]}
        row["samples/s"] = _median([rows_of[kind] / s for s in seconds[way, kind]])
        if kind == "train" and peak_gb[way] is not None:
            row["peak GB"] = peak_gb[way]
        if (count := flops[kind]) is not None:
            row["GFLOP a step"] = count / 1e9
            row["GFLOP/s"] = _median([count / 1e9 / s for s in seconds[way, kind]])
            for name, rates in products.items():
                row[f"{name} GFLOP/s"] = _median(rates)
                row[f"share of {name}"] = _median([count / 1e9 / s / m for s, m in zip(seconds[way, kind], rates, strict=True)])
        for baseline in (ORDINARY, ORDINARY_COMPILED):
            if baseline in ways:
                ratios = [o / s for s, o in zip(seconds[way, kind], seconds[baseline, kind], strict=True)]
                row[f"times {baseline}"] = _median(ratios)
        row |= {f"all {name} GFLOP/s": rates for name, rates in products.items()}
        rows.append(row | {"all ms": [1e3 * s for s in seconds[way, kind]]})
    return rows


def _check_ordinary(cfg: Config) -> None:
    """Raise ConfigError for settings that tests/ordinary.py does not have."""
    for key, value, known in (
        ("optimizer.name", cfg.optimizer.name, ("adam_atan2", "adamw")),
        ("optimizer.clip_grad_norm", cfg.optimizer.clip_grad_norm, (None,)),
        ("recursion.supervision_decay", cfg.recursion.supervision_decay, (1,)),
    ):
        if value not in known:
            raise ConfigError(f"{key}={value}: the ordinary ways of bench have no such: leave them out of --ways")


def _median(values: Sequence[float]) -> float:
    return median_and_spread(values)["median"]


# ---------------------------------------------------------------------------------------------------- inside a way's process


@dataclass
class Programs:
    """What a way's process holds: one step of each kind, and how to wait for the devices."""

    steps: dict[str, Callable[[], Any]]
    wait: Callable[[], None]

    def block(self, kind: str, steps: int) -> float:
        """Seconds of a step, the mean of so many in a row."""
        began = time.perf_counter()
        for _ in range(steps):
            self.steps[kind]()
        self.wait()
        return (time.perf_counter() - began) / steps


_here: list[Programs] = []  # of this process


def prepare(overrides: list[str], way: str, backend: str) -> dict[str, float]:
    """Build and warm up a way's programs in this process; returns seconds of a step of each kind."""
    exp = build(compose([*overrides, f"hardware.backend={backend}"]))
    programs = _ordinary_programs(exp, way) if way.startswith(ORDINARY) else _compiled_programs(exp)
    hold(programs)
    for kind in KINDS:
        programs.block(kind, 1)  # compiles
    if exp.cfg.hardware.platform == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return {kind: programs.block(kind, 1) for kind in KINDS}


def hold(programs: Programs) -> None:
    """Make these the programs of this process, which `block` runs."""
    _here[:] = [programs]


def peak_memory_gb() -> float | None:
    """The most memory of the GPU that the steps of this process took at once, in units of 1e9 bytes; None without a GPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def block(kind: str, steps: int) -> float:
    """Seconds of a step in what `prepare` built in this process."""
    return _here[0].block(kind, steps)


def _compiled_programs(exp: Experiment) -> Programs:
    runtime, arch = exp.runtime, exp.arch
    buffers = runtime.replicate(exp.buffers)
    current = exp.to_device(exp.first_state()), exp.sums()
    batches = itertools.cycle([runtime.shard_batch(exp.host_batch(step)) for step in range(NUM_BATCHES)])
    training_step = runtime.compile(*exp.program(exp.cfg.recursion))

    def train() -> None:
        nonlocal current
        current = training_step(current, buffers, next(batches))

    # the state is donated to the training step: evaluation has weights of its own
    own = exp.first_state()
    weights, table = runtime.replicate((own.ema or own.weights, own.puzzle_embedding))
    local = exp.cfg.eval_batch_size // runtime.process_count
    carry = runtime.shard(empty_carry(arch, exp.buffers, local))
    batch = runtime.shard_batch(full_batch(exp))
    evaluation_step = runtime.compile(*eval_program(arch))

    def evaluate() -> None:
        nonlocal carry
        carry, _ = evaluation_step(weights, buffers, table, carry, batch)

    return Programs({"train": train, "eval": evaluate}, runtime.wait)


def full_batch(exp: Experiment) -> Batch:
    """The first test puzzles, over and over where they are fewer than an evaluation's batch."""
    rows = exp.cfg.eval_batch_size // exp.runtime.process_count
    batch = next(iter(candidate_loader(exp.cfg, exp.runtime)))
    return {name: np.resize(values, (rows, *values.shape[1:])) for name, values in batch.items()}


def _ordinary_programs(exp: Experiment, way: str) -> Programs:
    compiler = partial(torch.compile, dynamic=False) if way == ORDINARY_COMPILED else lambda function: function
    trainer = tests_module("ordinary").Trainer(  # which is the step's oracle there
        exp.step_config, exp.first_state(), exp.buffers, exp.cfg.hardware.platform, compiler
    )
    batches = itertools.cycle([exp.runtime.shard_batch(exp.host_batch(step)) for step in range(NUM_BATCHES)])
    batch = exp.runtime.shard_batch(full_batch(exp))
    carry = trainer.empty_carry(exp.cfg.eval_batch_size)

    def evaluate() -> None:
        nonlocal carry
        carry = trainer.evaluation_step(carry, batch)

    return Programs({"train": lambda: trainer.step(next(batches)), "eval": evaluate}, exp.runtime.wait)
