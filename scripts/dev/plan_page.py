"""Fill docs/results/plan_v4_64.md again: below each of its headings that is a command stands what that command prints."""

import contextlib
import io
import re
import shlex
from pathlib import Path

from trm.plan.__main__ import main

FILE = Path(__file__).resolve().parents[2] / "docs" / "results" / "plan_v4_64.md"
BLOCK = re.compile(r"^## `python -m trm\.plan ([^\n`]*)`\n```\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def blocks() -> dict[str, str]:
    """What stands on the page below each command, by the command's arguments."""
    return {block[1]: block[2] for block in BLOCK.finditer(FILE.read_text())}


def printed(arguments: str) -> str:
    """What the command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(shlex.split(arguments))
    return out.getvalue()


if __name__ == "__main__":
    filled = BLOCK.sub(lambda block: f"## `python -m trm.plan {block[1]}`\n```\n{printed(block[1])}```\n", FILE.read_text())
    FILE.write_text(filled)
    print(f"written: {FILE}")
