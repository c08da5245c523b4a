"""Running the real commands in a folder, as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path

# The smallest run that has everything: evaluations, checkpoints, halting, EMA. Through torch_xla, as on a TPU.
TINY = [
    "hardware=cpu_xla", "data=sudoku_4x4", "model=tiny", "recursion=t2_n2", "recursion.n_sup=4", "tracking=none",
    "train.global_batch_size=16", "train.max_steps=20", "train.log_every_steps=1", "train.eval_every_steps=10",
    "train.checkpoint_every_steps=5", "evaluate.max_puzzles=40", "data.num_puzzles=64", "data.num_test_puzzles=64",
]  # fmt: skip


# Values of metrics.jsonl that differ between two runs of the same.
TIMES = ("samples_per_s", "step_time_s", "host_time_s", "loader_wait_s", "compiles")


def environment(**extra: str) -> dict[str, str]:
    """The environment of a command under test: no W&B account, whatever this machine has."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k != "HYDRA_FULL_ERROR"}
    return inherited | extra


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def run(
    folder: Path, module: str, *arguments: str, check: int | None = 0, timeout: int = 240, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in `folder` with extra environment variables; its exit code must be `check`."""
    arguments = tuple(command(module, *arguments))
    done = subprocess.run(
        arguments, cwd=folder, env=environment(**extra), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert check is None or done.returncode == check, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def run_unread(folder: Path, *argv: str) -> tuple[int, str]:
    """Exit code and stderr of a command whose output nobody reads, as after `| head` has ended."""
    process = subprocess.Popen(argv, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    error = process.stderr.read()
    return process.wait(timeout=240), error


def metrics(run_dir: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def numbers(run_dir: Path, kind: str = "train") -> list[dict]:
    """The metrics without those that depend on the clock."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in metrics(run_dir, kind)]
