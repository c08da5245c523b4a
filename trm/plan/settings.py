"""The plan.KEY=VALUE arguments of `python -m trm.plan`, apart from those of the run."""

import dataclasses
import difflib
from dataclasses import dataclass, field

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trm.cli import options
from trm.config import local_path
from trm.config.overrides import parsed
from trm.errors import ConfigError

PREFIX = "plan."


@dataclass
class PlanSettings:
    """How to plan. The keys of trm.train describe the run."""

    compile: bool = False  # compile the steps for the TPU, ahead of time
    python: str | None = None  # the interpreter that has jax and libtpu; null = this one, or .venv-plan's
    utilisation_percent: list[float] = field(default_factory=lambda: [20.0, 40.0, 60.0])  # of the chips' peak
    host_ms_per_step: float = 3.0  # no step is shorter than this, however fast the chips are
    price_per_chip_hour: float | None = None  # in any currency

    @property
    def utilisations(self) -> list[float]:
        """The same as shares, 0..1."""
        return [percent / 100 for percent in self.utilisation_percent]


def split_arguments(arguments: list[str]) -> tuple[PlanSettings, list[str], bool]:
    """The plan.* settings, the overrides of the run, and whether --multirun makes it a sweep. Raises UserError."""
    flag = {"action": "store_true"}
    given = options("trm.plan", arguments, words=False, multirun=flag, m=flag)
    own = [a.removeprefix(PREFIX) for a in given.rest if a.startswith(PREFIX)]
    known = [item.name for item in dataclasses.fields(PlanSettings)]
    for argument in own:
        key = argument.partition("=")[0]
        if key not in known:
            similar = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {PREFIX}{similar[0]}?" if similar else f"they are {', '.join(PREFIX + name for name in known)}"
            raise ConfigError(f"{PREFIX}{key} is not a key of trm.plan: {hint}")
    try:
        merged = OmegaConf.structured(PlanSettings)
        for argument in own:
            key, _, value = argument.partition("=")
            read = local_path(f"{PREFIX}{key}", value) if key == "python" and value != "null" else parsed(argument)[1]
            OmegaConf.update(merged, key, read)
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{PREFIX}{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(settings, PlanSettings)
    percents = settings.utilisation_percent
    if not percents or not all(0 < p <= 100 for p in percents):
        raise ConfigError(f"plan.utilisation_percent={percents}: give percentages above 0 and at most 100, such as [20,40,60]")
    for name in ("host_ms_per_step", "price_per_chip_hour"):
        value = getattr(settings, name)
        if value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f"plan.{name}={value}: it must be a number that is not negative")
    return settings, [a for a in given.rest if not a.startswith(PREFIX)], given.multirun or given.m
