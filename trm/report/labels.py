"""Which settings tell runs apart, and what variants are called by them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trm.config import NOTHING, PLACE, all_keys, role
from trm.config.refusals import unknown_key
from trm.errors import ConfigError
from trm.report.runs import Run

# What --group may name beside config keys: the named experiment, and the folder that holds the run's folder.
OTHER_KEYS: Mapping[str, Callable[[Run], Any]] = {"experiment": lambda run: run.experiment, "sweep": lambda run: run.sweep}

# The settings that a label names first, with the words for their values. A later one that tells no further runs apart is left out.
RECURSION = ("recursion.T", "recursion.n")
NAMES: Mapping[tuple[str, ...], Callable[..., str]] = {
    RECURSION: "t{}_n{}".format,
    ("recursion.curriculum",): lambda phases: " ".join(
        ["curriculum", *(f"t{phase['T']}_n{phase['n']}" for phase in phases)] if phases else ["no curriculum"]
    ),
    ("recursion.variant",): str,
    ("model.mixer",): str,
    ("ema.enabled",): lambda on: "ema on" if on else "ema off",
    ("data.name",): str,
    ("optimizer.name",): str,
    ("hardware.name",): str,
    ("puzzles.train",): lambda digest: f"training puzzles {str(digest or 'unknown')[:8]}",
    ("puzzles.test",): lambda digest: f"test puzzles {str(digest or 'unknown')[:8]}",
}


def differing_keys(runs: list[Run]) -> list[str]:
    """The settings, neutral ones left out, that are not the same in all runs; in the schema's order, other keys after it."""
    keys = {key for run in runs for key in run.settings if not is_neutral(key)}
    order = {key: i for i, key in enumerate(all_keys())}
    differing = [key for key in keys if len(distinct(run.settings.get(key) for run in runs)) > 1]
    return sorted(differing, key=lambda key: (order.get(key, len(order)), key))


def is_neutral(key: str) -> bool:
    """True for settings that do not make another variant."""
    return key == "seed" or role(key) in (PLACE, NOTHING)


def chosen_keys(runs: list[Run], group: list[str]) -> list[str]:
    """The keys that --group means: a config group stands for all its keys that are not neutral."""
    settings = {key for run in runs for key in run.settings} | set(all_keys())
    chosen: list[str] = []
    for name in group:
        inside = [key for key in all_keys() if key.startswith(f"{name}.") and (not is_neutral(key) or name == "tracking")]
        if not inside and name not in settings and name not in OTHER_KEYS:
            raise ConfigError(f"--group {unknown_key(name)}")
        chosen += [key for key in inside or [name] if key not in chosen]
    return chosen


def value_of(run: Run, key: str) -> Any:
    """The run's value of what --group may name."""
    return OTHER_KEYS[key](run) if key in OTHER_KEYS else run.settings.get(key)


def identity(run: Run, keys: Iterable[str]) -> tuple[str, ...]:
    """The run's values of the keys, as something that can be compared and hashed."""
    return tuple(_plain(value_of(run, key)) for key in keys)


def _plain(value: Any) -> str:
    """1 and 1.0 are one setting, 1 and true are two."""
    return json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value, default=str)


def distinct(values: Iterable[Any]) -> list[Any]:
    """The values without those that are there already; of two that are one setting the later."""
    return list({_plain(value): value for value in values}.values())


def sort_key(value: Any) -> tuple[int, float, str]:
    """An order over values of any type: numbers by size, then everything else by its text."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def labels(runs: list[Run], keys: list[str], differing: list[str], group: list[str] | None) -> list[str]:
    """A short name for each run, one of each variant, by the keys that tell them apart; of these only as many as it takes.

    A value that more than half of the variants have goes without saying, but for the recursion and what --group asks for.
    """
    every = units(keys)
    always = {RECURSION} if group is None else {unit for unit in every if unit in NAMES or set(unit) & set(group)}
    columns: list[list[str]] = []  # the words of each unit that is needed, a run each
    identities: list[tuple[str, ...]] = [()] * len(runs)
    for unit in every:
        refined = [old + identity(run, [key for key in unit if key in keys]) for run, old in zip(runs, identities, strict=True)]
        if len(set(refined)) > len(set(identities)):
            identities = refined
            words = [_words(run, unit, keys, differing) for run in runs]
            common, count = Counter(words).most_common(1)[0]
            silent = unit not in always and 2 * count > len(runs)
            columns.append(["" if silent and word == common else word for word in words])
    fallback = [RECURSION] if group is None else [unit for unit in every if unit in always] or every[:1]
    found = [", ".join(filter(None, parts)) for parts in zip(*columns, strict=True)] if columns else [""] * len(runs)
    return [
        label or ", ".join(_words(run, unit, keys, differing) for unit in fallback) for label, run in zip(found, runs, strict=True)
    ]


def units(keys: list[str]) -> list[tuple[str, ...]]:
    """The keys in the order in which labels name them; keys that are named together in one tuple."""
    named = {key: unit for unit in NAMES for key in unit}
    found = list(dict.fromkeys(named.get(key, (key,)) for key in keys))
    return sorted(found, key=lambda unit: list(NAMES).index(unit) if unit in NAMES else len(NAMES))


def _words(run: Run, unit: tuple[str, ...], keys: list[str], differing: list[str]) -> str:
    if unit in NAMES and all(key in keys or key not in differing for key in unit):
        return NAMES[unit](*map(run.settings.get, unit))
    return ", ".join(f"{key}={show(value_of(run, key))}" for key in unit if key in keys)


def show(value: Any) -> str:
    """A setting's value as a config file writes it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def experiment_labels(groups: list[list[Run]]) -> list[str] | None:
    """Names by experiment, where the runs were started as several named ones and each is one variant; else None."""
    names = [sorted({run.experiment or "" for run in members}) for members in groups]
    every = [name for found in names for name in found]
    if len(set(every)) < 2 or "" in every or len(every) != len(set(every)):
        return None
    return [" = ".join(found) for found in names]
