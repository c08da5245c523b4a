"""The schema of all config groups, the keys of single tasks, and functions that answer questions about a key.

Hydra composes `conf/` against these dataclasses (trm/config/reading.py), so it refuses unknown keys and wrong types; then
trm/config/checks.py checks ranges and combinations. All other code sees only these dataclasses.
"""

import dataclasses
import enum
import functools
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from trm.config.evaluation import EvaluateConfig, InferenceConfig
from trm.config.keys import NOTHING, NUMBERS, RESULTS, key
from trm.config.network import (
    EmaConfig,
    LatentsConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RecursionConfig,
    draws_numbers,
)
from trm.config.paper import TASK
from trm.config.running import DataConfig, HardwareConfig, RecipeConfig, TrackingConfig, TrainConfig
from trm.errors import ConfigError


@dataclass
class Config:
    """All settings of one run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    recursion: RecursionConfig = field(default_factory=RecursionConfig)
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig, metadata={"changes": RESULTS})
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata={"changes": NOTHING})
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"changes": NOTHING})
    recipe: RecipeConfig = field(default_factory=RecipeConfig, metadata={"changes": NOTHING})
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata={"changes": RESULTS})
    inference: InferenceConfig = field(default_factory=InferenceConfig, metadata={"changes": RESULTS})
    run_name: str = key(MISSING, "name of the run and of its folder under outputs/", changes=NOTHING)
    seed: int = key(0, "seed of weights, data order and exploration", low=0, high=2**31 - 1)

    @property
    def is_random(self) -> bool:
        """Whether the model itself draws random numbers in an evaluation."""
        return draws_numbers(self.latents, self.recursion)

    @property
    def eval_batch_size(self) -> int:
        """Rows of one evaluation batch over all devices."""
        return self.evaluate.batch_size or self.train.global_batch_size

    @property
    def inference_steps(self) -> int:
        """Supervision steps of a candidate in an evaluation."""
        return self.inference.supervision_steps or self.recursion.n_sup


# The settings of each task by its name. trm/tasks adds those of its folders, and `task_settings` others when they are named.
TASKS: dict[str, type[DataConfig]] = {}


def imported_task(task: str) -> Any:
    """The class that MODULE:CLASS names, also from the current folder. Raises ConfigError if it is not a task."""
    module, _, name = task.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"data.task={task} cannot be imported ({reason}): write it as MODULE:CLASS") from error
    settings = getattr(found, "settings", None)
    if not (isinstance(found, type) and isinstance(settings, type) and issubclass(settings, DataConfig)):
        raise ConfigError(f"data.task={task} is not a task: name a class that is derived from trm.tasks.base.Task")
    common = keys_of(DataConfig, known=False)
    if taken := [key for key, item in keys_of(settings).items() if key in common and item.default != common[key].default]:
        raise ConfigError(f"data.task={task} defines the setting {taken[0]}, but all tasks have data.{taken[0]}: rename it")
    return found


def task_settings(task: str) -> type[DataConfig]:
    """The data settings of a task; imports a task from outside the package. Raises ConfigError for an unknown task."""
    if task not in TASKS:
        if ":" not in task:
            raise ConfigError(f"data.task={task} is unknown: choose one of {', '.join(sorted(TASKS))}, or write MODULE:CLASS")
        TASKS[task] = imported_task(task).settings
        role.cache_clear()
        text_kind.cache_clear()
    return TASKS[task]


def data_settings(plain: Mapping[str, Any]) -> DataConfig:
    """The data settings from a run's file, not checked."""
    return task_settings(plain["task"])(**plain)


def default_config(data: Mapping[str, Any]) -> Config:
    """The schema's defaults, for the task that these data settings name."""
    return Config(data=task_settings(data.get("task", TASK))())


def without_others(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data settings without keys that only other tasks have."""
    own, all_ = keys_of(task_settings(data.get("task", TASK))), keys_of(DataConfig)
    return {key: value for key, value in data.items() if key in own or key not in all_}


def of_other_tasks(key: str) -> str | None:
    """The error line for a key that only other tasks have; None if no task has it."""
    group, _, name = key.partition(".")
    owners = [f"data.task={task}" for task, settings in TASKS.items() if group == "data" and name in keys_of(settings)]
    return f"{key} is a setting of {' and '.join(owners)} alone: leave it out, or choose such puzzles" if owners else None


def keys_of(group: Any, *, known: bool = True) -> dict[str, dataclasses.Field[Any]]:
    """The keys of a group by name; for the data group also those of all `known` tasks. Empty for what is not a group."""
    kinds = [group, *(TASKS.values() if known and group is DataConfig else ())]
    return {item.name: item for kind in kinds if dataclasses.is_dataclass(kind) for item in dataclasses.fields(kind)}


def all_keys(node: type = Config, prefix: str = "") -> list[str]:
    """Every key of the schema with its dots; groups are keys too."""
    keys = []
    for item in keys_of(node).values():
        keys.append(prefix + item.name)
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            keys += all_keys(item.type, f"{prefix}{item.name}.")
    return keys


@functools.cache
def role(key: str) -> str:
    """What a key changes: NUMBERS (also for unknown keys), RESULTS, PLACE or NOTHING."""
    group, _, name = key.partition(".")
    outer = Config.__dataclass_fields__.get(group)
    inner = keys_of(outer.type).get(name) if outer else None
    found = (inner and inner.metadata.get("changes")) or (outer and outer.metadata.get("changes")) or NUMBERS
    return str(found)


class TextKind(enum.Enum):
    """The kinds of keys whose value is text."""

    PLAIN = "text alone: null is a word"
    OPTIONAL = "text, or null for none"
    LIST = "a list of texts"


# Hydra's own keys whose value is text; what conf/hydra/launcher passes to Slurm and Ray has no type there.
HYDRA_TEXTS = (
    "run.dir", "sweep.dir", "sweep.subdir", "job.name", "sweeper.score", "sweeper.direction", "launcher.submitit_folder",
    "launcher.name", "launcher.gres", "launcher.partition", "launcher.qos", "launcher.account", "launcher.constraint",
    "launcher.exclude", "launcher.comment", "launcher.address",
)  # fmt: skip
CHOICES = ("experiment", "sweep")  # groups that are not part of the schema


@functools.cache
def text_kind(key: str) -> TextKind | None:
    """The kind of text that a key takes; None if its value is not text. The names of options are text."""
    if key in CHOICES or key.partition(".")[0] == "defaults" or key.removeprefix("hydra.") in HYDRA_TEXTS:
        return TextKind.OPTIONAL
    if key.startswith("hydra.sweeper.params."):  # the words of overrides
        return TextKind.PLAIN
    found: Any = Config
    for part in key.split("."):
        fields = keys_of(found)
        if part not in fields:
            return None
        found = fields[part].type
    if dataclasses.is_dataclass(found):  # the name of an option
        return TextKind.OPTIONAL
    return {str: TextKind.PLAIN, str | None: TextKind.OPTIONAL, list[str]: TextKind.LIST}.get(found)


def to_plain(cfg: Config) -> dict[str, Any]:
    """The settings as plain JSON-ready containers."""
    return dataclasses.asdict(cfg)
