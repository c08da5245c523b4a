"""The named experiments of conf/experiment: which of them are the same run under two names."""

import re
from functools import cache

from trm.cli import CONF_DIR


@cache
def aliases() -> dict[str, str]:
    """The experiments that are another one by a second name ("# Alias of: NAME" in the file), and which."""
    found = {}
    for path in sorted((CONF_DIR / "experiment").glob("[!_]*.yaml")):
        match = re.search(r"^# Alias of: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            found[path.stem] = match[1]
    return found
