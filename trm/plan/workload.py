"""What a run asks of a machine, from its settings alone, and how many hours that takes on a chip's data sheet.

A roofline is a lower bound on a step's time, not a prediction: the longest of arithmetic at the peak, the state's traffic to
memory, the gradient's way between the chips, and what the host needs to start a step. Hours at a utilisation assume that share
of the peak in every step.
"""

import functools
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from trm.config import LARGEST_COUNT, SAMPLE_PUZZLES, Config, HardwareConfig
from trm.core.architecture import Architecture, architecture
from trm.core.flops import count_eval_flops, count_train_flops, depth_flops, num_bytes, total_steps, train_arguments
from trm.core.initial import num_parameters
from trm.core.recursion import stages
from trm.core.step import StepConfig
from trm.data.content import GENERATED_TEST_PUZZLES, SELECTION_PUZZLES
from trm.errors import ConfigError
from trm.study.placement import batch_per_device, place, slice_topology
from trm.tasks.base import task_of

PLACEMENTS = ("chip", "host", "pod")
COUNTED: list[tuple[tuple[Any, ...], int]] = []  # by `_once`


def architecture_of(cfg: Config) -> Architecture:
    """The architecture of the run, from its settings: no dataset is needed."""
    return architecture(cfg, **task_of(cfg.data).facts.sizes)


def evaluation_puzzles(cfg: Config) -> tuple[int, int, bool]:
    """Puzzles of an evaluation during training and of the last one, and whether the latter is assumed rather than set.

    For puzzles of pairs it counts rows: the mean number of test inputs of so many puzzles, each in its variants.
    """
    facts = task_of(cfg.data).facts
    if facts.test_rows is not None and facts.test_puzzles is not None:
        there = max(facts.test_puzzles, 1)
        inputs = math.ceil(facts.test_rows * min(cfg.evaluate.max_puzzles or there, there) / there)
        rows = inputs * min(1 + (cfg.data.num_aug or cfg.data.on_the_fly_aug), cfg.evaluate.max_variants or LARGEST_COUNT)
        return rows, rows, False
    known = cfg.data.num_test_puzzles or (GENERATED_TEST_PUZZLES if cfg.data.source == "generated" else None)
    hub, most = task_of(cfg.data).hub, cfg.evaluate.max_puzzles
    there = known or (hub.test_puzzles if hub else GENERATED_TEST_PUZZLES)
    last = min(there, most or there)
    return min(last, most or SAMPLE_PUZZLES), last, known is None and last == there


def _once(count: Callable[..., int], cfg: Config, *others: Any) -> int:
    """count(cfg, *others), the FLOPs of a graph. The jobs of a sweep share graphs, and counting one takes seconds.

    `others` hold the architecture. Of the settings these here shape the graph: not the length of the run, its seed or its data.
    """
    graph = (count, cfg.optimizer, cfg.ema, cfg.train.global_batch_size, cfg.train.trainable, *others)
    for known, flops in COUNTED:
        if known == graph:
            return flops
    COUNTED.append((graph, count(cfg, *others)))
    return COUNTED[-1][1]


def planned_steps(cfg: Config) -> int:
    """Optimizer steps of the run."""
    rows_of_epoch = cfg.data.num_puzzles * task_of(cfg.data).facts.rows_of_puzzle
    return total_steps(cfg, architecture_of(cfg), rows_of_epoch, functools.partial(_once, depth_flops))


def step_config(cfg: Config, steps: int | None = None) -> StepConfig:
    """The constants of the training step in a run of `steps` steps; None stands for the run's own number."""
    steps = steps or planned_steps(cfg)
    return StepConfig(architecture_of(cfg), cfg.optimizer, cfg.ema.rate, steps, cfg.ema.start_step, cfg.train.trainable)


@dataclass(frozen=True)
class Workload:
    """What a run asks of a machine. FLOPs are over the global batch."""

    parameters: int
    global_batch: int
    train_steps: int
    train_flops: int  # of a step, the mean over the run
    eval_flops: int
    eval_calls: int  # evaluation steps of the whole run
    evaluations: int
    sample_puzzles: int  # of each but the last
    test_puzzles: int  # of the last
    test_puzzles_assumed: bool
    selection_puzzles: int  # of each beside
    weight_bytes: int
    state_bytes: int  # weights, moments and EMA, on every chip
    carry_bytes: int  # over all chips
    gradient_bytes: int  # that the chips must add up: one gradient in the weights' own dtype
    table_rows_bytes: int  # that the chips must gather: the batch's rows of a larger puzzle embedding


def table_rows_bytes(table: Tensor | None, batch: int) -> int:
    """Bytes that the chips gather: the gradients of the batch's puzzle vectors, [B, E], and which rows share a puzzle, [B, B].

    It is 0 for a table that is no larger than the batch (trm/core/optim.py).
    """
    return 0 if table is None or len(table) <= batch else batch * (table.shape[1] + batch) * table.element_size()


def workload(cfg: Config) -> Workload:
    """Count what one run computes."""
    arch, steps = architecture_of(cfg), planned_steps(cfg)
    # a curriculum makes the first steps cheaper
    parts = [(stage.stop - stage.start, replace(cfg, recursion=stage.recursion)) for stage in stages(cfg.recursion, steps)]
    (state, _), _, _ = train_arguments(cfg, arch)
    batch, table = cfg.train.global_batch_size, state.puzzle_embedding  # of a large one the batch's rows alone are added up
    every = cfg.train.eval_every_steps
    evaluations = 1 if every is None else steps // every + (steps % every > 0)
    sample, puzzles, assumed = evaluation_puzzles(cfg)
    # those that choose the best checkpoint, in every evaluation that takes so many test puzzles (`selection_evaluator`)
    selection = min(cfg.data.num_test_puzzles or GENERATED_TEST_PUZZLES, SELECTION_PUZZLES)
    selection = min(selection, sample if (asked := cfg.evaluate.selection_puzzles) is None else asked)
    selection = selection if cfg.data.source == "generated" else 0
    rows = [number * cfg.inference.candidates for number in (sample, puzzles, selection)]
    batches, last_batches, beside = (-(number // -cfg.eval_batch_size) for number in rows)
    return Workload(
        parameters=num_parameters(arch),
        global_batch=batch,
        train_steps=steps,
        train_flops=sum(length * _once(count_train_flops, part, step_config(part, steps=1)) for length, part in parts) // steps,
        eval_flops=_once(count_eval_flops, cfg, arch, cfg.eval_batch_size),
        eval_calls=((evaluations - 1) * batches + last_batches + evaluations * beside) * cfg.inference_steps,
        evaluations=evaluations,
        sample_puzzles=sample,
        test_puzzles=puzzles,
        test_puzzles_assumed=assumed,
        selection_puzzles=selection,
        weight_bytes=num_bytes(state.weights),
        state_bytes=num_bytes((state.weights, state.optimizer, state.ema, state.puzzle_embedding)),
        carry_bytes=num_bytes(state.carry),
        gradient_bytes=num_bytes((state.weights, None if table is None else table[:batch])),
        table_rows_bytes=table_rows_bytes(table, batch),
    )


@dataclass(frozen=True)
class Chip:
    """The data sheet of one chip."""

    name: str
    bf16_flops: float  # FLOP/s at the peak
    memory_bytes_per_s: float
    memory_bytes: int
    links_bytes_per_s: float  # of all its links to other chips


# https://cloud.google.com/tpu/docs/v4: 275 TFLOP/s in bfloat16, 32 GiB at 1228 GB/s, 2400 Gbit/s to other chips.
# The compiler leaves 30.75 GiB of the memory to a program (its own message when a program needs more).
V4 = Chip("TPU v4", 275e12, 1228e9, int(30.75 * 2**30), 300e9)


def chip_of(hardware: HardwareConfig) -> Chip:
    """The chip of the machine. Raises ConfigError for a machine without a data sheet here."""
    if hardware.platform != "tpu":
        raise ConfigError(f"hardware={hardware.name} is no TPU: the plan is for hardware=v4_8 or v4_64")
    return V4


def topology(hardware: HardwareConfig) -> str:
    """The block of chips of one job, in the compiler's words: v4:2x4x4 is a whole v4-64. Raises ConfigError."""
    # the compiler knows no smaller block than a host; a program may use one of its chips
    return "v4:2x2x1" if place(hardware).devices == 1 else f"v4:{slice_topology(hardware)}"


@dataclass(frozen=True)
class StepTimes:
    """Lower bounds on the seconds of one step, by cause."""

    arithmetic: float
    memory: float
    links: float
    host: float

    @property
    def roofline(self) -> float:
        """The step takes at least this long."""
        return float(max(vars(self).values()))

    @property
    def bound_by(self) -> str:
        """The cause with the largest bound."""
        return max(vars(self), key=vars(self).__getitem__)

    def at(self, utilisation: float) -> float:
        """Seconds with the arithmetic at this share of the peak."""
        return replace(self, arithmetic=self.arithmetic / utilisation).roofline


@dataclass(frozen=True)
class RunEstimate:
    """One run on one placement."""

    chips: int
    jobs_at_once: int
    rows_per_chip: int
    train_step: StepTimes
    eval_step: StepTimes
    train_steps: int
    eval_calls: int

    def eval_hours(self, utilisation: float) -> float:
        """Hours in evaluation steps."""
        return self.eval_calls * self.eval_step.at(utilisation) / 3600

    def hours(self, utilisation: float) -> float:
        """Hours of the whole run, without compiling and saving."""
        return self.train_steps * self.train_step.at(utilisation) / 3600 + self.eval_hours(utilisation)


def estimate(work: Workload, hardware: HardwareConfig, host_s: float) -> RunEstimate:
    """The run on the machine with its placement as set. Raises ConfigError where the batch does not divide over the chips."""
    chip, placed = chip_of(hardware), place(hardware)
    chips, rows = placed.devices, batch_per_device(work.global_batch, hardware)
    # the traffic that no compiler can avoid: state and carry are read once and written once
    state_traffic = 2 * (work.state_bytes + work.carry_bytes / chips)
    train = StepTimes(
        arithmetic=work.train_flops / chips / chip.bf16_flops,
        memory=state_traffic / chip.memory_bytes_per_s,
        links=all_reduce_seconds(work.gradient_bytes, chips, chip),
        host=host_s,
    )
    evaluation = StepTimes(
        arithmetic=work.eval_flops / chips / chip.bf16_flops,
        memory=(work.weight_bytes + 2 * work.carry_bytes / chips) / chip.memory_bytes_per_s,
        links=0.0,
        host=host_s,
    )
    return RunEstimate(chips, placed.jobs_at_once, rows, train, evaluation, work.train_steps, work.eval_calls)


def all_reduce_seconds(num_bytes: float, chips: int, chip: Chip) -> float:
    """A lower bound: each chip sends and receives 2 (N-1)/N of the bytes, over all of its links at once."""
    return 2 * (chips - 1) / chips * num_bytes / chip.links_bytes_per_s


def makespan(hours: Sequence[float], slots: int) -> float:
    """Hours until the last of these jobs ends; they start in this order, each as soon as a slot is free."""
    free = [0.0] * slots
    for job in hours:
        heapq.heappush(free, heapq.heappop(free) + job)
    return max(free)
