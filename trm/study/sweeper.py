"""The sweepers of Hydra: the study's grid, made idempotent, and Optuna's search. trm/study/sweep.py says what a sweep is."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from trm.cli import invocation, typed
from trm.config import Config, all_keys, check_training, to_plain
from trm.config.groups import GROUPS
from trm.config.overrides import as_typed, override
from trm.config.refusals import one_line
from trm.data.build import ensure_dataset, is_absent
from trm.errors import EXIT_FAILED, EXIT_PREEMPTED, ConfigError, UserError, described
from trm.ground.folder import read_summary
from trm.study import sweep as study
from trm.study.board import Board
from trm.study.names import job_names, sweep_name, word
from trm.study.placement import place
from trm.study.queue import QueueLauncher, hardware_of

log = logging.getLogger(__name__)

JOURNAL = "optuna.log"


class StudySweeper(BasicSweeper):
    """Hydra's basic grid, made idempotent: it records the grid, skips completed jobs, and is judged by the jobs' summaries."""

    config: DictConfig
    hydra_context: HydraContext

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set up as Hydra does. On a TPU the jobs get one chip each unless hardware.placement says otherwise."""
        self.implied: list[str] = []
        if config.hardware.platform == "tpu" and config.hardware.placement is None:
            config.hardware.placement = "chip"
            self.implied = ["hardware.placement=chip"]
        # settings of the sweeper are the sweep's alone: a job is composed without +sweep=NAME, which may name another sweeper
        own = [given for given in config.hydra.overrides.hydra if not given.startswith("hydra.sweeper.")]
        config.hydra.overrides.hydra = own
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def _parse_config(self) -> list[str]:
        """Hydra's overrides of hydra.sweeper.params, with their text unchanged."""
        return [as_typed(given) for given in super()._parse_config()]

    def sweep(self, arguments: list[str]) -> None:
        """Run what is missing of the grid. Exits with 1 where a job did not complete, with 143 where the sweep was stopped."""
        shown_dir = Path(str(self.config.hydra.sweep.dir))
        sweep_dir = shown_dir.absolute()
        grid = self._grid(arguments)
        with study.only_once(sweep_dir):
            jobs = study.with_folders(sweep_dir, grid)
            log.info("%s jobs in %s", len(jobs), shown_dir)
            if self.get_ready([job for job in jobs if study.why_incomplete(sweep_dir, job)]):
                jobs = study.with_folders(sweep_dir, grid)
            study.write_grid(sweep_dir, invocation(), jobs)
            OmegaConf.save(self.config, sweep_dir / "multirun.yaml")
            failed, stopped = self.run_jobs(sweep_dir, jobs)
        self.close(shown_dir, jobs, failed, stopped)

    def run_jobs(self, sweep_dir: Path, jobs: Sequence[study.Job]) -> tuple[list[tuple[study.Job, str]], bool]:
        """Run the jobs that are not completed. Returns those that failed, with the reason, and whether the sweep was stopped."""
        todo, before = study.left_to_do(sweep_dir, jobs), study.stamps(sweep_dir, jobs)
        errors, stopped = self.launch(sweep_dir, todo) if todo else ({}, False)
        return study.failures(sweep_dir, jobs, before, errors), stopped

    def close(self, shown_dir: Path, jobs: Sequence[study.Job], failed: Sequence[tuple[study.Job, str]], stopped: bool) -> None:
        """Print how the sweep ended. Exits with 1 or 143 where a job failed."""
        if not failed:
            print(f"all {len(jobs)} jobs completed in {shown_dir}", flush=True)
            return
        lines = [f"{len(failed)} of {len(jobs)} jobs did not complete in {shown_dir}:"]
        lines += [f"  {job.dir}: {reason}" for job, reason in failed]
        lines += ["the same command runs only the missing jobs:", f"  {invocation()}"]
        print("\n".join(lines), file=sys.stderr, flush=True)
        sys.exit(EXIT_PREEMPTED if stopped else EXIT_FAILED)

    def configs(self, arguments: list[str]) -> dict[str, Config]:
        """The settings of every job of the grid, by its name."""
        return {job.dir: job.cfg for job in self._grid(arguments)}

    def _grid(self, arguments: list[str]) -> list[study.Job]:
        """Every job of the grid, composed and validated before the first job starts. Raises ConfigError."""
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        for each in overrides:
            if each.is_sweep_override() and each.is_discrete_sweep() and not list(each.sweep_string_iterator()):
                options = [name for name in loader.get_group_options(each.key_or_group) if not name.startswith("_")]
                hint = f"choose from {', '.join(options)}" if options else "give it a value"
                raise ConfigError(f"{each.input_line} matches nothing: {hint}")
        (grid,) = self.split_arguments([each for each in overrides if each.key_or_group != "sweep"], None)
        common = set.intersection(*map(set, grid))
        cfgs = [self._composed(job, " ".join(each for each in job if each not in common)) for job in grid]
        names = job_names([_chosen(parser, job, cfg) for job, cfg in zip(grid, cfgs, strict=True)])
        jobs = study.without_twins([study.Job(*job) for job in zip(names, map(tuple, grid), cfgs, strict=True)])
        machines = [cfg.hardware for cfg in cfgs]
        sizes = {place(machine) if machine.platform == "tpu" else machine.devices for machine in machines}
        if any(machine.platform != "cpu" for machine in machines) and len(sizes) > 1:
            raise ConfigError(
                "hardware=, hardware.placement and hardware.num_devices must be the same for all jobs of a sweep on TPUs or GPUs: "
                "start one sweep for each"
            )
        return jobs

    def _composed(self, overrides: Sequence[str], words: str) -> Config:
        try:
            cfg = typed(self.hydra_context.config_loader.load_sweep_config(self.config, [*self.implied, *overrides]))
            check_training(cfg)
        except UserError as error:
            raise ConfigError(f"job {words}: {one_line(error)}" if words else one_line(error)) from error
        return cfg

    def get_ready(self, jobs: Sequence[study.Job]) -> bool:
        """Get the launcher ready for these jobs and build the data that they lack. Returns whether any data were built."""
        if jobs and isinstance(self.launcher, QueueLauncher):
            self.launcher.get_ready()
        absent = [data for data in {job.cfg.data.path: job.cfg.data for job in jobs}.values() if is_absent(Path(data.path))]
        for data in absent:  # once, and on this machine, which may have a network where those of the jobs have none
            ensure_dataset(data)
        return bool(absent)

    def launch(self, sweep_dir: Path, jobs: Sequence[study.Job]) -> tuple[dict[str, str], bool]:
        """Start the jobs and wait. Returns the launcher's reason for each that failed, and whether the sweep was stopped."""
        batch = []
        for job in jobs:  # the job's overrides, and where in the sweep it belongs
            place_of_job = {"run_name": job.dir, "hydra.sweep.dir": str(sweep_dir), "hydra.sweep.subdir": job.dir}
            batch.append([*self.implied, *job.overrides, *(override(key, value) for key, value in place_of_job.items())])
        if isinstance(self.launcher, QueueLauncher):
            self.launcher.launch_jobs(sweep_dir, [job.dir for job in jobs], batch, Board(sweep_dir, jobs))
            return self.launcher.reasons, self.launcher.stopped
        assert self.launcher is not None
        reasons = {}
        try:
            for job, result in zip(jobs, self.launcher.launch(batch, initial_job_idx=0), strict=True):
                if result.status != JobStatus.COMPLETED:
                    reasons[job.dir] = described(result._return_value)
        except Exception as error:  # noqa: BLE001 - a launcher may raise anything for a job that died; the summaries judge
            log.warning("the launcher failed: %s", described(error))
            reasons = {job.dir: f"no summary; the launcher failed: {described(error)}" for job in jobs}
        return reasons, False


def _chosen(parser: OverridesParser, overrides: Sequence[str], cfg: Config) -> dict[str, str]:
    """The choices of a job as text: the options of groups, and the values of keys after composition."""
    chosen = {}
    for each in parser.parse_overrides(list(overrides)):
        key, value = each.key_or_group, each.value()
        if key in all_keys() and key not in GROUPS:
            value = to_plain(cfg)
            for part in key.split("."):
                value = value[part]
        chosen[key] = word(value)
    return chosen


class OptunaSweeper(StudySweeper):
    """hydra/sweeper=optuna: Optuna chooses the next jobs by the scores of the earlier ones, as many at a time as run at once.

    A trial is a job, trial_N, with a folder and a summary like any other; Optuna's journal lies in the sweep's folder. Optuna gets
    the score of a trial when its job has completed. A trial that was stopped or failed stays open: the same command resumes it.
    """

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


OmegaConf.register_new_resolver("trm_sweep_name", sweep_name, replace=True)  # of conf/config.yaml
