"""Evaluation: every candidate of every puzzle once, in full batches, by one compiled step.

`inference` says which candidates a puzzle has (copies x restarts x rollouts, D supervision steps) and which of them answers
(selection.py). Two ways to run them: all supervision steps, or with early exit, which is how a race (halt_first) is run.
"""

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils._pytree as pytree
from numpy.typing import NDArray
from torch import Tensor

from trm.backends import Runtime
from trm.config import EXACT, IGNORE_LABEL, SAMPLE_PUZZLES, Config, InferenceConfig
from trm.core.architecture import Architecture, Weights
from trm.core.candidates import row_keys
from trm.core.metrics import METRICS, MOST_SAMPLES, STOP, RowTrace, Shown, evaluation_names, named
from trm.core.programs import ONE, eval_program
from trm.core.step import empty_carry
from trm.data.build import held_out_puzzles
from trm.data.format import SELECTION, Dataset, load_dataset
from trm.data.loader import Batch, EvalLoader, Host
from trm.data.pairs import PairEvalLoader
from trm.errors import DataError
from trm.ground.progress import Progress, progress_bar
from trm.inference.cost import Work
from trm.inference.early_exit import early_exit_program, first_rows, first_totals, record_names
from trm.inference.pool import Chosen, Pool, Rows
from trm.inference.samples import Samples
from trm.tasks.base import task_of
from trm.tasks.pairs import Ballots


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Keys of the metrics: exact_accuracy, accuracy, lm_loss, q_halt_loss, q_halt_accuracy, steps, count, and the task's own scores
    (with early exit these after the last step alone). Of several candidates these are the chosen one's, and beside them
    oracle_exact_accuracy, the share of puzzles that any candidate solves (pass@K), and single_exact_accuracy, the mean over the
    candidates, each by itself.
    """

    # after each supervision step, the mean over all puzzles; of several candidates with early exit after the last alone
    by_step: list[dict[str, float]]
    samples: Samples  # of the first candidates, which are the puzzles themselves
    score_names: tuple[str, ...] = ()  # the task's own
    work: Work = field(default_factory=Work)
    ballots: Ballots | None = None  # of a task that judges puzzles by several rows
    chosen: Chosen | None = None  # who answers each puzzle, in the end, where the evaluator keeps it

    @property
    def shown_names(self) -> tuple[str, ...]:
        """What logs, tables and charts name beside exact accuracy: the task's scores and the metrics that ask for it."""
        return (*self.score_names, *(name for name, metric in METRICS.items() if metric.shown))

    @property
    def final(self) -> dict[str, float]:
        """Metrics after the last supervision step, which are the evaluation's result."""
        return self.by_step[-1]

    def joined(self, other: "EvalResult") -> "EvalResult":
        """The result over the puzzles of both, which share none."""
        return EvalResult(
            [_joined(*pair) for pair in zip(self.by_step, other.by_step, strict=True)],
            self.samples,
            self.score_names,
            self.work + other.work,
        )

    def score(self, name: str) -> float:
        """A score as `evaluate.best_by` names it."""
        return self.final["exact_accuracy" if name == EXACT else name]


class EvaluationStopped(Exception):
    """An evaluation was left before its end, since a stop was asked for."""


def never() -> bool:
    """No stop is asked for."""
    return False


class Evaluator(ABC):
    """Evaluates weights that are on the devices, on the puzzles of a loader, by a compiled step with its constant inputs.

    Attributes:
        ballots: votes on the puzzles, of a task that judges them so: those of the last pass, or of all where `keeps_votes` is set.
    """

    ballots: Ballots | None = None
    keeps_votes = False

    def __init__(
        self,
        runtime: Runtime,
        arch: Architecture,
        buffers: Weights,
        loader: EvalLoader,
        num_steps: int,
        progress: str,
        way: InferenceConfig = ONE,
        *,
        keep: bool = False,
    ) -> None:
        """`buffers` is on the CPU; `progress` is train.progress; the loader's rows are the candidates of `way`.

        With `keep` results say who answers each puzzle.
        """
        self.runtime, self.loader, self.way, self._keep = runtime, loader, way, keep
        self._arch, self._host_buffers, self._num_steps, self._progress = arch, buffers, num_steps, progress
        self._buffers = runtime.replicate(buffers)
        self._local_batch_size = loader.global_batch_size // runtime.process_count

        self._alone = runtime.process_count == 1

    def _voted(self, batch: Batch, stop: Callable[[], bool]) -> Batch:
        """A batch of the loader; of several hosts with this one's vote to stop, for they have to leave together."""
        return batch if self._alone else {**batch, "stop": self._own_votes(stop)}

    def _votes(self, stop: Callable[[], bool]) -> Tensor | None:
        """The same where there is no batch: of several hosts, on the devices."""
        return None if self._alone else self.runtime.shard_batch({"stop": self._own_votes(stop)})["stop"]

    def _own_votes(self, stop: Callable[[], bool]) -> NDArray[np.int32]:
        return np.full(self._local_batch_size, STOP if stop() else 0, np.int32)

    def _refuse_votes(self, sums: Tensor) -> None:
        """Raise EvaluationStopped where a host has voted to stop, by an evaluation's sums on the host, the same on all of them."""
        if not self._alone and named(evaluation_names(), sums)["stop_votes"]:
            raise EvaluationStopped

    @abstractmethod
    def prepare(self, weights: Weights, puzzle_embedding: Tensor | None) -> None:
        """Compile the evaluation now rather than at the first `run`."""

    @abstractmethod
    def run(self, weights: Weights, puzzle_embedding: Tensor | None, stop: Callable[[], bool] = never) -> EvalResult:
        """Every puzzle of the loader once. Raises EvaluationStopped soon after `stop` says so."""

    @abstractmethod
    def over(self, loader: EvalLoader) -> "Evaluator":
        """The same over the puzzles of another loader with batches of the same size."""

    def rest(self) -> "Evaluator | None":
        """The same over the test puzzles that the loader leaves out; None where there are none."""
        loader = self.loader.rest()
        return None if loader is None else self.over(loader)


@dataclass(frozen=True)
class Trace:
    """What every row R of the pass said on the way."""

    predictions: NDArray[np.int32]  # [R, C] after the last supervision step
    exact: NDArray[np.bool_]  # [S, R]
    halts: NDArray[np.bool_]  # [S, R]
    q_halt: NDArray[np.floating]  # [S, R]


class BatchTrace(NamedTuple):
    """What the rows of one batch said."""

    steps: list[RowTrace]  # after each supervision step
    predictions: list[Tensor]  # [B, C] int32, after each supervision step where somebody asks for them, else the last


class FullEvaluator(Evaluator):
    """All rows do all supervision steps (docs/explanation/what_is_computed.md "One training step" item 2)."""

    _takes_all_steps = True  # whether who takes a batch wants the answers after each step, or the last alone

    def __init__(
        self,
        runtime: Runtime,
        arch: Architecture,
        buffers: Weights,
        loader: EvalLoader,
        num_steps: int,
        progress: str,
        way: InferenceConfig = ONE,
        *,
        keep: bool = False,
        traced: bool = False,
    ) -> None:
        """As every evaluator; `traced` makes `trace` work.

        Rows are traced in any case where there are several candidates, or the puzzles have scores of their own: what is chosen and
        how it scores is found on the host.
        """
        super().__init__(runtime, arch, buffers, loader, num_steps, progress, way, keep=keep)
        self._carry = runtime.shard(empty_carry(arch, buffers, self._local_batch_size))
        self._zeros = runtime.replicate(torch.zeros(len(evaluation_names()), dtype=arch.master_dtype))
        self._score_names = loader.score_names
        self._step = runtime.compile(*eval_program(arch, way, traced=traced or keep or bool(self._score_names)))

    def prepare(self, weights: Weights, puzzle_embedding: Tensor | None) -> None:
        """Compile the evaluation step now rather than at the first evaluation."""
        batch = self.runtime.shard_batch(self._voted(next(iter(self.loader)), never))
        self.runtime.prepare(self._step, weights, self._buffers, puzzle_embedding, self._carry, batch, self._zeros)

    def over(self, loader: EvalLoader) -> "FullEvaluator":
        """The same with the same compiled step."""
        other = copy.copy(self)
        other.loader = loader
        return other

    def run(self, weights: Weights, puzzle_embedding: Tensor | None, stop: Callable[[], bool] = never) -> EvalResult:
        """Evaluate weights that are on the devices. These always have a batch to go on with: what is read is of the one before."""
        if self.way.candidates > 1 or self._keep:
            return self.pool(weights, puzzle_embedding, stop)[0]
        return self._pass(weights, puzzle_embedding, stop)[0]

    def trace(
        self, weights: Weights, puzzle_embedding: Tensor | None, stop: Callable[[], bool] = never
    ) -> tuple[EvalResult, Trace]:
        """The same of one candidate, and what every row said."""
        result, batches = self._pass(weights, puzzle_embedding, stop)
        rows = self.loader.num_rows
        steps = [_stacked(batch.steps) for batch in batches]  # [S, B] each
        parts = zip(*((step.values["exact_accuracy"], step.halts, step.q_halt) for step in steps), strict=True)
        exact, halts, q_halt = (torch.cat(part, dim=1)[:, :rows].numpy() for part in parts)
        predictions = torch.cat([batch.predictions[-1] for batch in batches])[:rows].numpy()
        return result, Trace(predictions, exact, halts, q_halt)

    def pool(
        self,
        weights: Weights,
        puzzle_embedding: Tensor | None,
        stop: Callable[[], bool] = never,
        see: Callable[[Rows], None] | None = None,
    ) -> tuple[EvalResult, Pool]:
        """The result of candidates; `see` is shown their rows, those of whole puzzles at a time. One candidate has to be traced."""
        pool = new_pool(self.loader, self.way, keep=self._keep, see=see)

        def take(trace: BatchTrace, start: int) -> None:
            pool.add(candidate_rows(trace, self.loader, start))

        result, _ = self._pass(weights, puzzle_embedding, stop, take)
        return EvalResult(pool.means(), result.samples, self._score_names, result.work, chosen=pool.answered), pool

    def _pass(
        self,
        weights: Weights,
        puzzle_embedding: Tensor | None,
        stop: Callable[[], bool],
        take: Callable[[BatchTrace, int], None] | None = None,
    ) -> tuple[EvalResult, list[BatchTrace]]:
        """`take` gets what each batch said and its first row; without it the scores are found here and the traces are kept."""
        sums = [self._zeros] * self._num_steps
        scores = [dict.fromkeys(self._score_names, 0) for _ in sums]  # puzzles that have them
        all_predictions = bool(self._score_names) or (take is not None and self._takes_all_steps)
        shown: list[Shown] = []  # of the first batch
        traces: list[BatchTrace] = []
        total, began = len(self.loader) * self._num_steps, time.perf_counter()

        def fetched(trace: BatchTrace, number: int) -> BatchTrace:
            on_host: BatchTrace = self.runtime.fetch(trace)
            start = number * self.loader.global_batch_size
            if take is not None:
                take(on_host, start)
                return BatchTrace([], [])
            if self._score_names:
                self._score(on_host, start, scores)
            return on_host._replace(predictions=on_host.predictions[-1:])

        with progress_bar(self._progress, 0, total, "step", leave=False) as bar:
            progress = Progress("evaluation, steps of batches", total, bar, words=self._progress == "auto")
            for number, host_batch in enumerate(self.loader):
                batch, carry, before = self.runtime.shard_batch(self._voted(host_batch, stop)), self._carry, sums[-1]
                steps: list[RowTrace] = []
                predictions: list[Tensor] = []
                for s in range(self._num_steps):
                    if self._alone and stop():
                        raise EvaluationStopped
                    carry, sums[s], answers, traced = self._step(weights, self._buffers, puzzle_embedding, carry, batch, sums[s])
                    if len(shown) < self._num_steps:
                        shown.append(answers)
                    if traced is not None:
                        steps.append(traced[0])
                        predictions = [*(predictions if all_predictions else ()), traced[1]]
                    if s and progress.due():
                        self.runtime.fetch(sums[s - 1])
                        progress.tell(number * self._num_steps + s)
                # what is read is of the batch before: the devices have this one to go on with
                if traces:
                    traces[-1] = fetched(traces[-1], number - 1)
                if traced is not None:
                    traces.append(BatchTrace(steps, predictions))
                if stop is not never:  # else the host would be done long before the devices, and deaf to a stop
                    self._refuse_votes(self.runtime.fetch(before))
            totals, shown = self.runtime.fetch((sums, shown))
            traces[-1:] = [fetched(last, len(self.loader) - 1) for last in traces[-1:]]
        samples = Samples.of(self.loader.puzzles(0, MOST_SAMPLES), Shown(*map(torch.stack, zip(*shown, strict=True))))
        means = [_means(total) for total in totals]
        for mean, found in zip(means, scores, strict=True):
            mean |= {name: count / max(mean["count"], 1) for name, count in found.items()}
        rows = self.loader.num_rows
        work = Work(self.loader.num_puzzles, rows, rows * self._num_steps, time.perf_counter() - began)
        return EvalResult(means, samples, self._score_names, work), traces

    def _score(self, trace: BatchTrace, start: int, scores: list[dict[str, int]]) -> None:
        """Add the task's scores of a batch on the host to `scores`."""
        for predictions, sums in zip(trace.predictions, scores, strict=True):
            for name, has in self.loader.scores(predictions.numpy(), start).items():
                sums[name] += int(has.sum())


def _stacked(steps: list[RowTrace]) -> RowTrace:
    """[S, B] of each."""
    result: RowTrace = pytree.tree_map(lambda *values: None if values[0] is None else torch.stack(values), *steps)
    return result


def candidate_rows(trace: BatchTrace, loader: EvalLoader, start: int) -> Rows:
    """What the rows of a batch on the host, from `start` on, said; padding is left out."""
    count = min(len(trace.predictions[-1]), loader.num_rows - start)
    answers = loader.undo(torch.stack(trace.predictions)[:, :count].numpy(), start)
    said: Any = pytree.tree_map_only(Tensor, lambda values: values[:, :count].numpy(), _stacked(trace.steps))
    return Rows(answers, *said)


def new_pool(loader: EvalLoader, way: InferenceConfig, *, keep: bool = False, see: Callable[[Rows], None] | None = None) -> Pool:
    """Where the candidates of a loader's puzzles come together."""
    labelled = (loader.puzzles(0, loader.num_puzzles)["labels"] != IGNORE_LABEL).any(axis=1)
    return Pool(way, labelled, loader.puzzle_scores if loader.score_names else None, keep=keep, see=see)


class VariantsEvaluator(FullEvaluator):
    """Variants of puzzles vote on their answers, and the scores are the puzzles' (`PairsTask`)."""

    _takes_all_steps = False

    def __init__(
        self,
        runtime: Runtime,
        arch: Architecture,
        buffers: Weights,
        loader: PairEvalLoader,
        num_steps: int,
        progress: str,
        votes: str,
    ) -> None:
        """As every evaluator; `votes` is evaluate.votes."""
        super().__init__(runtime, arch, buffers, loader, num_steps, progress, traced=True)
        self.pairs, self.keeps_votes, self.ballots = loader, votes == "run", loader.ballots()

    def run(self, weights: Weights, puzzle_embedding: Tensor | None, stop: Callable[[], bool] = never) -> EvalResult:
        """Evaluate weights that are on the devices. All hosts have the answers of all rows, so that all count the same votes."""
        ballots = self.ballots if self.keeps_votes and self.ballots is not None else self.pairs.ballots()
        self.ballots = ballots

        def take(trace: BatchTrace, start: int) -> None:
            answers = trace.predictions[-1].numpy()
            rows = self.pairs.rows(start, start + len(answers))
            count, confidence = len(rows["inputs"]), trace.steps[-1].q_halt.to(torch.float64).sigmoid().numpy()
            ballots.add(rows["puzzle_identifiers"], rows["inputs"], answers[:count], confidence[:count])

        result, _ = self._pass(weights, puzzle_embedding, stop, take)
        assert self.pairs.task is not None
        by_step, work = [*result.by_step[:-1], result.final | ballots.scores()], replace(result.work, puzzles=self.pairs.num_inputs)
        return replace(result, by_step=by_step, score_names=self.pairs.task.score_names, work=work, ballots=ballots)


class EarlyExitEvaluator(Evaluator):
    """A row whose puzzle halted takes the next one (early_exit.py). The results after a step are those of stopping there.

    Of several candidates each exits by itself and is chosen by its answer of then; in a race all do where the first one halts.
    """

    def __init__(
        self,
        runtime: Runtime,
        arch: Architecture,
        buffers: Weights,
        loader: EvalLoader,
        num_steps: int,
        progress: str,
        way: InferenceConfig = ONE,
        *,
        keep: bool = False,
    ) -> None:
        """As every evaluator."""
        super().__init__(runtime, arch, buffers, loader, num_steps, progress, way, keep=keep)
        self._queue = runtime.replicate({name: torch.from_numpy(rows) for name, rows in loader.questions().items()})
        self._rows = runtime.shard(first_rows(arch, buffers, self._local_batch_size))
        kept = loader.num_rows if loader.score_names or way.candidates > 1 or keep else None
        totals = first_totals(arch, loader.global_batch_size, num_steps, kept, way)
        self._totals = runtime.replicate(totals)
        self._step = runtime.compile(*early_exit_program(arch, way))

    def prepare(self, weights: Weights, puzzle_embedding: Tensor | None) -> None:
        """Compile the evaluation step now rather than at the first evaluation."""
        votes = self._votes(never)
        self.runtime.prepare(self._step, weights, self._buffers, puzzle_embedding, self._queue, self._rows, self._totals, votes)

    def over(self, loader: EvalLoader) -> "EarlyExitEvaluator":
        """The same: a graph of its own where the queue has another length."""
        arguments = self.runtime, self._arch, self._host_buffers, loader, self._num_steps, self._progress, self.way
        return EarlyExitEvaluator(*arguments, keep=self._keep)

    def run(self, weights: Weights, puzzle_embedding: Tensor | None, stop: Callable[[], bool] = never) -> EvalResult:
        """Evaluate weights that are on the devices.

        Only the number of finished candidates is read on the way, and no sooner than they could all be finished.
        """
        rows, totals, finished, count, began = self._rows, self._totals, 0, self.loader.num_rows, time.perf_counter()
        several = self.way.candidates > 1
        with progress_bar(self._progress, 0, count, "candidate" if several else "puzzle", leave=False) as bar:
            progress = Progress("evaluation, puzzles", count, bar, words=self._progress == "auto")
            while finished < count:
                if self._alone and stop():
                    raise EvaluationStopped
                votes = self._votes(stop)
                for _ in range(-((count - finished) // -self.loader.global_batch_size)):
                    rows, totals = self._step(weights, self._buffers, puzzle_embedding, self._queue, rows, totals, votes)
                sums, done = self.runtime.fetch((totals.sums, totals.done))
                self._refuse_votes(sums[-1])
                finished, row_steps = done.tolist()
                if progress.due() or not bar.disable:
                    progress.tell(finished)
        shown, answers, record = self.runtime.fetch((totals.shown, totals.answers, totals.record))
        means, names, chosen = [_means(total) for total in sums], self.loader.score_names, None
        work = Work(self.loader.num_puzzles, count, row_steps, time.perf_counter() - began)
        if record is not None and answers is not None:
            pool = new_pool(self.loader, self.way, keep=self._keep)
            pool.add(_recorded(record[:-1].numpy(), self.loader.undo(answers[:-1].numpy())))
            pooled, chosen = pool.means(), pool.answered
            means = pooled if several else [*means[:-1], means[-1] | {name: pooled[-1][name] for name in names}]
        return EvalResult(means, Samples.of(self.loader.puzzles(0, MOST_SAMPLES), shown), names, work, chosen=chosen)


def _recorded(record: NDArray[np.floating], answers: NDArray[np.integer]) -> Rows:
    """What candidates [R] said when they had done: `record_names` of each [R, F] and its answers [R, C]."""
    values = dict(zip(record_names(), record.T[:, None], strict=True))  # [1, R] each
    halts, q_halt = values.pop("halts") > 0, values.pop("q_halt")
    values["exact_accuracy"] = values["exact_accuracy"] > 0
    return Rows(answers[None], values, halts, q_halt, None)


def _means(total: Tensor) -> dict[str, float]:
    values = named(evaluation_names(), total)
    count = values["count"]
    return {"count": int(count)} | {name: values[name] / max(count, 1) for name in METRICS}


def _joined(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Means over the puzzles of both."""
    count = one["count"] + other["count"]
    return {
        name: count if name == "count" else (value * one["count"] + other[name] * other["count"]) / max(count, 1)
        for name, value in one.items()
    }


Only = tuple[Dataset, int]  # a dataset and the row of the only puzzle to evaluate


def make_evaluator(
    cfg: Config,
    runtime: Runtime,
    arch: Architecture,
    buffers: Weights,
    *,
    sample: bool = False,
    only: Only | None = None,
    keep: bool = False,
) -> Evaluator:
    """An evaluator over the test split of the config's dataset, or a `sample` of it as training takes. Raises DataError without.

    With `only` it is over one puzzle; with `keep` its results say who answers each.
    """
    way = cfg.inference
    loader = candidate_loader(cfg, runtime, SAMPLE_PUZZLES if sample else None, only)
    if isinstance(loader, PairEvalLoader):
        steps = cfg.inference_steps
        return VariantsEvaluator(runtime, arch, buffers, loader, steps, progress_of(cfg, runtime), cfg.evaluate.votes)
    if cfg.evaluate.best_by not in (EXACT, *loader.score_names):
        raise DataError(
            f"evaluate.best_by={cfg.evaluate.best_by}: data.path={cfg.data.path} holds other puzzles than the settings say: set "
            f"it to {EXACT}"
        )
    kind = EarlyExitEvaluator if way.exits_early else FullEvaluator
    return kind(runtime, arch, buffers, loader, cfg.inference_steps, progress_of(cfg, runtime), way, keep=keep)


def selection_evaluator(cfg: Config, evaluator: Evaluator) -> Evaluator | None:
    """The same evaluator over the puzzles that choose the best checkpoint; None where the test puzzles do.

    Raises DataError where there are fewer than evaluate.selection_puzzles.
    """
    asked, path = cfg.evaluate.selection_puzzles, Path(cfg.data.path)
    there = load_dataset(path, SELECTION, task_of(cfg.data)) if asked != 0 and (path / SELECTION).exists() else None
    if asked and (there is None or asked > there.num_rows):
        raise DataError(
            f"evaluate.selection_puzzles={asked}, but {path} has {0 if there is None else there.num_rows} such puzzles: lower it"
        )
    return None if there is None else evaluator.over(evaluator.loader.of(there, asked or evaluator.loader.num_puzzles))


def candidate_loader(cfg: Config, runtime: Runtime, most: int | None = None, only: Only | None = None) -> EvalLoader:
    """The candidates of the test puzzles, as `inference` says; otherwise as `held_out_loader`.

    Where rows have to be in one batch this is the largest batch of whole groups that is not larger than the settings', or one.
    """
    way = cfg.inference
    group = way.rows_together * runtime.num_devices  # on one device, whose program may see no other rows
    batch = max(cfg.eval_batch_size // group, 1) * group if way.rows_together > 1 else cfg.eval_batch_size
    return held_out_loader(cfg, runtime, way.copies, most, way, batch, only)


def held_out_loader(
    cfg: Config,
    runtime: Runtime,
    copies: int,
    most: int | None = None,
    way: InferenceConfig = ONE,
    batch_size: int | None = None,
    only: Only | None = None,
) -> EvalLoader:
    """The test split of the config's dataset, each puzzle in so many symmetric copies. Raises DataError where there is none.

    Of a larger one `most` puzzles, unless evaluate.max_puzzles says how many; or the `only` one.
    """
    dataset, puzzle = only or (held_out_puzzles(cfg.data), None)
    host = Host(runtime.process_index, runtime.process_count)
    max_puzzles = cfg.evaluate.max_puzzles if only is None else 1
    if dataset.pairs_task is not None:
        return PairEvalLoader(
            dataset,
            global_batch_size=batch_size or cfg.eval_batch_size,
            max_puzzles=max_puzzles,
            max_variants=cfg.evaluate.max_variants,
            blank=cfg.evaluate.blank_identifiers,
            data_seed=cfg.data.seed,
            host=host,
        )
    # of a sample as of the rest, so that both are of one shape
    rows = min(max_puzzles or dataset.num_rows, dataset.num_rows) * copies * way.particles
    loader = EvalLoader(
        dataset,
        global_batch_size=_rows_of_batch(batch_size or cfg.eval_batch_size, rows, way.rows_together * runtime.num_devices),
        max_puzzles=max_puzzles or most,
        copies=copies,
        repeats=way.particles,
        keys=(lambda puzzles, places: row_keys(way, puzzles, places)) if way.is_random or cfg.is_random else None,
        data_seed=cfg.data.seed,
        host=host,
    )
    return loader if puzzle is None else loader.only(puzzle)


def _rows_of_batch(batch: int, rows: int, multiple: int) -> int:
    """The batch's rows, or where the rows that there are leave half of them empty, as many as these need.

    Rows of padding take as long as any. It is not made a little smaller: one as large as training's has nothing new to compile.
    """
    needed = math.ceil(rows / multiple) * multiple
    return needed if 2 * needed <= batch else batch


def progress_of(cfg: Config, runtime: Runtime) -> str:
    """train.progress on the main process, off on the others."""
    return cfg.train.progress if runtime.is_main else "off"
