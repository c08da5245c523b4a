"""Train one run: `python -m trm.train [GROUP=OPTION ...] [KEY=VALUE ...]`; `--help` lists both.

The file reads from top to bottom: the start of the run, the loop (step, log, evaluate, save), and its pieces.
"""

if __name__ == "__main__":  # before the import of torch, so that --help and wrong settings need not wait for it
    from trm.cli import hydra_command

    hydra_command("trm.train:train")
    raise SystemExit

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from trm.backends.base import extremes_over_hosts
from trm.config import Config
from trm.core.architecture import Weights
from trm.core.initial import num_parameters
from trm.core.metrics import STOP, named, training_names
from trm.core.programs import Current
from trm.core.recursion import Stage
from trm.core.step import Batch, TrainState
from trm.data.loader import Prefetcher
from trm.errors import EXIT_FAILED, EXIT_PREEMPTED, RunFailure
from trm.ground.folder import exclusive, read_summary
from trm.ground.progress import Clock, progress_bar
from trm.ground.rank import process_rank
from trm.ground.signals import StopSignal
from trm.inference.evaluator import EvaluationStopped, Evaluator, caveats_of, make_evaluator, selection_evaluator
from trm.run.ahead import AHEAD_STEPS, ahead, hint
from trm.run.experiment import Experiment, build
from trm.run.failures import check_evaluation, check_losses, check_weights, explained, slow_loader
from trm.run.record import Outputs, Record
from trm.run.resume import starting_point
from trm.tracking.training import training_values

log = logging.getLogger(__name__)

StepFunction = Callable[[Current, Weights, Batch], Current]
XLA_METRICS_EVERY_STEPS = 1000
PROFILE_FOLDER = "profile"


def train(cfg: Config) -> float | None:
    """Train one run and return the score that chose its best checkpoint. A preempted run exits with code 143."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    # the ranks of a job share one folder, which the first one locks
    hold = exclusive(run_dir) if process_rank()[0] == 0 else contextlib.nullcontext()
    with StopSignal() as stop, explained(cfg, run_dir), hold:
        return execute(build(cfg), run_dir, stop)


def execute(exp: Experiment, run_dir: Path, stop: StopSignal) -> float | None:
    """Train from the folder's last checkpoint to the end or a stop, and write the summary in every case; returns the score."""
    record = Record()
    exp, state = starting_point(exp, run_dir, record)
    for caveat in (*(f"data.path={exp.cfg.data.path}: {words}" for words in exp.content.caveats), *caveats_of(exp.cfg)):
        record.warn(caveat)
    evaluated = record.step == exp.total_steps and record.scores.last_eval_step is not None
    if evaluated and (read_summary(run_dir) or {}).get("status") == "completed":
        held = f"{run_dir} already holds all {exp.total_steps} steps"
        held += f", evaluated with other settings ({'; '.join(record.evaluated_otherwise)})" if record.evaluated_otherwise else ""
        log.info("nothing to train: %s; python -m trm.evaluate checkpoint=%s KEY=VALUE makes another evaluation", held, run_dir)
        return record.scores.selection_score
    averaging = exp.cfg.ema
    if averaging.enabled and averaging.start_step >= exp.total_steps:
        record.warn(f"ema.start_step={averaging.start_step}: the run ends at step {exp.total_steps}, before averaging begins")
    outputs = Outputs(exp, run_dir, record, state)
    size, devices = f"{num_parameters(exp.arch):,} parameters", exp.runtime.describe()
    log.info("%s: %s, %s steps, %s", exp.cfg.run_name, size, exp.total_steps, devices)
    if words := hint(exp.cfg, num_parameters(exp.arch)):
        log.info("%s", words)

    training = Training(exp, run_dir, record, outputs, stop)
    status, exit_code, reason = "failed", EXIT_FAILED, None
    try:
        with explained(exp.cfg, run_dir), contextlib.closing(outputs):  # waits until the last checkpoint is on disk
            stopped = training.loop(state)
        status, exit_code = ("preempted", EXIT_PREEMPTED) if stopped else ("completed", 0)
    except BaseException as error:
        reason = str(error) if isinstance(error, RunFailure) else f"{type(error).__name__}: {error}"
        raise
    finally:
        summary = outputs.finish(status, reason, exit_code, training.clock.total_s)
    if status == "preempted":
        if exp.runtime.process_count > 1:
            # wait for each other: a launcher ends all processes when one ends, and the first one may still write
            extremes_over_hosts(exp.runtime, [record.step])
        log.info("preempted at step %s; the same command resumes the run", record.step)
        sys.exit(EXIT_PREEMPTED)
    best = f"{summary['best_exact_accuracy']:.4f} at step {summary['best_step']}, chosen on the {summary['selected_on']} puzzles"
    log.info("completed: exact accuracy %.4f (%s) in %s", summary["exact_accuracy"], best, run_dir)
    return record.scores.selection_score


class Training:
    """The training loop of one run."""

    def __init__(self, exp: Experiment, run_dir: Path, record: Record, outputs: Outputs, stop: StopSignal) -> None:
        self.exp, self.run_dir, self.record, self.outputs, self.stop = exp, run_dir, record, outputs, stop
        self.cfg, self.runtime, self.clock = exp.cfg, exp.runtime, Clock()
        self.alone = exp.runtime.process_count == 1
        self.compiles = 0  # graphs that the stage has compiled before it is timed
        self.selector: Evaluator | None = None  # over the selection puzzles; None = the test puzzles choose the best checkpoint

    def loop(self, state: TrainState) -> bool:
        """Train to the last step, or until a stop (then True). `state` is on the CPU."""
        cfg, exp, record = self.cfg, self.exp, self.record
        # ------------------------------------------------------------------------------------------------------------ prepare
        buffers = self.runtime.replicate(exp.buffers)
        evaluator = make_evaluator(cfg, self.runtime, exp.arch, exp.buffers, sample=True)
        self.selector = selection_evaluator(cfg, evaluator)
        if record.votes and evaluator.ballots is not None:
            evaluator.ballots.take(record.votes)
        state, sums = exp.to_device(state), exp.sums(record.sums)
        self.clock.reset(record.step)
        missed = record.start_step and self._evaluation_due() and record.scores.last_eval_step != record.step  # after a stop
        if missed and not self._evaluate_and_save(evaluator, state, sums):
            return True
        if self.stop.requested and self.alone:
            return record.step < exp.total_steps

        stage: Stage | None = None
        with (
            progress_bar(cfg.train.progress, record.step, exp.total_steps) as bar,
            Prefetcher(self._device_batch, range(record.step, exp.total_steps)) as batches,
            contextlib.ExitStack() as profiling,
        ):
            while record.step < exp.total_steps:
                # ------------------------------------------------------------------------------------------------------ step
                batch = batches.next()
                if stage is None or record.step == stage.stop:
                    stage, step_function = self._enter_stage((state, sums), buffers, batch)
                self._profile(profiling, record.step + 1)
                with self.clock.calling():
                    state, sums = step_function((state, sums), buffers, batch)
                record.step += 1
                if record.seconds_to_first_step is None:
                    self._after_first_step(state, evaluator, batches)
                bar.update()
                if record.step == record.start_step + AHEAD_STEPS < exp.total_steps:
                    self.runtime.fetch(state.step)
                    log.info("%s", ahead(cfg, record.step, exp.total_steps, self.clock.total_s / (AHEAD_STEPS - 1)))

                # ------------------------------------------------------------------------------------------------------- log
                stopping = self.stop.requested and self.alone
                if record.step % cfg.train.log_every_steps == 0 or record.step == exp.total_steps:
                    stopping = self._log(sums, batches) or stopping
                    sums = exp.sums({})
                if record.step % XLA_METRICS_EVERY_STEPS == 0:
                    log.info("XLA Metrics at step %s: %s", record.step, self.runtime.metrics_line())

                # -------------------------------------------------------------------------------------- evaluate and save
                if self._evaluation_due() and not stopping:
                    stopping = not self._evaluate_and_save(evaluator, state, sums)
                elif stopping or _due(record.step, cfg.train.checkpoint_every_steps):
                    self._save(state, sums)
                if stopping:
                    return record.step < exp.total_steps or record.scores.last_eval_step != record.step
        return False

    # ------------------------------------------------------------------------------------------------------------------ pieces

    def _device_batch(self, step: int) -> Batch:
        vote = self.outputs.vote or (STOP if self.stop.requested else 0)
        return self.runtime.shard_batch(self.exp.host_batch(step, vote))

    def _enter_stage(self, current: Current, buffers: Weights, batch: Batch) -> tuple[Stage, StepFunction]:
        """The curriculum's stage at the next step, and its compiled step. A run without a curriculum has one stage."""
        stages = self.exp.stages
        number, stage = next((i, stage) for i, stage in enumerate(stages, 1) if self.record.step < stage.stop)
        step_function: StepFunction = self.runtime.compile(*self.exp.program(stage.recursion))
        if len(stages) == 1:
            log.info("compiling the training step (once per run) ...")
        else:
            depth = f"to step {stage.stop}: T={stage.recursion.T}, n={stage.recursion.n}"
            log.info("stage %s of %s, %s; compiling its training step ...", number, len(stages), depth)
        if self.record.seconds_to_first_step is not None:  # otherwise the first step, which is not timed, compiles
            with self.clock.paused():
                self.runtime.wait()
                self.runtime.prepare(step_function, current, buffers, batch)
            self.compiles = self.runtime.compile_count()
        return stage, step_function

    def _after_first_step(self, state: TrainState, evaluator: Evaluator, batches: Prefetcher[Any]) -> None:
        """Log the first step's time and compile the evaluation; after this, nothing compiles within a stage."""
        self.runtime.fetch(state.step)
        self.record.seconds_to_first_step = self.clock.total_s
        log.info("first step after %.1f s; compiling the evaluation step ...", self.record.seconds_to_first_step)
        began = time.perf_counter()
        for each in filter(None, (evaluator, self.selector)):
            each.prepare(state.ema or state.weights, state.puzzle_embedding)
        log.info("compiled the evaluation step in %.1f s", time.perf_counter() - began)
        self.compiles = self.runtime.compile_count()
        self.clock.reset(self.record.step)
        batches.lap()

    def _profile(self, profiling: contextlib.ExitStack, step: int) -> None:
        """Begin or end the trace (train.profile_steps) before a 1-based step."""
        wanted = self.cfg.train.profile_steps
        if wanted and step == wanted[0]:
            profiling.enter_context(self.runtime.profile(self.run_dir / PROFILE_FOLDER))
        elif wanted and step == wanted[1] + 1:
            profiling.close()
            log.info("steps %s to %s traced in %s", *wanted, self.run_dir / PROFILE_FOLDER)

    def _log(self, totals: Tensor, batches: Prefetcher[Any]) -> bool:
        """Write the metrics since the last log; true if a host voted to stop. Raises RunFailure on all hosts if one has failed."""
        cfg, step, total_steps = self.cfg, self.record.step, self.exp.total_steps
        sums = named(training_names(), self.runtime.fetch(totals))
        check_losses(sums, step)
        lap, (made_s, waited_s) = self.clock.lap(step), batches.lap()
        compiles = self.runtime.compile_count()
        values = training_values(cfg, sums, lap, (made_s, waited_s), step, total_steps, compiles)
        log.info("Step %s: loss=%.4f, lr=%.6f, time=%.2fs", step, values["loss"], values["lr"], lap.seconds)
        if words := slow_loader(lap, made_s, waited_s):
            self.record.warn(words, once="slow loader")
        if compiles > self.compiles:
            self.record.warn(
                f"step {step}: {compiles - self.compiles} graphs were compiled again after the first step, which should not "
                "happen and costs time: the log names the shapes that changed",
                once="compiled again",
            )
        self.outputs.log("train", values)
        if sums["failure_votes"]:
            raise self.outputs.failure or RunFailure(f"step {step}: another host of this run cannot continue, and its log says why")
        return bool(sums["stop_votes"])

    def _evaluation_due(self) -> bool:
        return self.record.step == self.exp.total_steps or _due(self.record.step, self.cfg.train.eval_every_steps)

    def _evaluate_and_save(self, evaluator: Evaluator, state: TrainState, sums: Tensor) -> bool:
        """Evaluate and save. False after a stop: the state is saved, and the resumed run evaluates it first.

        The last evaluation takes all test puzzles, the others a sample (evaluate.max_puzzles).
        """
        began, stop = time.perf_counter(), lambda: self.stop.requested
        weights = state.ema or state.weights
        with self.clock.paused():
            try:
                result = sample = evaluator.run(weights, state.puzzle_embedding, stop)
                chosen_by = None if self.selector is None else self.selector.run(weights, state.puzzle_embedding, stop)
                whole = self.record.step == self.exp.total_steps and self.cfg.evaluate.max_puzzles is None
                rest = evaluator.rest() if whole else None
                if rest is not None:
                    result = sample.joined(rest.run(weights, state.puzzle_embedding, stop))
            except EvaluationStopped:
                self._save(state, sums)
                return False
            check_evaluation(result.final, weights, self.record.step)
            self.record.evaluated(sample, result, self.cfg.evaluate.best_by, chosen_by)
            if evaluator.keeps_votes and evaluator.ballots is not None:
                self.record.votes = evaluator.ballots.arrays()
            self.outputs.evaluated(result, began)
            if chosen_by is not None:
                self.outputs.log("selection", chosen_by.final)
            self._save(state, sums)
        return True

    def _save(self, state: TrainState, totals: Tensor) -> None:
        """Copy the state to the host and start writing it. A state that is not finite ends the run instead."""
        with self.clock.paused():
            host, totals = self.runtime.fetch((state, totals))
            if host.puzzle_embedding is not None and host.puzzle_embedding is state.puzzle_embedding:
                # with torch's own backends on a CPU this is the table itself, which the next step changes in place
                host = host._replace(puzzle_embedding=host.puzzle_embedding.clone())
            check_losses(named(training_names(), totals), self.record.step)
            for weights in (host.weights, host.ema):
                check_weights(weights, self.record.step)
            self.record.sums = {name: total.clone() for name, total in zip(training_names(), totals, strict=True)}
            self.outputs.save(host)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
