"""What is known of a run so far (`Record`), and what it leaves behind in its folder and on dashboards (`Outputs`)."""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from trm.backends.base import map_tensors
from trm.backends.machine import surroundings
from trm.config import EXACT, digest, kept, to_plain
from trm.core.flops import training_flops
from trm.core.initial import num_parameters, num_recurrent_parameters
from trm.core.metrics import FAILED
from trm.core.step import TrainState
from trm.errors import RunFailure, UserError
from trm.ground.cores import cores
from trm.ground.folder import CONFIG_FILE, put_summary_away, write_summary, write_whole
from trm.inference.cost import cost
from trm.inference.evaluator import EvalResult
from trm.inference.samples import SAMPLES_FILE
from trm.run.checkpoint import CheckpointWriter, Meta, Scores, flatten, unflatten
from trm.run.experiment import Experiment
from trm.run.revision import code
from trm.tracking.evaluation import Evaluation, held_out
from trm.tracking.trackers import Trackers, open_trackers

log = logging.getLogger(__name__)

SHOWN_IN_LOG = {"exact_accuracy": "exact_accuracy", "accuracy": "accuracy", "loss": "lm_loss"}


@dataclass
class Record:
    """The state of a run beside its tensors; a checkpoint's meta.json and the run's summary.json are made from it."""

    step: int = 0  # updates done
    start_step: int = 0  # of this start
    scores: Scores = field(default_factory=Scores)
    evaluated_otherwise: list[str] = field(default_factory=list)  # settings of evaluations that the checkpoint had otherwise
    wandb_run_id: str | None = None  # that a resumed run continues
    warnings: list[str] = field(default_factory=list)
    seconds_before: float = 0.0  # of training, by earlier starts
    seconds_to_first_step: float | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the metrics since the last log, at the last checkpoint
    votes: dict[str, NDArray[Any]] = field(default_factory=dict)  # of all evaluations, where they add up (evaluate.votes=run)
    code: dict[str, Any] = field(default_factory=code)  # when the run began
    _told: set[str] = field(default_factory=set)

    def warn(self, text: str, once: str | None = None) -> None:
        """Log a warning and keep it for the summary; of all warnings with the same `once` only the first."""
        if once is None or once not in self._told:
            log.warning(text)
            self.warnings.append(text)
        self._told |= {once} if once else set()

    def evaluated(self, sample: EvalResult, result: EvalResult, best_by: str = EXACT, selection: EvalResult | None = None) -> None:
        """Take an evaluation of the current step.

        `sample` is over the test puzzles that every evaluation takes, `result` over all of them. The best evaluation is the one
        with the highest score `best_by` over the `selection` puzzles (None = over the sample). If these puzzles or this score are
        others than before, the search for the best starts again.
        """
        scores, chosen, on = self.scores, selection or sample, "test" if selection is None else "selection"
        count, before = int(chosen.final["count"]), scores.selection_score
        now, then = (on, best_by, count), (scores.selected_on, scores.selected_by, scores.best_puzzles)
        if before is not None and now != then:
            was, here = (f"{puzzles} {kind} puzzles by {score}" for kind, score, puzzles in (then, now))
            self.warn(
                f"step {self.step}: the best evaluation so far ({before:.4f} at step {scores.best_step}) used {was}, this one "
                f"uses {here}: the search for the best starts again"
            )
            before = None
        if before is None or chosen.score(best_by) > before:
            scores.selected_on, scores.selected_by, scores.best_puzzles = now
            scores.best_step, scores.selection_score = self.step, chosen.score(best_by)
            scores.best_exact_accuracy = sample.score(EXACT)
            scores.best_scores = {name: sample.final[name] for name in sample.shown_names}
        scores.last_eval, scores.last_eval_step = result.final, self.step
        scores.shown_scores = list(result.shown_names)
        scores.exact_accuracy_by_step = [step["exact_accuracy"] for step in result.by_step]

    def meta(self, exp: Experiment) -> Meta:
        """What a checkpoint of now says about itself."""
        return Meta(
            step=self.step,
            config=kept(to_plain(exp.cfg)),
            digest=digest(exp.cfg),
            data=exp.dataset.metadata.sizes,
            data_digest=exp.content.train_digest,
            wandb_run_id=self.wandb_run_id,
            scores=self.scores,
            test_digest=exp.content.test_digest,
            puzzles={"train": exp.content.train_puzzles, "test": exp.content.test_puzzles},
            caveats=exp.content.caveats,
            training_range=exp.content.training_range,
            surroundings=surroundings(exp.cfg.hardware),
            code=self.code,
        )

    def summary(self, exp: Experiment, status: str, reason: str | None, seconds: float) -> dict[str, Any]:
        """The contents of summary.json; `seconds` are those of this start's training steps."""
        trained, scores = max(self.step - self.start_step, 0), self.scores
        rows_after_first = (trained - 1) * exp.cfg.train.global_batch_size
        return {
            "status": status,
            "reason": reason,
            "run_name": exp.cfg.run_name,
            "steps": self.step,
            "total_steps": exp.total_steps,
            "resumed_from_step": self.start_step or None,
            "exact_accuracy": scores.last_eval["exact_accuracy"] if scores.last_eval else None,
            **vars(scores),
            # in training steps, without compiling, evaluating and saving, over all starts of the run
            "seconds": round(self.seconds_before + seconds, 3),
            "seconds_to_first_step": self.seconds_to_first_step,
            "samples_per_s": rows_after_first / seconds if trained > 1 and seconds else None,
            "parameters": num_parameters(exp.arch),
            "recurrent_parameters": num_recurrent_parameters(exp.arch),
            "training_flops": training_flops(exp.cfg, exp.arch, exp.stages, self.step),
            "config_digest": digest(exp.cfg),
            "data": asdict(exp.content),  # what was read, whatever the settings say
            "seed": exp.cfg.seed,
            "hardware": exp.cfg.hardware.name,
            "runtime": exp.runtime.describe(),
            "threads": torch.get_num_threads(),
            "cores": cores(),  # that this process may use
            "surroundings": surroundings(exp.cfg.hardware),
            "code": self.code,
            "compiles": exp.runtime.compile_count(),
            "warnings": self.warnings,
        }


class Outputs:
    """The run folder and the dashboards of one run. One host writes; on the others the methods do nothing.

    If one of several hosts has an error here, the others wait for it in the next computation that they share. So the error is kept,
    the host votes for a stop, and `close` raises the error when all hosts have stopped.
    """

    def __init__(self, exp: Experiment, run_dir: Path, record: Record, state: TrainState) -> None:
        """`state` is the one that the run starts from; every checkpoint has its names, shapes and dtypes."""
        self.failure: Exception | None = None  # of this host; a run on one host raises it at once
        self._template = map_tensors(lambda tensor: tensor.to("meta"), state)
        self._exp, self._run_dir, self._record = exp, run_dir, record
        self._trackers = Trackers(record.wandb_run_id)  # none, until they are open
        self._writer = CheckpointWriter(run_dir, exp.cfg.train.keep_checkpoints)
        if not exp.runtime.is_main:
            return
        with self._own():
            put_summary_away(run_dir)  # it would tell of the start before
            self._trackers = open_trackers(
                exp.cfg,
                run_dir,
                is_main=True,
                resume_step=record.start_step or None,
                wandb_run_id=record.wandb_run_id,
                data=asdict(exp.content),
            )
            record.wandb_run_id = self._trackers.wandb_run_id
            saved = to_plain(exp.cfg)
            saved["data"]["path"] = str(Path(exp.cfg.data.path).resolve())  # so that the run can be opened from any folder
            OmegaConf.save(OmegaConf.create(saved), run_dir / CONFIG_FILE)

    @property
    def vote(self) -> int:
        """This host's vote in a batch: FAILED where it cannot go on."""
        return FAILED if self.failure else 0

    def log(self, kind: str, values: dict[str, float | int]) -> None:
        """Write the values of the current step everywhere. Raises the error of a checkpoint that could not be written."""
        with self._own():
            self._trackers.log(kind, self._record.step, values)
            self._writer.check()

    def evaluated(self, result: EvalResult, began: float) -> None:
        """Log an evaluation that the record has taken, and write its samples."""
        values, step = result.final, self._record.step
        names = SHOWN_IN_LOG | {name: name for name in result.shown_names}
        shown = ", ".join(f"{name}={values[key]:.4f}" for name, key in names.items())
        seconds, costs = time.perf_counter() - began, cost(result.work, self._exp.cfg, self._exp.arch)
        if (candidates := self._exp.cfg.inference.candidates) > 1:
            shown += f", pass@{candidates} (oracle)={values['oracle_exact_accuracy']:.4f}"
            shown += f", candidates run={costs['candidates_run']:.3g}"
        shown += f", GFLOP/puzzle={1e-9 * costs['flops_per_puzzle']:.3g}"
        log.info("Evaluation at step %s: %s, puzzles=%d, time=%.1fs", step, shown, values["count"], seconds)
        self.log("eval", values | costs)
        with self._own():
            if self._exp.runtime.is_main:
                write_whole(self._run_dir / SAMPLES_FILE, result.samples.to_json())
                for name, text in result.ballots.documents().items() if result.ballots else ():
                    write_whole(self._run_dir / name, text)
                if result.ballots and (remark := result.ballots.remark()):
                    self._record.warn(remark, once=remark)
            task = self._exp.dataset.task
            self._trackers.show(step, lambda: Evaluation(result.by_step, held_out(result.samples, task), result.shown_names))

    def save(self, state: TrainState) -> None:
        """Start writing a state, which is on the CPU and must not be changed any more, as a checkpoint."""
        if not self._exp.runtime.is_main or self.failure:
            return
        tensors = flatten(state)
        with self._own():
            unflatten(self._template, tensors, f"step {self._record.step} is not saved, since it could not be read back")
            tensors |= {f"fixed/{k}": t for k, t in self._exp.buffers.items() if k.startswith("init.")}
            tensors |= {f"metrics/{name}": total for name, total in self._record.sums.items()}
            tensors |= {f"votes/{name}": torch.from_numpy(array) for name, array in self._record.votes.items()}
            self._writer.save(tensors, self._record.meta(self._exp))

    def close(self) -> None:
        """Wait until all checkpoints are on disk. Raises what went wrong."""
        with self._own():
            self._writer.close()
        if self.failure is not None:
            raise self.failure

    def finish(self, status: str, reason: str | None, exit_code: int, seconds: float) -> dict[str, Any]:
        """Write the summary and end the trackers, whatever happened; returns the summary."""
        summary = self._record.summary(self._exp, status, reason, seconds) | {"wandb_mode": self._trackers.wandb_mode}
        warnings = [*self._record.warnings, *self._trackers.warnings]
        if self._exp.runtime.is_main:
            write_summary(self._run_dir, summary | {"warnings": warnings})  # before the trackers, which may wait for a server
        self._trackers.finish(status, exit_code, summary)
        if self._exp.runtime.is_main:
            write_summary(self._run_dir, summary | {"warnings": [*self._record.warnings, *self._trackers.warnings]})
        return summary

    @contextlib.contextmanager
    def _own(self) -> Iterator[None]:
        """Keep an error of this host alone; only the first one is logged."""
        try:
            yield
        except (OSError, RunFailure, UserError) as error:
            if self._exp.runtime.process_count == 1:
                raise
            if self.failure is None:
                log.error("%s: the run stops on all hosts", error)
                self.failure = error
