"""The estimate of a run's remaining time, which is logged once, after the first steps."""

from trm.config import Config

AHEAD_STEPS = 6  # steps before the estimate; the first one compiles, the others are timed
SMALL_PARAMETERS, LARGE_BATCH = 1_000_000, 256


def ahead(cfg: Config, step: int, total_steps: int, seconds_a_step: float) -> str:
    """Steps per second, the time to the end, and the next evaluation. The time covers only training steps."""
    rate, left = 1 / seconds_a_step, words((total_steps - step) * seconds_a_step)
    speed = f"{rate:.3g} steps/s ({rate * cfg.train.global_batch_size:,.0f} samples/s)"
    every = cfg.train.eval_every_steps
    evaluation = min(total_steps, total_steps if every is None else (step // every + 1) * every)
    when = "at the end" if evaluation == total_steps else f"at step {evaluation:,}, in {words((evaluation - step) / rate)}"
    return f"{speed}: {left} of training left, to step {total_steps:,}; the next evaluation is {when}"


def hint(cfg: Config, parameters: int) -> str | None:
    """A hint at the recipe for a CPU if a small model is trained on a CPU with the batch of a large one; otherwise None."""
    if cfg.hardware.platform != "cpu" or parameters > SMALL_PARAMETERS or cfg.train.global_batch_size < LARGE_BATCH:
        return None
    return (
        f"this small model is trained with train.global_batch_size={cfg.train.global_batch_size}, which is meant for a pod: "
        "recipe=tiny sets the batch, the rates and the length for a CPU"
    )


def words(seconds: float) -> str:
    """A duration to be read: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
