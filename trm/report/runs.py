"""Reading run folders as they are. A damaged file raises nothing here: the reason or the warnings of its run name it."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from trm.config import EXACT, defaults, flatten
from trm.data.format import SELECTION
from trm.errors import UserError, message_of
from trm.ground.folder import CONFIG_FILE, GRID_FILE, METRICS_FILE, SUMMARY_FILE, in_use
from trm.ground.progress import work

# for settings that Hydra wrote; OmegaConf's own loader takes ten times as long
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

COMPOSED_FILE, HYDRA_FILE = "config/config.yaml", "config/hydra.yaml"  # Hydra writes these before the run begins
NOT_RUNS = ("checkpoints", "tensorboard", "wandb", "__pycache__")

# The run's puzzles among its settings, identified by their content.
DIGESTS = {"puzzles.train": "train_digest", "puzzles.test": "test_digest"}

# values of a summary that a run has as they are
NUMBERS = ("exact_accuracy", "best_exact_accuracy", "samples_per_s", "seconds")
COUNTS = ("best_step", "parameters", "recurrent_parameters", "training_flops")

CURVES = (("evaluations", "eval", "exact_accuracy"), ("losses", "train", "loss"), ("step_times", "train", "step_time_s"))

Status = Literal["completed", "failed", "preempted", "unfinished", "missing", "damaged"]
Points = list[tuple[int, float]]  # (global step, value)


@dataclass(frozen=True)
class Run:
    """One job as its folder shows it. Accuracies are shares of 1; `settings` is the resolved config, flat with dotted keys."""

    name: str
    status: Status
    reason: str = ""  # why the run is not counted; empty where it is completed
    sweep: str = ""  # the folder that holds the run's folder
    experiment: str | None = None
    overrides: tuple[str, ...] = ()  # as the sweep's grid lists them
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    exact_accuracy: float | None = None  # of the final evaluation
    loss: float | None = None  # mean cross-entropy of a cell at the final evaluation, on held-out puzzles
    best_exact_accuracy: float | None = None  # on the test puzzles, of the evaluation that chose the best checkpoint
    selected_on: str = "test"  # which puzzles chose it: "selection" or "test"
    scores: Mapping[str, float] = field(default_factory=dict)  # of the final evaluation, besides exact accuracy
    best_step: int | None = None
    steps: int | None = None
    total_steps: int | None = None
    samples_per_s: float | None = None
    seconds: float | None = None
    parameters: int | None = None
    recurrent_parameters: int | None = None  # of the blocks
    training_flops: int | None = None  # by the count of docs/explanation/what_is_computed.md
    flops_per_puzzle: float | None = None  # of the last evaluation
    evaluations: Points = field(default_factory=list)  # exact accuracy
    losses: Points = field(default_factory=list)  # training loss
    step_times: Points = field(default_factory=list)  # seconds of a training step, the mean since the log before
    exact_accuracy_by_step: list[float] = field(default_factory=list)  # of the last evaluation, after each supervision step
    folder: Path | None = None  # None: the run left none
    warnings: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()  # of its data: what changes how its accuracy may be read
    evaluated_puzzles: int | None = None  # of the final evaluation
    evaluated_step: int | None = None  # that of its checkpoint
    code: Mapping[str, Any] | None = None  # revision and versions

    @property
    def deciding_score(self) -> float:
        """The final score that chooses between checkpoints (evaluate.best_by); 0 where there is none."""
        by = str(self.settings.get("evaluate.best_by", EXACT))
        return (self.exact_accuracy if by == EXACT else self.scores.get(by)) or 0.0

    def has(self, file: str) -> bool:
        """Whether a file of this name lies in the run's folder."""
        return self.folder is not None and (self.folder / file).is_file()


class _DamagedError(Exception):
    """A file that cannot be read; the message names it."""


def collect(folders: list[Path]) -> list[Run]:
    """All runs below the folders, in the order of the folders and then of paths, each run once.

    Jobs that a sweep's grid.json lists and that left no folder are missing runs. Raises UserError where a folder does not exist
    or nothing is found.
    """
    runs: dict[Path, Callable[[], Run]] = {}  # how to read each; they are read when their number is known
    for given in folders:
        if not given.is_dir():
            raise UserError(f"{given} is not a folder: give run folders or sweep folders, such as outputs/NAME or multirun/NAME")
        for path, inside, files in os.walk(given):
            folder = Path(path)
            if GRID_FILE in files:
                _add_grid(runs, folder, given, len(folders) > 1)
            if _is_run(folder):
                runs.setdefault(_real(folder), partial(_read_run, folder, _name(folder, given, len(folders) > 1), ()))
                inside.clear()  # nothing below a run folder is a run
            inside[:] = sorted(name for name in inside if name not in NOT_RUNS and not name.startswith("."))
    if not runs:
        names = ", ".join(map(str, folders))
        raise UserError(f"no runs in {names}: a run folder holds {SUMMARY_FILE} or {CONFIG_FILE}")
    found: list[Run] = []
    with work("runs read", len(runs), "run") as done:
        for read in runs.values():
            found.append(read())
            done(len(found))
    return found


def _is_run(folder: Path) -> bool:
    if (folder / SUMMARY_FILE).is_file() or (folder / HYDRA_FILE).is_file():
        return True
    try:
        return "defaults" not in _read(folder / CONFIG_FILE)  # with it, the file is a Hydra source such as conf/config.yaml
    except FileNotFoundError:
        return False
    except _DamagedError:
        return True


def _name(folder: Path, given: Path, several: bool) -> str:
    """The name of a folder in the report: its path below the given folder, after the given path if `several` were given."""
    relative = folder.relative_to(given) if folder.is_relative_to(given) else Path(os.path.relpath(folder, given))
    if relative == Path():
        return _real(given).name
    return str(given / relative if several else relative)


def _real(path: Path) -> Path:
    """The path without links. Unlike Path.resolve this accepts links that lead nowhere or in a circle."""
    return Path(os.path.realpath(path))


def _add_grid(runs: dict[Path, Callable[[], Run]], sweep: Path, given: Path, several: bool) -> None:
    """The jobs that a sweep's grid lists, with or without a folder."""
    try:
        jobs = _read(sweep / GRID_FILE).get("jobs")
        if not isinstance(jobs, list) or not all(isinstance(j, dict) and isinstance(j.get("dir"), str) for j in jobs):
            raise _DamagedError(f'{GRID_FILE}: needs "jobs", a list of objects with "dir"')
        if any("\0" in job["dir"] for job in jobs):
            raise _DamagedError(f'{GRID_FILE}: a "dir" is not a possible name of a folder')
    except (FileNotFoundError, _DamagedError) as error:
        reason = f"{error}; jobs without a folder are not known"
        runs[_real(sweep / GRID_FILE)] = partial(Run, _name(sweep / GRID_FILE, given, several), "damaged", reason)
        return
    for job in jobs:
        folder = sweep / job["dir"]
        overrides = tuple(str(o) for o in job.get("overrides") or ())
        name = _name(folder, given, several)
        if folder.is_dir() and _is_run(folder):
            runs.setdefault(_real(folder), partial(_read_run, folder, name, overrides))
        elif _real(folder) not in runs:
            reason = "its folder holds no run" if folder.is_dir() else "no folder: the job has not started"
            about: dict[str, Any] = {"sweep": _real(sweep).name, "overrides": overrides, "seed": _seed(overrides)}
            runs[_real(folder)] = partial(Run, name, "missing", reason, **about)


def _seed(overrides: tuple[str, ...]) -> int | None:
    seeds = [o.removeprefix("seed=") for o in overrides if o.startswith("seed=")]
    return int(seeds[-1]) if seeds and re.fullmatch(r"[0-9]{1,19}", seeds[-1]) else None


def _read_run(folder: Path, name: str, overrides: tuple[str, ...]) -> Run:
    """One run folder. What cannot be read is named in `reason` (status damaged) or, where the result stands, in `warnings`."""
    damage: list[str] = []
    settings, summary = dict[str, Any](), dict[str, Any]()  # empty where there is none
    try:
        summary = _read(folder / SUMMARY_FILE)
    except FileNotFoundError:
        pass
    except _DamagedError as error:
        damage.append(str(error))
    try:  # a run that died early left only the composed config; keys that the schema gained since have their defaults
        resolved = folder / CONFIG_FILE
        settings = {**defaults(), **flatten(_read(resolved if resolved.exists() else folder / COMPOSED_FILE))}
    except FileNotFoundError:
        if summary.get("status") != "failed":  # the sweep fails a job that died before it wrote a config
            damage.append(f"{CONFIG_FILE} is missing")
    except _DamagedError as error:
        damage.append(str(error))
    curves, last_step, torn = _read_metrics(folder / METRICS_FILE)
    status, reason = _status(folder, damage, summary, settings, last_step)
    warnings = [*_texts(summary.get("warnings"))]
    # a killed run's last line may be torn; a run that ended by itself has none
    if torn and (summary or torn > 1):
        warnings.append(f"{METRICS_FILE}: {torn} unreadable line(s) left out")
    if status == "completed" and not curves["evaluations"]:
        warnings.append(f"{METRICS_FILE}: no evaluations, so no curve")
    data, last = _object(summary.get("data")), _object(summary.get("last_eval"))
    # what the run read is as good as a setting: runs on other puzzles are another variant
    settings |= {key: data[name] for key, name in DIGESTS.items() if settings and isinstance(data.get(name), str)}
    seed = settings.get("seed", summary.get("seed", _seed(overrides)))
    own: dict[str, Any] = {name: (_integer if name in COUNTS else finite)(summary.get(name)) for name in (*NUMBERS, *COUNTS)}
    by_step = summary.get("exact_accuracy_by_step")
    shares = [_share(each) for each in by_step] if isinstance(by_step, list) else []
    return Run(
        name=name,
        status=status,
        reason=reason,
        sweep=_real(folder).parent.name,
        experiment=_experiment(folder),
        overrides=overrides,
        settings=settings,
        seed=seed if isinstance(seed, int) else None,
        loss=finite(last.get("lm_loss")),
        selected_on=SELECTION if summary.get("selected_on") == SELECTION else "test",
        scores={name: score for name in _texts(summary.get("shown_scores")) if (score := finite(last.get(name))) is not None},
        steps=last_step if summary.get("steps") is None else _integer(summary["steps"]),
        total_steps=_integer(summary.get("total_steps")) or _integer(settings.get("train.max_steps")),
        exact_accuracy_by_step=[] if None in shares else [share for share in shares if share is not None],
        folder=folder,
        warnings=tuple(warnings),
        caveats=_texts(data.get("caveats")),
        evaluated_puzzles=_integer(last.get("count")),
        evaluated_step=_integer(summary.get("last_eval_step")) or _integer(summary.get("steps")),
        code=_object(summary.get("code")) or None,
        **own,
        **curves,
    )


def _status(
    folder: Path, damage: list[str], summary: dict[str, Any], settings: dict[str, Any], last_step: int | None
) -> tuple[Status, str]:
    """The status of a run, and why it does not count."""
    if damage:
        return "damaged", "; ".join(damage)
    if not summary:  # only processes on this machine hold the lock
        state = "still running" if in_use(folder) else f"no {SUMMARY_FILE}: it was killed, or runs on another machine"
        of = f" of {total}" if (total := settings.get("train.max_steps")) else ""
        return "unfinished", f"{state}, no step logged yet" if last_step is None else f"{state}, last logged step {last_step}{of}"
    match summary.get("status"):
        case "completed" if _share(summary.get("exact_accuracy")) is None:
            return "damaged", f"{SUMMARY_FILE}: exact_accuracy={summary.get('exact_accuracy')!r} is not a share of 1"
        case "completed":
            return "completed", ""
        case "failed":
            return "failed", str(summary.get("reason") or "no reason given in summary.json; see train.log")
        case "preempted":
            step, total = _integer(summary.get("steps")) or last_step, _integer(summary.get("total_steps"))
            return "preempted", f"stopped at step {step}{f' of {total}' if total else ''}; the same command resumes it"
        case status:
            return "damaged", f"{SUMMARY_FILE}: status={status!r} is not completed, failed or preempted"


def _experiment(folder: Path) -> str | None:
    """The named experiment that the run was started as, from Hydra's record."""
    try:
        choice = _read(folder / HYDRA_FILE)["hydra"]["runtime"]["choices"]["experiment"]
    except (FileNotFoundError, _DamagedError, LookupError, TypeError):
        return None
    return choice if isinstance(choice, str) and choice != "null" else None


def _read_metrics(path: Path) -> tuple[dict[str, Any], int | None, int]:
    """The fields of a run that its metrics hold, the last step, and how many lines could not be read."""
    points: dict[str, dict[int, float]] = {"evaluations": {}, "losses": {}, "step_times": {}}
    flops_per_puzzle, last_step, torn = None, None, 0
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            entry = json.loads(line)
            kind, step = entry["kind"], int(entry["global_step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            torn += 1
            continue
        last_step = step
        for name, of_kind, key in CURVES:
            if kind == of_kind and (value := finite(entry.get(key))) is not None:
                points[name][step] = value
                if kind == "eval":
                    flops_per_puzzle = finite(entry.get("flops_per_puzzle"))
    curves = {name: sorted(values.items()) for name, values in points.items()}
    return {**curves, "flops_per_puzzle": flops_per_puzzle}, last_step, torn


def _read(path: Path) -> dict[str, Any]:
    """The object that a JSON or YAML file holds. Raises FileNotFoundError, and _DamagedError where it holds none."""
    is_json = path.suffix == ".json"
    try:
        content = path.read_bytes()
        found = json.loads(content) if is_json else yaml.load(content, Loader=YAML_LOADER)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _DamagedError(f"{path.name}: not readable as {'JSON' if is_json else 'YAML'} ({message_of(error)})") from error
    if not isinstance(found, dict) or not found:
        raise _DamagedError(f"{path.name}: holds no object with keys")
    return {str(key): value for key, value in found.items()}


def finite(value: object) -> float | None:
    """A finite number as it is, else None."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None  # type: ignore[arg-type]


def _share(value: object) -> float | None:
    """A share of 1 as it is, else None."""
    number = finite(value)
    return number if number is not None and 0 <= number <= 1 else None


def _integer(value: object) -> int | None:
    number = finite(value)
    return int(number) if number is not None else None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
