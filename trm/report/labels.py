"""Which settings tell runs apart, and what variants are called by them."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trm.config import NOTHING, PLACE, all_keys, role
from trm.config.refusals import unknown_key
from trm.errors import ConfigError
from trm.report.runs import Run

# What --group may name besides config keys: the named experiment, and the folder that holds the run's folder.
OTHER_KEYS: Mapping[str, Callable[[Run], Any]] = {"experiment": lambda run: run.experiment, "sweep": lambda run: run.sweep}

# The settings that a label names first, with the words for their values. A setting that separates no further runs is left out.
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
    """The settings that are not the same in all runs, without the neutral ones: in the schema's order, other keys after it."""
    order = {key: i for i, key in enumerate(all_keys())}
    differing = [key for key in telling_keys(runs) if len(distinct(run.settings.get(key) for run in runs)) > 1]
    return sorted(differing, key=lambda key: order.get(key, len(order)))


def telling_keys(runs: Iterable[Run]) -> list[str]:
    """The settings of the runs that make another variant, by name."""
    return sorted({key for run in runs for key in run.settings if not is_neutral(key)})


def is_neutral(key: str) -> bool:
    """True for settings that do not make another variant."""
    return key == "seed" or role(key) in (PLACE, NOTHING)


def named_groups(runs: list[Run], group: list[str] | None) -> tuple[list[str], list[tuple[str, str, list[Run]]]]:
    """The settings that differ between the runs, and the runs in groups: a label, the label by settings, and the runs.

    Runs of a group agree in all these settings, or in the keys and config groups in `group`. Groups are in the order of their
    values, numbers by size; where the runs were started as several named experiments and each is one group, the experiments' names
    are the labels and give the order. Raises ConfigError where `group` names nothing.
    """
    differing = differing_keys(runs)
    keys = differing if group is None else _chosen_keys(runs, group)
    order = [key for unit in _units(keys) for key in unit if key in keys]

    def place(members: list[Run]) -> list[tuple[int, float, str]]:
        values = (value_of(members[0], key) for key in order)
        return [(0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value)) for value in values]

    groups = sorted(grouped(runs, keys), key=place)
    descriptions = _labels([members[0] for members in groups], keys, differing, group)
    experiments = [sorted({run.experiment or "" for run in members}) for members in groups]
    names = [name for found in experiments for name in found]
    if group is not None or len(set(names)) < 2 or "" in names or len(names) != len(set(names)):
        return differing, list(zip(descriptions, descriptions, groups, strict=True))
    named = zip((" = ".join(found) for found in experiments), descriptions, groups, strict=True)
    return differing, sorted(named, key=lambda each: re.sub(r"\d+", lambda number: number[0].zfill(20), each[0]))  # 2 before 10


def _chosen_keys(runs: list[Run], group: list[str]) -> list[str]:
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


def grouped(runs: Iterable[Run], keys: Sequence[str]) -> list[list[Run]]:
    """The runs, those together that agree in all these keys."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_identity(run, keys), []).append(run)
    return list(groups.values())


def _identity(run: Run, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(_plain(value_of(run, key)) for key in keys)


def _plain(value: Any) -> str:
    """A value as text that can be compared: 1 and 1.0 are one setting, 1 and true are two."""
    return json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value, default=str)


def distinct(values: Iterable[Any]) -> list[Any]:
    """The values, each once; of two that are one setting the later."""
    return list({_plain(value): value for value in values}.values())


def _labels(runs: list[Run], keys: list[str], differing: list[str], group: list[str] | None) -> list[str]:
    """A short name for each run, one of each variant, by the keys that tell them apart; it has only as many as it needs.

    A label leaves out a value that more than half of the variants have, except the recursion and what --group asks for.
    """
    every = _units(keys)
    always = {RECURSION} if group is None else {unit for unit in every if unit in NAMES or set(unit) & set(group)}

    def words(run: Run, unit: tuple[str, ...]) -> str:
        if unit in NAMES and all(key in keys or key not in differing for key in unit):
            return NAMES[unit](*map(run.settings.get, unit))
        return ", ".join(f"{key}={show(value_of(run, key))}" for key in unit if key in keys)

    columns: list[list[str]] = []  # the words of each unit that is needed, one a run
    identities: list[tuple[str, ...]] = [()] * len(runs)
    for unit in every:
        refined = [old + _identity(run, [key for key in unit if key in keys]) for run, old in zip(runs, identities, strict=True)]
        if len(set(refined)) > len(set(identities)):
            identities, found = refined, [words(run, unit) for run in runs]
            common, count = Counter(found).most_common(1)[0]
            silent = unit not in always and 2 * count > len(runs)
            columns.append(["" if silent and word == common else word for word in found])
    fallback = [RECURSION] if group is None else [unit for unit in every if unit in always] or every[:1]
    return [
        ", ".join(column[i] for column in columns if column[i]) or ", ".join(words(run, unit) for unit in fallback)
        for i, run in enumerate(runs)
    ]


def _units(keys: list[str]) -> list[tuple[str, ...]]:
    """The keys in the order in which labels name them; keys that are named together are one tuple."""
    named = {key: unit for unit in NAMES for key in unit}
    found = list(dict.fromkeys(named.get(key, (key,)) for key in keys))
    return sorted(found, key=lambda unit: list(NAMES).index(unit) if unit in NAMES else len(NAMES))


def show(value: Any) -> str:
    """A setting's value as a config file writes it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
