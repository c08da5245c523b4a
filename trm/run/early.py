"""What is refused before a run has a folder, and how it gets one."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from trm.cli import NO_RUN_FOLDER, fail, typed
from trm.config import check_training, local_path
from trm.errors import ConfigError, UserError
from trm.ground.folder import make_folder
from trm.ground.rank import process_rank, require_ranks


class RefuseEarly(Callback):
    """Refuses wrong settings before the run's folder is made, and makes it; conf/config.yaml names it."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Exit where the sweep's folder is none."""
        try:
            _mend_folder(config, "sweep")
        except (ConfigError, OmegaConfBaseException) as error:
            fail(error)

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Exit where the settings are not valid, or where there can be no such folder."""
        try:
            cfg = typed(config)
            _mend_folder(config, "run")
            folder = Path(config.hydra.run.dir)
            if config.hydra.run.dir == NO_RUN_FOLDER:
                return
            check_training(cfg)
            named = any(override.startswith("run_name=") for override in config.hydra.overrides.task)
            if not named and max(cfg.hardware.processes, process_rank()[1]) > 1:
                raise ConfigError("run_name is missing: a run of several hosts needs one, since each host would choose another")
            require_ranks(cfg.hardware.name, cfg.hardware.processes)
            if process_rank()[0] == 0:
                number, new = 1, not named and folder.name == cfg.run_name
                while not make_folder(folder, new=new):  # of a start in the same second
                    number += 1
                    config.run_name = f"{cfg.run_name}_{number}"
                    folder = folder.with_name(config.run_name)
                with read_write(config.hydra):
                    config.hydra.run.dir = str(folder)
        except (UserError, OmegaConfBaseException) as error:
            fail(error)


def _mend_folder(config: DictConfig, name: str) -> None:
    """Put the home folder in the place of a leading ~ of hydra.NAME.dir. Raises ConfigError."""
    with read_write(config.hydra):
        config.hydra[name].dir = local_path(f"hydra.{name}.dir", str(config.hydra[name].dir))
