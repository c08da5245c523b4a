"""Opening what a run left behind: `checkpoint=RUN` plus overrides, for evaluate, solve and interop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from trm.cli import GROUPS, compose, one_line, typed
from trm.config import Config, load_yaml, to_plain
from trm.core.model import Architecture, Weights, architecture, init_fixed, weight_shapes
from trm.errors import CheckpointError, ConfigError
from trm.run.checkpoint import META_FILE, Meta, find_checkpoint, load_checkpoint
from trm.run.folder import CONFIG_FILE


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
    def uses_ema(self) -> bool:
        """Whether evaluation takes the EMA: where the run kept one and the settings do not say ema=off."""
        return bool(self.ema) and self.cfg.ema.enabled

    @property
    def eval_weights(self) -> Weights:
        """The weights that evaluation uses."""
        return self.ema if self.uses_ema else self.weights


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
    try:
        folder = find_checkpoint(path)
    except OSError as error:
        raise CheckpointError(f"checkpoint={path}: {error.strerror}: give a run folder such as outputs/NAME") from error
    tensors, meta = load_checkpoint(folder)
    cfg = _with_overrides(_settings(folder, meta), overrides)
    arch = architecture(cfg, **_sizes(folder, meta))
    _check_tensors(folder, arch, tensors)

    def part(prefix: str) -> Weights:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    fixed = init_fixed(arch, cfg.seed) | part("fixed/")
    return SavedRun(
        cfg=cfg,
        arch=arch,
        meta=meta,
        folder=folder,
        weights=part("weights/"),
        ema=part("ema/"),
        fixed={k: t.to(arch.dtype) if k.startswith("init.") else t for k, t in fixed.items()},
        puzzle_embedding=tensors.get("puzzle_embedding"),
    )


def _settings(folder: Path, meta: Meta) -> Any:
    """The settings that the run was trained with, not checked yet."""
    run_config = folder.parent.parent / CONFIG_FILE
    if run_config.exists():
        return load_yaml(run_config)
    # a checkpoint folder moved out of its run: everything but names and paths is in the checkpoint itself
    data = meta.config.get("data") if isinstance(meta.config, dict) else None
    if not isinstance(data, dict):
        raise CheckpointError(f"{folder / META_FILE}: holds no settings: use another checkpoint")
    return {**meta.config, "run_name": folder.name, "data": {**data, "path": "???"}}


def _sizes(folder: Path, meta: Meta) -> dict[str, int]:
    """The sizes of the data that the run was trained on."""
    names = ("seq_len", "vocab_size", "num_puzzle_identifiers")
    sizes = meta.data if isinstance(meta.data, dict) else {}
    if sizes.keys() != set(names) or not all(type(size) is int and 0 < size < 2**31 for size in sizes.values()):
        raise CheckpointError(f"{folder / META_FILE}: data={meta.data} is not the sizes {', '.join(names)}: use another checkpoint")
    return sizes


def _check_tensors(folder: Path, arch: Architecture, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError where the model of `arch` cannot be made from the tensors."""
    model = arch.model
    kinds = ("weights/", "ema/") if any(name.startswith("ema/") for name in tensors) else ("weights/",)
    shapes = {kind + name: shape for kind in kinds for name, shape in weight_shapes(arch).items()}
    if model.puzzle_emb_ndim:
        shapes["puzzle_embedding"] = (arch.num_puzzle_identifiers, model.puzzle_emb_ndim)
    used = {name for name in tensors if name.startswith(("weights/", "ema/")) or name == "puzzle_embedding"}
    wrong = sorted(shapes.keys() ^ used)
    if wrong:
        what = "is missing" if wrong[0] in shapes else "has no place"
        raise CheckpointError(f"{folder}: tensor {wrong[0]} {what}: these settings (model=, recursion=) are not the run's")
    shapes |= {f"fixed/init.{z}": (model.hidden_size,) for z in arch.latent_names if f"fixed/init.{z}" in tensors}
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{folder}: tensor {name} is {tensor.dtype} {list(tensor.shape)}, but these settings (model=, recursion=) need "
                f"{list(shape)}"
            )


def _with_overrides(settings: Any, overrides: list[str]) -> Config:
    try:
        merged = OmegaConf.create(settings)
        OmegaConf.set_struct(merged, True)
        for override in overrides:
            key, _, value = override.partition("=")
            if key in GROUPS and key in Config.__dataclass_fields__:
                merged[key] = to_plain(compose([override]))[key]
            else:
                # YAML makes booleans of these words; on the command line of a run they are words, which a switch understands
                word = value.lower() in ("on", "off", "yes", "no")
                read = value if word else OmegaConf.from_dotlist([f"value={value}"])["value"]
                OmegaConf.update(merged, key, read, force_add=False)
        return typed(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{override} is not understood ({one_line(error)}): quote the value") from error
