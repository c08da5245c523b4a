"""Evaluation: every puzzle once, N_sup supervision steps, the last one read (SPEC.md item 2).

`python -m trm.evaluate checkpoint=RUN [KEY=VALUE ...]` repeats a run's own last evaluation, on its own or on other puzzles.
"""

import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from trm.cli import plain_command
from trm.config import Config
from trm.data.build import ensure_dataset
from trm.data.format import load_dataset
from trm.data.loader import EvalLoader
from trm.errors import ConfigError
from trm.model import Architecture, Weights
from trm.runtime import Runtime, start
from trm.saved_run import open_run, split_arguments
from trm.step import METRICS, Batch, Carry, empty_carry, eval_step


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

    def run(self, weights: Weights, puzzle_embedding: Tensor | None, num_steps: int) -> list[dict[str, float]]:
        """Metrics after each of `num_steps` supervision steps, the mean over all puzzles; the last entry is the result.

        Weights are on the device. Keys: exact_accuracy, accuracy, lm_loss, q_halt_loss, q_halt_accuracy, steps, count. Nothing is
        read from the device before the end.
        """
        sums = [self._zeros] * num_steps
        for host_batch in self.loader:
            batch = self.runtime.put_batch(host_batch)
            carry = self._carry
            for s in range(num_steps):
                carry, sums[s] = self._step(weights, self._fixed, puzzle_embedding, carry, batch, sums[s])
        return [_means(total) for total in self.runtime.fetch(sums)]


def eval_program(runtime: Runtime, arch: Architecture) -> Callable[..., tuple[Carry, Tensor]]:
    """The evaluation step as it is compiled: eval_step without what evaluation does not read; the carry stays split by rows."""

    def evaluation_step(
        weights: Weights, fixed: Weights, puzzle_embedding: Tensor | None, carry: Carry, batch: Batch, sums: Tensor
    ) -> tuple[Carry, Tensor]:
        carry, sums, _, _ = eval_step(arch, weights, fixed, puzzle_embedding, carry, batch, sums)
        runtime.keep_rows(carry)
        return carry, sums

    return evaluation_step


def _means(total: Tensor) -> dict[str, float]:
    values = dict(zip(METRICS, total.tolist(), strict=True))
    count = values.pop("count")
    for name in ("rows", "q_continue_loss", "nonfinite_steps", "stop_votes"):  # every row counts; the others are of training alone
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
    result = evaluator.run(weights, table, run.cfg.recursion.n_sup)[-1]
    print(f"step {run.meta.step}, {'EMA' if run.ema else 'training'} weights, {time.perf_counter() - began:.1f} s")
    for name, value in result.items():
        print(f"  {name:<16} {value:.6g}")
    print(json.dumps({"checkpoint_step": run.meta.step, **result}, sort_keys=True))


if __name__ == "__main__":
    plain_command(main, __doc__)
