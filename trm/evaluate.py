"""Evaluation: every puzzle once, N_sup supervision steps, the last one read (SPEC.md item 2).

`python -m trm.evaluate checkpoint=RUN [KEY=VALUE ...]` repeats a run's own last evaluation, on its own or on other puzzles.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trm.cli import plain_command
from trm.config import Config
from trm.data.build import ensure_dataset
from trm.data.format import load_dataset
from trm.data.loader import EvalLoader
from trm.errors import ConfigError
from trm.losses import log_probabilities
from trm.model import Architecture, Weights
from trm.runtime import Runtime, start
from trm.samples import MOST_SAMPLES, Samples
from trm.saved_run import open_run, split_arguments
from trm.step import METRICS, NORMS, Batch, Carry, empty_carry, eval_step


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Keys of the metrics: exact_accuracy, accuracy, lm_loss, q_halt_loss, q_halt_accuracy, steps, count.
    """

    by_step: list[dict[str, float]]  # after each supervision step, the mean over all puzzles
    samples: Samples

    @property
    def final(self) -> dict[str, float]:
        """Metrics after the last supervision step, which are the evaluation's result."""
        return self.by_step[-1]


class Shown(NamedTuple):
    """What one supervision step answered for the first rows of the batch, K of them."""

    predictions: Tensor  # [K, C] int32
    confidence: Tensor  # [K, C] in the loss dtype
    q_halt: Tensor  # [K]


class Evaluator:
    """A compiled evaluation step with its constant inputs on the device."""

    def __init__(self, runtime: Runtime, arch: Architecture, fixed: Weights, loader: EvalLoader, local_batch_size: int) -> None:
        """`fixed` is on the CPU; `local_batch_size` is this process's share of the loader's batch."""
        self.runtime, self.arch, self.loader = runtime, arch, loader
        self._fixed = runtime.put_replicated(fixed)
        self._carry = runtime.put_rows(empty_carry(arch, fixed, local_batch_size))
        self._zeros = runtime.put_replicated(torch.zeros(len(METRICS), dtype=arch.master_dtype))

        self._step = runtime.compile(eval_program(runtime, arch))

    def prepare(self, weights: Weights, puzzle_embedding: Tensor | None) -> None:
        """Compile the evaluation step now rather than at the first evaluation."""
        batch = self.runtime.put_batch(next(iter(self.loader)))
        self.runtime.prepare(self._step, weights, self._fixed, puzzle_embedding, self._carry, batch, self._zeros)

    def run(self, weights: Weights, puzzle_embedding: Tensor | None, num_steps: int) -> EvalResult:
        """Evaluate for `num_steps` supervision steps. Weights are on the device; nothing is read from it before the end."""
        sums = [self._zeros] * num_steps
        shown: list[Shown] = []  # of the first batch
        for host_batch in self.loader:
            batch = self.runtime.put_batch(host_batch)
            carry = self._carry
            for s in range(num_steps):
                carry, sums[s], answers = self._step(weights, self._fixed, puzzle_embedding, carry, batch, sums[s])
                if len(shown) < num_steps:
                    shown.append(answers)
        totals, shown = self.runtime.fetch((sums, shown))
        return EvalResult([_means(total) for total in totals], _samples(self.loader, shown))


def shown_rows(arch: Architecture, logits_BCV: Tensor, q_halt_B: Tensor) -> Shown:
    """What is shown of a step's answers: at most the first MOST_SAMPLES rows of the batch."""
    logits = logits_BCV[:MOST_SAMPLES]
    predictions = logits.argmax(-1)
    log_shares = log_probabilities(logits.to(arch.loss_dtype), arch.model.loss)
    confidence = log_shares.gather(-1, predictions.unsqueeze(-1)).squeeze(-1).exp()
    return Shown(predictions.to(torch.int32), confidence, q_halt_B[:MOST_SAMPLES])


def eval_program(runtime: Runtime, arch: Architecture) -> Callable[..., tuple[Carry, Tensor, Shown]]:
    """The evaluation step as it is compiled: eval_step without what evaluation does not read; the carry stays split by rows."""

    def evaluation_step(
        weights: Weights, fixed: Weights, puzzle_embedding: Tensor | None, carry: Carry, batch: Batch, sums: Tensor
    ) -> tuple[Carry, Tensor, Shown]:
        carry, sums, logits, q_halt = eval_step(arch, weights, fixed, puzzle_embedding, carry, batch, sums)
        shown = shown_rows(arch, logits, q_halt)
        runtime.keep_rows(carry)
        runtime.keep_replicated(shown)
        return carry, sums, shown

    return evaluation_step


def _samples(loader: EvalLoader, shown: list[Shown]) -> Samples:
    """The first puzzles of the pass with their answers, from those of the first batch's first rows after each step."""
    puzzles = loader.first(len(shown[0].q_halt))
    count = len(puzzles["inputs"])
    predictions, confidence, q_halt = (torch.stack(answers)[:, :count] for answers in zip(*shown, strict=True))
    return Samples(
        inputs=puzzles["inputs"],
        labels=puzzles["labels"],
        predictions=predictions.numpy(),
        confidence=confidence.to(torch.float32).numpy(),
        q_halt=q_halt.to(torch.float32).numpy(),
    )


def _means(total: Tensor) -> dict[str, float]:
    values = dict(zip(METRICS, total.tolist(), strict=True))
    count = values.pop("count")
    # every row counts; the others are of training alone
    for name in ("rows", "q_continue_loss", "nonfinite_steps", "stop_votes", *NORMS):
        del values[name]
    return {"count": int(count)} | {name: value / max(count, 1) for name, value in values.items()}


def make_evaluator(cfg: Config, runtime: Runtime, arch: Architecture, fixed: Weights) -> Evaluator:
    """An evaluator over the test split of the config's dataset. Raises DataError where there is none."""
    loader = EvalLoader(
        load_dataset(ensure_dataset(cfg.data), "test"),
        global_batch_size=cfg.eval_batch_size,
        max_puzzles=cfg.evaluate.max_puzzles,
        process_index=runtime.process_index,
        process_count=runtime.process_count,
    )
    return Evaluator(runtime, arch, fixed, loader, cfg.eval_batch_size // runtime.process_count)


def main(arguments: list[str]) -> None:
    """The command: evaluate and print one line a metric, and the same as JSON on the last line."""
    path, overrides, rest = split_arguments(arguments)
    if rest:
        raise ConfigError(f"{rest[0]}: not understood: arguments are checkpoint=RUN and KEY=VALUE")
    run = open_run(path, overrides)
    runtime = start(run.cfg.hardware)
    evaluator = make_evaluator(run.cfg, runtime, run.arch, run.fixed)
    weights, table = runtime.put_replicated((run.eval_weights, run.puzzle_embedding))
    print(f"{run.folder}: {evaluator.loader.num_puzzles} puzzles on {runtime.describe()}", flush=True)
    began = time.perf_counter()
    result = evaluator.run(weights, table, run.cfg.recursion.n_sup).final
    print(f"step {run.meta.step}, {'EMA' if run.ema else 'training'} weights, {time.perf_counter() - began:.1f} s")
    for name, value in result.items():
        print(f"  {name:<16} {value:.6g}")
    print(json.dumps({"checkpoint_step": run.meta.step, **result}, sort_keys=True))


if __name__ == "__main__":
    plain_command(main, __doc__)
