"""hydra/sweeper=optuna: a sweep whose next jobs Optuna chooses by the scores of the earlier ones.

A trial is a job of the sweep, trial_N, with a folder and a summary like any other; Optuna's journal lies in the sweep's folder.
Optuna gets the score of a trial when its job has completed. A trial that was stopped or failed stays open, and the same command
resumes it.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf

from trm.cli import invocation
from trm.config import Config
from trm.config.refusals import one_line
from trm.errors import ConfigError, UserError
from trm.ground.folder import read_summary
from trm.study import sweep as study
from trm.study.placement import place
from trm.study.queue import hardware_of
from trm.study.sweeper import StudySweeper

log = logging.getLogger(__name__)

JOURNAL = "optuna.log"


class OptunaSweeper(StudySweeper):
    """Batches of as many trials as run at once; recorded, resumed and judged like every sweep."""

    def __init__(
        self, trials: int = 20, score: str = "selection_score", direction: str = "maximize", seed: int = 0, **hydras: Any
    ) -> None:
        super().__init__(**{"max_batch_size": None, "params": None} | hydras)
        if trials < 1:
            raise ConfigError(f"hydra.sweeper.trials={trials}: at least 1")
        if direction not in ("maximize", "minimize"):
            raise ConfigError(f"hydra.sweeper.direction={direction}: maximize or minimize")
        self.trials, self.score, self.direction, self.seed = trials, score, direction, seed

    def sweep(self, arguments: list[str]) -> None:
        """Run as many trials as asked for. Exits with 1 where one failed, with 143 where the sweep was stopped."""
        shown_dir = Path(str(self.config.hydra.sweep.dir))
        sweep_dir = shown_dir.absolute()
        common, space = self._space(arguments)
        bounds = {key: getattr(kind, "choices", None) or (kind.low, kind.high) for key, kind in space.items()}
        for number in range(max(map(len, bounds.values()))):  # trials that together have every bound and choice
            trial = _overrides({key: choices[number % len(choices)] for key, choices in bounds.items()})
            self._composed([*common, *trial], f"with {' '.join(trial)}")
        at_once = self.max_batch_size or place(hardware_of(self.config)).jobs_at_once
        failed: list[tuple[study.Job, str]] = []
        with study.only_once(sweep_dir):
            OmegaConf.save(self.config, sweep_dir / "multirun.yaml")
            search = self._study(sweep_dir)
            jobs = {trial.number: self._job(trial, common) for trial in search.trials}
            open_trials = [trial for trial in search.trials if not trial.state.is_finished()]
            done = [jobs[trial.number] for trial in search.trials if trial not in open_trials]
            unlike = [trial for trial in search.trials if trial.distributions != space]
            if unlike or any(study.why_incomplete(sweep_dir, job) for job in done):
                raise ConfigError(f"{shown_dir} has a search with other settings: give this one another run_name")
            log.info("%s of %s trials are completed", len(done), self.trials)
            stopped = False
            while not stopped and (open_trials or len(jobs) < self.trials):
                while len(open_trials) < at_once and len(jobs) < self.trials:
                    open_trials.append(search.ask(space))
                    jobs[open_trials[-1].number] = self._job(open_trials[-1], common)
                batch, open_trials = open_trials[:at_once], open_trials[at_once:]
                todo = [jobs[trial.number] for trial in batch]
                self.get_ready([job for job in todo if study.why_incomplete(sweep_dir, job)])
                study.write_grid(sweep_dir, invocation(), list(jobs.values()))
                found, stopped = self.run_jobs(sweep_dir, todo)
                failed += found
                for job, trial in zip(todo, batch, strict=True):
                    if job not in [one for one, _ in failed]:
                        search.tell(trial.number, self._score(sweep_dir / job.dir))
        self.close(shown_dir, list(jobs.values()), failed, stopped)
        best = search.best_trial
        print(f"best {self.score}: {best.value:.6g} by {jobs[best.number].dir} ({' '.join(_overrides(best.params))})", flush=True)
        if (read_summary(sweep_dir / jobs[best.number].dir) or {}).get("selected_on") != "selection":
            print("  caution: the trials were compared on the test puzzles, so the score of the best one is too high", flush=True)

    def configs(self, arguments: list[str]) -> dict[str, Config]:
        """The settings of as many trials as asked for, drawn before any score is known."""
        common, space = self._space(arguments)
        search = self._study(None)
        return {(job := self._job(search.ask(space), common)).dir: job.cfg for _ in range(self.trials)}

    def _space(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The overrides that all trials share, and Optuna's distribution of each key of the search."""
        optuna = _optuna()
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = {o.key_or_group: o for o in parser.parse_overrides([*self._parse_config(), *arguments])}
        common = [str(o.input_line) for key, o in overrides.items() if not o.is_sweep_override() and key != "sweep"]
        searched = [o for o in overrides.values() if o.is_sweep_override()]
        if not searched:
            raise ConfigError("hydra/sweeper=optuna: nothing to search: 'optimizer.lr=tag(log,interval(1e-4,1e-2))', or KEY=a,b,c")
        return common, {str(o.input_line).partition("=")[0]: _distribution(optuna, o) for o in searched}

    def _study(self, sweep_dir: Path | None) -> Any:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        backend = sweep_dir and optuna.storages.journal.JournalFileBackend(str(sweep_dir / JOURNAL))
        storage = optuna.storages.JournalStorage(backend) if backend else None
        search = optuna.create_study(storage=storage, study_name="trm", direction=self.direction, load_if_exists=True)
        # a sampler that starts anew must not draw what it drew before
        search.sampler = optuna.samplers.TPESampler(seed=self.seed + len(search.trials))
        return search

    def _job(self, trial: Any, common: Sequence[str]) -> study.Job:
        overrides = (*common, *_overrides(trial.params))
        return study.Job(f"trial_{trial.number}", overrides, self._composed(overrides, f"trial_{trial.number}"))

    def _score(self, run_dir: Path) -> float:
        summary = read_summary(run_dir) or {}
        if not isinstance(value := summary.get(self.score), int | float):
            numbers = ", ".join(key for key, value in summary.items() if type(value) in (int, float))
            raise UserError(f"hydra.sweeper.score={self.score} is not a number in {run_dir.name}/summary.json: choose {numbers}")
        return float(value)


def _overrides(params: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in params.items()]


def _distribution(optuna: Any, override: Override) -> Any:
    """Optuna's distribution of a key's values: an interval, whole numbers of a range or an int(interval()), or a choice."""
    value, kinds = override.value(), optuna.distributions
    try:
        if isinstance(value, IntervalSweep):
            kind = kinds.IntDistribution if isinstance(value.start, int) else kinds.FloatDistribution
            return kind(value.start, value.end, log="log" in value.tags)
        if isinstance(value, RangeSweep) and isinstance(numbers := value.range(), range):
            return kinds.IntDistribution(numbers[0], numbers[-1], step=numbers.step)
        return kinds.CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{override.input_line}: {one_line(error)}") from error


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("hydra/sweeper=optuna is not installed: make setup, or pip install '.[search]'") from error
    return optuna
