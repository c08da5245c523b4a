"""Train one run: `python -m trm.train [GROUP=OPTION ...] [KEY=VALUE ...]`; `--help` lists both.

Reads top to bottom: settings, data, devices, state (new or resumed), the loop (step, log, evaluate, save), the summary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.utils._pytree as pytree
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from trm.backends.xla import Runtime, start
from trm.cli import EXIT_FAILED, EXIT_PREEMPTED, hydra_command
from trm.config import Config, digest, resume_conflicts, to_plain, total_steps
from trm.core.curriculum import Stage, stages
from trm.core.model import Weights, architecture, init_fixed, num_parameters
from trm.core.step import METRICS, Batch, StepConfig, TrainState, draw_min_steps, init_state, train_step
from trm.data.build import ensure_dataset
from trm.data.format import load_dataset
from trm.data.loader import TrainLoader
from trm.data.prefetch import Prefetcher
from trm.errors import CheckpointError, ConfigError, RunFailure
from trm.inference.evaluator import EvaluationStopped, Evaluator, make_evaluator, never
from trm.inference.samples import write_samples
from trm.run.checkpoint import CheckpointWriter, Meta, flatten, load_checkpoint, saved_steps, set_aside, unflatten
from trm.run.clock import Clock, progress_bar
from trm.run.failures import check_losses, check_weights, explained
from trm.run.folder import CONFIG_FILE, exclusive, put_summary_away, read_summary, seconds_before, write_summary
from trm.run.signals import StopSignal
from trm.study.sweep import process_rank
from trm.tracking.evaluation import Evaluation, held_out
from trm.tracking.trackers import Trackers, open_trackers
from trm.tracking.training import training_values

log = logging.getLogger(__name__)

T = TypeVar("T")
StepFunction = Callable[[TrainState, Weights, Batch], TrainState]
XLA_METRICS_EVERY_STEPS = 1000
SLOW_LOADER_SHARE = 0.2  # of a step spent waiting for its batch, from which on the run warns
SHOWN_IN_LOG = {"exact_accuracy": "exact_accuracy", "accuracy": "accuracy", "loss": "lm_loss"}


def train(cfg: Config) -> None:
    """One run from its settings to its summary; see the module's docstring. Exits with 143 when preempted."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    # the ranks of a whole-pod job share one folder: the first one holds it for all
    hold = exclusive(run_dir) if process_rank()[0] == 0 else contextlib.nullcontext()
    with StopSignal() as stop, explained(cfg, run_dir), hold:
        Run(cfg, run_dir).execute(stop)


class Run:
    """One training run in its folder."""

    def __init__(self, cfg: Config, run_dir: Path) -> None:
        # ------------------------------------------------------------------------------------------------------------- data
        if cfg.evaluate.supervision_steps or cfg.evaluate.augmentations > 1:
            raise ConfigError(
                "evaluate.supervision_steps and evaluate.augmentations are of python -m trm.evaluate checkpoint=RUN: leave them out"
            )
        self.cfg, self.run_dir = cfg, run_dir
        dataset = load_dataset(ensure_dataset(cfg.data), "train")
        self.total_steps = total_steps(cfg, dataset.num_groups)
        self.data_digest = dataset.digest()

        # ---------------------------------------------------------------------------------------------------------- devices
        self.runtime: Runtime = start(cfg.hardware)
        self.local_batch_size = cfg.train.global_batch_size // self.runtime.process_count
        self.loader = TrainLoader(
            dataset,
            seed=cfg.seed,
            global_batch_size=cfg.train.global_batch_size,
            on_the_fly_aug=cfg.data.on_the_fly_aug if cfg.data.num_aug == 0 else 0,
            data_seed=cfg.data.seed,
            process_index=self.runtime.process_index,
            process_count=self.runtime.process_count,
        )

        # ------------------------------------------------------------------------------------------------------------ model
        facts, self.sudoku = dataset.metadata, dataset.sudoku
        self.data_sizes = {
            "seq_len": facts.seq_len,
            "vocab_size": facts.vocab_size,
            "num_puzzle_identifiers": facts.num_puzzle_identifiers,
        }
        self.arch = architecture(cfg, **self.data_sizes)
        self.step_config = StepConfig(self.arch, cfg.optimizer, cfg.ema.rate, self.total_steps)
        self.best: tuple[float, int] | None = None  # exact accuracy, step
        self.last_eval: dict[str, float] | None = None
        self.last_eval_step: int | None = None
        self.exact_accuracy_by_step: list[float] | None = None  # of the last evaluation
        self.fixed = init_fixed(self.arch, cfg.seed)
        self.warnings: list[str] = []  # of this module; the trackers keep their own
        self.slow_loader_told = False
        self.wandb_run_id: str | None = None  # of the run that is resumed
        self.writer = CheckpointWriter(run_dir, cfg.train.keep_checkpoints)

    # -------------------------------------------------------------------------------------------------------------- whole run

    def execute(self, stop: StopSignal) -> None:
        """Build or resume the state, train, and write the summary whatever happens."""
        cfg = self.cfg
        state, self.start_step = self._new_or_resumed_state()
        if self.start_step >= self.total_steps and self._is_completed():
            log.info("nothing to do: %s already holds all %s steps", self.run_dir, self.total_steps)
            return
        if self.start_step > self.total_steps:
            raise ConfigError(
                f"train.max_steps={self.total_steps}: {self.run_dir} is at step {self.start_step} already: choose at least that, "
                "or another run_name"
            )
        if self.runtime.is_main:
            put_summary_away(self.run_dir)  # it would tell of the start before
        self.trackers: Trackers = open_trackers(
            cfg,
            self.run_dir,
            is_main=self.runtime.is_main,
            resume_step=self.start_step or None,
            wandb_run_id=self.wandb_run_id,
        )
        if self.runtime.is_main:
            saved = to_plain(cfg)
            saved["data"]["path"] = str(Path(cfg.data.path).resolve())  # so that the run can be opened from any folder
            OmegaConf.save(OmegaConf.create(saved), self.run_dir / CONFIG_FILE)
        log.info(
            "%s: %s parameters, %s steps, %s",
            cfg.run_name,
            f"{num_parameters(self.arch):,}",
            self.total_steps,
            self.runtime.describe(),
        )

        self.clock, self.step = Clock(), self.start_step
        self.seconds_to_first_step: float | None = None
        self.seconds_before = seconds_before(self.run_dir) if self.start_step else 0.0
        status, exit_code, reason = "failed", EXIT_FAILED, None
        try:
            # a run ends when its last checkpoint is on disk
            with explained(cfg, self.run_dir), contextlib.closing(self.writer):
                stopped = self._loop(state, stop)
            status, exit_code = ("preempted", EXIT_PREEMPTED) if stopped else ("completed", 0)
        except BaseException as error:
            reason = str(error) if isinstance(error, RunFailure) else f"{type(error).__name__}: {error}"
            raise
        finally:
            summary = self._summary(status, reason)
            if self.runtime.is_main:
                write_summary(self.run_dir, summary)  # before the trackers finish, which may wait for a server
            self.trackers.finish(status, exit_code, summary)
            if self.runtime.is_main:
                write_summary(self.run_dir, summary | {"warnings": self.warnings + self.trackers.warnings})
        if status == "preempted":
            log.info("preempted at step %s; the same command goes on from there", self.step)
            sys.exit(EXIT_PREEMPTED)
        log.info(
            "completed: exact accuracy %.4f (best %.4f) in %s",
            summary["exact_accuracy"],
            summary["best_exact_accuracy"],
            self.run_dir,
        )

    def _loop(self, state: TrainState, stop: StopSignal) -> bool:
        """Train to the last step or until a stop is asked for (then True)."""
        cfg, runtime, clock = self.cfg, self.runtime, self.clock
        fixed = runtime.put_replicated(self.fixed)
        evaluator = make_evaluator(cfg, runtime, self.arch, self.fixed)
        state = self.place(state)
        stage: Stage | None = None

        clock.reset(self.step)
        if self.start_step and self._evaluation_due() and self.last_eval_step != self.step:  # a stop cut it short
            with clock.paused():
                stopped = not self._evaluate_and_save(evaluator, state, stop)
            if stopped:
                return True
        if stop.requested and runtime.process_count == 1:
            return self.step < self.total_steps
        steps = range(self.start_step, self.total_steps)

        def device_batch(step: int) -> dict[str, torch.Tensor]:
            return runtime.put_batch(self.host_batch(step, stop))

        with (
            progress_bar(cfg.train.progress, self.start_step, self.total_steps) as bar,
            Prefetcher(device_batch, steps) as batches,
        ):
            while self.step < self.total_steps:
                # ------------------------------------------------------------------------------------------------------ step
                batch = batches.next()
                if stage is None or self.step == stage.stop:
                    stage, step_function = self._enter_stage(state, fixed, batch)
                with clock.calling():
                    state = step_function(state, fixed, batch)
                self.step += 1
                if self.seconds_to_first_step is None:
                    self._after_first_step(state, evaluator, batches)
                bar.update()

                # ------------------------------------------------------------------------------------------------------- log
                stopping = stop.requested and runtime.process_count == 1
                if self.step % cfg.train.log_every_steps == 0 or self.step == self.total_steps:
                    stop_votes = self._log_training(state, clock, batches)
                    stopping = stopping or stop_votes > 0  # several hosts stop together, at a step where all read the votes
                    state = state._replace(metrics=runtime.put_replicated(torch.zeros(len(METRICS), dtype=self.arch.master_dtype)))
                    self.writer.check()
                if self.step % XLA_METRICS_EVERY_STEPS == 0:
                    log.info("XLA Metrics at step %s: %s", self.step, runtime.metrics_line())

                # -------------------------------------------------------------------------------------- evaluate and save
                if self._evaluation_due() and not stopping:
                    with clock.paused():
                        stopping = not self._evaluate_and_save(evaluator, state, stop)
                elif stopping or _due(self.step, cfg.train.checkpoint_every_steps):
                    with clock.paused():
                        self._save(state, is_best=False)
                if stopping:
                    return self.step < self.total_steps or self.last_eval_step != self.step
        return False

    def _enter_stage(self, state: TrainState, fixed: Weights, batch: Batch) -> tuple[Stage, StepFunction]:
        """The stage of the curriculum that the next step belongs to, and its step. A run without a curriculum has one stage."""
        all_stages = stages(self.cfg.recursion, self.total_steps)
        number, stage = next((i, stage) for i, stage in enumerate(all_stages, 1) if self.step < stage.stop)
        arch = dataclasses.replace(self.arch, recursion=stage.recursion)
        program = train_program(self.runtime, dataclasses.replace(self.step_config, arch=arch))
        step_function = self.runtime.compile(program, donate=0)
        if len(all_stages) == 1:
            log.info("compiling the training step (once per run) ...")
        else:
            log.info(
                "stage %s of %s, to step %s: T=%s, n=%s; compiling its training step ...",
                *(number, len(all_stages), stage.stop, stage.recursion.T, stage.recursion.n),
            )
        if self.seconds_to_first_step is not None:  # else compiling is part of the first step, which is not counted
            with self.clock.paused():
                self.runtime.wait()
                self.runtime.prepare(step_function, state, fixed, batch)
        return stage, step_function

    def _after_first_step(self, state: TrainState, evaluator: Evaluator, batches: Prefetcher[Any]) -> None:
        """Report the first step's time and compile the evaluation too: from here on nothing compiles within a stage."""
        self.runtime.fetch(state.step)
        self.seconds_to_first_step = self.clock.total_s
        log.info("first step after %.1f s; compiling the evaluation step ...", self.seconds_to_first_step)
        began = time.perf_counter()
        evaluator.prepare(state.ema or state.weights, state.puzzle_embedding)
        log.info("compiled the evaluation step in %.1f s", time.perf_counter() - began)
        self.clock.reset(self.step)
        batches.lap()

    def place(self, state: TrainState) -> TrainState:
        """A state of the CPU on the devices: replicated, but for the carry, of which each device has its rows."""
        carry = self.runtime.put_rows(self._own_rows(state.carry))
        return self.runtime.put_replicated(state._replace(carry=None))._replace(carry=carry)  # type: ignore[arg-type]

    def host_batch(self, step: int, stop: StopSignal | None = None) -> dict[str, Any]:
        """This process's rows of the batch of a 0-based step; of several processes with their wish to stop."""
        min_steps = draw_min_steps(self.cfg.recursion, self.cfg.seed, step, self.cfg.train.global_batch_size)
        batch = {**self.loader.batch(step), "min_steps": self._own_rows(min_steps)}
        if self.runtime.process_count > 1:
            batch["stop"] = np.full(self.local_batch_size, stop is not None and stop.requested, dtype=np.int32)
        return batch

    def _own_rows(self, tree: T) -> T:
        """This process's rows of arrays or tensors whose first axis is the global batch."""
        first = self.runtime.process_index * self.local_batch_size
        rows: T = pytree.tree_map(lambda leaf: leaf[first : first + self.local_batch_size], tree)
        return rows

    # ------------------------------------------------------------------------------------------------------------------ pieces

    def _new_or_resumed_state(self) -> tuple[TrainState, int]:
        state = init_state(self.cfg, self.arch, self.fixed)
        if self.cfg.train.resume == "never":
            if self.runtime.is_main:
                set_aside(self.run_dir)
            return state, 0
        loaded = self._newest_whole_checkpoint()
        if loaded is None:
            return state, 0
        folder, tensors, meta = loaded
        conflicts = resume_conflicts(meta.config, self.cfg)
        if meta.data_digest not in (None, self.data_digest):
            conflicts.append(f"data.path={self.cfg.data.path} holds other training puzzles")
        if conflicts:
            raise CheckpointError(
                f"{folder}: was trained with other settings ({'; '.join(conflicts)}): choose another run_name, or "
                "train.resume=never to start over in this folder"
            )
        init = {k.removeprefix("fixed/"): t for k, t in tensors.items() if k.startswith("fixed/")}
        self.fixed |= init
        state = unflatten(state, {k: t for k, t in tensors.items() if not k.startswith("fixed/")}, str(folder))
        if meta.best_exact_accuracy is not None and meta.best_step is not None:
            self.best = (meta.best_exact_accuracy, meta.best_step)
        self.last_eval, self.last_eval_step = meta.last_eval, meta.last_eval_step
        self.exact_accuracy_by_step = meta.exact_accuracy_by_step
        self.wandb_run_id = meta.wandb_run_id
        log.info("resuming from %s", folder)
        return state, meta.step

    def _newest_whole_checkpoint(self) -> tuple[Path, dict[str, torch.Tensor], Meta] | None:
        """The newest checkpoint of the run folder that is not damaged; None where there is none at all."""
        folders = [self.run_dir / "checkpoints" / f"step_{step}" for step in reversed(saved_steps(self.run_dir))]
        for folder in folders:
            try:
                return folder, *load_checkpoint(folder)
            except CheckpointError as error:
                self._warn(f"{error}; the checkpoint before it is used")
        if folders:
            raise CheckpointError(
                f"{self.run_dir}: every checkpoint is damaged: train.resume=never starts over and keeps them aside"
            )
        return None

    def _is_completed(self) -> bool:
        """Whether the run folder's last start said that it had done all steps and evaluated them."""
        summary = read_summary(self.run_dir) or {}
        return summary.get("status") == "completed" and self.last_eval_step is not None

    def _log_training(self, state: TrainState, clock: Clock, batches: Prefetcher[Any]) -> float:
        """Fetch the metrics accumulated since the last log and write them everywhere; returns the votes to stop."""
        cfg = self.cfg
        sums = dict(zip(METRICS, self.runtime.fetch(state.metrics).tolist(), strict=True))
        check_losses(sums, self.step, cfg, self.run_dir)
        lap, (made_s, waited_s) = clock.lap(self.step), batches.lap()
        compiles = self.runtime.compile_count()
        values = training_values(cfg, sums, lap, (made_s, waited_s), self.step, self.total_steps, compiles)
        if lap.steps:
            self._warn_of_slow_loader(made_s / lap.steps, waited_s / lap.steps, lap.seconds / lap.steps)
        log.info("Step %s: loss=%.4f, lr=%.6f, time=%.2fs", self.step, values["loss"], values["lr"], lap.seconds)
        self.trackers.log("train", self.step, values)
        return float(sums["stop_votes"])

    def _warn_of_slow_loader(self, made_s: float, waited_s: float, step_s: float) -> None:
        """Once a run: seconds of a step to make a batch, to wait for it, and altogether."""
        if waited_s < SLOW_LOADER_SHARE * step_s or self.slow_loader_told:
            return
        self.slow_loader_told = True
        self._warn(
            f"the loader needs {1e3 * made_s:.1f} ms for a batch and a step {1e3 * (step_s - waited_s):.1f} ms: the devices wait: "
            "store the augmented variants (data.num_aug=1000), or free this machine's cores"
        )

    def _warn(self, text: str) -> None:
        log.warning(text)
        self.warnings.append(text)

    def _evaluation_due(self) -> bool:
        return self.step == self.total_steps or _due(self.step, self.cfg.train.eval_every_steps)

    def _evaluate_and_save(self, evaluator: Evaluator, state: TrainState, stop: StopSignal) -> bool:
        """False where a stop was asked for on the way: then the state is saved, and the resumed run evaluates it first."""
        # several hosts would have to leave together: they go on to the end
        stopping = (lambda: stop.requested) if self.runtime.process_count == 1 else never
        try:
            is_best = self._evaluate(evaluator, state, stopping)
        except EvaluationStopped:
            self._save(state, is_best=False)
            return False
        self._save(state, is_best)
        return True

    def _evaluate(self, evaluator: Evaluator, state: TrainState, stop: Callable[[], bool]) -> bool:
        """Evaluate and log; True where this is the best exact accuracy so far."""
        began = time.perf_counter()
        evaluation = evaluator.run(state.ema or state.weights, state.puzzle_embedding, stop)
        result = evaluation.final
        shown = ", ".join(f"{name}={result[key]:.4f}" for name, key in SHOWN_IN_LOG.items())
        seconds = time.perf_counter() - began
        log.info("Evaluation at step %s: %s, puzzles=%d, time=%.1fs", self.step, shown, result["count"], seconds)
        self.trackers.log("eval", self.step, result)
        if self.runtime.is_main:
            write_samples(self.run_dir, evaluation.samples)
        self.last_eval, self.last_eval_step = result, self.step
        self.exact_accuracy_by_step = [step["exact_accuracy"] for step in evaluation.by_step]
        is_best = self.best is None or result["exact_accuracy"] > self.best[0]
        if is_best:
            self.best = (result["exact_accuracy"], self.step)
        best = max(result["exact_accuracy"], self.best[0] if self.best else 0.0)
        self.trackers.show(self.step, lambda: Evaluation(evaluation.by_step, best, held_out(evaluation.samples, self.sudoku)))
        return is_best

    def _save(self, state: TrainState, is_best: bool) -> None:
        """Copy the state to the host and have it written; the run stops here rather than save one that is not finite."""
        host = self.runtime.fetch(state)
        check_losses(dict(zip(METRICS, host.metrics.tolist(), strict=True)), self.step, self.cfg, self.run_dir)
        check_weights(host.weights, self.step, self.cfg, self.run_dir)
        if not self.runtime.is_main:
            return
        tensors = flatten(host) | {f"fixed/{k}": t for k, t in self.fixed.items() if k.startswith("init.")}
        meta = Meta(
            step=self.step,
            config=_without_places(to_plain(self.cfg)),
            digest=digest(self.cfg),
            best_exact_accuracy=self.best[0] if self.best else None,
            best_step=self.best[1] if self.best else None,
            last_eval=self.last_eval,
            last_eval_step=self.last_eval_step,
            exact_accuracy_by_step=self.exact_accuracy_by_step,
            data=self.data_sizes,
            data_digest=self.data_digest,
            wandb_run_id=self.trackers.wandb_run_id,
        )
        self.writer.save(tensors, meta, is_best=is_best)

    def _summary(self, status: str, reason: str | None) -> dict[str, Any]:
        """The contents of summary.json."""
        trained = max(self.step - self.start_step, 0)
        seconds = self.clock.total_s
        return {
            "status": status,
            "reason": reason,
            "run_name": self.cfg.run_name,
            "steps": self.step,
            "total_steps": self.total_steps,
            "resumed_from_step": self.start_step or None,
            "exact_accuracy": self.last_eval["exact_accuracy"] if self.last_eval else None,
            "best_exact_accuracy": self.best[0] if self.best else None,
            "best_step": self.best[1] if self.best else None,
            "last_eval": self.last_eval,
            "last_eval_step": self.last_eval_step,
            "exact_accuracy_by_step": self.exact_accuracy_by_step,  # of the last evaluation, after each supervision step
            # in training steps, without compiling, evaluating and saving, over all starts of the run
            "seconds": round(self.seconds_before + seconds, 3),
            "seconds_to_first_step": self.seconds_to_first_step,
            "samples_per_s": (trained - 1) * self.cfg.train.global_batch_size / seconds if trained > 1 and seconds else None,
            "parameters": num_parameters(self.arch),
            "config_digest": digest(self.cfg),
            "seed": self.cfg.seed,
            "hardware": self.cfg.hardware.name,
            "runtime": self.runtime.describe(),
            "compiles": self.runtime.compile_count(),
            "wandb_mode": self.trackers.wandb_mode,
            "warnings": self.warnings + self.trackers.warnings,
        }


def train_program(runtime: Runtime, cfg: StepConfig) -> StepFunction:
    """The training step as it is compiled: the carry's rows stay split over the devices. The state is donated."""

    def training_step(state: TrainState, fixed: Weights, batch: Batch) -> TrainState:
        state = train_step(cfg, state, fixed, batch)
        runtime.keep_rows(state.carry)
        return state

    return training_step


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    """The config without names and paths, which would make equal checkpoints differ."""
    data = {k: v for k, v in config["data"].items() if k not in ("path", "train_csv", "test_csv")}
    return {k: v for k, v in config.items() if k not in ("run_name", "tracking")} | {"data": data}


def main() -> None:
    """The command, also installed as `trm-train`: shell completion needs a program's name."""
    hydra_command(train)


if __name__ == "__main__":
    main()
