"""How a training step's time, memory and FLOPs grow with batch, depth, width and tokens, and a TPU v4 chip's roofline beside it.

Each series varies one quantity and leaves the others at BASE: `batch` the rows, `depth` T*n (n at T=2: T alone adds passes without
gradient, which keep nothing), `width` model.hidden_size, `tokens_mlp` and `tokens_attention` the cells of the grid, with either
mixer. Exponents are slopes of log(figure) over log(value) by least squares, with Student's 95 % interval: of FLOPs, which are
counted and not measured, it says only how far they are from a power. (Both widths of a SwiGLU are multiples of 256: see
trm.core.model.swiglu_width.)

A point is a process of its own. Its batch is random, since no value changes the work; a grid of 900 cells is no Sudoku that can be
built, but has the tokens of a 30x30 maze. `ms` is the median over rounds of a step in a block of steps in a row, after warm-up.
`MB` (1e6 bytes) is what a step adds to the process's peak of resident memory: the baseline is taken when everything is imported,
compiled and built and two steps are done, with freed memory given back to the system, so that imports, compiler, weights, moments,
EMA, carry and batch are not in it, while activations, gradients and the new state beside the old one are. `state MB` is that state.

`v4_roofline` measures nothing: by trm.plan, no step of the paper's sizes can be faster on one TPU v4 chip. Whether such a step fits
into the chip's memory it does not say; `python -m trm.plan plan.compile=true` does. KEY=VALUE changes the series alone.
"""

import ctypes
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from bench import step
from bench.machine import Row, in_child, median_and_spread, turns
from trm.backends import start
from trm.cli import compose
from trm.config import Config, digest
from trm.core.flops import network_flops, num_bytes
from trm.core.metrics import training_names
from trm.core.model import init_fixed
from trm.core.programs import train_program
from trm.core.step import draw_min_steps, init_state
from trm.plan.estimate import estimate
from trm.plan.settings import PlanSettings
from trm.plan.workload import architecture_of, step_config, workload
from trm.run.experiment import on_devices

BASE = ["data=sudoku_6x6", "model=tiny", "recursion=t2_n2", "train.global_batch_size=16"]
COMMON = ["tracking=none", "train.max_steps=1000000"]
BOXES = {16: (2, 2), 36: (2, 3), 81: (3, 3), 900: (5, 6)}  # cells of a grid -> its box_rows, box_cols
BASE_TOKENS = 36
ATTENTION = ("model.mixer=attention", "model.positions=rope")


@dataclass(frozen=True)
class Point:
    """One value of the quantity that a series varies, and the settings that differ from BASE there."""

    value: int
    overrides: tuple[str, ...]
    tokens: int = BASE_TOKENS


SERIES = {
    "batch": [Point(rows, (f"train.global_batch_size={rows}",)) for rows in (4, 16, 64, 256)],
    "depth": [Point(2 * n, ("recursion.T=2", f"recursion.n={n}")) for n in (1, 2, 4, 8, 16)],
    "width": [Point(width, (f"model.hidden_size={width}",)) for width in (32, 64, 128, 256)],
    "tokens_mlp": [Point(tokens, (), tokens) for tokens in BOXES],
    "tokens_attention": [Point(tokens, ATTENTION, tokens) for tokens in BOXES],
}
FIGURES = ("ms", "MB", "GFLOP a step")
V4_ROOFLINE = "v4_roofline"
SIZES = (*SERIES, V4_ROOFLINE)
# the released code recurses less deeply on mazes
V4_SIZES = {
    "paper_mlp": (step.SIZES["paper_mlp"], 81),
    "paper_attention": (step.SIZES["paper_attention"], 81),
    "maze_attention": ([*step.SIZES["paper_attention"], "recursion=t3_n4"], 900),
}
V4_ROWS = (32, 256, 768)
ROUNDS = 5
BLOCK_S = 0.25  # a block of steps lasts at least this long
MEMORY_STEPS = 2  # the second has the first one's results beside its own


def measure(overrides: list[str], sizes: Sequence[str], rounds: int) -> Iterator[Row]:
    """A row for each point of each series, then one for each figure's exponent; a row for each size and batch of V4_ROOFLINE."""
    measured: dict[str, Row] = {}  # of the settings' digest: the series meet at BASE
    for name in sizes:
        if name == V4_ROOFLINE:
            yield from v4_roofline()
            continue
        points = []
        for point in turns(SERIES[name], name):
            settings = [*COMMON, *BASE, *overrides, *point.overrides]
            cfg = config_of(settings, point.tokens)
            if (key := digest(cfg)) not in measured:
                request = {"overrides": settings, "tokens": point.tokens, "rounds": rounds}
                measured[key] = in_child(__name__, "in_this_process", request)[0]
            points.append({"series": name, "value": point.value} | measured[key] | _flops(cfg, measured[key]))
            yield points[-1]
        yield from exponents(points)


def config_of(overrides: list[str], tokens: int) -> Config:
    """The settings, with a grid of so many cells: the schema ends at those that can be built."""
    cfg = compose(overrides)
    box_rows, box_cols = BOXES[tokens]
    data: Any = cfg.data  # of the task that has boxes
    return replace(cfg, data=replace(data, box_rows=box_rows, box_cols=box_cols))


def _flops(cfg: Config, measured: Row) -> Row:
    flops = network_flops(cfg, step_config(cfg))
    return {"GFLOP a step": flops / 1e9, "GFLOP/s": flops / 1e6 / measured["ms"]}


def exponents(points: Sequence[Row]) -> list[Row]:
    """A row for each of FIGURES that all of a series' points have: it grows as value^exponent, with the 95 % interval."""
    rows = []
    for figure in FIGURES:
        found = [point.get(figure) or 0.0 for point in points]
        if min(found) <= 0:
            continue
        fit = stats.linregress(np.log([point["value"] for point in points]), np.log(found))
        slope, half = float(fit.slope), float(stats.t.ppf(0.975, len(points) - 2) * fit.stderr)
        row: Row = {"series": points[0]["series"], "exponent of": figure, "exponent": slope}
        rows.append(row | {"95 % from": slope - half, "95 % to": slope + half})
    return rows


def v4_roofline() -> list[Row]:
    """A row for each of V4_SIZES and V4_ROWS: lower bounds of the plan for one chip, nothing measured."""
    rows = []
    for name, (settings, tokens) in V4_SIZES.items():
        for batch in V4_ROWS:
            cfg = config_of([*COMMON, *settings, "hardware=v4_8", f"train.global_batch_size={batch}"], tokens)
            work, chip = workload(cfg), replace(cfg.hardware, placement="chip")
            bounds = estimate(work, chip, PlanSettings.host_ms_per_step / 1e3).train_step
            row: Row = {"series": V4_ROOFLINE, "size": name, "value": batch, "GFLOP a step": work.train_flops / 1e9}
            row |= {"roofline ms": 1e3 * bounds.roofline, "roofline samples/s": batch / bounds.roofline}
            rows.append(row | {"bound by": bounds.bound_by})
    return rows


# ------------------------------------------------------------------------------------------------------- inside a point's process


def in_this_process(request: dict[str, Any]) -> list[Row]:
    """One row: milliseconds and megabytes of a point."""
    cfg = config_of(request["overrides"], request["tokens"])
    programs, state_bytes = _training(cfg)
    programs.block("train", 1)  # compiles
    steps = max(1, round(BLOCK_S / programs.block("train", 1)))
    growth = peak_growth_bytes(lambda: programs.block("train", MEMORY_STEPS))
    milliseconds = [1e3 * programs.block("train", steps) for _ in range(request["rounds"])]
    found = median_and_spread(milliseconds)
    row: Row = {"ms": found["median"], "low": found["low"], "high": found["high"]}
    row |= {"MB": None if growth is None else growth / 1e6, "state MB": state_bytes / 1e6}
    return [row | {"all ms": milliseconds}]


def _training(cfg: Config) -> tuple[step.Programs, int]:
    """The training step as trm.train compiles it, on a random batch, and the bytes of its state."""
    runtime, rows = start(cfg.hardware), cfg.train.global_batch_size
    arch = on_devices(architecture_of(cfg), runtime)
    fixed_of_host = init_fixed(arch, cfg.seed)
    state_of_host = init_state(cfg, arch, fixed_of_host)
    fixed, state = runtime.put_replicated((fixed_of_host, state_of_host))
    state = state._replace(carry=runtime.put_rows(state_of_host.carry))
    current = state, runtime.put_replicated(torch.zeros(len(training_names()), dtype=arch.master_dtype))
    random = np.random.default_rng(cfg.seed)
    batch = runtime.put_batch(
        {
            "inputs": random.integers(0, arch.vocab_size, (rows, arch.seq_len), np.int32),
            "labels": random.integers(0, arch.vocab_size, (rows, arch.seq_len), np.int32),
            "puzzle_identifiers": np.zeros(rows, np.int32),
            "min_steps": draw_min_steps(cfg.recursion, cfg.seed, 0, rows),
        }
    )
    training_step = runtime.compile(*train_program(dataclasses.replace(step_config(cfg), arch=arch), in_place=runtime.can.in_place))

    def train() -> None:
        nonlocal current
        current = training_step(current, fixed, batch)

    return step.Programs({"train": train}, runtime.wait), num_bytes(current)


def peak_growth_bytes(run: Callable[[], object]) -> int | None:
    """What `run` adds to this process's peak of resident memory; None where the system does not let the peak be set back.

    The kernel's own count, since that of getrusage begins at the peak of the process that started this one.
    """
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "malloc_trim"):  # of glibc; else what was freed before would hide what is needed now
        c_library.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    except OSError:
        return None
    before = _peak_bytes()
    run()
    return _peak_bytes() - before


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
