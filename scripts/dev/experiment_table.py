"""Write docs/results/experiments.md, every named experiment with its digests: `python scripts/dev/experiment_table.py`."""

from __future__ import annotations

import re
from pathlib import Path

from trm.cli import CONF_DIR, compose
from trm.config import digest

FILE = Path(__file__).resolve().parents[2] / "docs" / "results" / "experiments.md"
TINY = ["recipe=tiny", "data=sudoku_6x6"]
HEAD = """# The named experiments

What each changes in its parent (`e1_1_baseline`; for rows of the paper `paper_t3_n6`, which has three times the batch), and its
digest at full size and with `recipe=tiny data=sudoku_6x6`: two runs with the same digest compute the same numbers. Made by
`python scripts/dev/experiment_table.py`; `tests/test_experiments.py` holds every line to it.

| experiment | changes | digest | tiny |
| --- | --- | --- | --- |
"""


def table() -> str:
    """The page."""
    lines = []
    for path in sorted((CONF_DIR / "experiment").glob("[!_]*.yaml")):
        text = re.sub(r"\n#   (?=\S+ (?:up|down|=))", " ", path.read_text(encoding="utf-8"))
        found = re.search(r"^# Changes: (.*)$", text, re.MULTILINE)
        alias = re.search(r"^# Alias of: (\S+)$", text, re.MULTILINE)
        changes = f"= `{alias[1]}`" if alias else found[1] if found else "-"
        digests = [digest(compose([f"experiment={path.stem}", "run_name=r", *size])) for size in ([], TINY)]
        lines.append(f"| `{path.stem}` | {changes} | `{digests[0]}` | `{digests[1]}` |")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(table())
    print(f"written: {FILE}")
