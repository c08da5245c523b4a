"""Run folders as trm/train.py leaves them, without training."""

import copy
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from thinking_fixtures import puzzle

from trm.cli import compose
from trm.config import to_plain
from trm.inference.samples import Samples
from trm.tasks.sudoku.task import SudokuTask as Sudoku


def config(*overrides: str) -> dict[str, Any]:
    """The resolved config that a run with the overrides saves."""
    return copy.deepcopy(_config(overrides))


@functools.cache  # composing takes half a second
def _config(overrides: tuple[str, ...]) -> dict[str, Any]:
    return to_plain(compose([*overrides, "run_name=x"]))


def write_run(
    folder: Path,
    settings: dict[str, Any] | None = None,
    accuracy: float | None = 0.5,
    *,
    seed: int = 0,
    steps: int = 400,
    status: str | None = "completed",
    experiment: str | None = None,
    samples: Samples | None = None,
    **summary: Any,
) -> Path:
    """A run folder with `settings` (see `config`); status None leaves out the summary, as a killed run does."""
    folder.mkdir(parents=True)
    settings = {**(settings or config("data=sudoku_4x4")), "seed": seed, "run_name": folder.name}
    (folder / "config.yaml").write_text(yaml.dump(settings, Dumper=yaml.CSafeDumper, sort_keys=False))
    if experiment:
        (folder / "config").mkdir()
        record = {"hydra": {"runtime": {"choices": {"experiment": experiment}}}}
        (folder / "config" / "hydra.yaml").write_text(yaml.dump(record))
    final = accuracy or 0.0
    lines = []
    for i in range(1, 11):
        step, share = steps * i // 10, 1 - math.exp(-i / 2.5)
        lines.append({"kind": "train", "global_step": step, "loss": 1.8 * math.exp(-3 * final * share) + 0.03 * (seed % 3)})
        if i % 2 == 0:
            lines.append({"kind": "eval", "global_step": step, "exact_accuracy": final * share / (1 - math.exp(-4))})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if samples:
        (folder / "samples.json").write_text(samples.to_json())
    if status:
        values = {
            "status": status, "reason": None, "steps": steps, "total_steps": steps, "exact_accuracy": accuracy,
            "best_exact_accuracy": accuracy, "best_step": steps, "seconds": 100.0 + seed, "samples_per_s": 200.0 + seed,
            "parameters": 123778, "config_digest": "0" * 16, "seed": seed, "warnings": [],
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps({**values, **summary}))
    return folder


def made_samples(sudoku: Sudoku, steps: int = 4, puzzles: int = 5) -> Samples:
    """Answers that come closer to the solution with every supervision step; the last one solves all puzzles but the first."""
    made = puzzle(sudoku)
    generator = np.random.default_rng(0)
    labels = np.stack([made.solution] * puzzles).astype(np.int32)
    predictions = np.stack([labels] * steps)
    for step in range(steps - 1):
        lost = generator.random(labels.shape) < 0.8 * (1 - step / steps)
        predictions[step][lost] = generator.integers(1, sudoku.vocab_size, lost.sum())
    predictions[-1, 0, -1] = 1
    return Samples(
        inputs=np.stack([made.question] * puzzles).astype(np.int32),
        labels=labels,
        predictions=predictions,
        confidence=generator.random(predictions.shape, np.float32),
        q_halt=np.linspace(-4, 4, steps * puzzles, dtype=np.float32).reshape(steps, puzzles),
    )


def write_grid(sweep: Path, jobs: dict[str, list[str]]) -> None:
    """The grid.json of a sweep folder: each job's folder with its overrides."""
    record = {"jobs": [{"dir": name, "overrides": overrides} for name, overrides in jobs.items()]}
    (sweep / "grid.json").write_text(json.dumps(record))


def write_tn_sweep(sweep: Path) -> Path:
    """Five recursions by three seeds on 4x4 Sudoku; one job failed, one was preempted, one still runs, one is missing.

    The runs of T=2 n=2 and T=3 n=6 have samples and accuracies by step, the others are older.
    """
    accuracies = {"t2_n2": 0.71, "t2_n6": 0.86, "t3_n4": 0.81, "t3_n6": 0.93, "t4_n6": 0.9}
    jobs = {}
    for recursion, accuracy in accuracies.items():
        settings = config("data=sudoku_4x4", "model=tiny", f"recursion={recursion}", "train.max_steps=400")
        for seed in range(3):
            name = f"{len(jobs)}-recursion={recursion},seed={seed}"
            jobs[name] = [f"recursion={recursion}", f"seed={seed}"]
            exact = accuracy + (-0.03, 0.01, 0.02)[seed]
            match (recursion, seed):
                case ("t2_n6", 2):
                    reason = "RuntimeError: RESOURCE_EXHAUSTED: out of memory while allocating 34359738368 bytes"
                    write_run(sweep / name, settings, None, seed=seed, steps=40, status="failed", reason=reason)
                case ("t3_n4", 1):
                    write_run(sweep / name, settings, 0.4, seed=seed, steps=200, status="preempted", total_steps=400)
                case ("t4_n6", 1):
                    write_run(sweep / name, settings, 0.5, seed=seed, steps=160, status=None)
                case ("t4_n6", 2):
                    pass
                case ("t2_n2" | "t3_n6", _):
                    by_step = [exact * share for share in (0.3, 0.7, 0.9, 1)]
                    samples = made_samples(Sudoku(2, 2))
                    write_run(sweep / name, settings, exact, seed=seed, samples=samples, exact_accuracy_by_step=by_step)
                case _:
                    write_run(sweep / name, settings, exact, seed=seed)
    write_grid(sweep, jobs)
    return sweep
