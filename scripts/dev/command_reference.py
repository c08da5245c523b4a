"""Write docs/reference/commands.md, what `--help` of each command prints: python scripts/dev/command_reference.py"""

import ast
import re
from pathlib import Path

import yaml

from trm.config.groups import CONF_DIR, describe_groups

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "reference" / "commands.md"
# In the order of their use: command, file whose docstring is the help, what it is for.
COMMANDS = (
    ("train", "trm/train.py", "train a run or a sweep"),
    ("build_data", "trm/build_data.py", "build a dataset folder"),
    ("doctor", "trm/doctor.py", "check the machine before a run"),
    ("evaluate", "trm/evaluate.py", "evaluate a trained run"),
    ("solve", "trm/solve.py", "solve puzzles with a trained network"),
    ("playground", "trm/playground.py", "try trained networks in a browser"),
    ("report", "trm/report/__main__.py", "compare runs in a table and on a page"),
    ("plan", "trm/plan/__main__.py", "costs on a TPU, before one is rented"),
    ("interop", "trm/interop.py", "exchange weights with the released code"),
    ("dashboard", "trm/dashboard.py", "the study's W&B workspace"),
    ("bench", "bench/__main__.py", "measure speed, start-up and memory; needs a checkout"),
)
HEAD = """# Every command

For everyone who uses the command line: what each command does, and what its `--help` prints.

A command is `python -m trm.NAME` in a checkout and `trm-NAME` after `pip install .` (`trm-build-data` for `build_data`). The
commands share [keys](config.md) and [exit codes](../how-to/resume.md#exit-codes). The page is made by
`python scripts/dev/command_reference.py`; do not edit it.

| command | what it is for |
| --- | --- |
"""


def reference() -> str:
    """The page."""
    rows = "".join(f"| [`trm.{name}`](#trm{name}) | {about} |\n" for name, _, about in COMMANDS)
    return HEAD + rows + "".join(f"\n## trm.{name}\n```text\n{_help(name, file)}\n```\n" for name, file, _ in COMMANDS)


def _help(name: str, file: str) -> str:
    if name == "train":
        shown = yaml.safe_load((CONF_DIR / "config.yaml").read_text(encoding="utf-8"))["hydra"]["help"]["template"]
        groups = re.sub(r"(?m)(^  experiment .*\n).*", r"\1              one of conf/experiment", describe_groups())
        return str(shown).replace("${trm_groups:}", groups).rstrip()
    return (ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or "").rstrip()


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    print(f"written: {FILE}")
