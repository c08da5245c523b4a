"""The error line of a run that cannot continue: what happened, and what to do (RunFailure, exit code 1)."""

import contextlib
import errno
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from trm.config import Config
from trm.core.metrics import LOSS_TERMS
from trm.errors import RunFailure
from trm.ground.folder import UNWRITABLE, unwritable
from trm.ground.progress import Lap
from trm.run.checkpoint import saved_steps

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
# XLA on TPU and CPU, CUDA, and torch's CPU allocator, in this order
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Ran out of memory", "out of memory", "can't allocate memory")
# gloo and NCCL, about a process that was killed, a lost host, or one that waits elsewhere
LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process has exited")
SLOW_LOADER_SHARE = 0.2  # the run warns if it waits this share of its time for batches
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class NotFiniteError(Exception):
    """A run computed numbers that are not finite; the message says which, and at which step."""


@contextlib.contextmanager
def explained(cfg: Config, run_dir: Path) -> Iterator[None]:
    """Turn errors of numbers that are not finite, of the disk and of the memory into a RunFailure; other errors pass."""
    try:
        yield
    except NotFiniteError as error:
        kept = f"{newest} is the last good checkpoint" if (newest := _newest(run_dir)) else "no checkpoint was saved yet"
        fix = f"lower optimizer.lr={cfg.optimizer.lr:g} or raise optimizer.warmup_steps, and give another run_name"
        raise RunFailure(f"{error}: {kept}; {fix}") from error
    except OSError as error:
        if error.errno in UNWRITABLE and error.errno not in DISK_ERRORS and str(error.filename).startswith(f"{run_dir}/"):
            raise unwritable(Path(error.filename), error) from error
        if error.errno not in DISK_ERRORS:
            raise
        fix = f"make room or make it writable, then give the same command again: it {_then(run_dir)}"
        raise RunFailure(f"{error.filename or run_dir}: {error.strerror}: {fix}") from error
    except (RuntimeError, MemoryError) as error:
        if any(words in str(error) for words in LOST):
            gone = "another process of this run ended or does not answer; its output may say why"
            raise RunFailure(f"{gone}: the same command {_then(run_dir)}") from error
        words = memory_words(cfg, str(error) or type(error).__name__)
        if words is None and not isinstance(error, MemoryError):
            raise
        raise RunFailure(words or f"out of host memory: lower train.global_batch_size={cfg.train.global_batch_size}") from error


def _newest(run_dir: Path) -> Path | None:
    steps = saved_steps(run_dir)
    return run_dir / "checkpoints" / f"step_{steps[-1]}" if steps else None


def _then(run_dir: Path) -> str:
    return f"resumes from {newest}" if (newest := _newest(run_dir)) else "starts again, since nothing was saved yet"


def memory_words(cfg: Config, message: str) -> str | None:
    """One line, with the batch that fits, for the message of an allocator without memory; None for other messages.

    Nearly all memory is activations, in proportion to the batch. If the message has no numbers, half of the batch is a guess.
    """
    if not any(words in message for words in OUT_OF_MEMORY):
        return None
    batch, devices = cfg.train.global_batch_size, cfg.hardware.devices
    share, numbers, hope = 0.5, "", "is worth a try"
    if asked := memory_asked_for(message):
        needed, there = asked
        share, numbers, hope = there / needed, f" ({needed / 2**30:.2f} GiB needed, {there / 2**30:.2f} GiB there)", "should fit"
    fits = batch_that_fits(batch, devices, share)
    return (
        f"out of memory{numbers}: train.global_batch_size={batch} over {devices} {cfg.hardware.platform} device(s) is too much for "
        f"this model: {f'train.global_batch_size={fits} {hope}' if fits else 'use more devices'}, or lower model.hidden_size"
    )


def memory_asked_for(message: str) -> tuple[float, float] | None:
    """Bytes that a program needs and that the device has, from its compiler's "Used 48.98G of 30.75G hbm", or None."""
    found = re.search(r"Used ([\d.]+)([KMGT]?)B? of ([\d.]+)([KMGT]?)B? hbm", message)
    return (float(found[1]) * UNITS[found[2]], float(found[3]) * UNITS[found[4]]) if found else None


def batch_that_fits(batch: int, devices: int, share: float) -> int:
    """The largest global batch that needs this share of the memory; 0 = less than one row on each device."""
    return int(batch * share) // devices * devices


def slow_loader(lap: Lap, made_s: float, waited_s: float) -> str | None:
    """A warning if the steps waited too long (`waited_s`) for their batches, which took `made_s` to make; otherwise None."""
    if not lap.steps or waited_s < SLOW_LOADER_SHARE * lap.seconds:
        return None
    made_ms, step_ms = 1e3 * made_s / lap.steps, 1e3 * (lap.seconds - waited_s) / lap.steps
    return (
        f"the loader needs {made_ms:.1f} ms for a batch and a step takes {step_ms:.1f} ms, so the devices wait: store the "
        "augmented variants (data.num_aug=1000), or free this machine's cores"
    )


def check_losses(sums: Mapping[str, float], step: int) -> None:
    """Raise NotFiniteError, with the first step and the loss terms, if a loss of the steps up to `step` is not finite."""
    count = int(sums["nonfinite_steps"])
    if not count:
        return
    terms = not_finite({name: sums[name] for name in LOSS_TERMS})
    raise NotFiniteError(f"step {step - count + 1}: the loss is not finite ({terms})")


def check_weights(weights: Mapping[str, Tensor], step: int) -> None:
    """Raise NotFiniteError if a weight is not finite, so that such a state is not saved. The weights are on the CPU."""
    wrong = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise NotFiniteError(f"step {step}: the weights {wrong[0]}{more} are not finite")


def check_evaluation(values: Mapping[str, float], weights: Mapping[str, Tensor], step: int) -> None:
    """Raise NotFiniteError if an evaluation's losses are not finite, since then its accuracy has no meaning."""
    if wrong := not_finite(values):
        check_weights(weights, step)
        raise NotFiniteError(f"step {step}: the evaluation is not finite ({wrong}), though its weights are")


def not_finite(values: Mapping[str, float]) -> str:
    """The values that are not finite, in words; empty if all are."""
    return ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
