"""From FLOPs and bytes to hours and chip-hours: arithmetic on a chip's data sheet, pure.

A roofline is a lower bound on a step's time, not a prediction: the longest of arithmetic at the peak, the state's traffic to
memory, the gradient's way between the chips, and what the host needs to start a step. Hours at a utilisation assume that share
of the peak in every step.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trm.config import HardwareConfig
from trm.errors import ConfigError
from trm.plan.workload import Workload
from trm.study.placement import batch_per_device, place, slice_topology

PLACEMENTS = ("chip", "host", "pod")


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
    """The chip of the machine. Raises ConfigError for a machine that the plan has no data sheet for."""
    if hardware.platform != "tpu":
        raise ConfigError(f"hardware={hardware.name} is no TPU: the plan is for hardware=v4_8 or v4_64")
    return V4


def topology(hardware: HardwareConfig) -> str:
    """The block of chips that one job gets, in the compiler's words: v4:2x4x4 is a whole v4-64. Raises ConfigError."""
    # a host is the smallest block that the compiler knows, of which one chip may be used
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
        """Which of the bounds is the longest."""
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
        """The whole run without compiling and saving."""
        return self.train_steps * self.train_step.at(utilisation) / 3600 + self.eval_hours(utilisation)


def estimate(work: Workload, hardware: HardwareConfig, host_s: float) -> RunEstimate:
    """One run on the machine, with its placement as set. Raises ConfigError where the batch does not divide over the chips."""
    chip, placed = chip_of(hardware), place(hardware)
    chips = placed.devices
    rows = batch_per_device(work.global_batch, hardware)
    # of the traffic only what no compiler can avoid: state and carry read once and written once
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
    """At least this long: each chip sends and receives 2 (N-1)/N of the bytes, over all of its links at once."""
    return 2 * (chips - 1) / chips * num_bytes / chip.links_bytes_per_s


def makespan(hours: Sequence[float], slots: int) -> float:
    """Hours until the last of these jobs ends, each started in order as soon as one of the slots is free."""
    free = [0.0] * slots
    for job in hours:
        heapq.heappush(free, heapq.heappop(free) + job)
    return max(free)
