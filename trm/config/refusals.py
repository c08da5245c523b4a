"""What Hydra and omegaconf refuse, on one line and in this project's terms."""

import re

from hydra.errors import OverrideParseException
from omegaconf import DictConfig

from trm.config.groups import GROUPS, group_options
from trm.config.overrides import quoting_hint
from trm.config.reading import unknown_keys
from trm.config.released import key_hint, no_option
from trm.config.schema import all_keys, of_other_tasks
from trm.errors import ConfigError, plain_line


def one_line(error: BaseException) -> str:
    """The error's message on a single line, said in this project's terms where Hydra's would mislead."""
    return plain_line(_in_our_terms(error))


def _in_our_terms(error: BaseException) -> str:
    text = str(error)
    reason = error.__cause__ or error.__context__
    if not text:  # Hydra has errors that only pass another one on
        return one_line(reason) if reason else type(error).__name__
    if isinstance(error, OverrideParseException):
        return f"{error.override}: Hydra cannot read this override: {quoting_hint(error.override)}"
    if there := re.match(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"+{there[1]}: the key is there already: leave out the +"
    if (wrong := re.match(r"(?:In '[^']*': )?Could not find '([^'/]+)/([^']*)'", text)) and wrong[1] in GROUPS:
        return no_option(wrong[1], wrong[2], group_options(wrong[1]))
    unknown = re.match(r"Could not override '([^']+)'", text) or re.match(r"Key '([^']+)' (?:is )?not in", text)
    if unknown:
        inside = _full_key(str(reason)) or ""  # model={mixr:mlp}: the reason names model.mixr
        if inside and "." not in inside and inside != unknown[1] and unknown[1] in all_keys():  # entries of a list have keys too
            return f"{unknown[1]}: its entries have no key {inside}: docs/reference/config.md shows one"
        return unknown_key(_full_key(text) or (inside if inside.startswith(f"{unknown[1]}.") else unknown[1]))
    if text.startswith("Error merging override") and reason is not None:  # the reason is one level down
        return f"{text.splitlines()[0].removeprefix('Error merging override ')}: {one_line(reason)}"
    text = text.split("Config search path:")[0].split("\nSee https://hydra.cc")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    key = _full_key(str(error))
    if key and "is not a ListConfig" in text:
        return f"{key} is a list: write {key}=[...]"
    return f"{key}: {' '.join(lines)}" if key and key not in " ".join(lines) else " ".join(lines)


def _full_key(text: str) -> str | None:
    """The key that omegaconf names on a line of its own."""
    match = re.search(r"full_key: (\S+)", text)
    return match[1] if match else None


def unknown_key(key: str) -> str:
    """What to say about a key that the schema does not have."""
    return of_other_tasks(key) or f"{key} is not a config key: {key_hint(key)}"


def refuse_unknown_keys(composed: DictConfig) -> None:
    """Raise ConfigError where +KEY=VALUE added a key that the schema does not have."""
    for key in unknown_keys(composed):
        raise ConfigError(unknown_key(key))
