"""What a training step's time goes to: operators of a CPU, kernels of a GPU, by torch's profiler.

The step is hardware.backend's, eager or inductor, at its usual place in a run: warm, with the batches made beforehand.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench import step
from bench.machine import Row
from trm.cli import compose
from trm.errors import ConfigError

SIZES = step.SIZES
STEPS = 3
MOST = 25  # rows of a size; the rest is one row


def measure(overrides: list[str], sizes: Sequence[str]) -> list[Row]:
    """Rows for every size: milliseconds of a step, its share, calls, largest first."""
    with tempfile.TemporaryDirectory() as folder:
        return [row for size in sizes for row in _size(size, [*step.COMMON, *SIZES[size], *overrides], Path(folder))]


def _size(size: str, overrides: list[str], folder: Path) -> list[Row]:
    hardware = compose(overrides).hardware
    if hardware.backend == "xla":
        raise ConfigError("hardware.backend=xla: torch's profiler does not see its steps: use train.profile_steps of trm.train")
    step.prepare([*overrides, f"data.path={folder}/{size}"], step.CONFIGURED, hardware.backend)
    on_gpu = hardware.platform == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        seconds = step.block("train", STEPS)
    device = DeviceType.CUDA if on_gpu else DeviceType.CPU
    found = [event for event in profiler.key_averages() if event.device_type == device]

    def ms(event: Any) -> float:
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        return float(own) / 1e3 / STEPS

    found.sort(key=ms, reverse=True)
    total, wall = sum(map(ms, found)), 1e3 * seconds
    rows: list[Row] = [{"size": size, "kernel": "step, by the clock", "ms": wall}]
    rows += [{"size": size, "kernel": "all kernels", "ms": total, "share %": 100 * total / wall}]
    for event in found[:MOST]:
        rows.append({"size": size, "kernel": event.key[:90], "ms": ms(event), "share %": 100 * ms(event) / wall})
        rows[-1]["calls"] = event.count / STEPS
    rest = sum(map(ms, found[MOST:]))
    return [*rows, {"size": size, "kernel": "others", "ms": rest, "share %": 100 * rest / wall}]
