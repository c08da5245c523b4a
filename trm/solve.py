"""Solve puzzles with a trained model: `python -m trm.solve [checkpoint=RUN] PUZZLE [--json] [--watch] [--html FILE] [--gif FILE]`.

Without checkpoint=, a network in models/ for puzzles of this size answers.

PUZZLE is the grid row by row, in one line or in several, in the characters of the run's data. Digits are 1-9 (then A, B, ...), and
a blank is . or 0 or -. A 16x16 grid whose blanks are dots may also use the digits 0-F; it is shown as 1-G. Write the puzzle in
quotes, or give a file: plain text as puzzle programs write it (.sdk, .ss, drawn grids), JSON or csv. A file may hold many puzzles:
one on each line (.sdm), a JSON list, or a csv column called question. The N-th of them (from 0) gets the symmetric copies and the
random numbers of row N of a dataset, as in `python -m trm.evaluate`. `test:N` is the N-th held-out puzzle (from 0) of the run's
dataset. Its solution is known. For ARC, PUZZLE is the name of a test task, test:N, or a json file of a task. All of its variants
vote, or at most evaluate.max_variants of them.

The answer is the same as that of `python -m trm.evaluate` with the same settings, on the CPU. With inference.early_exit it is the
answer at the step where the model halts. With inference=votes8 (or ptrm, eqr, ...) it is that of the chosen candidate
(conf/inference).

  --json       print one line for each puzzle, a JSON object, and nothing else
  --watch      show the grid after every supervision step, with marks for wrong, changed and given cells
  --html FILE  write a page with sliders over supervision steps and latent recursions; it is one file without links
  --gif FILE   write an animation with one picture for each latent recursion
"""

if __name__ == "__main__":  # before the imports that take seconds
    from trm.cli import plain_command

    plain_command("trm.solve:main", __doc__)
    raise SystemExit

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from trm.backends import start
from trm.cli import options
from trm.config import HardwareConfig, InferenceConfig
from trm.core.metrics import Predictions
from trm.data.build import held_out_puzzles
from trm.data.format import Dataset, Metadata, load_catalogue
from trm.data.loader import Batch, EvalLoader
from trm.data.puzzle_text import questions_in, questions_of, text_of, unlikeness
from trm.errors import ConfigError, DataError
from trm.ground.files import read_json
from trm.inference.evaluator import EvalResult, See, caveats_of, make_evaluator
from trm.inference.selection import select, votes
from trm.run.saved import SavedRun, check_sizes, check_test_puzzles, is_override, open_run, published, split_arguments
from trm.show.files import write_files
from trm.show.page import page, pairs_page
from trm.show.pictures import animation
from trm.show.solutions import pairs_text, report
from trm.show.terminal import Watcher
from trm.show.think import think
from trm.show.thinking import Frame, Puzzle
from trm.tasks.base import Task, task_of
from trm.tasks.pairs import Catalogue, PairsTask


def main(arguments: list[str]) -> None:
    """The command: print question and answer as grids, and whether the answer is valid."""
    # a puzzle whose first blanks are written as - is not an option
    arguments = [f" {a}" if re.match("-+[^-a-z]", a) or not a.strip("-") else a for a in arguments]
    given = options("trm.solve", arguments, watch=bool, json=bool, html=Path, gif=Path)
    if not any(argument.startswith("checkpoint=") for argument in given.rest):
        given.rest.append(f"checkpoint={_published_network(given.rest, sys.stderr if given.json else sys.stdout)}")
    path, overrides, rest = split_arguments(given.rest)
    if len(rest) != 1:
        raise ConfigError(f'one puzzle is needed, in quotes: "53..7...."; got {len(rest)}')
    run = open_run(path, overrides)
    task = task_of(run.cfg.data)
    if run.cfg.inference.ladder or run.cfg.evaluate.by_difficulty:
        raise ConfigError(
            "inference=frontier and evaluate.by_difficulty make tables of many puzzles: use trm.evaluate, or name one way, such as "
            "inference=votes8"
        )
    if isinstance(task, PairsTask):
        _solve_pairs(run, task, rest[0], given.html, as_json=given.json)
        return
    shown = [name for name in ("watch", "html", "gif") if getattr(given, name)]
    if shown and run.cfg.inference.selection == "resample":
        raise ConfigError(f"--{shown[0]}: resampled candidates have no history to show: choose another inference=")
    puzzles, dataset, number = find_puzzles(run, rest[0])
    if shown and len(puzzles) > 1:
        raise ConfigError(f"--{shown[0]}: shows one puzzle, and {rest[0][:40]} holds {len(puzzles)}: give one of them")
    found, _, loader = answered(run, dataset, number)
    for place, puzzle in enumerate(puzzles):
        answer, words = found.answers[place], found.words(run.cfg.inference, place)
        if given.json:
            texts = {name: task.view.text(grid) for name, grid in (("question", puzzle.question), ("answer", answer))}
            told = {"valid": not task.violations(puzzle.question, answer), "verdict": puzzle.verdict(answer)}
            print(json.dumps({"puzzle": puzzle.name, **texts, **told, "how": words}), flush=True)
            continue
        frames = frames_of(run, puzzle, found, loader, number or 0, watch=given.watch) if shown else []
        print(report(task, puzzle.question, answer))
        print(words)
    for caveat in caveats_of(run.cfg):
        print(f"caution: {caveat}", file=sys.stderr if given.json else sys.stdout)
    if given.html:
        title = f"{run.cfg.run_name}, step {run.meta.step}: how the model thinks"
        write_files("--html", given.html, {given.html: page(puzzle, frames, title)})
    if given.gif:
        write_files("--gif", given.gif, {given.gif: animation(puzzle, frames)})
    for path in filter(None, (given.html, given.gif)):
        print(f"written: {path}")


def evaluated(run: SavedRun, dataset: Dataset, number: int | None = 0, see: See | None = None) -> tuple[EvalResult, EvalLoader]:
    """Evaluate one puzzle of a dataset (None = all) with the run's settings; returns the result and the candidates.

    `see` is called with the candidates' predictions. The eager CPU is used, since compiling would take longer than one puzzle.
    """
    runtime = start(HardwareConfig(name="cpu", backend="eager", dtype=run.cfg.hardware.dtype))
    evaluator = make_evaluator(run.cfg, runtime, run.arch, run.buffers, only=(dataset, number))
    return evaluator.run(run.eval_weights, run.puzzle_embedding, see=see), evaluator.loader


class Answered(NamedTuple):
    """The selected candidates of N puzzles, and their answers."""

    candidates: NDArray[np.integer]  # [N]
    answers: NDArray[np.integer]  # [N, L] tokens
    halting: NDArray[np.floating]  # [N] `halting_logit`
    steps: NDArray[np.integer]  # [N] supervision steps of the candidate
    votes: NDArray[np.integer]  # [N] number of candidates that gave this answer

    def words(self, way: InferenceConfig, puzzle: int) -> str:
        """A line that says how a puzzle was answered."""
        if way.candidates == 1:
            return f"halting probability {expit(self.halting[puzzle]):.3f} after {self.steps[puzzle]} supervision steps"
        return (
            f"candidate {self.candidates[puzzle] + 1} of {way.candidates} answers (inference.selection={way.selection}), after "
            f"{self.steps[puzzle]} supervision steps; {self.votes[puzzle]} gave this grid"
        )


def answered(run: SavedRun, dataset: Dataset, number: int | None) -> tuple[Answered, EvalResult, EvalLoader]:
    """The answers to one puzzle of a dataset (None = to all), the evaluation that found them, and its rows."""
    found = list[Answered]()

    def see(rows: Predictions, puzzles: Batch) -> None:
        winners, _, then = select(rows, run.cfg.inference, run.cfg.inference_steps - 1)
        parts: tuple[Any, ...] = (then.answers, then.halting, then.values["steps"], votes(then))
        found.append(Answered(winners, *(part[np.arange(len(winners)), winners] for part in parts)))

    result, loader = evaluated(run, dataset, number, see)
    return Answered(*(np.concatenate(part) for part in zip(*found, strict=True))), result, loader


def frames_of(
    run: SavedRun, puzzle: Puzzle, found: Answered, loader: EvalLoader, number: int, *, watch: bool = False
) -> list[Frame]:
    """The frames of the candidate that answers, one after each latent recursion; with `watch` they are shown as they are computed.

    The puzzle is the loader's first one, and row `number` of its dataset. Frames are in the puzzle's own cells and tokens.
    """
    way, task = run.cfg.inference, task_of(run.cfg.data)
    candidate, num_steps = int(found.candidates[0]), int(found.steps[0])
    rows, copy = loader.rows(0, way.candidates), candidate // way.particles
    drawn = task.symmetry.draw(run.cfg.data.seed, np.array([number]), np.array([copy])) if copy and task.symmetry else None
    key = int(rows["rows"][candidate]) if "rows" in rows else 0  # of its random numbers

    def undone(frame: Frame) -> Frame:
        if drawn is None:
            return frame
        source, tokens = drawn.source[0], np.argsort(drawn.relabel[0])
        answer, confidence = np.empty_like(frame.answer), np.empty_like(frame.confidence)
        answer[source], confidence[source] = tokens[frame.answer], frame.confidence
        return replace(frame, answer=answer, confidence=confidence)

    watcher = Watcher(puzzle, num_steps) if watch else None
    tensors, frames = (run.arch, run.eval_weights, run.buffers, run.puzzle_embedding), list[Frame]()
    for step in think(*tensors, rows["inputs"][candidate], (way, key), num_steps):
        frames += map(undone, step)
        if watcher:
            watcher.show(frames[-1])
    return frames


def unanswered(task: Task, questions: NDArray[np.integer]) -> Dataset:
    """A dataset of questions [N, L] without answers. Raises DataError for one that has no solution."""
    for number, question in enumerate(questions, 1):
        if wrong := task.contradictions(question):
            where = f"puzzle {number} of {len(questions)}" if len(questions) > 1 else "the puzzle"
            raise DataError(f"{where} has no solution: {'; '.join(wrong[:3])}: correct its givens")
    count = len(questions)
    labels, starts = np.full_like(questions, task.facts.ignored_label), np.arange(count + 1)
    metadata = Metadata.of(task.facts, count, count, count)
    return Dataset(questions, labels, np.zeros(count, np.int32), starts, starts, metadata, task)


def _solve_pairs(run: SavedRun, task: PairsTask, name: str, html: Path | None, *, as_json: bool) -> None:
    """Print the answers to a puzzle of pairs. The page also shows the answers of one variant after each latent recursion."""
    name, shown, how, _, loader = solved_pairs(run, task, name)
    print(json.dumps({**shown, "how": how}) if as_json else f"{pairs_text(shown)}\n{name}: {how}")
    if html:
        model, blank = (run.arch, run.eval_weights, run.buffers, run.puzzle_embedding), loader.dataset.metadata.blank_identifier_id
        first = loader.rows(0, 1)
        puzzle, frames = Puzzle(name, task, first["inputs"][0], first["labels"][0]), []
        identifier = blank if run.cfg.evaluate.blank_identifiers else int(first["puzzle_identifiers"][0])
        for step in think(*model, puzzle.question, num_steps=run.cfg.inference_steps, identifier=identifier):
            frames += [replace(frame, answer=task.framed(frame.answer)) for frame in step]
        title = f"{run.cfg.run_name}, step {run.meta.step}: {name}"
        write_files("--html", html, {html: pairs_page(puzzle, frames, title, shown, how)})
        print(f"written: {html}")


def solved_pairs(
    run: SavedRun, task: PairsTask, given: str | Mapping[str, Any]
) -> tuple[str, dict[str, Any], str, EvalResult, EvalLoader]:
    """The answers to a puzzle of pairs, which is given as in `find_pairs`.

    Returns its name, the puzzle with its answers (`Ballots.shown`), a line on the variants that voted, the evaluation and its rows.
    """
    name, dataset, words = find_pairs(run, task, given)
    result, loader = evaluated(run, dataset)
    assert result.ballots is not None
    votes = loader.num_rows // dataset.num_rows
    how = f"{'1 variant votes' if votes == 1 else f'{votes} variants vote'}{words}"
    return name, result.ballots.shown(name), how, result, loader


def find_pairs(run: SavedRun, task: PairsTask, given: str | Mapping[str, Any]) -> tuple[str, Dataset, str]:
    """Find a puzzle of pairs by its name, test:N, a json file or its content; returns its name, a dataset with it, and a remark.

    The content of a test puzzle is recognised by its demonstrations. A puzzle that the run was not trained on has one variant, and
    this function sets evaluate.blank_identifiers. The remark says which identifiers are used.
    """
    dataset = held_out_puzzles(run.cfg.data)
    if dataset.pairs_task is None:
        raise ConfigError(f"data.path={run.cfg.data.path}: holds no {task.title}: give a run and its own puzzles")
    check_test_puzzles(run, dataset)
    catalogue = load_catalogue(dataset)
    tests, name = catalogue.tests, given if isinstance(given, str) else "task"
    if name.startswith("test:") and name[5:].isdecimal() and int(name[5:]) < len(tests):
        name = list(tests)[int(name[5:])]
    if not isinstance(given, str):
        plain, rows = task.read(dict(given), name, "the task")
        name = next((known for known, there in tests.items() if there["train"] == plain["train"]), name)
    elif Path(name).is_file():
        content = read_json(Path(name))
        plain, rows = task.read(content, Path(name).stem, name)
        name = Path(name).stem
    elif name in tests:
        plain, rows = task.read(tests[name], name, f"{dataset.path}: {name}")
    else:
        raise ConfigError(
            f"{name[:40]}: no such file, and none of the {len(tests)} test puzzles: give a name such as {next(iter(tests))}, "
            f"test:0 to test:{len(tests) - 1}, or a json file"
        )
    identifiers = catalogue.identifiers_of(name)
    words = ", with the blank identifier" if run.cfg.evaluate.blank_identifiers else ""
    if not len(identifiers):
        itself = task.read_identifier(name)[1]
        catalogue, identifiers = Catalogue([name], np.array([-1, 0], np.int32), np.stack([0 * itself, itself]), {}), np.array([1])
        run.cfg.evaluate.blank_identifiers, words = True, ", with the blank identifier: the run was not trained on it"
    alone = Dataset(
        *rows,
        puzzle_identifiers=identifiers[:1],
        puzzle_indices=np.array([0, len(rows[0])]),
        group_indices=np.arange(2),
        metadata=dataset.metadata,
        task=task,
        counts=np.array([len(identifiers)]),
        draws=catalogue.draws,
        catalogue=replace(catalogue, tests={name: plain}),
    )
    return name, alone, words


def _published_network(arguments: list[str], told: TextIO) -> Path:
    """The network of models/ that reads puzzles of this kind and size; prints its name. Raises ConfigError if there is none."""
    puzzle, models = next((argument for argument in arguments if not is_override(argument)), ""), published()
    if puzzle.startswith("test:"):
        raise ConfigError(f"checkpoint= is missing: {puzzle} is a held-out puzzle of a run: give checkpoint=outputs/NAME")
    if not models:
        raise ConfigError("checkpoint= is missing, and there is no network in models/: give checkpoint=outputs/NAME")
    text, wrong = text_of(puzzle), {}
    for model in models:
        try:
            questions_in(text, model.task)
        except DataError as error:
            wrong[unlikeness(text, model.task)] = f"as a {model.task.title}, the nearest: {error}"
            continue
        print(f"{model.name} answers: {model.words}; checkpoint=RUN chooses another network", file=told)
        return model.folder
    known = ", ".join(f"{model.task.title} ({model.task.facts.seq_len} cells)" for model in models)
    raise ConfigError(
        f"no network in models/ reads this kind of puzzle ({known}); {wrong[min(wrong)]}: correct it, or give checkpoint=RUN"
    )


def find_puzzles(run: SavedRun, given: str) -> tuple[list[Puzzle], Dataset, int | None]:
    """The puzzles of a text or a file, or the one that test:N names. Raises ConfigError or DataError.

    Also returns a dataset with them, and the puzzle's row in it; None = the puzzles are all rows.
    """
    data, task = run.cfg.data, task_of(run.cfg.data)
    if held_out := given.startswith("test:"):
        dataset, where = held_out_puzzles(data), f"data.path={data.path}"
    else:
        keys = " ".join(f"data.{key}={getattr(data, key)}" for key in task.keys)
        dataset, where = unanswered(task, np.stack(questions_of(given, task))), f"{keys}: {task.title}"
    check_sizes(run, dataset, where)
    if not held_out:
        return [Puzzle(task.view.text(each), task, each, None) for each in dataset.inputs], dataset, None
    if dataset.task is None:
        raise ConfigError(f"data.path={data.path}: holds no {task.title}, which the settings say: give a run and its own puzzles")
    check_test_puzzles(run, dataset)
    number = given.removeprefix("test:")
    if not re.fullmatch(r"[0-9]{1,18}", number) or int(number) >= dataset.num_rows:
        raise ConfigError(f"{given[:40]}: the dataset's held-out puzzles are test:0 to test:{dataset.num_rows - 1}")
    return [Puzzle(given, task, dataset.inputs[int(number)], dataset.labels[int(number)])], dataset, int(number)
