"""The implementation of the Python API; trm/__init__.py has the functions that notebooks and programs call."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from trm.cli import ROOT, compose_run, compose_sweep, starts_ranks
from trm.config import IGNORE_LABEL, Config, local_path
from trm.config.overrides import override
from trm.core.candidates import row_keys
from trm.core.programs import ONE
from trm.core.step import empty_carry, eval_step
from trm.data.format import Dataset
from trm.data.loader import EvalLoader
from trm.data.puzzle_text import questions_of
from trm.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, ConfigError, DataError, RunFailure, UserError
from trm.ground.folder import GRID_FILE, read_summary
from trm.inference.cost import cost, seconds_per_puzzle
from trm.inference.evaluator import EvalResult
from trm.interop import make_run
from trm.report.output import json_text
from trm.report.runs import collect
from trm.report.variants import check_asked, compare
from trm.run.early import run_here
from trm.run.saved import SavedRun, open_run
from trm.show.files import write_files
from trm.show.page import page
from trm.show.pictures import animation
from trm.show.solutions import PairSolutions, Solutions, pair_solutions
from trm.show.thinking import Frame, Puzzle
from trm.solve import Answered, answered, find_puzzles, frames_of, solved_pairs, unanswered
from trm.tasks.base import task_of
from trm.tasks.pairs import PairsTask

if TYPE_CHECKING:
    import pandas as pd

Puzzles = str | os.PathLike[str] | Sequence[str] | Mapping[str, Any] | ArrayLike
FRAME_HEIGHT = 760  # pixels of the thinking page in a notebook

_training = threading.Lock()  # Hydra has one set of settings in a process
_ran = set[str | None]()  # the devices of this process's runs; None = torch's own backends


class Thinking(list[Frame]):
    """A network's answers after each latent recursion. A notebook shows them as the page of `trm.solve --html`."""

    def __init__(self, frames: Iterable[Frame], puzzle: Puzzle, title: str, solution: Solutions) -> None:
        super().__init__(frames)
        self.puzzle, self.title, self.solution = puzzle, title, solution

    def __repr__(self) -> str:
        return f"{len(self)} frames of {self[-1].step} supervision steps; the last: {self.puzzle.verdict(self[-1].answer)}"

    @cached_property
    def page(self) -> str:
        """The page: one HTML document that needs nothing else."""
        return page(self.puzzle, self, self.title)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page (.html) or an animation (.gif). Raises UserError for another kind of file, or if it cannot be written."""
        file = Path(path)
        if file.suffix not in (".html", ".gif"):
            raise ConfigError(f"{file}: is neither a page nor an animation: name it .html or .gif")
        content: str | bytes = self.page if file.suffix == ".html" else animation(self.puzzle, self)
        write_files(str(file), file, {file: content})

    def embedded(self, height: int = FRAME_HEIGHT) -> str:
        """The page as an HTML element inside another page, which its scripts cannot reach."""
        style = f"width:100%;height:{height}px;border:0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(self.page)}"></iframe>'

    def _repr_html_(self) -> str:
        return self.embedded()


class Network:
    """A trained network on the CPU."""

    def __init__(self, run: SavedRun) -> None:
        self._run = run
        self.settings: Config = run.cfg  # with the overrides
        self.task, self.step = task_of(run.cfg.data), run.meta.step  # the kind of its puzzles, and its training steps

    def __repr__(self) -> str:
        return f"{self.settings.run_name}: {self.task.title}, step {self.step}, inference={self.settings.inference.name}"

    def solve(self, puzzles: Puzzles) -> Solutions:
        """The answers to puzzles, as `python -m trm.solve` gives them with the network's settings.

        Args:
            puzzles: the text of one puzzle or several, a file of such, "test:N" (a held-out puzzle of the network's own dataset), a
                list of texts, or tokens [L] or [N, L]. For ARC a single task: the path of its json file, its content as a dict, the
                name of a test task, or "test:N".

        Returns:
            The answers; for ARC PairSolutions, which has a row for each test input.

        Raises:
            trm.errors.DataError: a puzzle is not understood or has no solution; the message says which.
        """
        self._refuse_tables()
        if isinstance(self.task, PairsTask):
            return self._solve_pairs(self.task, puzzles)
        if isinstance(puzzles, str) and puzzles.startswith("test:"):  # copies and noise are drawn by its row in the dataset
            return self._solutions(*find_puzzles(self._run, puzzles)[1:])[0]
        return self._solutions(unanswered(self.task, self._questions(puzzles)), None)[0]

    def _solutions(self, dataset: Dataset, number: int | None) -> tuple[Solutions, Answered, EvalLoader]:
        """The solutions of one puzzle of a dataset, or of all; the selected candidates; the rows that were evaluated."""
        found, result, loader = answered(self._run, dataset, number)
        questions = loader.puzzles(0, loader.num_puzzles)["inputs"].astype(np.uint8)
        answers = found.answers.astype(np.uint8)
        valid = np.array([not self.task.violations(*pair) for pair in zip(questions, answers, strict=True)])
        halting, steps = expit(found.halting.astype(np.float64)), found.steps.astype(np.int64)
        solutions = Solutions(self.task, questions, answers, valid, halting, steps, found.votes, self._cost(result))
        return solutions, found, loader

    def _solve_pairs(self, task: PairsTask, given: Puzzles) -> PairSolutions:
        """The answers to the test inputs of one puzzle of pairs."""
        if not isinstance(given, str | os.PathLike | Mapping):
            raise DataError(
                f"{task.title}: give the path of a task's json file, its content as a dict, a test task's name, or test:N"
            )
        # the settings are copied, since a task that the run was not trained on changes them
        run = replace(self._run, cfg=deepcopy(self._run.cfg))
        name, shown, how, result, _ = solved_pairs(run, task, given if isinstance(given, Mapping) else os.fspath(given))
        return pair_solutions(task, name, shown, how, self.settings.inference_steps, self._cost(result))

    def _cost(self, result: EvalResult) -> dict[str, float]:
        found = cost(result.work, self.settings, self._run.arch)
        return found | {"seconds_per_puzzle": seconds_per_puzzle(result.work)}

    def think(self, puzzle: str | ArrayLike) -> Thinking:
        """The answers that the network would give after every latent recursion (of the candidate that is selected).

        Args:
            puzzle: the text of one, "test:N" (its solution is known), or tokens [L].

        Raises:
            trm.errors.DataError: the puzzle is not understood or has no solution.
        """
        run = self._run
        self._refuse_tables()
        if self.task.variants_vote:
            raise ConfigError(
                f"{self.task.title}: the votes of variants have no frames: use python -m trm.solve --html for one variant"
            )
        if run.cfg.inference.selection == "resample":
            way = f"inference={run.cfg.inference.name}"
            raise ConfigError(
                f"{way}: resampled candidates have no history to show: load the network with another way of inference"
            )
        if isinstance(puzzle, str) and puzzle.startswith("test:"):
            name = puzzle
        else:
            (question, *others) = self._questions(puzzle)
            if others:
                raise DataError(f"{1 + len(others)} puzzles were given, but only one can be shown: give one of them")
            name = self.task.view.text(question)
        (shown,), dataset, number = find_puzzles(run, name)
        solution, answer, loader = self._solutions(dataset, number)
        frames = frames_of(run, shown, answer, loader, number or 0)
        title = f"{run.cfg.run_name}, step {self.step}: how the model thinks"
        return Thinking(frames, shown, title, solution)

    def predict(self, inputs: ArrayLike, identifiers: ArrayLike | None = None) -> NDArray[np.float32]:
        """The logits [N, L, V] of one candidate after all supervision steps.

        Args:
            inputs: tokens [N, L].
            identifiers: [N] rows of the puzzle embedding; None = the blank one.
        """
        run, tokens, logits = self._run, torch.from_numpy(self._tokens(inputs)).int(), []
        none = torch.zeros(len(tokens), dtype=torch.int64)
        given = {
            "inputs": tokens,
            "labels": torch.full_like(tokens, IGNORE_LABEL),
            "puzzle_identifiers": none,
            "rows": row_keys(ONE, torch.arange(len(tokens)), none),
        }
        if identifiers is not None:
            rows, there = np.asarray(identifiers), 1 if run.puzzle_embedding is None else len(run.puzzle_embedding)
            if rows.shape != (len(tokens),) or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= there:
                asked = f"give {len(tokens)} integers from 0 to {there - 1}, one for each puzzle"
                raise DataError(f"identifiers={str(identifiers)[:40]}: {asked}")
            given["puzzle_identifiers"] = torch.from_numpy(rows.astype(np.int64))
        for part in torch.split(torch.arange(len(tokens)), self.settings.eval_batch_size):
            batch, carry = {name: values[part] for name, values in given.items()}, empty_carry(run.arch, run.buffers, len(part))
            with torch.no_grad():
                for _ in range(self.settings.inference_steps):
                    carry, output, _ = eval_step(run.arch, run.eval_weights, run.buffers, run.puzzle_embedding, carry, batch)
            logits.append(output.logits.float().numpy())
        return np.concatenate(logits)

    def _refuse_tables(self) -> None:
        if self.settings.inference.ladder or self.settings.evaluate.by_difficulty:
            raise ConfigError("inference.ladder and evaluate.by_difficulty make tables of many puzzles: use python -m trm.evaluate")

    def _questions(self, puzzles: Puzzles) -> NDArray[np.uint8]:
        """Tokens [N, L]."""
        if isinstance(puzzles, str) and puzzles.startswith("test:"):
            return find_puzzles(self._run, puzzles)[0][0].question.astype(np.uint8)[None]
        if isinstance(puzzles, str | os.PathLike):
            return np.stack(questions_of(os.fspath(puzzles), self.task))
        if isinstance(puzzles, Sequence) and puzzles and all(isinstance(each, str) for each in puzzles):
            return np.concatenate([self._questions(each) for each in puzzles])
        return self._tokens(puzzles)

    def _tokens(self, given: Any) -> NDArray[np.uint8]:
        """Tokens [N, L] of the task. Raises DataError."""
        facts = self.task.facts
        try:
            rows = np.atleast_2d(np.asarray(given))
        except ValueError:  # rows of different lengths
            rows = np.empty((0, 0))
        if rows.ndim != 2 or rows.shape[1] != facts.seq_len or rows.dtype.kind not in "iu" or not len(rows):
            raise DataError(
                f"an array of {rows.dtype} {list(rows.shape)}: give integers [{facts.seq_len}] or [N, {facts.seq_len}], the "
                f"tokens of {self.task.title}"
            )
        wrong = np.argwhere((rows < 0) | (rows >= facts.vocab_size))
        if len(wrong):
            row, cell = wrong[0].tolist()
            raise DataError(
                f"puzzle {row + 1} cell {cell + 1}: {rows[row, cell]} is no token of {self.task.title}: they are 0 to "
                f"{facts.vocab_size - 1}"
            )
        return rows.astype(np.uint8)


def load(checkpoint: str | os.PathLike[str], overrides: list[str]) -> Network:
    """See trm.load."""
    path = Path(local_path("checkpoint", os.fspath(checkpoint)))
    if not path.is_file():
        return Network(open_run(path, overrides))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / re.sub(r"[^\w.-]", "_", path.name)
        make_run(path, made, overrides)
        return Network(open_run(made, []))


def run(overrides: list[str]) -> dict[str, Any]:
    """See trm.run."""
    if not _training.acquire(blocking=False):
        raise UserError("a run is going on in this process: wait for it, or have trm.sweep train several side by side")
    try:
        settings, launch = compose_run(overrides)
        hardware = settings.hardware
        devices = None if hardware.can.torch_kernels else f"{hardware.backend} on {hardware.devices} devices"
        if not starts_ranks(settings) and (devices is None or _ran <= {devices}):
            _ran.add(devices)
            folder = run_here("trm.train:train", overrides)
        else:  # torch_xla must be imported before torch's first backward pass, and keeps its devices until the process ends
            if devices is not None:
                print(f"{devices}: in a process of its own, since this one has used other devices before", flush=True)
            folder = launch.run_dir.absolute()
            _command(["-m", "trm.train", *overrides, override("run_name", settings.run_name)])
    except SystemExit as end:  # with the message in the log
        if end.code != EXIT_PREEMPTED:
            raise
        raise KeyboardInterrupt("the run was stopped and saved; the same call with its run_name resumes it") from None
    finally:
        _training.release()
    return {**(read_summary(folder) or {}), "run_dir": str(folder)}


class Sweep(NamedTuple):
    """A completed sweep."""

    folder: Path
    summaries: dict[str, dict[str, Any]]  # summary.json of each run, by its name


def sweep(overrides: list[str]) -> Sweep:
    """See trm.sweep."""
    folder, _ = compose_sweep(overrides)  # refuses what is wrong before a process is started
    _command(["-m", "trm.train", "--multirun", *overrides])
    grid = json.loads((folder / GRID_FILE).read_text())
    return Sweep(folder, {job["dir"]: read_summary(folder / job["dir"]) or {} for job in grid["jobs"]})


def _command(arguments: list[str]) -> None:
    """Run a command in another process, and raise the error that it ends with. An interruption is passed on."""
    paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,  # signals to this process do not reach it
    )
    last, stopped = deque[str](maxlen=50), False
    with process:
        assert process.stdout is not None
        while True:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    last.append(line.strip())
                break
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                stopped = True
    if stopped:
        raise KeyboardInterrupt("it was stopped and saved; the same call resumes it")
    errors = [line.removeprefix("error: ") for line in last if line.startswith("error: ")]
    if process.returncode == EXIT_USER_ERROR:
        raise UserError(errors[-1] if errors else last[-1])
    if process.returncode:
        reasons = errors or [line for line in last if ": " in line and not line.startswith("[")]
        raise RunFailure(f"it did not complete (exit code {process.returncode}): {'; '.join(reasons[-5:])}")


class Report(NamedTuple):
    """Tables of compared runs; accuracies are shares of 1."""

    variants: pd.DataFrame  # a row for each variant: means and intervals over seeds
    runs: pd.DataFrame  # a row for each run
    evaluations: pd.DataFrame  # a row for each evaluation of each run: variant, run, step, exact_accuracy
    warnings: list[str]  # to know before the numbers are read


def report(folders: Sequence[Any], group: list[str] | None, target: float | None, baseline: str | None) -> Report:
    """See trm.report."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError(
            "trm.report gives pandas tables, and pandas is not installed: pip install 'trm-scaling-study[notebook]'"
        ) from error
    if not folders:
        raise UserError("give at least one folder of runs, such as outputs/NAME or multirun/NAME")
    check_asked(group, target)
    paths = [Path(local_path("folder", os.fspath(folder))) for folder in folders]
    record = json.loads(json_text(compare(collect(paths), group, target, baseline)))
    nested = {"evaluations", "exact_accuracy_by_step", "code", "scores", "config", "runs", "warnings", "findings", "overrides"}

    def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
        return pd.DataFrame([{key: value for key, value in row.items() if key not in nested} for row in rows])

    points = [
        {"variant": run["variant"], "run": run["name"], "step": step, "exact_accuracy": value}
        for run in record["runs"]
        for step, value in run["evaluations"]
    ]
    columns = ["variant", "run", "step", "exact_accuracy"]
    return Report(table(record["variants"]), table(record["runs"]), pd.DataFrame(points, columns=columns), list(record["warnings"]))
