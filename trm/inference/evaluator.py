"""Evaluation: every puzzle once, in full batches, by one compiled step. Two ways: all supervision steps, or with early exit."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trm.backends import Runtime
from trm.config import EXACT, IGNORE_LABEL, SAMPLE_PUZZLES, Config
from trm.core.metrics import METRICS, MOST_SAMPLES, NORMS, RowTrace, Shown
from trm.core.model import Architecture, Weights
from trm.core.programs import eval_program
from trm.core.step import empty_carry
from trm.data.build import ensure_dataset
from trm.data.format import load_dataset
from trm.data.loader import EvalLoader
from trm.data.pairs import PairEvalLoader
from trm.errors import ConfigError, DataError
from trm.inference.early_exit import early_exit_program, first_rows, first_totals
from trm.inference.progress import Progress, progress_bar
from trm.inference.samples import Samples
from trm.tasks.base import Ballots, task_of


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Keys of the metrics: exact_accuracy, accuracy, lm_loss, q_halt_loss, q_halt_accuracy, steps, count, and the task's own scores
    (with early exit these after the last step alone).
    """

    by_step: list[dict[str, float]]  # after each supervision step, the mean over all puzzles
    samples: Samples
    score_names: tuple[str, ...] = ()  # the task's own
    ballots: Ballots | None = None  # of a task that judges puzzles by several rows

    @property
    def final(self) -> dict[str, float]:
        """Metrics after the last supervision step, which are the evaluation's result."""
        return self.by_step[-1]

    def joined(self, other: "EvalResult") -> "EvalResult":
        """The result over the puzzles of both, which share none."""
        return EvalResult(
            [_joined(*pair) for pair in zip(self.by_step, other.by_step, strict=True)], self.samples, self.score_names, self.ballots
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
        self, runtime: Runtime, arch: Architecture, fixed: Weights, loader: EvalLoader, num_steps: int, progress: str
    ) -> None:
        """`fixed` is on the CPU; `progress` is train.progress."""
        self.runtime, self.loader = runtime, loader
        self._arch, self._host_fixed, self._num_steps, self._progress = arch, fixed, num_steps, progress
        self._fixed = runtime.put_replicated(fixed)
        self._local_batch_size = loader.global_batch_size // runtime.process_count

    @abstractmethod
    def prepare(self, weights: Weights, puzzle_embedding: Tensor | None) -> None:
        """Compile the evaluation now rather than at the first `run`."""

    @abstractmethod
    def run(self, weights: Weights, puzzle_embedding: Tensor | None, stop: Callable[[], bool] = never) -> EvalResult:
        """Every puzzle of the loader once. Raises EvaluationStopped soon after `stop` says so."""

    @abstractmethod
    def rest(self) -> "Evaluator | None":
        """The same over the test puzzles that the loader leaves out; None where there are none."""


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
    predictions: list[Tensor]  # [B, C] int32, after each supervision step where the task has scores of its own, else the last


class FullEvaluator(Evaluator):
    """All rows do all supervision steps (SPEC.md "One training step" item 2)."""

    def __init__(
        self,
        runtime: Runtime,
        arch: Architecture,
        fixed: Weights,
        loader: EvalLoader,
        num_steps: int,
        progress: str,
        *,
        traced: bool = False,
    ) -> None:
        """As every evaluator; `traced` makes `trace` work.

        Rows are traced in any case where the puzzles have scores of their own, which are found on the host.
        """
        super().__init__(runtime, arch, fixed, loader, num_steps, progress)
        self._traced = traced
        self._carry = runtime.put_rows(empty_carry(arch, fixed, self._local_batch_size))
        self._zeros = runtime.put_replicated(torch.zeros(len(METRICS), dtype=arch.master_dtype))
        self._score_names = loader.score_names
        self.ballots = loader.ballots()
        self._step = runtime.compile(*eval_program(arch, traced=traced or bool(self._score_names) or self.ballots is not None))

    def prepare(self, weights: Weights, puzzle_embedding: Tensor | None) -> None:
        """Compile the evaluation step now rather than at the first evaluation."""
        batch = self.runtime.put_batch(next(iter(self.loader)))
        self.runtime.prepare(self._step, weights, self._fixed, puzzle_embedding, self._carry, batch, self._zeros)

    def rest(self) -> "FullEvaluator | None":
        """The same, with the same compiled step, over the test puzzles that the loader leaves out."""
        loader = self.loader.rest()
        if loader is None:
            return None
        other = copy.copy(self)
        other.loader = loader
        return other

    def run(self, weights: Weights, puzzle_embedding: Tensor | None, stop: Callable[[], bool] = never) -> EvalResult:
        """Evaluate weights that are on the devices. These always have a batch to go on with: what is read is of the one before."""
        return self._pass(weights, puzzle_embedding, stop)[0]

    def trace(self, weights: Weights, puzzle_embedding: Tensor | None) -> tuple[EvalResult, Trace]:
        """The same, and what every row said."""
        result, batches = self._pass(weights, puzzle_embedding, never)
        rows = self.loader.num_rows
        steps = [RowTrace(*map(torch.stack, zip(*batch.steps, strict=True))) for batch in batches]  # [S, B] each
        exact, halts, q_halt = (torch.cat(parts, dim=1)[:, :rows].numpy() for parts in zip(*steps, strict=True))
        predictions = torch.cat([batch.predictions[-1] for batch in batches])[:rows].numpy()
        return result, Trace(predictions, exact, halts, q_halt)

    def _pass(
        self, weights: Weights, puzzle_embedding: Tensor | None, stop: Callable[[], bool]
    ) -> tuple[EvalResult, list[BatchTrace]]:
        sums = [self._zeros] * self._num_steps
        scores = [dict.fromkeys(self._score_names, 0) for _ in sums]  # puzzles that have them
        shown: list[Shown] = []  # of the first batch
        traces: list[BatchTrace] = []
        if not self.keeps_votes:
            self.ballots = self.loader.ballots()
        total = len(self.loader) * self._num_steps
        with progress_bar(self._progress, 0, total, "step", leave=False) as bar:
            progress = Progress("evaluation, steps of batches", total, bar, words=self._progress == "auto")
            for number, host_batch in enumerate(self.loader):
                batch, carry, before = self.runtime.put_batch(host_batch), self._carry, sums[-1]
                steps: list[RowTrace] = []
                predictions: list[Tensor] = []
                for s in range(self._num_steps):
                    if stop():
                        raise EvaluationStopped
                    carry, sums[s], answers, traced = self._step(weights, self._fixed, puzzle_embedding, carry, batch, sums[s])
                    if len(shown) < self._num_steps:
                        shown.append(answers)
                    if traced is not None:
                        steps.append(traced[0])
                        predictions = [*(predictions if self._score_names else ()), traced[1]]
                    if s and progress.due():
                        self.runtime.fetch(sums[s - 1])
                        progress.tell(number * self._num_steps + s)
                # what is read is of the batch before: the devices have this one to go on with
                if traces:
                    traces[-1] = self._fetched(traces[-1], number - 1, scores)
                if traced is not None:
                    traces.append(BatchTrace(steps, predictions))
                if stop is not never:  # else the host would be done long before the devices, and deaf to a stop
                    self.runtime.fetch(before)
            totals, shown = self.runtime.fetch((sums, shown))
            traces[-1:] = [self._fetched(last, len(self.loader) - 1, scores) for last in traces[-1:]]
        samples = Samples.of(self.loader.rows(0, MOST_SAMPLES), Shown(*map(torch.stack, zip(*shown, strict=True))))
        means = [_means(total) for total in totals]
        for mean, found in zip(means, scores, strict=True):
            mean |= {name: count / max(mean["count"], 1) for name, count in found.items()}
        names = self._score_names
        if self.ballots is not None and self.loader.task is not None:
            means[-1] |= self.ballots.scores()
            names = self.loader.task.score_names
        return EvalResult(means, samples, names, self.ballots), traces

    def _fetched(self, trace: BatchTrace, number: int, scores: list[dict[str, int]]) -> BatchTrace:
        """The trace of a batch on the host, its task's scores added to `scores` and its votes counted.

        Of its answers only the last go on, and nothing where no trace was asked for.
        """
        on_host: BatchTrace = self.runtime.fetch(trace)
        if self._score_names:
            for predictions, sums in zip(on_host.predictions, scores, strict=True):
                for name, has in self.loader.scores(predictions.numpy(), number * len(predictions)).items():
                    sums[name] += int(has.sum())
        if self.ballots is not None:
            answers = on_host.predictions[-1].numpy()
            rows = self.loader.rows(number * len(answers), (number + 1) * len(answers))
            count, confidence = len(rows["inputs"]), on_host.steps[-1].q_halt.to(torch.float64).sigmoid().numpy()
            self.ballots.add(rows["puzzle_identifiers"], rows["inputs"], answers[:count], confidence[:count])
        return on_host._replace(predictions=on_host.predictions[-1:]) if self._traced else BatchTrace([], [])


class EarlyExitEvaluator(Evaluator):
    """A row whose puzzle halted takes the next one (early_exit.py). The results after a step are those of stopping there."""

    def __init__(
        self, runtime: Runtime, arch: Architecture, fixed: Weights, loader: EvalLoader, num_steps: int, progress: str
    ) -> None:
        """As every evaluator."""
        super().__init__(runtime, arch, fixed, loader, num_steps, progress)
        puzzles = loader.padded(0, loader.num_rows + 1)
        self._count = int((puzzles["labels"] != IGNORE_LABEL).any(axis=1).sum())
        self._queue = runtime.put_replicated({name: torch.from_numpy(rows) for name, rows in puzzles.items()})
        self._rows = runtime.put_rows(first_rows(arch, fixed, self._local_batch_size))
        rows_with_scores = loader.num_rows if loader.score_names else None
        self._totals = runtime.put_replicated(first_totals(arch, loader.global_batch_size, num_steps, rows_with_scores))
        self._step = runtime.compile(*early_exit_program(arch))

    def prepare(self, weights: Weights, puzzle_embedding: Tensor | None) -> None:
        """Compile the evaluation step now rather than at the first evaluation."""
        self.runtime.prepare(self._step, weights, self._fixed, puzzle_embedding, self._queue, self._rows, self._totals)

    def rest(self) -> "EarlyExitEvaluator | None":
        """The same over the test puzzles that the loader leaves out: a graph of its own, since the queue has another length."""
        loader = self.loader.rest()
        if loader is None:
            return None
        return EarlyExitEvaluator(self.runtime, self._arch, self._host_fixed, loader, self._num_steps, self._progress)

    def run(self, weights: Weights, puzzle_embedding: Tensor | None, stop: Callable[[], bool] = never) -> EvalResult:
        """Evaluate weights that are on the devices.

        Only the number of finished puzzles is read on the way, and no sooner than they could all be finished.
        """
        rows, totals, finished = self._rows, self._totals, 0
        with progress_bar(self._progress, 0, self._count, "puzzle", leave=False) as bar:
            progress = Progress("evaluation, puzzles", self._count, bar, words=self._progress == "auto")
            while finished < self._count:
                if stop():
                    raise EvaluationStopped
                for _ in range(-((self._count - finished) // -self.loader.global_batch_size)):
                    rows, totals = self._step(weights, self._fixed, puzzle_embedding, self._queue, rows, totals)
                finished = int(self.runtime.fetch(totals.sums)[-1, METRICS.index("count")])
                if progress.due() or not bar.disable:
                    progress.tell(finished)
        sums, shown, answers = self.runtime.fetch((totals.sums, totals.shown, totals.answers))
        means, names = [_means(total) for total in sums], self.loader.score_names
        if answers is not None:
            scores = self.loader.scores(answers[:-1].numpy(), 0)
            means[-1] |= {name: float(scores[name].sum()) / max(means[-1]["count"], 1) for name in names}
        return EvalResult(means, Samples.of(self.loader.rows(0, MOST_SAMPLES), shown), names)


def _means(total: Tensor) -> dict[str, float]:
    values = dict(zip(METRICS, total.tolist(), strict=True))
    count = values.pop("count")
    # every row counts; the others are of training alone
    for name in ("rows", "q_continue_loss", "nonfinite_steps", "stop_votes", "failure_votes", *NORMS):
        del values[name]
    return {"count": int(count)} | {name: value / max(count, 1) for name, value in values.items()}


def _joined(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Means over the puzzles of both."""
    count = one["count"] + other["count"]
    return {
        name: count if name == "count" else (value * one["count"] + other[name] * other["count"]) / max(count, 1)
        for name, value in one.items()
    }


def make_evaluator(cfg: Config, runtime: Runtime, arch: Architecture, fixed: Weights, *, sample: bool = False) -> Evaluator:
    """An evaluator over the test split of the config's dataset, or a `sample` of it as training takes. Raises DataError without."""
    loader = held_out_loader(cfg, runtime, 1, SAMPLE_PUZZLES if sample else None)
    if isinstance(loader, PairEvalLoader):
        if cfg.evaluate.early_exit:
            raise ConfigError("evaluate.early_exit: variants vote with their answers after all supervision steps: leave it out")
        evaluator = FullEvaluator(runtime, arch, fixed, loader, cfg.recursion.n_sup, progress_of(cfg, runtime))
        evaluator.keeps_votes = cfg.evaluate.votes == "run"
        return evaluator
    if cfg.evaluate.best_by not in (EXACT, *loader.score_names):
        raise DataError(
            f"evaluate.best_by={cfg.evaluate.best_by}: data.path={cfg.data.path} holds other puzzles than the settings say: set "
            f"it to {EXACT}"
        )
    kind = EarlyExitEvaluator if cfg.evaluate.early_exit else FullEvaluator
    return kind(runtime, arch, fixed, loader, cfg.recursion.n_sup, progress_of(cfg, runtime))


def held_out_loader(cfg: Config, runtime: Runtime, copies: int, most: int | None = None) -> EvalLoader:
    """The test split of the config's dataset, each puzzle in so many symmetric copies. Raises DataError where there is none.

    Of a larger one `most` puzzles, unless evaluate.max_puzzles says how many.
    """
    dataset = load_dataset(ensure_dataset(cfg.data), "test", task_of(cfg.data))
    if dataset.pairs_task is not None:
        if copies > 1:
            raise DataError("evaluate.augmentations: the variants of these puzzles vote in any case: leave it out")
        return PairEvalLoader(
            dataset,
            global_batch_size=cfg.eval_batch_size,
            max_puzzles=cfg.evaluate.max_puzzles,
            max_variants=cfg.evaluate.max_variants,
            blank=cfg.evaluate.blank_identifiers,
            data_seed=cfg.data.seed,
            process_index=runtime.process_index,
            process_count=runtime.process_count,
        )
    return EvalLoader(
        dataset,
        global_batch_size=cfg.eval_batch_size,
        max_puzzles=cfg.evaluate.max_puzzles or most,
        copies=copies,
        data_seed=cfg.data.seed,
        process_index=runtime.process_index,
        process_count=runtime.process_count,
    )


def progress_of(cfg: Config, runtime: Runtime) -> str:
    """train.progress on the main process, off on the others."""
    return cfg.train.progress if runtime.is_main else "off"
