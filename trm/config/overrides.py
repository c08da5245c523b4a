"""KEY=VALUE in Hydra's grammar, which outside quotes takes only ASCII letters, and in which a comma makes a sweep.

Outside quotes Hydra also turns words into numbers and truth values; `as_typed` prevents this for keys whose value is text.
"""

import re
import shlex
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from trm.config.schema import TextKind, all_keys, text_kind
from trm.errors import ConfigError

QUOTES = "'\"\u2018\u2019\u201c\u201d"
FUNCTION = re.compile(r"\s*(bool|choice|extend_list|float|glob|int|interval|json_str|range|shuffle|sort|str|tag)\s*\(.*\)\s*")
CHOICE = re.compile(r"\s*choice\s*\(([^()=]*)\)\s*")
QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
PIECE = re.compile(rf"({QUOTED}|(?:\\.|[^,])+)")  # of a sweep
ENTRY = re.compile(rf"({QUOTED}|(?:\\.|[^,\[\]])+)")  # of a list
PAIR = re.compile(rf"(\w+)(\s*:\s*)({QUOTED}|\[[^\]]*\]|[^,{{}}\[\]]*)")  # of a group's values in braces


def override(key: str, value: object) -> str:
    """The override that gives the key this value: text is quoted if Hydra would otherwise read something else."""
    plain = f"{key}={'null' if value is None else value}"
    if not isinstance(value, str) or _reads(plain) == value:
        return plain
    return f"{key}={_quoted(value)}"


def as_typed(given: str) -> str:
    """An override whose value Hydra reads as it was typed, if the schema calls the value text; others are returned unchanged.

    run_name=1e3 becomes run_name="1e3"; so does each value of a sweep, each entry of a list, and each text of KEY={...}.
    """
    name, equals, value = given.partition("=")
    key = name.lstrip("+")
    if not equals:
        return given
    if "${" in value:  # an interpolation
        unreadable = text_kind(key) in (TextKind.PLAIN, TextKind.OPTIONAL) and "," not in value and _reads(f"k={value}") is None
        return f"{name}={_quoted(value)}" if unreadable else given
    if text_kind(key) and (choice := CHOICE.fullmatch(value)):
        value = choice[1]  # as a,b,c, since a job's override lacks the quotes of choice("a","b","c")
    if FUNCTION.fullmatch(value):
        return given
    if value.startswith("{") and any(each.rpartition(".")[0] == key for each in all_keys()):
        return f"{name}=" + PAIR.sub(lambda pair: f"{pair[1]}{pair[2]}{_texts(f'{key}.{pair[1]}', pair[3])}", value)
    return f"{name}={_texts(key, value)}"


def parsed(given: str) -> tuple[str, Any]:
    """The key and the value of an override, read as on the command line of a run. Raises ConfigError, also for a sweep."""
    try:
        found = OverridesParser.create().parse_override(as_typed(given))
        if not found.is_sweep_override():
            return found.key_or_group, found.value()
    except HydraException:
        pass
    raise ConfigError(f"{given} is not understood: {quoting_hint(given)}")


def quoting_hint(given: str) -> str:
    """How to write an override that Hydra cannot read."""
    key, equals, value = given.partition("=")
    if wrong := re.match("[\u2010-\u2015]", given) or re.match("[\u2018-\u201f]", value):
        return f"{wrong[0]} is a typographic sign that a text program put in the place of a plain - or quote: type it again"
    if wrong := re.search("[^\x00-\x7f]", key):
        return f"its key has {wrong[0]!a}, which is not an ASCII letter: type the key again"
    quoted = override(key, value)
    if not equals or _reads(quoted) != value:
        return f"write it as {key if re.fullmatch('[a-zA-Z_.]+', key) else 'KEY'}=VALUE"
    return f"if its value is text, quote it for Hydra and for the shell: {shlex.quote(quoted)}"


def _texts(key: str, value: str) -> str:
    """One or several values of a key, separated by commas, each in quotes if Hydra would read anything but this text."""
    kind = text_kind(key)
    if kind is None or (kind != TextKind.LIST and isinstance(_reads(f"k={value}"), list | dict)):
        return value

    def quoted(piece: re.Match[str]) -> str:
        text, null = piece[0].strip(), kind == TextKind.OPTIONAL
        if not text or text[0] in QUOTES or (null and text.lower() == "null") or isinstance(_reads(f"k={text}"), str):
            return piece[0]
        return piece[0].replace(text, _quoted(text))

    return (ENTRY if kind == TextKind.LIST else PIECE).sub(quoted, value)


def _quoted(text: str) -> str:
    escaped = re.sub(r'(\\*)(")', r"\1\1\\\2", re.sub(r"(\\+)$", r"\1\1", text))
    return f'"{escaped}"'


def _reads(text: str) -> object:
    """The value that Hydra reads in an override; None if it reads no value, or several."""
    try:
        found = OverridesParser.create().parse_override(text)
        return None if found.is_sweep_override() else found.value()
    except (HydraException, ValueError):
        return None
