"""What a sweep's folder and its jobs are called."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence

from trm.config import NOTHING, role

log = logging.getLogger(__name__)

LONGEST_NAME = 70


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value.strip("'\"")


def _is_neutral(key: str) -> bool:
    """Whether it says how to run a sweep, not what it computes: then it is in neither its folder's nor its jobs' names."""
    return role(key) == NOTHING and not key.startswith("recipe")


def _label(override: str) -> str:
    """An override as part of a name: EXPERIMENT, or KEY=VALUE with the last part of a dotted key."""
    key, value = _key_and_value(override)
    return value if key in ("experiment", "sweep") else f"{key.rpartition('.')[2]}={value}"


def _file_name(labels: Sequence[str], overrides: Sequence[str]) -> str:
    """The labels as one name that is a plain file name; a hash of the overrides follows where something had to be left out."""
    full = ",".join(labels)
    shown = list(labels)
    while len(shown) > 1 and len(",".join(shown)) > LONGEST_NAME:
        shown.pop()
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join(shown))[:LONGEST_NAME].strip("_,.")
    return name if name == full else f"{name}-{_short_hash(overrides)}".lstrip("-")


def _short_hash(overrides: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:6]


def sweep_name(overrides: Sequence[str]) -> str:
    """The folder under multirun/ for a sweep of these overrides: equal for equal commands, in whatever order they are given.

    run_name=NAME names it; else it is the name given to +sweep= and the other overrides, or these alone. Overrides of how to run
    (hardware.jobs, tracking, ...) do not count.
    """
    pairs = [(_key_and_value(override), override) for override in overrides]
    for (key, value), _ in pairs:
        if key == "run_name" and value:
            return _file_name([value], [value])
    counted = sorted((key != "sweep", "." in key, key, override) for (key, _), override in pairs if not _is_neutral(key))
    chosen = [override for *_, override in counted]
    return _file_name([_label(override) for override in chosen], chosen) or "defaults"


def _resolved(override: str, aliases: Mapping[str, str]) -> str:
    key, value = _key_and_value(override)
    return f"experiment={aliases[value]}" if key == "experiment" and value in aliases else override


def without_aliases(jobs: Sequence[Sequence[str]], aliases: Mapping[str, str]) -> list[list[str]]:
    """The jobs without those of an experiment that is another one by a second name, where the other is there too."""
    there = {tuple(job) for job in jobs}
    kept = []
    for job in jobs:
        other = [_resolved(override, aliases) for override in job]
        if other != list(job) and tuple(other) in there:
            log.info("%s: the same run as %s, which is enough", _file_name([_label(o) for o in job], job), other[0])
        else:
            kept.append(list(job))
    return kept


def job_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """One readable, unique folder name for each job: its overrides that differ between jobs, and its seed where one is given."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for override in job:
            values.setdefault(_key_and_value(override)[0], set()).add(override)
    shown = {key for key, found in values.items() if len(found) > 1 or key == "seed"} - {"sweep"}
    if not shown:
        shown = {key for key in values if not _is_neutral(key) and key != "sweep"}
    names = []
    for job in jobs:
        picked = [override for override in job if _key_and_value(override)[0] in shown]
        names.append(_file_name([_label(override) for override in picked], picked) or "run")
    # two dotted keys may end alike, and long values may be cut alike
    return [name if names.count(name) == 1 else f"{name}-{_short_hash(job)}" for name, job in zip(names, jobs, strict=True)]
