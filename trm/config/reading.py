"""Reading settings: what Hydra composes and what YAML files hold, as the typed and checked dataclasses of the schema."""

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
    """A boolean written as a word; omegaconf alone would take every number but 0 for true."""

    def _validate_and_convert_impl(self, value: Any) -> bool:
        if str(value).lower() not in ("true", "false", "on", "off", "yes", "no"):
            raise ValidationError("'$VALUE' is neither true nor false (on, off, yes and no are understood too)")
        return super()._validate_and_convert_impl(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Switch":
        copy = _Switch()
        self._deepcopy_impl(copy, memo)
        return copy


def _composed_data() -> Any:
    """The data settings while Hydra composes, which task they are of not being known yet: with the keys of all of them.

    The value of such a key says that it was not given, and leads to the default that its task has.
    """
    common, all_ = keys_of(DataConfig, known=False), keys_of(DataConfig)
    own = [(key, Any, field(default=_not_given(key))) for key in all_ if key not in common]
    return dataclasses.make_dataclass("DataConfig", own, bases=(DataConfig,))()


def _not_given(key: str) -> str:
    return f"${{trm_default:${{.task}},{key}}}"


def _schema(data: Any) -> DictConfig:
    """The schema as omegaconf checks it, with these data settings."""
    defaults: Any = Config(data=data)
    for group in filter(dataclasses.is_dataclass, vars(defaults).values()):
        for item in dataclasses.fields(group):
            if item.type is bool:
                setattr(group, item.name, _Switch(getattr(group, item.name), is_optional=False))
    return cast(DictConfig, OmegaConf.structured(defaults))


@functools.lru_cache(maxsize=16)
def _schema_of(tasks: frozenset[type[DataConfig]], *, composing: bool) -> DictConfig:
    """The schema of one task, or with the keys of all of them for Hydra to compose with; it is merged into copies of it."""
    return _schema(_composed_data() if composing else next(iter(tasks))())


def register_schema() -> None:
    """Make the schema known to Hydra: conf/config.yaml names it first, so that composing checks every key and type."""
    ConfigStore.instance().store(name="schema", node=_schema_of(frozenset(TASKS.values()), composing=True))
    resolvers: dict[str, Callable[..., Any]] = {
        "trm_default": lambda task, key: getattr(task_settings(task)(), key, None),  # of a key that a task has of its own
        "trm_times": _times,
        "trm_over": lambda value, by: _times(value, 1 / by),
        "trm_unless": lambda budget, steps: steps if budget is None else None,
        "trm_part": lambda name, value: "" if value is None else f"_{name}{float(value):g}",  # of a folder's name
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _times(value: float, *factors: float) -> float:
    """A recipe's value times its ratios; a whole number stays one."""
    product = value * math.prod(factors)
    return round(product) if isinstance(value, int) else float(f"{product:.12g}")  # 3e-4, not 0.00030000000000000003


def from_composed(composed: DictConfig) -> Config:
    """The typed, validated settings of a composed config.

    Raises ConfigError (and omegaconf's own errors, which trm/cli.py reports the same way) with one line for the user.
    """
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
    """A path as it was given, with the home folder in the place of a leading ~; `key` names it in errors.

    Raises ConfigError where it is an address of some storage, of which a path would make a local folder.
    """
    if re.match(r"[A-Za-z][\w+.-]*://", given):
        raise ConfigError(f"{key}={given} is an address, and only this machine's files are read and written: mount it or copy it")
    path = os.path.expanduser(given)
    if path.startswith("~") and path == given:
        raise ConfigError(f"{key}={given}: there is no such user: write the folder out, or ./{given}")
    return path


def load_yaml(path: Path, package: str = "") -> DictConfig:
    """The settings in a file, not checked yet: those of the keys under `package`, "" = of the whole config.

    Text is as it stands there (run_name: 2026_11_30). Raises ConfigError where the file cannot be read as settings.
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
    """What a YAML text holds, as containers that are not to be changed; `tasks` are the known ones, whose keys may be text."""
    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        _as_written(node, package)
        return {} if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _as_written(node: yaml.Node | None, key: str) -> None:
    """Have the scalars of a YAML tree that the schema calls text read as text, whatever they look like."""
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
    """Keys of a composed config that the schema does not have (Hydra's +KEY=VALUE can add such)."""
    known = all_keys()
    return [key for key in flatten(cast(Any, OmegaConf.to_container(composed))) if key not in known]


def from_plain(plain: dict[str, Any], source: str) -> Config:
    """The settings saved by `to_plain`, checked again; `source` names the file in error messages."""
    try:
        return from_composed(OmegaConf.create(plain))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
