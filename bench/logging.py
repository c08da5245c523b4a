"""What logging costs training, and how much it writes: metrics.jsonl, TensorBoard and W&B offline, each alone and all together.

The share is that of the shortest step that the paper's settings could ever take: on all of a v4-64 at its peak (trm.plan). W&B
writes and sends in a process of its own, which is not counted.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.machine import Row, median_and_spread, turns
from trm.cli import compose
from trm.config import Config
from trm.core.metrics import MOST_SAMPLES, training_names
from trm.ground.clock import Lap
from trm.inference.samples import Samples
from trm.plan.estimate import estimate
from trm.plan.workload import workload
from trm.tasks.base import task_of
from trm.tasks.sudoku.rules import BLANK
from trm.tracking.evaluation import Evaluation, held_out
from trm.tracking.trackers import open_trackers
from trm.tracking.training import training_values

PAPER = ["data=sudoku_9x9", "train.global_batch_size=768", "hardware=v4_64", "run_name=logging"]
TRACKERS = {
    "metrics.jsonl": ["tracking=none"],
    "with TensorBoard": ["tracking=tensorboard"],
    "with W&B offline": ["tracking=offline", "tracking.tensorboard=false"],
    "all": ["tracking=offline"],
}
LOGS, EVALUATIONS = 500, 10


def measure(overrides: list[str]) -> Iterator[Row]:
    """One row for each set of trackers."""
    cfg = compose([*PAPER, *overrides])
    shortest_step_s = estimate(workload(cfg), cfg.hardware, host_s=0.0).train_step.roofline
    for name, tracking in turns(TRACKERS.items(), "trackers"):
        cfg = compose([*PAPER, *tracking, *overrides])
        with tempfile.TemporaryDirectory() as folder:
            yield {"trackers": name} | _measure(cfg, Path(folder), shortest_step_s)


def _measure(cfg: Config, run_dir: Path, shortest_step_s: float) -> Row:
    trackers = open_trackers(cfg, run_dir, is_main=True, resume_step=None, wandb_run_id=None)
    values = training_values(cfg, dict.fromkeys(training_names(), 1.5), Lap(100, 1.0, 0.1), (0.1, 0.0), 100, 65104, 3)
    before = _size(run_dir)
    logging, evaluating = [], []
    for step in range(LOGS):
        began = time.perf_counter()
        trackers.log("train", step, values)
        logging.append(time.perf_counter() - began)
    for step in range(EVALUATIONS):
        evaluation = _evaluation(cfg, seed=step)
        began = time.perf_counter()
        trackers.show(step, evaluation)
        evaluating.append(time.perf_counter() - began)
    trackers.finish("completed", 0, {})
    log_s, evaluation_s = median_and_spread(logging), median_and_spread(evaluating)
    return {
        "ms a log": 1e3 * log_s["median"],
        "max ms": 1e3 * log_s["max"],
        "share %": _share(log_s["median"], cfg.train.log_every_steps, shortest_step_s),
        "ms an evaluation": 1e3 * evaluation_s["median"],
        "evaluations' share %": _share(evaluation_s["median"], cfg.train.eval_every_steps, shortest_step_s),
        "shortest step ms": 1e3 * shortest_step_s,
        "MB in the end": (_size(run_dir) - before) / 1e6,
    }


def _share(seconds: float, every_steps: int | None, step_s: float) -> float | None:
    return None if every_steps is None else 100 * seconds / (every_steps * step_s)


def _evaluation(cfg: Config, seed: int) -> Callable[[], Evaluation]:
    """Answers to MOST_SAMPLES puzzles in which half the blank cells are guessed."""
    task, random, n_sup = task_of(cfg.data), np.random.default_rng(seed), cfg.recursion.n_sup
    cells = (MOST_SAMPLES, task.facts.seq_len)
    solutions = random.integers(BLANK + 1, task.facts.vocab_size, cells, np.int32)
    questions = np.where(random.random(cells) < 0.4, solutions, BLANK).astype(np.int32)
    guesses = random.integers(BLANK + 1, task.facts.vocab_size, (n_sup, *cells), np.int32)
    right = (questions > BLANK) | (random.random((n_sup, *cells)) < 0.5)
    samples = Samples(
        inputs=questions,
        labels=solutions,
        predictions=np.where(right, solutions, guesses).astype(np.int32),
        confidence=random.random((n_sup, *cells), np.float32),
        q_halt=random.normal(size=(n_sup, MOST_SAMPLES)).astype(np.float32),
    )
    by_step = [{"exact_accuracy": s / n_sup, "accuracy": 0.5 + s / n_sup / 2} for s in range(n_sup)]
    return lambda: Evaluation(by_step, held_out(samples, task))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
