"""One benchmark of two revisions or two configs, in turns A B A B, so that whatever else the machine does meets both alike.

Each turn is a process of its own. A figure's ratio B/A is the geometric mean over the turns of the ratios within a turn; its 95 %
interval is Student's t over their logarithms.
"""

import contextlib
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from bench.machine import Row, child, median_and_spread, turns, until_stopped
from trm.cli import ROOT
from trm.errors import EXIT_USER_ERROR, RunFailure, UserError

WORKING_TREE = "."
SPREAD = ("low", "high")  # last words of the columns of a benchmark that say how sure another one is
TURNS = 5


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    name: str
    overrides: Sequence[str] = ()
    root: Path | None = None  # of the code; None = this one


def compare(benchmark: str, arguments: Sequence[str], sides: Sequence[Side], rounds: int) -> list[Row]:
    """One row for each figure of each row of the benchmark. `arguments` are those of both sides.

    Raises RunFailure where a side fails or the two do not have the same rows, UserError where a side refuses its input.
    """
    found: list[list[list[Row]]] = [[], []]
    with until_stopped():
        for _ in turns(range(rounds), "turns A B"):
            pair = [_run(benchmark, [*arguments, *side.overrides], side) for side in sides]
            for rows, results in zip(pair, found, strict=True):
                results.append(rows)
            lengths = {len(rows) for results in found for rows in results}
            if len(lengths) > 1:
                raise RunFailure(f"the two do not give the same rows of {benchmark}: {sorted(lengths)}")
    if len(found[0]) < 2:
        return []  # stopped too early for an interval
    first, second = ([list(rows) for rows in zip(*results, strict=True)] for results in found)
    return [row for pair in zip(first, second, strict=True) for row in _ratios(*pair, sides)]


def _run(benchmark: str, arguments: Sequence[str], side: Side) -> list[Row]:
    environment = dict(os.environ)
    if side.root is not None:  # PYTHONSAFEPATH: else the code of the current folder would come first
        environment |= {"PYTHONPATH": str(side.root), "PYTHONSAFEPATH": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "trm.bench", benchmark, *arguments, "--json", str(file)]
        returned, _, err = child(command, environment)
        if returned:
            last = (err.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
            raise (UserError if returned == EXIT_USER_ERROR else RunFailure)(f"{side.name}: {last}")
        rows: list[Row] = json.loads(file.read_text())["rows"]
    return rows


def _ratios(first: Sequence[Row], second: Sequence[Row], sides: Sequence[Side]) -> list[Row]:
    """The same row of the benchmark in all turns, of both sides: a row for each figure that was measured."""
    a, b = first[0], second[0]
    label = {name: value for name, value in a.items() if not isinstance(value, (float, list)) and b.get(name) == value}
    rows = []
    for name, value in a.items():
        if not isinstance(value, float) or name.split()[-1] in SPREAD or not isinstance(b.get(name), float):
            continue
        values = [[row[name] for row in turns] for turns in (first, second)]
        if values[0] == values[1] or min(map(min, values)) <= 0:  # nothing that was measured, or nothing to divide by
            continue
        ratio, low, high = ratio_with_interval(*values)
        medians = {side.name: median_and_spread(measured)["median"] for side, measured in zip(sides, values, strict=True)}
        row = {**label, "figure": name, **medians, "ratio": ratio, "low": low, "high": high}
        rows.append(row | {f"all {side.name}": measured for side, measured in zip(sides, values, strict=True)})
    return rows


def ratio_with_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """second/first of positive values in pairs: geometric mean, and its 95 % interval. Needs two pairs at least."""
    logs = np.log(np.asarray(second) / np.asarray(first))
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    mean = float(logs.mean())
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


# ---------------------------------------------------------------------------------------------------------------------- sides


def configs(texts: Sequence[str]) -> list[Side]:
    """Two lists of KEY=VALUE, each written as one argument."""
    sides = [Side(text, shlex.split(text)) for text in texts]
    for side in sides:
        if not side.overrides or not all("=" in word for word in side.overrides):
            raise UserError(
                f"--configs {side.name!r}: write two lists of KEY=VALUE, such as --configs hardware=cpu hardware=cpu_xla"
            )
    if sides[0].name == sides[1].name:
        raise UserError(f"--configs {sides[0].name!r} twice: give two that differ")
    return sides


@contextlib.contextmanager
def revisions(text: str) -> Iterator[list[Side]]:
    """Two git revisions "A,B" checked out into a temporary folder; "." is the working tree as it is. Raises UserError."""
    names = text.split(",")
    if len(names) != 2 or names[0] == names[1]:
        raise UserError(f"--revisions {text}: give two that differ, such as --revisions HEAD~1,HEAD or --revisions HEAD,.")
    root = ROOT
    commits = {name: _commit(root, name) for name in names if name != WORKING_TREE}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        sides = []
        for number, name in enumerate(names):
            tree = root
            if name != WORKING_TREE:
                tree = Path(folder) / str(number)
                _git(root, "worktree", "add", "--detach", str(tree), commits[name])
                stack.callback(_git, root, "worktree", "remove", "--force", str(tree))
            sides.append(Side(name, (), tree))
        yield sides


def _commit(root: Path, name: str) -> str:
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except RunFailure as error:
        raise UserError(f"--revisions: {name!r} is no revision of {root}: `git log --oneline --all` lists them") from error


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailure(f"git {arguments[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.strip()
