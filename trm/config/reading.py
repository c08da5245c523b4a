"""Reading settings from Hydra and from YAML files into the typed and checked dataclasses of the schema."""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import BooleanNode, DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException, ValidationError

from trm.config.checks import validate
from trm.config.identity import flatten
from trm.config.paper import TASK
from trm.config.running import DataConfig
from trm.config.schema import TASKS, Config, TextKind, all_keys, keys_of, of_other_tasks, task_settings, text_kind
from trm.errors import ConfigError


class _Switch(BooleanNode):
    """A boolean that is written as a word; omegaconf alone would read every number but 0 as true."""

    def _validate_and_convert_impl(self, value: Any) -> bool:
        if str(value).lower() not in ("true", "false", "on", "off", "yes", "no"):
            raise ValidationError("'$VALUE' is neither true nor false (on, off, yes and no are understood too)")
        return super()._validate_and_convert_impl(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Switch":
        copy = _Switch()
        self._deepcopy_impl(copy, memo)
        return copy


@functools.lru_cache(maxsize=16)
def _schema_of(tasks: frozenset[type[DataConfig]], *, composing: bool) -> DictConfig:
    """The schema as omegaconf checks it; it is merged into copies of it.

    While Hydra composes, the task is not known yet, so the data settings have the keys of all tasks. The value of such a key says
    that it was not given, and leads to the default that its task has.
    """
    if composing:
        common = keys_of(DataConfig, known=False)
        own = [(key, Any, field(default=_not_given(key))) for key in keys_of(DataConfig) if key not in common]
        kind = dataclasses.make_dataclass("DataConfig", own, bases=(DataConfig,))
    else:
        (kind,) = tasks
    defaults: Any = Config(data=kind())
    for group in filter(dataclasses.is_dataclass, vars(defaults).values()):
        for item in dataclasses.fields(group):
            if item.type is bool:
                setattr(group, item.name, _Switch(getattr(group, item.name), is_optional=False))
    return cast(DictConfig, OmegaConf.structured(defaults))


def _not_given(key: str) -> str:
    return f"${{trm_default:${{.task}},{key}}}"


def register_schema() -> None:
    """Make the schema known to Hydra: conf/config.yaml names it first, so that composing checks every key and type."""
    ConfigStore.instance().store(name="schema", node=_schema_of(frozenset(TASKS.values()), composing=True))
    resolvers: dict[str, Callable[..., Any]] = {
        "trm_default": lambda task, key: getattr(task_settings(task)(), key, None),  # for keys of single tasks
        "trm_times": _times,
        "trm_over": lambda value, by: _times(value, 1 / by),
        "trm_unscaled": _unscaled,
        "trm_unless": lambda budget, steps: steps if budget is None else None,
        "trm_part": lambda name, value: "" if value is None else f"_{name}{float(value):g}",  # a part of a folder's name
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _times(value: float, *factors: float) -> float:
    """A recipe's value times its ratios; a whole number is rounded to a whole number."""
    product = value * math.prod(factors)
    return round(product) if isinstance(value, int) else float(f"{product:.12g}")  # 3e-4, not 0.00030000000000000003


def _unscaled(key: str, factor: str, *, _root_: DictConfig) -> Any:
    """The value of a key where a factor of the recipe is 1; a division by the factor would not undo the rounding."""
    plain = OmegaConf.masked_copy(_root_, [name.partition(".")[0] for name in (key, factor)])
    OmegaConf.set_readonly(plain, False)
    OmegaConf.update(plain, factor, 1)
    return OmegaConf.select(plain, key)


def from_composed(composed: DictConfig) -> Config:
    """The typed, validated settings of a composed config. Raises ConfigError, or errors of omegaconf that trm/cli.py reports."""
    kind, given = task_settings(OmegaConf.select(composed, "data.task") or TASK), dict(composed.items_ex(resolve=False))
    if isinstance(given.get("data"), DictConfig):
        data = {key: node for key, node in given["data"].items_ex(resolve=False) if node != _not_given(key)}
        for key in data.keys() - keys_of(kind).keys():
            if reason := of_other_tasks(f"data.{key}"):
                raise ConfigError(reason)
        composed = OmegaConf.create({**given, "data": data})
    typed = OmegaConf.merge(_schema_of(frozenset({kind}), composing=False), composed)
    cfg = cast(Config, OmegaConf.to_object(typed))
    for name, group in vars(cfg).items():
        for item in dataclasses.fields(group) if dataclasses.is_dataclass(group) else ():
            if item.metadata.get("path") and (given := getattr(group, item.name)):
                setattr(group, item.name, local_path(f"{name}.{item.name}", given))
    validate(cfg)
    return cfg


def local_path(key: str, given: str) -> str:
    """The given path with the home folder in the place of a leading ~. Raises ConfigError, which names `key`, for an address."""
    if re.match(r"[A-Za-z][\w+.-]*://", given):
        raise ConfigError(f"{key}={given} is an address, and only this machine's files are read and written: mount it or copy it")
    path = os.path.expanduser(given)
    if path.startswith("~") and path == given:
        raise ConfigError(f"{key}={given}: no such user: write the folder out, or ./{given}")
    return path


def load_yaml(path: Path, package: str = "") -> DictConfig:
    """The settings in a file, not checked yet. Its keys are under `package` ("" = the whole config).

    Text is read as it is written (run_name: 2026_11_30). Raises ConfigError if the file cannot be read as settings.
    """
    try:
        found = OmegaConf.create(_plain_yaml(path.read_text(encoding="utf-8"), package, frozenset(TASKS.values())))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not readable as YAML ({error}): correct it, or replace it by a whole copy") from error
    if not isinstance(found, DictConfig):
        raise ConfigError(f"{path}: holds no settings: it must be KEY: VALUE lines")
    return found


@functools.lru_cache(maxsize=256)  # a sweep composes each of its jobs from the same files
def _plain_yaml(text: str, package: str, tasks: frozenset[type]) -> Any:
    """The content of a YAML text, which must not be changed; it depends on the known `tasks`, since their keys may be text."""
    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        _as_written(node, package)
        return {} if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _as_written(node: yaml.Node | None, key: str) -> None:
    """Mark the scalars of a YAML tree as text if the schema says that their keys are text."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            _as_written(value, f"{key}.{name.value}" if key else str(name.value))
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            if isinstance(entry, yaml.MappingNode) or key == "defaults" or text_kind(key) == TextKind.LIST:
                _as_written(entry, key)
    elif isinstance(node, yaml.ScalarNode) and (kind := text_kind(key)) is not None:
        null = node.tag == "tag:yaml.org,2002:null"
        if not null or (kind != TextKind.OPTIONAL and node.value.lower() == "null"):
            node.tag = "tag:yaml.org,2002:str"


def unknown_keys(composed: DictConfig) -> list[str]:
    """The keys of a composed config that the schema does not have; Hydra's +KEY=VALUE adds such keys."""
    known = all_keys()
    return [key for key in flatten(cast(Any, OmegaConf.to_container(composed))) if key not in known]


def from_plain(plain: dict[str, Any], source: str) -> Config:
    """The settings saved by `to_plain`, checked again; `source` names the file in error messages."""
    try:
        return from_composed(OmegaConf.create(plain))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
