"""How runs share a CPU: one alone, beside a busy process, and two at once that know nothing of one another.

Each run is a process of trm.train, as a user starts it. Its figure is the median samples/s of its laps after the first third.
`ways` are what the environment says of how OpenMP's threads wait for one another; "configured" leaves that to the project.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.machine import Row, turns, until_stopped
from trm.errors import RunFailure

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # read when torch loads
ROUNDS = 3
STEPS, LAP = 180, 15
WAYS = {
    "configured": {},
    "as_they_come": {"GOMP_SPINCOUNT": "300000"},  # what libgomp takes where nothing is said
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
    **{f"spin_{count}": {"GOMP_SPINCOUNT": str(count)} for count in (400, 600, 1000, 3000, 10000, 30000, 100000)},
}
DEFAULT_WAYS = ("configured",)
SETTINGS = ["data=sudoku_4x4", "recipe=tiny", "recursion=t2_n2", "tracking=none", f"train.max_steps={STEPS}"]
SETTINGS += [f"train.log_every_steps={LAP}", "train.eval_every_steps=null", "train.checkpoint_every_steps=null"]
SETTINGS += ["evaluate.max_puzzles=64", "data.num_test_puzzles=64", "data.num_puzzles=512"]
BUSY = [sys.executable, "-c", "while True: pass"]


def measure(overrides: list[str], ways: list[str], rounds: int) -> list[Row]:
    """A row for each way: samples/s of a run alone, beside a busy process, and of each of two; shares of the first."""
    found: dict[str, dict[str, list[float]]] = {way: {"alone": [], "beside": [], "each of two": []} for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in ways:
            _runs(folder, overrides, way, 1)  # which builds the data, and what is compiled is kept
        with until_stopped():
            for _, way in turns(itertools.product(range(rounds), ways), "rounds"):
                by_itself = _runs(folder, overrides, way, 1)
                busy = subprocess.Popen(BUSY)
                try:
                    with_busy = _runs(folder, overrides, way, 1)
                finally:
                    busy.kill()
                    busy.wait()
                for case, rates in zip(found[way], (by_itself, with_busy, _runs(folder, overrides, way, 2)), strict=True):
                    found[way][case] += rates
    rows = []
    for way, cases in found.items():
        if not all(cases.values()):
            continue  # stopped before its first round was whole
        alone, beside, each = (median(values) for values in cases.values())
        rows.append(
            {"way": way, "alone": alone, "beside a busy process": beside, "each of two": each}
            | {"beside/alone": beside / alone, "both/alone": 2 * each / alone}
            | {f"{case}, measured": values for case, values in cases.items()}
        )
    return rows


def _runs(folder: Path, overrides: list[str], way: str, count: int) -> list[float]:
    """Samples/s of so many runs at once."""
    environment = {k: v for k, v in os.environ.items() if k not in WAIT_VARIABLES} | WAYS[way]
    command = [sys.executable, "-m", "trm.train", *SETTINGS, *overrides]
    runs = [
        subprocess.Popen([*command, f"run_name={i}", "train.resume=never"], cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        for i in range(count)
    ]
    try:
        if any([run.wait() for run in runs]):
            raise RunFailure("a run that was to be measured ended badly")
    finally:
        for run in runs:
            run.terminate()
            run.wait()
    rates = []
    for i in range(count):
        lines = (folder / "outputs" / str(i) / "metrics.jsonl").read_text().splitlines()
        laps = [entry for line in lines if (entry := json.loads(line))["kind"] == "train"]
        rates.append(median(lap["samples_per_s"] for lap in laps[len(laps) // 3 :]))
    return rates
