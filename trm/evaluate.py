"""Evaluate a trained run: `python -m trm.evaluate checkpoint=RUN [KEY=VALUE ...] [--out DIR]`.

Repeats the run's own last evaluation (every puzzle once, N_sup supervision steps, the last one read), on its own or with KEY=VALUE
on other puzzles or hardware.

  evaluate.early_exit=true             a row that halts takes the next puzzle: accuracy and mean steps with halting on
  evaluate.supervision_steps=[1,4,16]  accuracy against compute: the answers after so many supervision steps, in one pass
  evaluate.augmentations=8             so many symmetric copies of each puzzle vote on its answer
  evaluate.by_difficulty=true          the scores of puzzles that are alike hard, as their task measures it
  evaluate.max_variants=32             so many variants vote, of puzzles that have an identifier for each; else all do

The answers of variants are written as submission.json and answers.json, and the ways of supervision_steps, augmentations and
by_difficulty write a table (CSV, JSON) and a picture into RUN/evaluation, or into DIR with --out.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from trm.cli import plain_command

    plain_command("trm.evaluate:main", __doc__)
    raise SystemExit

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.backends import Runtime
from trm.cli import options
from trm.config import IGNORE_LABEL
from trm.core.flops import count_row_flops
from trm.data.loader import EvalLoader
from trm.errors import ConfigError, RunFailure, UserError
from trm.inference.compute import by_difficulty, compute_curve, votes
from trm.inference.evaluator import EvalResult, FullEvaluator, Trace, held_out_loader, make_evaluator, progress_of
from trm.inference.progress import Progress
from trm.run.experiment import on_devices, started
from trm.run.failures import not_finite
from trm.run.folder import write_whole
from trm.run.rank import process_rank, refuse_other_starters
from trm.run.saved import SavedRun, check_test_puzzles, open_run, split_arguments
from trm.show.curves import write_curve, write_difficulty, write_votes
from trm.tasks.base import PairsTask, task_of

OUT_FOLDER = "evaluation"  # of the run folder


def main(arguments: list[str]) -> None:
    """The command: evaluate and print, and the same as JSON on the last line."""
    refuse_other_starters()
    given = options("trm.evaluate", arguments, out={"type": Path})
    path, overrides, rest = split_arguments(given.rest)
    if rest:
        raise ConfigError(f"{rest[0]}: not understood: arguments are checkpoint=RUN, KEY=VALUE and --out DIR")
    logging.basicConfig(format="%(message)s")
    logging.getLogger(Progress.__module__).setLevel(logging.INFO)  # how far it is, where there is no terminal for a bar
    run = open_run(path, overrides)
    if not any(override.startswith("evaluate.max_variants=") for override in overrides):
        run.cfg.evaluate.max_variants = None  # training's evaluations take a sample
    wanted, votes = run.cfg.evaluate, isinstance(task_of(run.cfg.data), PairsTask)
    if not (given.out is None or votes or wanted.supervision_steps or wanted.augmentations > 1 or wanted.by_difficulty):
        raise ConfigError(
            "--out is for evaluate.supervision_steps, evaluate.augmentations and evaluate.by_difficulty: give one of them, or "
            "leave it out"
        )
    if wanted.supervision_steps:
        _curve(run, given.out)
    elif wanted.augmentations > 1:
        _voting(run, given.out)
    elif wanted.by_difficulty:
        _difficulty(run, given.out)
    else:
        _once(run, _out_folder(run, given.out) if votes else None)


def _once(run: SavedRun, folder: Path | None) -> None:
    """One evaluation: a line for each metric; what its votes come to is written into the folder."""
    runtime = started(run.cfg)
    evaluator = make_evaluator(run.cfg, runtime, on_devices(run.arch, runtime), run.fixed)
    findings = check_test_puzzles(run, evaluator.loader.dataset)
    weights, table = runtime.put_replicated((run.eval_weights, run.puzzle_embedding))
    _announce(run, runtime, f"{evaluator.loader.num_puzzles} puzzles")
    began = time.perf_counter()
    found = evaluator.run(weights, table)
    result = found.final
    if wrong := not_finite(result):
        raise RunFailure(
            f"{run.folder}: the evaluation is not finite ({wrong}), so its accuracy says nothing: use another checkpoint"
        )
    if not runtime.is_main:
        return
    print(f"step {run.meta.step}, {'EMA' if run.uses_ema else 'training'} weights, {time.perf_counter() - began:.1f} s")
    for name, value in result.items():
        print(f"  {name:<16} {value:.6g}")
    for finding in findings:
        print(f"  to be read with care: {finding}")
    if found.ballots is not None and folder is not None:
        print("  votes are those of this checkpoint alone")
        for name, text in found.ballots.documents().items():
            write_whole(folder / name, text)
            print(f"written: {folder / name}")
    print(json.dumps({"checkpoint_step": run.meta.step, **result}, sort_keys=True))


def _curve(run: SavedRun, out: Path | None) -> None:
    """Accuracy against compute: one pass of as many supervision steps as the longest asked for."""
    folder = _out_folder(run, out)
    steps = sorted(set(run.cfg.evaluate.supervision_steps))
    seen = _traced(run, steps[-1], copies=1)
    points = compute_curve(
        seen.trace.exact[:, seen.counted], seen.trace.halts[:, seen.counted], steps, count_row_flops(run.cfg, run.arch)
    )
    by_step = seen.result.by_step
    names = tuple(name for name in seen.result.score_names if name in by_step[0])
    rows = [asdict(point) | {name: by_step[point.supervision_steps - 1][name] for name in names} for point in points]
    if folder is not None:
        write_curve(folder, rows, seen.facts, names)


def _voting(run: SavedRun, out: Path | None) -> None:
    """Symmetric copies of each puzzle vote on its answer."""
    folder, copies, num_steps = _out_folder(run, out), run.cfg.evaluate.augmentations, run.cfg.recursion.n_sup
    seen = _traced(run, num_steps, copies)
    answers = seen.loader.undo(seen.trace.predictions).reshape(seen.loader.num_puzzles, copies, -1)
    task, questions, labels = seen.loader.task, seen.questions[seen.counted], seen.labels[seen.counted]
    rows = votes(
        answers[seen.counted],
        seen.trace.q_halt[-1].reshape(-1, copies)[seen.counted],
        labels,
        IGNORE_LABEL,
        num_steps * count_row_flops(run.cfg, run.arch),
        judge=lambda elected: {} if task is None else task.scores(questions, labels, elected),
    )
    if folder is not None:
        plain = [asdict(row) for row in rows]
        write_votes(folder, [row | row.pop("scores") for row in plain], seen.facts, seen.result.score_names)


def _difficulty(run: SavedRun, out: Path | None) -> None:
    """The scores of puzzles that are alike hard."""
    task = task_of(run.cfg.data)
    if task.difficulty_words is None:
        raise ConfigError(f"evaluate.by_difficulty: there is no measure of how hard a {task.title} is: leave it out")
    folder = _out_folder(run, out)
    seen = _traced(run, run.cfg.recursion.n_sup, copies=1)
    if seen.loader.task is None:
        raise ConfigError(
            f"evaluate.by_difficulty: data.path={run.cfg.data.path} holds no {task.title}: give the run's own puzzles"
        )
    scores = {"exact_accuracy": seen.trace.exact[-1], **seen.loader.scores(seen.trace.predictions, 0)}
    rows = by_difficulty(task.difficulty(seen.questions, seen.labels), scores)
    if folder is not None:
        write_difficulty(folder, rows, seen.facts | {"difficulty": task.difficulty_words})


@dataclass(frozen=True)
class _Seen:
    """A traced pass over N puzzles of C cells."""

    loader: EvalLoader
    questions: NDArray[np.int32]  # [N, C]
    labels: NDArray[np.int32]  # [N, C]
    result: EvalResult
    trace: Trace
    facts: dict[str, Any]  # for the record

    @property
    def counted(self) -> NDArray[np.bool_]:
        """The puzzles [N] with a label."""
        counted: NDArray[np.bool_] = (self.labels != IGNORE_LABEL).any(axis=1)
        return counted


def _traced(run: SavedRun, num_steps: int, copies: int) -> _Seen:
    """A traced pass over so many copies of each puzzle."""
    runtime = started(run.cfg)
    loader = held_out_loader(run.cfg, runtime, copies)
    findings = check_test_puzzles(run, loader.dataset)
    evaluator = FullEvaluator(
        runtime, on_devices(run.arch, runtime), run.fixed, loader, num_steps, progress_of(run.cfg, runtime), traced=True
    )
    weights, table = runtime.put_replicated((run.eval_weights, run.puzzle_embedding))
    _announce(run, runtime, f"{loader.num_rows} rows of {loader.num_puzzles} puzzles")
    for finding in findings if runtime.is_main else ():
        print(f"  to be read with care: {finding}")
    began = time.perf_counter()
    result, trace = evaluator.trace(weights, table)
    facts = {
        "run_name": run.cfg.run_name,
        "checkpoint_step": run.meta.step,
        "weights": "EMA" if run.uses_ema else "training",
        "data": run.cfg.data.name,
        "puzzles": loader.num_puzzles,
        "test_digest": loader.dataset.digest(),
        "findings": findings,
        "supervision_steps_in_training": run.meta.config["recursion"]["n_sup"],
        "runtime": runtime.describe(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    rows = loader.rows(0, loader.num_rows)
    return _Seen(loader, rows["inputs"][::copies], rows["labels"][::copies], result, trace, facts)


def _announce(run: SavedRun, runtime: Runtime, what: str) -> None:
    if runtime.is_main:
        print(f"{run.folder}: {what} on {runtime.describe()}", flush=True)


def _out_folder(run: SavedRun, out: Path | None) -> Path | None:
    """The folder to write to, made before the work begins; None on hosts that do not write. Raises UserError where it cannot be."""
    if process_rank()[0] > 0:
        return None
    if out is None:
        if run.folder.parent.name != "checkpoints":
            raise UserError(f"{run.folder} lies in no run folder: say where to write with --out DIR")
        out = run.folder.parent.parent / OUT_FOLDER
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror}): choose another folder with --out DIR") from error
    return out
