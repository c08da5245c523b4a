"""Evaluate a trained run: `python -m trm.evaluate checkpoint=RUN [KEY=VALUE ...] [--multirun] [--out DIR]`.

Without KEY=VALUE the command repeats the run's last evaluation: every test puzzle once, N_sup supervision steps, and the answer of
the last step. KEY=VALUE evaluates on other puzzles, on other hardware or in another way.

  inference=votes8|ptrm|eqr|...        each puzzle has several candidates, and one of them answers
  inference=frontier                   compare several ways of inference: accuracy against FLOPs, and the Pareto front
  --multirun inference=standard,votes8 the same for these options; inference.KEY=a,b works too
  inference.early_exit=true            a row that halts takes the next puzzle: accuracy and mean steps with halting on
  evaluate.max_variants=32             ARC: at most this many variants of a task vote; default: all of them
  evaluate.by_difficulty=true          scores for ranges of difficulty; each task has its own measure of difficulty

The frontier and by_difficulty write a table (CSV, JSON) and a picture into RUN/evaluation, or into DIR with --out. An evaluation of
ARC writes submission.json and answers.json there. With --out every evaluation also writes evaluation.json: its scores, the scores
after each supervision step, and the settings. experiment=NAME sets the keys in which that experiment differs from the defaults.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from trm.cli import plain_command

    plain_command("trm.evaluate:main", __doc__)
    raise SystemExit

import itertools
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from trm.backends import Runtime
from trm.backends.machine import surroundings
from trm.cli import options, starts_ranks
from trm.config import InferenceConfig, flatten, to_plain, way_keys
from trm.config.groups import group_options
from trm.config.overrides import as_typed
from trm.config.refusals import one_line
from trm.core.metrics import Predictions
from trm.data.build import held_out_puzzles
from trm.data.loader import Batch, EvalLoader
from trm.errors import EXIT_PREEMPTED, ConfigError, RunFailure, UserError
from trm.ground.child import start_ranks
from trm.ground.progress import Progress
from trm.ground.rank import process_rank, refuse_other_starters
from trm.ground.signals import StopSignal
from trm.inference.compute import by_difficulty, pareto
from trm.inference.cost import cost, seconds_per_puzzle
from trm.inference.evaluator import EvalResult, EvaluationStopped, See, caveats_of, make_evaluator
from trm.inference.selection import select
from trm.run.experiment import on_devices, started
from trm.run.failures import not_finite
from trm.run.revision import code
from trm.run.saved import SavedRun, check_test_puzzles, open_run, split_arguments
from trm.show.curves import write_table
from trm.show.files import write_files
from trm.tasks.base import task_of
from trm.tasks.pairs import PairsTask

OUT_FOLDER = "evaluation"  # of the run folder


def main(arguments: list[str]) -> None:
    """The command: evaluate, print the result, and print it as JSON on the last line."""
    refuse_other_starters(of_torch=True)
    given = options("trm.evaluate", arguments, out=Path, multirun=bool, m=bool)
    path, overrides, rest = split_arguments(given.rest)
    if rest:
        raise ConfigError(f"{rest[0]}: not understood: arguments are checkpoint=RUN, KEY=VALUE, --multirun and --out DIR")
    logging.basicConfig(format="%(message)s")
    logging.getLogger(Progress.__module__).setLevel(logging.INFO)  # progress without a terminal for a bar
    with StopSignal() as stop:
        try:
            ways = sweep_of(overrides) if given.multirun or given.m else [overrides]
            run, stopped = open_run(path, ways[0]), lambda: stop.requested
            asked = any(text.startswith(("hardware=", "hardware.num_devices=")) for text in overrides)
            if asked and starts_ranks(run.cfg):
                sys.exit(start_ranks(run.cfg.hardware.devices, "trm.evaluate", arguments))
            if len(ways) > 1:
                _frontier([run, *(open_run(path, each) for each in ways[1:])], [], given.out, stopped)
            elif run.cfg.inference.ladder:
                _frontier(*_rungs(run, path, overrides), given.out, stopped)
            elif run.cfg.evaluate.by_difficulty:
                _difficulty(run, given.out, stopped)
            else:
                _once(run, given.out, stopped)
        except EvaluationStopped:
            print("stopped before its end: an incomplete evaluation has no result", file=sys.stderr)
            sys.exit(EXIT_PREEMPTED)


def _once(run: SavedRun, out: Path | None, stop: Callable[[], bool]) -> None:
    """One evaluation: a line for each metric. With --out, or where variants vote, a folder gets the scores and the answers."""
    votes = isinstance(task_of(run.cfg.data), PairsTask) and not run.cfg.evaluate.blank_identifiers
    folder = _out_folder(run, out) if votes or out else None
    runtime, label = started(run.cfg), run.cfg.inference.name
    result, caveats, loader = _evaluated(run, runtime, stop)
    if not runtime.is_main:
        return
    print(f"step {run.meta.step}, {'EMA' if run.uses_ema else 'training'} weights, {result.work.seconds:.1f} s")
    costs = cost(result.work, run.cfg, run.arch)
    titles = {
        "oracle_exact_accuracy": f"pass@{run.cfg.inference.candidates} (oracle: any right)",
        "flops_per_puzzle": "FLOPs/puzzle",
    }
    for name, value in (result.final | costs | {"seconds_per_puzzle": seconds_per_puzzle(result.work)}).items():
        print(f"  {titles.get(name, name):<16} {value:.6g}")
    _tell(caveats)
    if folder is not None:
        facts = _facts(run, runtime, int(result.final["count"]), caveats, result.work.seconds, loader)
        rows = _rows(run, result, label)
        names = write_table(folder, "evaluation", rows, facts | {"ways": {label: _settings(run)}}, result.shown_names, told=False)
        if result.ballots is not None:
            print("  the votes are those of this checkpoint only")
            documents = result.ballots.documents()
            write_files("--out", folder, {folder / name: text for name, text in documents.items()})
            names = [*names, *documents]
        for name in names:
            print(f"written: {folder / name}")
    print(json.dumps({"checkpoint_step": run.meta.step, **result.final, **costs}, sort_keys=True))


def _tell(caveats: list[str]) -> None:
    for caveat in caveats:
        print(f"  caution: {caveat}")


def _evaluated(
    run: SavedRun, runtime: Runtime, stop: Callable[[], bool], see: See | None = None
) -> tuple[EvalResult, list[str], EvalLoader]:
    """The result, its caveats, and the test puzzles. Its seconds do not include compiling."""
    evaluator = make_evaluator(run.cfg, runtime, on_devices(run.arch, runtime), run.buffers)
    caveats = check_test_puzzles(run, evaluator.loader.dataset) + caveats_of(run.cfg)
    weights, table = runtime.replicate((run.eval_weights, run.puzzle_embedding))
    candidates = run.cfg.inference.candidates
    several = f" x {candidates} candidates ({run.cfg.inference.name})" if candidates > 1 else ""
    if runtime.is_main:
        print(f"{run.folder}: {evaluator.loader.num_puzzles} puzzles{several} on {runtime.describe()}", flush=True)
    evaluator.prepare(weights, table)
    result = evaluator.run(weights, table, stop, see)
    if wrong := not_finite(result.final):
        raise RunFailure(
            f"{run.folder}: the evaluation is not finite ({wrong}), so its accuracy means nothing: use another checkpoint"
        )
    if result.ballots and (remark := result.ballots.remark()):
        caveats.append(remark)
    return result, caveats, evaluator.loader


def _rows(run: SavedRun, result: EvalResult, label: str) -> list[dict[str, Any]]:
    """The rows of a table: the evaluation after each supervision step; the last row is the result. `label` names the inference."""
    whole, rows = cost(result.work, run.cfg, run.arch), list[dict[str, Any]]()
    for steps, (metrics, row_steps) in enumerate(zip(result.by_step, result.row_steps, strict=True), start=1):
        share = row_steps / max(result.work.row_steps, 1)
        costs = {name: value if name == "candidates" else value * share for name, value in whole.items()}
        told = {"inference": label, "supervision_steps": steps, "selection": run.cfg.inference.selection, **costs}
        rows.append({**told, "oracle_exact_accuracy": metrics["exact_accuracy"], **metrics})  # the default is for one candidate
    rows[-1] |= {**whole, "seconds_per_puzzle": seconds_per_puzzle(result.work)}
    return rows


def _settings(run: SavedRun) -> dict[str, Any]:
    """The settings of a way of inference."""
    settings = flatten(to_plain(run.cfg))
    return {key: settings[key] for key in way_keys()}


def sweep_of(overrides: list[str]) -> list[list[str]]:
    """The overrides of each combination of --multirun, whose values are separated by commas. Raises ConfigError."""
    choices = []
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(as_typed(text))
            values = list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else []
        except HydraException as error:
            raise ConfigError(f"{text} is not understood as KEY=VALUE,VALUE: quote the values") from error
        key = text.partition("=")[0]
        if values and key != "inference" and not key.startswith("inference."):
            raise ConfigError(f"{text}: --multirun is for inference=a,b and inference.KEY=a,b here: give {key} one value")
        choices.append([f"{key}={value}" for value in values] or [text])
    combinations = [list(each) for each in itertools.product(*choices)]
    if len(combinations) == 1:
        raise ConfigError("--multirun has nothing to compare: give several ways, such as inference=standard,votes8,ptrm")
    return combinations


def _rungs(run: SavedRun, path: Path, overrides: list[str]) -> tuple[list[SavedRun], list[str]]:
    """The run with each way of its ladder and the other overrides, and lines that say why some are left out."""
    others = [text for text in overrides if text.partition("=")[0] not in ("inference", "inference.ladder")]
    runs, left_out = [], []
    for name in run.cfg.inference.ladder:
        try:
            runs.append(open_run(path, [f"inference={name}", *others]))
        except ConfigError as error:
            if name not in group_options("inference"):
                raise
            left_out.append(f"inference={name} is left out: {one_line(error)}")
    if not runs:
        raise ConfigError(f"inference.ladder={run.cfg.inference.ladder}: none of them is possible: {'; '.join(left_out)}")
    return runs, left_out


def _frontier(runs: list[SavedRun], left_out: list[str], out: Path | None, stop: Callable[[], bool]) -> None:
    """Evaluate several ways of inference one after the other, and write a table of accuracy against FLOPs per puzzle."""
    folder, runtime, rows, told, seconds = _out_folder(runs[0], out), started(runs[0].cfg), list[dict[str, Any]](), list[str](), 0.0
    if any(run.cfg.inference.ladder for run in runs):
        raise ConfigError("inference=frontier already compares several ways: leave out --multirun, or name single ways")
    stopped, names, ways = False, tuple[str, ...](), dict[str, dict[str, Any]]()
    labels = _labels([run.cfg.inference for run in runs])
    for text in left_out if runtime.is_main else ():
        print(text)
    for label, run in zip(labels, runs, strict=True):
        try:
            result, caveats, loader = _evaluated(run, runtime, stop)
        except EvaluationStopped:
            if not rows:
                raise
            stopped = True
            left_out.append(f"{label} and what comes after it are left out: a signal stopped the command")
            break
        seconds, names = seconds + result.work.seconds, result.shown_names
        told += [caveat for caveat in caveats if caveat not in told]
        ways[label] = _settings(run)
        rows.append(_rows(run, result, label)[-1])
    if folder is not None:
        facts = _facts(runs[0], runtime, rows[0]["count"], told, seconds, loader) | {"left_out": left_out, "ways": ways}
        _tell(told)
        write_table(folder, "frontier", pareto(rows), facts, names)
    if stopped:
        raise EvaluationStopped


def _labels(ways: list[InferenceConfig]) -> list[str]:
    """A name for each way: its option, and the keys in which ways of the same option differ."""
    labels, plain = [], [asdict(way) for way in ways]
    for way in plain:
        same = [other for other in plain if other["name"] == way["name"]]
        keys = [key for key in way if key not in ("name", "ladder") and len({str(other[key]) for other in same}) > 1]
        labels.append(" ".join([way["name"], *(f"{key}={way[key]}" for key in keys)]))
    return labels


def _difficulty(run: SavedRun, out: Path | None, stop: Callable[[], bool]) -> None:
    """Evaluate, and write a table of the scores for ranges of difficulty."""
    task = task_of(run.cfg.data)
    if task.difficulty_words is None:
        raise ConfigError(f"evaluate.by_difficulty: {task.title} has no measure of difficulty: leave it out")
    folder, runtime, parts = _out_folder(run, out), started(run.cfg), dict[str, list[Any]]()
    if held_out_puzzles(run.cfg.data).task is None:
        raise ConfigError(
            f"evaluate.by_difficulty: data.path={run.cfg.data.path} holds no {task.title}: give the run's own puzzles"
        )

    def see(found: Predictions, puzzles: Batch) -> None:
        winner, _, then = select(found, run.cfg.inference, run.cfg.inference_steps - 1)
        every, (questions, labels) = np.arange(len(winner)), (puzzles["inputs"], puzzles["labels"])
        scores = task.scores(questions, labels, then.answers[every, winner]) if task.score_names else {}
        exact = then.values["exact_accuracy"][every, winner]
        for name, values in {"difficulty": task.difficulty(questions, labels), "exact_accuracy": exact, **scores}.items():
            parts.setdefault(name, []).append(values)

    result, caveats, loader = _evaluated(run, runtime, stop, see)
    scores = {name: np.concatenate(values) for name, values in parts.items()}
    rows = by_difficulty(scores.pop("difficulty"), scores)
    if folder is not None:
        _tell(caveats)
        facts = _facts(run, runtime, loader.num_puzzles, caveats, result.work.seconds, loader)
        write_table(folder, "by_difficulty", rows, facts | {"difficulty": task.difficulty_words}, result.score_names)


def _facts(run: SavedRun, runtime: Runtime, puzzles: int, caveats: list[str], seconds: float, loader: EvalLoader) -> dict[str, Any]:
    """The facts of a record, in addition to its rows."""
    return {
        "run_name": run.cfg.run_name,
        "checkpoint_step": run.meta.step,
        "weights": "EMA" if run.uses_ema else "training",
        "data": run.cfg.data.name,
        "puzzles": puzzles,
        "test_digest": loader.dataset.digest(),
        "caveats": caveats,
        "supervision_steps_in_training": run.meta.config["recursion"]["n_sup"],
        "runtime": runtime.describe(),
        "surroundings": surroundings(run.cfg.hardware),
        "code": code(),
        "seconds": round(seconds, 1),
    }


def _out_folder(run: SavedRun, out: Path | None) -> Path | None:
    """Make and return the folder to write to; None on hosts that do not write. Raises UserError if it cannot be made."""
    if process_rank()[0] > 0:
        return None
    if out is None:
        if run.folder.parent.name != "checkpoints":
            raise UserError(f"{run.folder} is not in a run folder: give the folder to write to with --out DIR")
        out = run.folder.parent.parent / OUT_FOLDER
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror}): choose another folder with --out DIR") from error
    return out
