"""Evaluation: one compiled step computes every candidate of every puzzle once; all results are folds over its predictions.

`inference` says which candidates a puzzle has (copies x restarts x rollouts, D supervision steps) and which of them answers
(selection.py). Rows do all supervision steps, or exit early (early_exit.py), as in a race (halt_first).
Shape legend: S supervision steps, B rows of a batch, R rows, N puzzles, K candidates of each, C cells.
"""

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from numpy.typing import NDArray
from torch import Tensor

from trm.backends import Runtime
from trm.config import EXACT, SAMPLE_PUZZLES, Config, InferenceConfig
from trm.core.architecture import Architecture, Weights
from trm.core.candidates import row_keys
from trm.core.metrics import METRICS, MOST_SAMPLES, STOP, Predictions
from trm.core.programs import ONE, eval_program
from trm.core.step import empty_carry
from trm.data.build import held_out_puzzles
from trm.data.format import SELECTION, Dataset, load_dataset
from trm.data.loader import Batch, EvalLoader, Host
from trm.data.pairs import PairEvalLoader
from trm.errors import DataError
from trm.ground.progress import Progress, progress_bar
from trm.inference.cost import Work
from trm.inference.early_exit import EndedRows, early_exit_program, first_rows
from trm.inference.samples import Samples
from trm.inference.selection import Metrics, over, whole_puzzles
from trm.tasks.base import task_of
from trm.tasks.pairs import Ballots

MOST_CALLS = 64  # calls of the early-exit step whose predictions stay on the devices until they are read together


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation: METRICS of trm/core/metrics.py, count, the task's own scores, and what `Metrics` adds."""

    by_step: list[dict[str, float]]  # after each supervision step, the mean over all puzzles
    samples: Samples  # predictions of the first candidates, which are the puzzles themselves
    score_names: tuple[str, ...] = ()  # the task's own
    work: Work = field(default_factory=Work)
    ballots: Ballots | None = None  # of a task that judges puzzles by several rows
    row_steps: tuple[int, ...] = ()  # supervision steps that all candidates have done, summed, after each step

    @property
    def shown_names(self) -> tuple[str, ...]:
        """The values that logs, tables and charts show beside exact accuracy: the task's scores and some metrics."""
        return (*self.score_names, *(name for name, metric in METRICS.items() if metric.shown))

    @property
    def final(self) -> dict[str, float]:
        """The metrics after the last supervision step."""
        return self.by_step[-1]

    def joined(self, other: "EvalResult") -> "EvalResult":
        """The result over the puzzles of two evaluations, which have no puzzle in common."""
        by_step = []
        for one, two in zip(self.by_step, other.by_step, strict=True):
            count = one["count"] + two["count"]
            means = {name: (one[name] * one["count"] + two[name] * two["count"]) / max(count, 1) for name in one}
            by_step.append(means | {"count": count})
        row_steps = tuple(map(sum, zip(self.row_steps, other.row_steps, strict=True)))
        return EvalResult(by_step, self.samples, self.score_names, self.work + other.work, row_steps=row_steps)

    def score(self, name: str) -> float:
        """A score as `evaluate.best_by` names it."""
        return self.final["exact_accuracy" if name == EXACT else name]


class EvaluationStopped(Exception):
    """A stop was asked for before the evaluation was complete."""


See = Callable[[Predictions, Batch], None]
Stop = Callable[[], bool]  # says whether a stop was asked for
Step = Callable[..., Any]  # a compiled step that has its weights already
Only = tuple[Dataset, int | None]  # a dataset and the row of the only puzzle to evaluate; None = all of its puzzles


class Evaluator:
    """Evaluates weights that are on the devices on the puzzles of a loader."""

    ballots: Ballots | None = None  # for tasks whose variants vote: votes of the last pass, or of all passes with `keeps_votes`
    keeps_votes = False
    _all_steps = True  # whether the answers of all supervision steps are needed, or only the last ones

    def __init__(
        self,
        runtime: Runtime,
        arch: Architecture,
        buffers: Weights,
        loader: EvalLoader,
        num_steps: int,
        progress: str,
        way: InferenceConfig = ONE,
    ) -> None:
        """`buffers` is on the CPU; `progress` is train.progress; the loader's rows are the candidates of `way`."""
        self.runtime, self.loader, self.way = runtime, loader, way
        self._arch, self._num_steps, self._progress = arch, num_steps, progress
        self._buffers = runtime.replicate(buffers)
        self._local_batch_size = loader.global_batch_size // runtime.process_count
        self._alone = runtime.process_count == 1
        if way.exits_early:
            self._start = runtime.shard(first_rows(arch, buffers, self._local_batch_size))
            self._next_group = runtime.replicate(torch.zeros((), dtype=torch.int32))
        else:
            self._carry = runtime.shard(empty_carry(arch, buffers, self._local_batch_size))
            self._step = runtime.compile(*eval_program(arch, way))
        self._load()

    def _load(self) -> None:
        """With early exit: put the loader's questions on the devices, and compile a step for a queue of this length."""
        if self.way.exits_early:
            self._step = self.runtime.compile(*early_exit_program(self._arch, self.way, self._num_steps))
            questions = {name: torch.from_numpy(rows) for name, rows in self.loader.questions().items()}
            self._queue = self.runtime.replicate(questions)

    def prepare(self, weights: Weights, puzzle_embedding: Tensor | None) -> None:
        """Compile the evaluation step now instead of in the first evaluation."""
        votes, own = self._votes(lambda: False), tuple[Any, ...]()
        if self.way.exits_early:
            own = self._queue, self._start, self._next_group, self.runtime.shard_batch(votes).get("stop")
        else:
            own = self._carry, self.runtime.shard_batch(next(iter(self.loader)) | votes)
        self.runtime.prepare(self._step, weights, self._buffers, puzzle_embedding, *own)

    def over(self, loader: EvalLoader) -> "Evaluator":
        """An evaluator over the puzzles of another loader, which has batches of the same size."""
        other = copy.copy(self)
        other.loader = loader
        other._load()
        return other

    def rest(self) -> "Evaluator | None":
        """An evaluator over the test puzzles that the loader leaves out; None if it has all of them."""
        loader = self.loader.rest()
        return None if loader is None else self.over(loader)

    def run(
        self, weights: Weights, puzzle_embedding: Tensor | None, stop: Stop = lambda: False, see: See | None = None
    ) -> EvalResult:
        """Evaluate every puzzle of the loader once. Raises EvaluationStopped on all hosts soon after `stop` returned true.

        Weights and puzzle embedding ([I, E], or None) are on the devices. `see` is called with the predictions [S, N * K, ...] of N
        puzzles and with these puzzles, in order.
        """
        loader, way, began, shown, done = self.loader, self.way, time.perf_counter(), list[Predictions](), 0
        judge = loader.scores if loader.score_names else None
        metrics, wanted = Metrics(way, self._num_steps, judge), see is not None or judge is not None or way.candidates > 1
        stream = self._ended_rows if way.exits_early else self._full_batches
        step = functools.partial(self._step, weights, self._buffers, puzzle_embedding)
        for found in whole_puzzles(stream(step, stop, wanted, shown), way.candidates):
            start, done = done, done + found.q_halt.shape[1] // way.candidates
            puzzles = loader.puzzles(start, done)
            metrics.add(found if self._all_steps else found._replace(answers=None), puzzles)
            if see is not None:
                see(found, puzzles)
        samples = Samples.of(loader.puzzles(0, MOST_SAMPLES), shown[0])
        row_steps = tuple(metrics.row_steps)
        work = Work(loader.num_puzzles, loader.num_rows, row_steps[-1], time.perf_counter() - began)
        return EvalResult(metrics.means(), samples, loader.score_names, work, row_steps=row_steps)

    def _full_batches(self, step: Step, stop: Stop, wanted: bool, shown: list[Predictions]) -> Iterator[Predictions]:
        """The predictions [S, B, ...] of each batch, whose rows do all supervision steps, with answers if they are `wanted`.

        The first candidates of the first puzzles are put into `shown`. The host reads a batch while the devices compute the next.
        """
        total, before = len(self.loader) * self._num_steps, list[Predictions]()
        with progress_bar(self._progress, 0, total, "step", leave=False) as bar:
            progress = Progress("evaluation, steps of batches", total, bar, words=self._progress == "auto")
            for number, host_batch in enumerate(self.loader):
                batch = self.runtime.shard_batch(host_batch | self._votes(stop))
                carry, steps = self._carry, list[Predictions]()
                for s in range(self._num_steps):
                    if self._alone and stop():
                        raise EvaluationStopped
                    carry, found = step(carry, batch)
                    kept = number == 0 or (wanted and (self._all_steps or s == self._num_steps - 1))
                    steps.append(found if kept else found._replace(answers=None))
                    if s and progress.due():
                        self.runtime.fetch(steps[s - 1].q_halt)
                        progress.tell(number * self._num_steps + s)
                if before:
                    yield self._batch(before, number - 1, shown)
                before = steps
            yield self._batch(before, len(self.loader) - 1, shown)

    def _batch(self, steps: list[Predictions], number: int, shown: list[Predictions]) -> Predictions:
        """The predictions [S, R, ...] of a batch on the host, in the puzzles' own cells and tokens; padding is left out."""
        on_host = self._fetched(steps)
        start, answers = number * self.loader.global_batch_size, [found.answers for found in on_host if found.answers is not None]
        rows = over(lambda *values: np.stack(values), *(found._replace(answers=None) for found in on_host))
        rows = rows._replace(answers=np.stack(answers) if answers else None)
        if not shown:
            firsts = slice(0, MOST_SAMPLES * self.way.candidates, self.way.candidates)
            first = over(lambda values: values[:, firsts], rows._replace(confidence=None))
            shown.append(first._replace(confidence=rows.confidence))
        rows = over(lambda values: values[:, : self.loader.num_rows - start], rows._replace(confidence=None))
        return rows._replace(answers=self.loader.undo(rows.answers, start)) if answers else rows

    def _ended_rows(self, step: Step, stop: Stop, wanted: bool, shown: list[Predictions]) -> Iterator[Predictions]:
        """As `_full_batches`, for candidates that exit early: predictions [S, R, ...], in order.

        The host reads predictions when all candidates could have ended, or after MOST_CALLS steps.
        """
        rows, next_group, count, every = self._start, self._next_group, self.loader.num_rows, self.way.candidates
        ended, first, calls, finished, given = EndedRows(self._num_steps), EndedRows(self._num_steps), 0, 0, 0
        with progress_bar(self._progress, 0, count, "candidate" if every > 1 else "puzzle", leave=False) as bar:
            progress = Progress("evaluation, puzzles", count, bar, words=self._progress == "auto")
            while finished < count:
                if self._alone and stop():
                    raise EvaluationStopped
                votes, steps = self.runtime.shard_batch(self._votes(stop)).get("stop"), list[Predictions]()
                for _ in range(min(-((count - finished) // -self.loader.global_batch_size), MOST_CALLS)):
                    rows, next_group, found = step(self._queue, rows, next_group, votes)
                    kept = wanted or calls < self._num_steps  # until the first candidates, which are shown, have ended
                    steps.append(found if kept else found._replace(answers=None))
                    calls += 1
                for found in self._fetched(steps):
                    here = found.candidate < count  # the others are padding
                    finished += int(found.halted[here].sum())
                    if found.answers is not None:  # a candidate starts in the row of its number
                        at = np.arange(0, min(MOST_SAMPLES * every, len(here), count), every)
                        at = at[found.candidate[at] == at]
                        first.add(_picked(found, at)._replace(confidence=found.confidence[at // every], candidate=at // every))
                    ended.add(_picked(found if wanted else found._replace(answers=None), here))
                if progress.due() or not bar.disable:
                    progress.tell(finished)
                if (taken := ended.take()) is not None:
                    answers = None if taken.answers is None else self.loader.undo(taken.answers, given)
                    given += taken.q_halt.shape[1]
                    yield taken._replace(answers=answers)
        samples = first.take()
        assert samples is not None
        shown.append(samples)

    def _fetched(self, steps: list[Predictions]) -> list[Predictions]:
        """The predictions as arrays on the host. Raises EvaluationStopped, on all hosts alike, if one has voted to stop."""
        found: list[Predictions] = pytree.tree_map_only(Tensor, lambda tensor: tensor.numpy(), self.runtime.fetch(steps))
        if any(each.stop for each in found):
            raise EvaluationStopped
        return [each._replace(stop=None) for each in found]

    def _votes(self, stop: Stop) -> Batch:
        """This host's vote to stop, as part of a batch, since several hosts have to stop together; empty for one host."""
        return {} if self._alone else {"stop": np.full(self._local_batch_size, STOP if stop() else 0, np.int32)}


def _picked(found: Predictions, at: NDArray[Any]) -> Predictions:
    """The predictions of the rows `at` after one supervision step."""
    return over(lambda values: values[at], found._replace(confidence=None))


class VariantsEvaluator(Evaluator):
    """Variants of puzzles vote on their answers, and the scores are the puzzles' (`PairsTask`)."""

    loader: PairEvalLoader
    _all_steps = False

    def run(
        self, weights: Weights, puzzle_embedding: Tensor | None, stop: Stop = lambda: False, see: See | None = None
    ) -> EvalResult:
        """As `Evaluator.run`, but `see` is not called. All hosts have the answers of all rows, so they count the same votes."""
        ballots = self.ballots if self.keeps_votes and self.ballots is not None else self.loader.ballots()
        self.ballots = ballots

        def take(found: Predictions, rows: Batch) -> None:
            confidence = torch.from_numpy(found.q_halt[-1]).to(torch.float64).sigmoid().numpy()
            ballots.add(rows["puzzle_identifiers"], rows["inputs"], found.answers[-1], confidence)

        result = super().run(weights, puzzle_embedding, stop, take)
        assert self.loader.task is not None
        by_step = [*result.by_step[:-1], result.final | ballots.scores()]
        work = replace(result.work, puzzles=self.loader.num_inputs)
        return replace(result, by_step=by_step, score_names=self.loader.task.score_names, work=work, ballots=ballots)


def candidate_loader(cfg: Config, runtime: Runtime, most: int | None = None, only: Only | None = None) -> EvalLoader:
    """The candidates of the test puzzles of the config's dataset, or of the `only` ones. Raises DataError if there is no dataset.

    evaluate.max_puzzles limits the number of puzzles, otherwise `most` does. If rows have to be in one batch, the batch is the
    largest one of whole groups that is not larger than the settings say, or one group.
    """
    way = cfg.inference
    dataset, puzzle = only or (held_out_puzzles(cfg.data), None)
    host = Host(runtime.process_index, runtime.process_count)
    max_puzzles = 1 if puzzle is not None else cfg.evaluate.max_puzzles if only is None else None
    group = way.rows_together * runtime.num_devices  # rows of a puzzle have to be on one device
    batch = max(cfg.eval_batch_size // group, 1) * group if way.rows_together > 1 else cfg.eval_batch_size
    if dataset.pairs_task is not None:
        return PairEvalLoader(
            dataset,
            global_batch_size=batch,
            max_puzzles=max_puzzles,
            max_variants=cfg.evaluate.max_variants,
            blank=cfg.evaluate.blank_identifiers,
            data_seed=cfg.data.seed,
            host=host,
        )
    # If the rows would fill at most half of the batch, it gets smaller, since rows of padding take as long as others. Otherwise it
    # keeps its size, since a batch as large as training's needs no new graph. A sample and the rest have the same shape.
    rows = min(max_puzzles or dataset.num_rows, dataset.num_rows) * way.candidates
    needed = math.ceil(rows / group) * group
    loader = EvalLoader(
        dataset,
        global_batch_size=needed if 2 * needed <= batch else batch,
        max_puzzles=max_puzzles or most,
        copies=way.copies,
        repeats=way.particles,
        keys=(lambda puzzles, places: row_keys(way, puzzles, places)) if way.is_random or cfg.is_random else None,
        data_seed=cfg.data.seed,
        host=host,
    )
    return loader if puzzle is None else loader.only(puzzle)


def caveats_of(cfg: Config) -> list[str]:
    """Lines that say what to know before the results of this way of inference are read."""
    if cfg.inference.restarts == 1 or cfg.latents.init == "random":
        return []
    return [
        f"inference.restarts={cfg.inference.restarts}: the model was not trained with random starts, so it may solve fewer puzzles "
        "from them, and a small change of its logits may not mean that its answer is right"
    ]


def make_evaluator(
    cfg: Config,
    runtime: Runtime,
    arch: Architecture,
    buffers: Weights,
    *,
    sample: bool = False,
    only: Only | None = None,
) -> Evaluator:
    """An evaluator over the test puzzles, over a `sample` of them (as in training), or over the `only` ones. Raises DataError."""
    loader = candidate_loader(cfg, runtime, SAMPLE_PUZZLES if sample else None, only)
    steps, progress = cfg.inference_steps, cfg.train.progress if runtime.is_main else "off"
    if isinstance(loader, PairEvalLoader):
        variants = VariantsEvaluator(runtime, arch, buffers, loader, steps, progress)
        variants.keeps_votes, variants.ballots = cfg.evaluate.votes == "run", loader.ballots()
        return variants
    if cfg.evaluate.best_by not in (EXACT, *loader.score_names):
        raise DataError(
            f"evaluate.best_by={cfg.evaluate.best_by}: data.path={cfg.data.path} holds other puzzles than the settings say: set "
            f"it to {EXACT}"
        )
    return Evaluator(runtime, arch, buffers, loader, steps, progress, cfg.inference)


def selection_evaluator(cfg: Config, evaluator: Evaluator) -> Evaluator | None:
    """An evaluator over the puzzles that choose the best checkpoint; None if the test puzzles do. Raises DataError for too few."""
    asked, path = cfg.evaluate.selection_puzzles, Path(cfg.data.path)
    there = load_dataset(path, SELECTION, task_of(cfg.data)) if asked != 0 and (path / SELECTION).exists() else None
    if asked and (there is None or asked > there.num_rows):
        raise DataError(
            f"evaluate.selection_puzzles={asked}, but {path} has {0 if there is None else there.num_rows} such puzzles: lower it"
        )
    return None if there is None else evaluator.over(evaluator.loader.of(there, asked or evaluator.loader.num_puzzles))
