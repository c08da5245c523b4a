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
from trm.ground.clock import Lap
from trm.ground.folder import UNWRITABLE, unwritable
from trm.run.checkpoint import saved_steps

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
# XLA on TPU and CPU, CUDA, and torch's CPU allocator, in this order
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Ran out of memory", "out of memory", "can't allocate memory")
# gloo and NCCL, of a process that was killed, a host that is gone, or one that waits elsewhere
LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process has exited")
SLOW_LOADER_SHARE = 0.2  # of a step spent waiting for its batch, from which on the run warns
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class NotFiniteError(Exception):
    """What a run computed is not finite: the message says what and at which step."""


@contextlib.contextmanager
def explained(cfg: Config, run_dir: Path) -> Iterator[None]:
    """Turn numbers that are not finite, and what the disk or the memory cannot do, into a RunFailure; other errors pass."""
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
            gone = "another process of this run ended or does not answer, and its output may say why"
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
    """One line for the message of an allocator that has no memory left, with the batch that fits; None for other messages.

    Nearly all of it is activations, in proportion to the batch. Where a message tells no numbers, half the batch is a guess.
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
    """Bytes of a device that a program needs and that there are, from its compiler's "Used 48.98G of 30.75G hbm"; None without."""
    found = re.search(r"Used ([\d.]+)([KMGT]?)B? of ([\d.]+)([KMGT]?)B? hbm", message)
    return (float(found[1]) * UNITS[found[2]], float(found[3]) * UNITS[found[4]]) if found else None


def batch_that_fits(batch: int, devices: int, share: float) -> int:
    """The largest global batch that takes this share of the memory, were all of it in proportion; 0 = not a row a device."""
    return int(batch * share) // devices * devices


def slow_loader(lap: Lap, made_s: float, waited_s: float) -> str | None:
    """What to say of steps whose batches took `made_s` to make and were waited for `waited_s`; None where that is little."""
    if not lap.steps or waited_s < SLOW_LOADER_SHARE * lap.seconds:
        return None
    made_ms, step_ms = 1e3 * made_s / lap.steps, 1e3 * (lap.seconds - waited_s) / lap.steps
    return (
        f"the loader needs {made_ms:.1f} ms for a batch and a step takes {step_ms:.1f} ms, so the devices wait: store the "
        "augmented variants (data.num_aug=1000), or free this machine's cores"
    )


def check_losses(sums: Mapping[str, float], step: int) -> None:
    """Raise NotFiniteError where the metrics of the steps up to `step` hold a loss that is not finite, with what is known of it."""
    count = int(sums["nonfinite_steps"])
    if not count:
        return
    terms = not_finite({name: sums[name] for name in LOSS_TERMS})
    raise NotFiniteError(f"step {step - count + 1}: the loss is not finite ({terms})")


def check_weights(weights: Mapping[str, Tensor], step: int) -> None:
    """Raise NotFiniteError where a weight is not finite, so that no such state becomes a checkpoint. Weights are on the CPU."""
    wrong = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise NotFiniteError(f"step {step}: the weights {wrong[0]}{more} are not finite")


def check_evaluation(values: Mapping[str, float], weights: Mapping[str, Tensor], step: int) -> None:
    """Raise NotFiniteError where an evaluation's losses are not finite: its accuracy says nothing. Weights may be anywhere."""
    if wrong := not_finite(values):
        check_weights(weights, step)
        raise NotFiniteError(f"step {step}: the evaluation is not finite ({wrong}), though its weights are")


def not_finite(values: Mapping[str, float]) -> str:
    """The values that are not finite, in words; empty where all are."""
    return ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
