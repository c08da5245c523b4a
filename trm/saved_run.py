"""Opening what a run left behind: `checkpoint=RUN` plus overrides, for evaluate, solve and interop."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from trm.checkpoint import Meta, find_checkpoint, load_checkpoint
from trm.cli import CONF_DIR, compose, one_line, refuse_unknown_keys
from trm.config import Config, from_composed, to_plain
from trm.errors import ConfigError
from trm.model import Architecture, Weights, architecture, init_fixed
from trm.run_folder import CONFIG_FILE


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint and the settings to use it with."""

    cfg: Config
    arch: Architecture
    meta: Meta
    folder: Path  # the checkpoint folder
    weights: Weights  # training weights
    ema: Weights  # empty where the run kept no EMA
    fixed: Weights
    puzzle_embedding: Tensor | None

    @property
    def eval_weights(self) -> Weights:
        """The weights that the run's own evaluation used: EMA where there is one."""
        return self.ema or self.weights


def split_arguments(arguments: list[str]) -> tuple[Path, list[str], list[str]]:
    """The value of checkpoint=, the other KEY=VALUE arguments, and the rest. Raises ConfigError where checkpoint= is missing."""
    pairs = [a for a in arguments if "=" in a and not a.startswith("-")]
    checkpoints = [a.removeprefix("checkpoint=") for a in pairs if a.startswith("checkpoint=")]
    if len(checkpoints) != 1 or not checkpoints[0]:
        raise ConfigError("checkpoint= is needed once: checkpoint=RUN with a run folder such as outputs/NAME")
    overrides = [a for a in pairs if not a.startswith("checkpoint=")]
    return Path(checkpoints[0]), overrides, [a for a in arguments if a not in pairs]


def open_run(path: Path, overrides: list[str]) -> SavedRun:
    """Load the checkpoint that `path` means, with the run's own settings and the overrides on top.

    An override is KEY=VALUE (train.log_every_steps=5) or GROUP=OPTION (hardware=cpu). Raises CheckpointError or ConfigError.
    """
    folder = find_checkpoint(path)
    tensors, meta = load_checkpoint(folder)
    run_config = folder.parent.parent / CONFIG_FILE
    if run_config.exists():
        settings = cast(DictConfig, OmegaConf.load(run_config))
    else:  # a checkpoint folder moved out of its run: everything but names and paths is in the checkpoint itself
        settings = OmegaConf.create({**meta.config, "run_name": folder.name, "data": {**meta.config["data"], "path": "???"}})
    cfg = _with_overrides(settings, overrides)
    arch = architecture(cfg, **meta.data)
    weights = {k.removeprefix("weights/"): t for k, t in tensors.items() if k.startswith("weights/")}
    fixed = init_fixed(arch, cfg.seed) | {k.removeprefix("fixed/"): t for k, t in tensors.items() if k.startswith("fixed/")}
    return SavedRun(
        cfg=cfg,
        arch=arch,
        meta=meta,
        folder=folder,
        weights=weights,
        ema={k.removeprefix("ema/"): t for k, t in tensors.items() if k.startswith("ema/")},
        fixed={k: t.to(arch.dtype) if k.startswith("init.") else t for k, t in fixed.items()},
        puzzle_embedding=tensors.get("puzzle_embedding"),
    )


def _with_overrides(settings: DictConfig, overrides: list[str]) -> Config:
    merged = settings.copy()
    try:
        OmegaConf.set_struct(merged, True)
        for override in overrides:
            key, _, value = override.partition("=")
            if (CONF_DIR / key).is_dir():
                merged[key] = to_plain(compose([override]))[key]
            else:
                OmegaConf.update(merged, key, OmegaConf.from_dotlist([f"value={value}"])["value"], force_add=False)
        refuse_unknown_keys(merged)
        return from_composed(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
