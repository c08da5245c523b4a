"""Which settings identify a run: digests, differences between two configs, and what may differ when a run is resumed."""

import functools
import hashlib
import json
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from omegaconf import MISSING

from trm.config.keys import NUMBERS, RESULTS
from trm.config.schema import TASKS, Config, all_keys, default_config, role, to_plain

# Keys of evaluations that do not change what an accuracy means; a result has its number of puzzles beside it
NO_WAY = ("inference.name", "inference.seed", "evaluate.max_puzzles", "evaluate.by_difficulty")
LENGTH = ("max_steps", "max_flops", "epochs")  # keys of `train` that set the length of a run


def numerics(plain: dict[str, Any]) -> dict[str, Any]:
    """The settings of a plain config that change a run's numbers. Two runs that agree in them compute the same."""
    return _only(plain, (NUMBERS,))


def kept(plain: dict[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint keeps: those that change numbers or results, so that equal runs write equal checkpoints."""
    return _only(plain, (NUMBERS, RESULTS))


def _only(plain: dict[str, Any], roles: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            inside = _only(value, roles, f"{prefix}{key}.")
            found |= {key: inside} if inside else {}
        elif role(prefix + key) in roles:
            found[key] = value
    return found


def digest(cfg: Config) -> str:
    """A hash of the config's `numerics`: sixteen hexadecimal digits."""
    return hashlib.sha256(json.dumps(numerics(to_plain(cfg)), sort_keys=True).encode()).hexdigest()[:16]


def differences(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys in which two nested dicts differ, each as "KEY=1 there, 2 here"."""
    there, here = flatten(saved, prefix), flatten(current, prefix)
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    return [f"{key}={there.get(key)} there, {here.get(key)} here" for key in keys]


def resume_conflicts(saved: dict[str, Any], cfg: Config) -> list[str]:
    """The differences because of which a run with the plain config `saved` cannot be resumed under `cfg`.

    The length of the run (LENGTH) may change, unless the learning rate or the depth depends on it.
    """
    there, here = numerics(saved), numerics(to_plain(cfg))
    if cfg.optimizer.schedule == "constant" and not (cfg.recursion.curriculum or cfg.optimizer.warmup_share):
        for side in (there, here):
            side["train"] = {key: value for key, value in side["train"].items() if key not in LENGTH}
    return differences(there, here)


def flatten(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested containers as one dict with dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@functools.cache
def defaults() -> Mapping[str, Any]:
    """The schema's defaults, flat, with those of the tasks in trm/tasks; keys without a default are left out."""
    own = (flatten(to_plain(default_config({"task": task}))) for task in TASKS if ":" not in task)
    plain = functools.reduce(operator.or_, own, {}) | flatten(to_plain(Config()))
    return MappingProxyType({key: value for key, value in plain.items() if value != MISSING})


@functools.cache
def way_keys() -> tuple[str, ...]:
    """The keys that say how an accuracy is measured. Accuracies that differ in one of them cannot be compared."""
    keys = [key for key in all_keys() if key.startswith(("inference.", "evaluate."))]
    return tuple(key for key in keys if role(key) in (NUMBERS, RESULTS) and key not in NO_WAY)


def inference_steps(settings: Mapping[str, Any]) -> int | None:
    """Supervision steps of a candidate in an evaluation (`Config.inference_steps`), from flat settings."""
    return settings.get("inference.supervision_steps") or settings.get("recursion.n_sup")
