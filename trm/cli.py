"""The border between the command line and the typed settings: composing, one-line errors, exit codes.

Exit codes: 0 done; 1 failed; 2 the user's input is wrong (one line on stderr, no traceback); 141 the reader of the output went
away (128 + SIGPIPE); 143 preempted. A command that has nothing to save exits with 130 after SIGINT and with 143 after SIGTERM.
"""

import argparse
import contextlib
import importlib
import importlib.util
import logging
import os
import re
import runpy
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trm import config
from trm.config import Config
from trm.config.groups import GROUPS, describe_groups, group_options
from trm.config.identity import LENGTH
from trm.config.overrides import as_typed
from trm.config.refusals import key_hint, near_option, no_option, one_line, unknown_key
from trm.errors import EXIT_FAILED, EXIT_USER_ERROR, ConfigError, RunFailure, UserError
from trm.ground.cores import visible_gpus
from trm.ground.folder import UNWRITABLE, unwritable
from trm.ground.job import job
from trm.ground.rank import by_torchrun, on_a_pod, process_rank, refuse_other_starters
from trm.ground.signals import standard_streams, stoppable
from trm.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]  # has trm/ and hydra_plugins/, in a checkout also bench/ and scripts/
# Keys whose values are registered: the default, which needs no check, and the module that checks other values
REGISTRIES = {
    "recursion.variant": (config.RecursionConfig.variant, "trm.core.variants"),
    "optimizer.name": (config.OptimizerConfig.name, "trm.core.optimizers"),
}
NO_RUN_FOLDER = "."  # hydra.run.dir of a command that is not a run


def fail(error: BaseException) -> NoReturn:
    """Print the error as one line on stderr; exit with 1 for a RunFailure, otherwise with 2."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(EXIT_FAILED if isinstance(error, RunFailure) else EXIT_USER_ERROR)


class _Options(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        wrong = message.removeprefix("unrecognized arguments: ").split()[0]
        near = near_option(wrong, [*self._option_string_actions])
        hint = f"{message} (did you mean {near}?)" if near else message
        if near is None and (dashed := re.search(r"unrecognized arguments: .*?--([A-Za-z][\w.-]*)", message)):
            key = dashed[1].replace("-", "_")
            known = key in config.all_keys() or key == "checkpoint"
            hint = f"{message}: settings are KEY=VALUE, without dashes: {key}=..." + ("" if known else f" ({key_hint(key)})")
        raise UserError(f"{hint}; `python -m {self.prog} --help` shows how")


def options(command: str, arguments: Sequence[str], *, words: bool = True, **spec: type | Mapping[str, Any]) -> argparse.Namespace:
    """The options of a command that reads its own arguments; `rest` has the other arguments. Raises UserError.

    `spec` has the type of each option, or a mapping with argparse's settings: dry_run=bool is --dry-run. `words` says whether
    `rest` may have other words than KEY=VALUE.
    """
    parser = _Options(prog=command, add_help=False, allow_abbrev=False)
    parser.add_argument("rest", nargs="*")
    for name, settings in spec.items():
        flag = ("--" if len(name) > 1 else "-") + name.replace("_", "-")
        own: Mapping[str, Any] = (
            settings if isinstance(settings, Mapping) else {"action": "store_true"} if settings is bool else {"type": settings}
        )
        kind = {"type": lambda given, flag=flag: Path(config.local_path(flag, given))} if own.get("type") is Path else {}
        parser.add_argument(flag, dest=name, **{**own, **kind})
    given = parser.parse_intermixed_args(arguments)
    for argument in given.rest:
        if not words and "=" not in argument:
            parser.error(f"{argument}: not understood: arguments are KEY=VALUE and options")
    return given


def named(function: Callable[..., None] | str) -> Callable[..., None]:
    """The function, or the one that "module:function" names, if its module takes seconds to import."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(module), name)
    return found


def plain_command(main: Callable[[list[str]], None] | str, usage: str | None, *, needs_arguments: bool = True) -> None:
    """Run a command that reads its own arguments, the function or "module:function"; `--help` prints `usage`.

    User errors and interruptions end in one line. If the reader of its output goes away (`| head`), the command exits with 141
    without a message.
    """
    arguments = sys.argv[1:]
    with standard_streams(), stoppable():
        try:
            if "--help" in arguments or "-h" in arguments or (needs_arguments and not arguments):
                print(usage)
                sys.exit(0 if arguments else EXIT_USER_ERROR)
            named(main)(arguments)
        except (UserError, RunFailure) as error:
            fail(error)


def hydra_command(run: Callable[[Config], Any] | str, *, run_folder: bool = True) -> None:
    """Run a command, the function or "module:function", whose settings Hydra composes from conf/.

    Overrides, --multirun, --cfg, --info and --help are Hydra's; the module is imported when a run starts. A wrong key or value ends
    in one line and exit code 2; any other exception keeps its traceback and exits with 1. Without `run_folder` the command writes
    nothing under outputs/, logs only to the terminal, and an interruption ends in one line.
    """
    with standard_streams(), contextlib.nullcontext() if run_folder else stoppable():
        try:
            refuse_other_starters(of_torch=run_folder)
            _run_hydra(run, run_folder)
        except UserError as error:
            fail(error)


def _run_hydra(run: Callable[[Config], Any] | str, run_folder: bool) -> None:
    _prepare_hydra()
    parser = _Options(prog=command_module(), add_help=False, parents=[get_args_parser()])  # its errors are one line
    given = parser.parse_intermixed_args()  # Hydra parses again, and wants all overrides before or after its options
    if sum(map(bool, (given.run, given.multirun, given.cfg, given.info, given.shell_completion))) > 1:
        parser.error("--multirun, --cfg and --info exclude one another")
    sys.argv[1:] = [*(a for a in sys.argv[1:] if a not in given.overrides), *map(_as_meant, given.overrides)]
    if given.cfg == "job" and not given.resolve:  # print values; --info prints interpolations
        sys.argv.insert(1, "--resolve")
    if not run_folder:
        sys.argv += [f"hydra.run.dir={NO_RUN_FOLDER}", "hydra.output_subdir=null", "hydra/job_logging=stdout"]
        sys.argv += ["hydra/sweeper=basic", "hydra/launcher=basic"]
    elif process_rank()[0] > 0 and on_a_pod():  # another host writes into the folder
        sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=stdout"]
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    # by name, since a sweep's job is another process, which imports the command when it has its devices
    if not isinstance(run, str) and command_module():
        run = f"{command_module()}:{run.__name__}"

    def task(composed: DictConfig) -> Any:
        function = named(run)
        hydra_config = HydraConfig.get()
        if OmegaConf.is_missing(hydra_config.job, "num"):
            try:
                with standard_streams():  # here too, before Hydra adds its own lines
                    return function(typed(composed, hydra_config.overrides.task))
            except (UserError, OmegaConfBaseException, RunFailure) as error:
                if full_error == "1":
                    raise
                fail(error)
        else:
            with job(Path(hydra_config.runtime.output_dir)):
                return function(typed(composed, hydra_config.overrides.task))

    # Hydra names the job after the task's module: the command
    task.__module__ = run.partition(":")[0] if isinstance(run, str) else Path(run.__code__.co_filename).stem
    try:
        # without this Hydra prints a report of several lines and exits with 1; with it, Hydra raises the exceptions
        os.environ["HYDRA_FULL_ERROR"] = "1"
        logging.raiseExceptions = False  # the run itself reports a full disk, so train.log need not
        hydra.main(version_base="1.3", config_path=str(config.groups.CONF_DIR), config_name="config")(task)()
    except Exception as error:
        mistake = _mistake(error, sys.argv[1:])
        if full_error == "1" or mistake is None:
            raise
        fail(mistake)
    finally:  # for the next command of this process
        logging.raiseExceptions = True
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)  # trm/ground/child.py takes it away, too
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def typed(composed: DictConfig, overrides: Sequence[str] | None = None) -> Config:
    """The typed, validated settings of a composed config. Raises ConfigError, also for a key that the schema does not have.

    Hydra's own part is left out; `overrides` are by default those in it.
    """
    given = OmegaConf.select(composed, "hydra.overrides.task", default=()) if overrides is None else overrides
    composed = OmegaConf.create({key: value for key, value in composed.items_ex(resolve=False) if key != "hydra"})
    learn_tasks(str(OmegaConf.select(composed, "data.task")))
    for key in config.unknown_keys(composed):  # +KEY=VALUE can add such
        raise ConfigError(unknown_key(key))
    names = dict(override.lstrip("+").partition("=")[::2] for override in given)
    lengths = [f"train.{key}={names[f'train.{key}']}" for key in LENGTH if names.get(f"train.{key}", "null") != "null"]
    if len(lengths) > 1:
        raise ConfigError(f"{' and '.join(lengths)} each set the length of the run: keep one of them")
    if "data.task" in names or names.keys() >= {"data", "experiment"}:  # leave out keys of the task that was replaced
        data = dict(composed.data.items_ex(resolve=False))
        own = config.without_others(data) | {key: data[key] for key in data if f"data.{key}" in names}
        composed = OmegaConf.create({**dict(composed.items_ex(resolve=False)), "data": own})
    importlib.import_module("trm.tasks.base")
    for key, (default, module) in REGISTRIES.items():
        if OmegaConf.select(composed, key) not in (None, default):
            importlib.import_module(module)  # with torch, which takes seconds
    if OmegaConf.select(composed, "hardware.num_devices", default=1) is None:
        # one device for each process that a launcher started, otherwise the devices of this machine
        here, started = max(1, len(visible_gpus())) if composed.hardware.platform == "cuda" else 2, process_rank()[1]
        composed.hardware.num_devices = started if started > 1 or by_torchrun() else here
    return config.from_composed(composed)


def starts_ranks(cfg: Config) -> bool:
    """Whether this command has to start several ranks itself, since no launcher did. Raises ConfigError without enough GPUs."""
    several = cfg.hardware.can.ranks and cfg.hardware.devices > 1 == process_rank()[1] and not by_torchrun()
    if several and cfg.hardware.platform == "cuda" and (gpus := len(visible_gpus())) < cfg.hardware.devices:
        raise ConfigError(
            f"hardware.num_devices={cfg.hardware.devices}: a process needs a GPU of its own, and here are {gpus}: give fewer "
            "devices or another hardware="
        )
    return several


def _mistake(error: Exception, overrides: list[str]) -> UserError | None:
    """The user's mistake behind an exception from Hydra; None for a fault of the program."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError(one_line(error))
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    hydras = {frame.f_code.co_name for frame in frames if frame.f_globals["__name__"].startswith("hydra.")}
    our_task = any(frame.f_code.co_name == "task" and frame.f_globals["__name__"].startswith("trm.") for frame in frames)
    reason: BaseException | None = error
    while reason is not None and not (isinstance(reason, OSError) and reason.filename and reason.errno in UNWRITABLE):
        reason = None if our_task else reason.__cause__ or reason.__context__  # such as a log file that cannot be written
    if isinstance(reason, OSError):
        return unwritable(Path(reason.filename), reason)
    if our_task or not hydras & {"compose_config", "load_configuration", "run_job"}:
        return None
    # Hydra passes errors of many types on, and few of them name the cause
    for file in sorted(config.groups.CONF_DIR.rglob("*.yaml")):
        try:
            config.load_yaml(file)
        except ConfigError as unreadable:
            return unreadable
    for override in overrides:
        group, _, option = override.lstrip("+~").partition("=")
        there = group_options(group)
        if group in GROUPS and option not in there and str(error).startswith("Config group override"):
            return ConfigError(no_option(group, option, there))
    return ConfigError(f"Hydra cannot start with these overrides and conf/: {one_line(error)}")


def _as_meant(override: str) -> str:
    """An override in Hydra's form: text is quoted if Hydra would read something else, and sweep= gets a +."""
    if override.lstrip("+").startswith("data.task="):
        learn_tasks(override)
    if override == "hardware.jobs=auto":
        return "hardware.jobs=0"
    return as_typed(f"+{override}" if override.startswith("sweep=") else override)


def learn_tasks(text: str) -> None:
    """Register the settings of the tasks outside the package that a text names. Raises ConfigError."""
    for task in re.findall(r"[\w.]+:\w+", text):
        if task not in TASKS:
            config.task_settings(task)
            config.register_schema()


class FileConfigSource(file_config_source.FileConfigSource):
    """Replaces Hydra's class of this name: in the files of conf/, text stays text even if it looks like a number."""

    def load_config(self, config_path: str) -> ConfigResult:
        """The settings of a file and its header."""
        file = Path(self.path, self._normalize_file_name(config_path))
        if not file.exists():
            raise ConfigLoadError(f"Config not found : {file}")
        with file.open(encoding="utf-8", errors="replace") as text:
            header = self._get_header_dict(text.read(512))
        package = header["package"] or os.path.dirname(config_path).replace("/", ".")
        package = "" if package == "_global_" else package
        found = config.load_yaml(file, package)
        settings: Any = OmegaConf.to_container(found)
        for key, value in config.flatten(settings).items():  # Hydra loads the schema after these files
            if f".{package}.{key}".endswith(".data.task"):
                learn_tasks(str(value))
        return ConfigResult(config=found, path=f"file://{self.path}", provider=self.provider, header=header)


def _prepare_hydra() -> None:
    """Register the schema, the resolvers of conf/ and the study's plugins with Hydra."""
    if str(ROOT) not in sys.path:  # hydra_plugins/ lies beside trm/
        sys.path.append(str(ROOT))
    config.register_schema()
    OmegaConf.register_new_resolver("trm_groups", describe_groups, replace=True)
    Plugins.instance()  # imports all plugins; conf/hydra/launcher replaces their defaults
    SourcesRegistry.instance().types["file"] = FileConfigSource
    for name in ("submitit_local", "submitit_slurm", "ray"):
        ConfigStore.instance().repo["hydra"]["launcher"].pop(f"{name}.yaml", None)


def command_module() -> str | None:
    """The name of the module that `python -m MODULE` runs; None if a file runs."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else None


def installed() -> None:
    """The entry point that pip installs for every command: `trm-build-data ...` is `python -m trm.build_data ...`."""
    module = Path(sys.argv[0]).name.replace("-", ".", 1).replace("-", "_")
    sys.modules["__main__"].__spec__ = importlib.util.find_spec(module)
    runpy.run_module(module, run_name="__main__")


def invocation() -> str:
    """The command line that started this process."""
    return shlex.join(["python", *(["-m", module] if (module := command_module()) else sys.argv[:1]), *sys.argv[1:]])


@dataclass(frozen=True)
class Launch:
    """Hydra's settings of a run: its folder, and the launcher of a sweep's jobs."""

    run_dir: Path
    launcher: str  # the option of hydra/launcher
    multirun: bool


def compose(overrides: list[str]) -> Config:
    """The settings that `python -m trm.train OVERRIDES` would run with, without running anything."""
    return compose_launch(overrides)[0]


def compose_launch(overrides: list[str]) -> tuple[Config, Launch]:
    """As `compose`, with Hydra's settings."""
    with composing(overrides) as meant:
        composed = hydra.compose("config", overrides=meant, return_hydra_config=True)
        own = composed.hydra
        run_dir = Path(config.local_path("hydra.run.dir", own.run.dir))
        return typed(composed), Launch(run_dir, own.runtime.choices["hydra/launcher"], own.mode == RunMode.MULTIRUN)


def compose_run(overrides: list[str]) -> tuple[Config, Launch]:
    """As `compose_launch`, for one run. Raises ConfigError for a sweep, since none of its jobs has these settings."""
    cfg, launch = compose_launch(overrides)
    if launch.multirun:
        raise ConfigError(
            "+sweep=: these are the settings of several runs, but one is needed: give the overrides of one job, such as "
            "experiment=NAME (trm.train and trm.sweep run all jobs)"
        )
    return cfg, launch


def compose_jobs(overrides: list[str]) -> dict[str, Config]:
    """The settings of every job that `python -m trm.train --multirun OVERRIDES` would run, by the job's name; runs nothing."""
    return compose_sweep(overrides)[1]


def compose_sweep(overrides: list[str]) -> tuple[Path, dict[str, Config]]:
    """As `compose_jobs`, with the sweep's folder."""
    with composing(overrides) as meant:
        loader = GlobalHydra.instance().config_loader()
        composed = loader.load_configuration("config", overrides=meant, run_mode=RunMode.MULTIRUN)
        sweeper: Any = Plugins.instance().instantiate_sweeper(
            config=composed,
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=lambda composed: None,
        )
        jobs: dict[str, Config] = sweeper.configs(list(composed.hydra.overrides.task))
        return Path(config.local_path("hydra.sweep.dir", str(composed.hydra.sweep.dir))), jobs


@contextlib.contextmanager
def composing(overrides: list[str]) -> Iterator[list[str]]:
    """Prepare Hydra to compose, and yield the overrides in its form. The user's mistakes are raised as UserError."""
    _prepare_hydra()
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config.groups.CONF_DIR)):
            yield list(map(_as_meant, overrides))
    except Exception as error:
        mistake = _mistake(error, overrides)
        if mistake is None or mistake is error:
            raise
        raise mistake from error
    finally:
        GlobalHydra.instance().hydra = outer  # of a program that uses Hydra itself
