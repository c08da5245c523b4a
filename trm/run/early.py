"""Checks before a run has a folder, making this folder, and runs in this process."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus, run_job
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from trm.cli import NO_RUN_FOLDER, command_module, composing, fail, named, starts_ranks, typed
from trm.config import Config, check_training, local_path
from trm.errors import ConfigError, UserError
from trm.ground.child import start_ranks
from trm.ground.folder import make_folder
from trm.ground.rank import process_rank, refuse_other_starters, require_ranks


class RefuseEarly(Callback):
    """Refuses wrong settings before it makes the run's folder; conf/config.yaml names this class."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Exit if the sweep has a wrong folder or is started several times."""
        try:
            refuse_other_starters()  # torchrun and srun too, since each process would run all jobs
            _mend_folder(config, "sweep")
        except (ConfigError, OmegaConfBaseException) as error:
            fail(error)

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Exit if the settings are not valid or the folder cannot be made."""
        try:
            cfg = make_run_folder(config)
            if config.hydra.run.dir != NO_RUN_FOLDER and starts_ranks(cfg):
                given = [*sys.argv[1:], *([] if _is_named(config) else [f"run_name={config.run_name}"])]
                sys.exit(start_ranks(cfg.hardware.devices, command_module() or "trm.train", given))
        except (UserError, OmegaConfBaseException) as error:
            fail(error)


def make_run_folder(config: DictConfig) -> Config:
    """Check the composed settings of a run, make its folder, and return typed settings. Raises UserError or OmegaConf's errors."""
    cfg = typed(config)
    _mend_folder(config, "run")
    folder = Path(config.hydra.run.dir)
    if config.hydra.run.dir == NO_RUN_FOLDER:
        return cfg
    check_training(cfg)
    named = _is_named(config)
    if not starts_ranks(cfg):
        if not named and max(cfg.hardware.processes, process_rank()[1]) > 1:
            raise ConfigError("run_name is missing: give a run of several hosts a name, since each host would choose another")
        require_ranks(cfg.hardware.name, cfg.hardware.processes, of_torch=cfg.hardware.can.ranks)
    if process_rank()[0] == 0:
        number, new = 1, not named and folder.name == cfg.run_name
        while not make_folder(folder, new=new):  # a run that started in the same second has this name
            number += 1
            config.run_name = f"{cfg.run_name}_{number}"
            folder = folder.with_name(config.run_name)
        with read_write(config.hydra):
            config.hydra.run.dir = str(folder)
    return cfg


def run_here(run: str, overrides: Sequence[str]) -> Path:
    """Run "module:function" in this process, as `hydra_command` does with these overrides; returns the run's folder.

    Raises the errors of the run. The log goes to the terminal and into the folder; afterwards the loggers are as before.
    """
    refuse_other_starters()
    handlers, level = logging.root.handlers[:], logging.root.level
    with composing(list(overrides)) as meant:
        composed = hydra.compose("config", overrides=meant, return_hydra_config=True)
        make_run_folder(composed)
        folder = Path(composed.hydra.run.dir).absolute()
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())

        def task(composed: DictConfig) -> None:
            named(run)(typed(composed, HydraConfig.get().overrides.task))

        try:
            done = run_job(task, composed, job_dir_key="hydra.run.dir", job_subdir_key=None, hydra_context=context)
        finally:
            for handler in set(logging.root.handlers) - set(handlers):
                handler.close()
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
        if done.status != JobStatus.COMPLETED:
            raise done._return_value
    return folder


def _is_named(config: DictConfig) -> bool:
    return any(override.startswith("run_name=") for override in config.hydra.overrides.task)


def _mend_folder(config: DictConfig, name: str) -> None:
    """Put the home folder in the place of a leading ~ of hydra.NAME.dir. Raises ConfigError."""
    with read_write(config.hydra):
        config.hydra[name].dir = local_path(f"hydra.{name}.dir", str(config.hydra[name].dir))
