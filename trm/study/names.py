"""The names of a sweep's folder and of its jobs. They depend on what is chosen, not on how or in which order it is written."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString

from trm.config import NOTHING, all_keys, role

LONGEST_NAME = 70  # bytes, without the hash
BARE = ("experiment", "sweep", "run_name")  # keys whose value says enough


def word(value: Any) -> str:
    """A value as text, the same however it was written: 1e-3 for 0.001, 1 for 1.0, true for True, a for 'a'."""
    if isinstance(value, str):
        return value
    if isinstance(value, QuotedString):
        return str(value.text)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        number = Decimal(repr(value))
        scientific = f"{number.normalize().scaleb(-number.adjusted())}e{number.adjusted()}"
        return min(repr(value), scientific, key=len)
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{word(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(word, value)) + "]"
    return "null" if value is None else str(value).lower()  # a truth value or a whole number


def _name(chosen: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Keys with their values as a plain file name, with a hash where something had to be left out or written otherwise."""
    chosen = list(chosen)
    labels = []
    for key, values in chosen:
        plain, last = ",".join(map(_plain, values)), key.rpartition(".")[2]
        # lr is optimizer.lr, as no other key ends in it; seed is not data.seed
        short = last if [each for each in all_keys() if f".{each}".endswith(f".{last}")] == [key] else key
        labels.append(plain if key in BARE else f"{_plain(short)}={plain}")
    name = ",".join(labels)
    whole = all(value and value == _plain(value) for _, values in chosen for value in values)
    if whole and len(name.encode()) <= LONGEST_NAME and name == name.strip("_,."):
        return name
    while len(labels) > 1 and len(",".join(labels).encode()) > LONGEST_NAME:
        labels.pop()
    name = ",".join(labels).encode()[:LONGEST_NAME].decode(errors="ignore").strip("_,.")
    return f"{name}-{hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8]}".lstrip("-")


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text)


def sweep_name(overrides: Sequence[str]) -> str:
    """The folder under multirun/ for a sweep of these overrides. The order of the overrides does not matter.

    run_name=NAME names it. Otherwise its name is made of +sweep= and the other overrides, without those that say how to run a sweep
    and not what it computes (hardware.jobs, tracking, ...).
    """
    chosen = {override.key_or_group: _words(override) for override in OverridesParser.create().parse_overrides(list(overrides))}
    if any(chosen.get("run_name", ())):
        return _name([("run_name", chosen["run_name"])])
    counted = [key for key in chosen if role(key) != NOTHING or key.startswith("recipe")]
    return _name((key, chosen[key]) for key in sorted(counted, key=lambda key: (key != "sweep", "." in key, key))) or "defaults"


def _words(override: Override) -> list[str]:
    """The values of an override as text: those of a sweep once each and in order; a glob, which may match more later, unchanged."""
    if not override.is_sweep_override():
        return [word(override.value())]
    if override.is_interval_sweep() or hasattr(override.value(), "include"):
        return [str(override.input_line).partition("=")[2].strip()]
    values = {word(value): value for value in override.sweep_iterator()}
    return sorted(values, key=lambda text: (isinstance(values[text], int | float) and values[text], text))


def job_names(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """A readable folder name for each job, from its choices by key: what differs between the jobs, and its seed if it has one."""
    keys = {key for job in jobs for key in job} - {"sweep", "run_name"}
    shown = {key for key in keys if key == "seed" or len({job.get(key) for job in jobs}) > 1}
    shown = shown or {key for key in keys if role(key) != NOTHING or key.startswith("recipe")}
    ordered = sorted(shown, key=lambda key: (key != "experiment", "." in key, key))
    return [_name((key, [job[key]]) for key in ordered if key in job) or "run" for job in jobs]
