"""KEY=VALUE as Hydra's grammar reads it back: it knows ASCII letters alone outside quotes, and a comma makes a sweep."""

import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def override(key: str, value: object) -> str:
    """The override that gives the key this value: text is quoted where Hydra would read something else or nothing."""
    plain = f"{key}={'null' if value is None else value}"
    if not isinstance(value, str) or _reads(plain) == value:
        return plain
    escaped = re.sub(r'(\\*)(")', r"\1\1\\\2", re.sub(r"(\\+)$", r"\1\1", value))
    return f'{key}="{escaped}"'


def quoting_hint(given: str) -> str:
    """How to write an override that Hydra cannot read."""
    key, equals, value = given.partition("=")
    if wrong := re.match("[\u2010-\u2015]", given) or re.match("[\u2018-\u201f]", value):
        return f"{wrong[0]} is a typographic sign, as a text program makes of a plain - or quote: type it anew"
    quoted = override(key, value)
    if not equals or _reads(quoted) != value:
        return f"write it as {key if re.fullmatch('[a-zA-Z_.]+', key) else 'KEY'}=VALUE"
    return f"if its value is text, quote it for Hydra and for the shell: {shlex.quote(quoted)}"


def _reads(text: str) -> object:
    """The value that Hydra reads in an override; None where it reads none, or several."""
    try:
        found = OverridesParser.create().parse_override(text)
        return None if found.is_sweep_override() else found.value()
    except (HydraException, ValueError):
        return None
