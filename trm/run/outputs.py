"""What a run leaves behind: its log and dashboards, samples, checkpoints, summary. One host writes, the others do nothing here.

With several hosts an error here is this host's alone, and the others wait for it in the next computation that they share. So it is
kept, this host votes for a stop, and raises it when all have stopped.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from trm.backends.base import map_tensors
from trm.config import to_plain
from trm.core.metrics import FAILED
from trm.core.step import TrainState
from trm.errors import RunFailure, UserError
from trm.ground.folder import CONFIG_FILE, put_summary_away, write_summary, write_whole
from trm.inference.cost import cost
from trm.inference.evaluator import EvalResult
from trm.inference.samples import SAMPLES_FILE
from trm.run.checkpoint import CheckpointWriter, flatten, unflatten
from trm.run.experiment import Experiment
from trm.run.record import Record
from trm.tracking.evaluation import Evaluation, held_out
from trm.tracking.trackers import Trackers, open_trackers

log = logging.getLogger(__name__)

SHOWN_IN_LOG = {"exact_accuracy": "exact_accuracy", "accuracy": "accuracy", "loss": "lm_loss"}


class Outputs:
    """The run folder and the dashboards of one run."""

    def __init__(self, exp: Experiment, run_dir: Path, record: Record, state: TrainState) -> None:
        """`state` is the one that the run starts from, which checkpoints are to be like."""
        self.failure: Exception | None = None  # what went wrong on this host alone; a lone host raises it
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
        """Write the values of the current step everywhere, and see whether checkpoints are written."""
        with self._own():
            self._trackers.log(kind, self._record.step, values)
            self._writer.check()

    def evaluated(self, result: EvalResult, began: float) -> None:
        """Tell of an evaluation that the record has taken."""
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
        """Have a state of the CPU, which nobody may change any more, written as a checkpoint."""
        if not self._exp.runtime.is_main or self.failure:
            return
        tensors = flatten(state)
        with self._own():
            unflatten(self._template, tensors, f"step {self._record.step} is not saved, for it could not be read back")
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
        """Work of this host alone. One error is enough: what follows from it is not told."""
        try:
            yield
        except (OSError, RunFailure, UserError) as error:
            if self._exp.runtime.process_count == 1:
                raise
            if self.failure is None:
                log.error("%s: the run stops on all hosts", error)
                self.failure = error
