"""The values of training that are logged, from the step's sums and the clocks."""

from collections.abc import Mapping

import torch

from trm.config import Config
from trm.core.metrics import METRICS, NORMS
from trm.core.optim import learning_rate
from trm.ground.progress import Lap


def training_values(
    cfg: Config, sums: Mapping[str, float], lap: Lap, batches_s: tuple[float, float], step: int, total_steps: int, compiles: int
) -> dict[str, float | int]:
    """The values logged at `step`: means since the last log. Values over rows that halted are left out if no row did.

    Args:
        cfg: the run's settings.
        sums: those of trm.core.metrics.training_names by name.
        lap: steps and seconds since the last log, without compiling, evaluating and saving.
        batches_s: seconds to make these steps' batches (in a thread), and seconds that the loop waited for them.
        step, total_steps: where the run is, for the learning rate.
        compiles: graphs compiled so far.
    """
    halted, made_s, waited_s = sums["count"], *batches_s
    rows = {name: sums["rows"] if metric.every_row else halted for name, metric in METRICS.items()}
    values = {name: sums[name] / count for name, count in rows.items() if count}
    halting = values["q_halt_loss"]
    if cfg.recursion.act_continue:
        values["q_continue_loss"] = sums["q_continue_loss"] / sums["rows"]
        halting += values["q_continue_loss"]
    values["loss"] = values["lm_loss"] + cfg.objective.halt_weight * halting
    counted_steps = sums["rows"] / cfg.train.global_batch_size
    values |= {name: sums[name] / counted_steps for name in NORMS}
    t = torch.tensor(float(step), dtype=torch.float64)
    values["lr"] = learning_rate(cfg.optimizer.lr, t, cfg.optimizer, total_steps).item()
    values["halted_rows"] = halted
    if lap.steps:  # no step is timed where the first step is logged alone
        values["samples_per_s"] = lap.steps * cfg.train.global_batch_size / lap.seconds
        values["step_time_s"] = lap.seconds / lap.steps
        # of this process: making and handing over the batch, and the call. A CPU device computes inside the call.
        values["host_time_s"] = (made_s + lap.call_s) / lap.steps
        values["loader_wait_s"] = waited_s / lap.steps
    values["compiles"] = compiles
    return values
