"""The border between the command line and the typed settings: composing, one-line errors, exit codes.

Exit codes: 0 done; 1 failed; 2 the user's input is wrong (one line on stderr, no traceback); 143 preempted.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trm.config import Config, from_composed, register_schema
from trm.errors import ConfigError, UserError

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
EXIT_FAILED, EXIT_USER_ERROR, EXIT_PREEMPTED = 1, 2, 143

# One line on each config group, in the order of conf/config.yaml; `--help` prints it with the group's options.
GROUPS = {
    "model": "the network: token mixer, width, depth, prefix",
    "recursion": "T latent recursions of n updates, N_sup supervision steps, halting, variants",
    "ema": "moving average of the weights, used for evaluation",
    "optimizer": "update rule, learning rate, warm-up, decay",
    "data": "which puzzles, how many, how augmented",
    "hardware": "devices, number formats, backend",
    "tracking": "W&B and TensorBoard, beside metrics.jsonl",
    "experiment": "a named experiment: overrides on top of the groups above",
}


def describe_groups() -> str:
    """The config groups with one line and the options of each, for `--help`."""
    lines = []
    for group, about in GROUPS.items():
        options = sorted(p.stem for p in (CONF_DIR / group).glob("[!_]*.yaml"))
        lines.append(f"  {group:<11} {about}\n              {' | '.join(options)}")
    return "\n".join(lines)


def one_line(error: BaseException) -> str:
    """The error's message on a single line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # omegaconf appends "full_key: a.b" and the object's type: keep the key, which says where, and drop the type
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    lines = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    text = " ".join(lines)
    return f"{keys[0]}: {text}" if keys and keys[0] not in text else text


def fail_user_error(error: BaseException) -> NoReturn:
    """Print the error as one line on stderr and exit with 2."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def plain_command(main: Callable[[list[str]], None], usage: str | None) -> None:
    """Run a command that reads its own arguments; `--help` prints `usage`. User errors end as in `hydra_command`."""
    arguments = sys.argv[1:]
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(usage)
        sys.exit(0 if arguments else EXIT_USER_ERROR)
    try:
        main(arguments)
    except UserError as error:
        fail_user_error(error)


def hydra_command(run: Callable[[Config], None], *, run_folder: bool = True) -> None:
    """Run a command whose settings Hydra composes from conf/: overrides, --multirun, --cfg, --info and --help are Hydra's.

    A wrong key or value ends in one line and exit code 2; any other exception keeps its traceback and exits with 1. Without
    `run_folder` nothing is written under outputs/ and logging goes to the terminal alone.
    """
    if not run_folder:
        sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout"]
    register_schema()
    OmegaConf.register_new_resolver("trm_groups", describe_groups, replace=True)
    # Hydra prints its own multi-line report and exits with 1 unless this is set; then it lets exceptions through
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def task(composed: DictConfig) -> None:
        run(from_composed(composed))

    task.__module__ = run.__module__  # Hydra names the job after the task's module
    task.__code__ = task.__code__.replace(co_filename=run.__code__.co_filename)
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(task)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if full_error == "1":
            raise
        fail_user_error(error)


def compose(overrides: list[str]) -> Config:
    """The settings that `python -m trm.train OVERRIDES` would run with, without running anything."""
    register_schema()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        try:
            return from_composed(hydra.compose("config", overrides=overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(one_line(error)) from error
