"""Measure this machine: `python -m trm.bench SUBCOMMAND [KEY=VALUE ...] [--json FILE]`.

  host         milliseconds of host time in a training step, compiled and lazy, on one device and on the mesh of eight
  compile      seconds until the first step at the paper's size, for T*n from 4 to 32
  checkpoint   seconds that saving holds training up, seconds until it is on disk, bytes, seconds to read it again

KEY=VALUE changes the settings that are measured, as in trm.train. --json FILE also writes the numbers with the machine and the
versions. The numbers mean something on a machine that does nothing else.
"""

import json
import sys
from pathlib import Path

from trm.bench import checkpoint, compiling, host
from trm.bench.machine import facts, table
from trm.cli import plain_command
from trm.errors import UserError

SUBCOMMANDS = {"host": host.measure, "compile": compiling.measure, "checkpoint": checkpoint.measure}


def main(arguments: list[str]) -> None:
    """The command; see the module's docstring."""
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        raise UserError(f"{name} is not a benchmark: choose one of {', '.join(SUBCOMMANDS)}")
    file = None
    if "--json" in rest:
        at = rest.index("--json")
        if at + 1 == len(rest):
            raise UserError("--json needs the name of a file")
        file = Path(rest[at + 1])
        rest = rest[:at] + rest[at + 2 :]
    unknown = [a for a in rest if "=" not in a]
    if unknown:
        raise UserError(f"{unknown[0]} is not understood: arguments are KEY=VALUE and --json FILE")
    rows = SUBCOMMANDS[name](rest)
    machine = facts()
    print(table(rows))
    print("  ".join(f"{key}: {value}" for key, value in machine.items()))
    if file is not None:
        try:
            file.write_text(json.dumps({"benchmark": name, "overrides": rest, "machine": machine, "rows": rows}, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--json {file}: {error.strerror}: choose another file") from error


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    plain_command(main, __doc__)
