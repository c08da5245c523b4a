"""What a number was measured on, and how numbers are summed up and shown."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from trm.cli import CONF_DIR
from trm.errors import RunFailure

Row = dict[str, Any]


def facts() -> dict[str, Any]:
    """Machine, versions and git revision."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=CONF_DIR, capture_output=True, text=True, check=False)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "torch_xla")},
        "revision": git.stdout.strip() or "no git",
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def median_and_spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and maximum."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "max": max(values)}


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text; numbers with four digits that count."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([_text(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_child(module: str, function: str, request: dict[str, Any]) -> list[Row]:
    """Rows that `module.function(request)` returns in a process of its own, which can start another kind of runtime."""
    code = (
        f"import importlib, json, sys; rows = importlib.import_module({module!r}).{function}(json.load(sys.stdin)); "
        "print('\\n' + json.dumps(rows))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailure(f"{module}.{function} of {request} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return rows
