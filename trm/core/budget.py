"""How long a run is: so many steps, so many epochs, or as many steps as spend its budget of training FLOPs."""

from __future__ import annotations

from trm.config import LARGEST_COUNT, Config
from trm.config import total_steps as steps_of_settings
from trm.core.architecture import Architecture
from trm.core.curriculum import Stage, stages
from trm.core.flops import stage_flops
from trm.errors import ConfigError


def total_steps(cfg: Config, arch: Architecture, rows_of_epoch: float) -> int:
    """Optimizer steps of the run. With train.max_flops it ends at the first step at which the counted FLOPs reach the budget.

    Schedule, warmup_share, curriculum and the last evaluation follow this number. The count is `training_flops` of summary.json.
    Raises ConfigError where a budget is more steps than can be counted.
    """
    budget = cfg.train.max_flops
    if budget is None:
        return steps_of_settings(cfg, rows_of_epoch)
    costs: dict[tuple[int, int], int] = {}  # of a step, by the depth that a stage of the curriculum has

    def cost(stage: Stage) -> int:
        depth = (stage.recursion.T, stage.recursion.n)
        if depth not in costs:
            costs[depth] = stage_flops(cfg, arch, stage)
        return costs[depth]

    def spent(steps: int) -> int:
        return sum((stage.stop - stage.start) * cost(stage) for stage in stages(cfg.recursion, steps))

    high = 1
    while spent(high) < budget:
        high *= 2
        if high > LARGEST_COUNT:
            raise ConfigError(f"train.max_flops={budget:g} is more than {LARGEST_COUNT:,} steps of this run: lower it")
    low = high // 2  # spends less, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) < budget else (low, middle)
    return high
