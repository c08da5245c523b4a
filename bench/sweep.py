"""Seconds of a tiny grid side by side and one after another, and what of them is not training."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.machine import CAPTURED, Row, ended, median_and_spread, turns, until_stopped
from trm.cli import compose
from trm.data.build import ensure_dataset
from trm.errors import RunFailure, UserError
from trm.ground.folder import read_summary

GRID = ["seed=0,1,2,3"]
TINY = ["experiment=demo_4x4", "train.max_steps=100", "evaluate.max_puzzles=250", "tracking=none"]
WAYS = DEFAULT_WAYS = ("1", "2")  # jobs at once
ROUNDS = 2


def measure(overrides: list[str], ways: list[str], rounds: int) -> list[Row]:
    """One row for each number of jobs at once. The dataset is there before the sweeps start; each starts in a new folder."""
    grid = [o for o in overrides if o.startswith("seed=")] or GRID
    given = [*TINY, *(o for o in overrides if o not in grid)]
    walls: dict[str, list[float]] = {way: [] for way in ways}
    jobs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        given.append(f"data.path={folder}/data")
        ensure_dataset(compose(given).data)
        with until_stopped():
            for number in turns(range(rounds), "rounds"):
                found = {}
                for way in ways:
                    sweep = Path(folder) / f"{number}-{way}"
                    sweep.mkdir()
                    began = time.perf_counter()
                    summaries = _run([*given, *grid, f"hardware.jobs={way}"], sweep)
                    found[way] = (time.perf_counter() - began, summaries)
                for way, (wall, summaries) in found.items():
                    walls[way].append(wall)
                    jobs[way] += summaries
    if not all(walls.values()):
        return []  # stopped before the first round was whole
    rows = []
    for way in ways:
        spread, count = median_and_spread(walls[way]), len(jobs[way]) // len(walls[way])
        training = median_and_spread([job["seconds"] for job in jobs[way]])["median"]
        first = median_and_spread([job["seconds_to_first_step"] for job in jobs[way]])["median"]
        of_a_job = spread["median"] * min(int(way), count) / count
        row: Row = {"jobs": count, "at once": int(way), "s": spread["median"], "low": spread["low"], "high": spread["high"]}
        row |= {"s of a job": of_a_job, "training s": training, "compile and first step s": first}
        row |= {"start-up share": 1 - training / of_a_job}
        if WAYS[0] in ways:
            times = [one / wall for one, wall in zip(walls[WAYS[0]], walls[way], strict=True)]
            row["times one after another"] = median_and_spread(times)["median"]
        rows.append(row | {"all s": walls[way]})
    return rows


def _run(overrides: list[str], folder: Path) -> list[dict[str, Any]]:
    """A sweep in a folder of its own; the summaries of its jobs."""
    command = [sys.executable, "-m", "trm.train", "--multirun", *overrides]
    done = ended(subprocess.Popen(command, cwd=folder, **CAPTURED))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise (UserError if done.returncode == 2 else RunFailure)(last.removeprefix("error: "))
    summaries = [read_summary(path.parent) for path in folder.glob("multirun/*/*/summary.json")]
    return [summary for summary in summaries if summary is not None]
