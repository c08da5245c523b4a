"""What is known of a run so far: the one object that becomes a checkpoint's meta.json and the run's summary.json."""

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from trm.backends.machine import surroundings
from trm.config import EXACT, digest, kept, to_plain
from trm.core.flops import training_flops
from trm.core.initial import num_parameters, num_recurrent_parameters
from trm.ground.cores import cores
from trm.inference.evaluator import EvalResult
from trm.run.checkpoint import Meta, Scores
from trm.run.experiment import Experiment
from trm.run.revision import code

log = logging.getLogger(__name__)


@dataclass
class Record:
    """The state of a run beside its tensors."""

    step: int = 0  # updates done
    start_step: int = 0  # of this start
    scores: Scores = field(default_factory=Scores)
    wandb_run_id: str | None = None  # that a resumed run continues
    warnings: list[str] = field(default_factory=list)
    seconds_before: float = 0.0  # of training, by earlier starts
    seconds_to_first_step: float | None = None
    kept_config: dict[str, Any] = field(default_factory=dict)  # of the checkpoint that the run goes on from
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
        """Take an evaluation of the current step; it is the best where its score `best_by` is, on the selection puzzles.

        `sample` is over the test puzzles that every evaluation takes, `result` over all; `selection` is over the puzzles by which
        evaluations are compared, None = by the sample's. The best is looked for anew where these are others than before.
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
