"""Opening the checkpoint of a run: `checkpoint=RUN` plus overrides, for evaluate, solve and interop."""

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from trm import config
from trm.cli import ROOT, compose, typed
from trm.config import Config
from trm.config.backends import find_backend
from trm.config.groups import GROUPS, group_options
from trm.config.overrides import override, parsed
from trm.config.refusals import one_line
from trm.core.architecture import Architecture, Weights, architecture
from trm.core.initial import init_buffers, weight_shapes
from trm.data.build import is_absent
from trm.data.content import caveats
from trm.data.format import SELECTION, Dataset, load_dataset
from trm.errors import CheckpointError, ConfigError, DataError
from trm.ground.folder import CHECKPOINTS, CONFIG_FILE, META_FILE, best_step, steps_in
from trm.ground.rank import process_rank
from trm.run.checkpoint import BEST, Meta, cast, find_checkpoints, first_whole, load_checkpoint, part
from trm.tasks.base import Task, task_of

log = logging.getLogger(__name__)

CARD_FILE = "README.md"  # a published network's card: YAML between two lines of ---, then words


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint and the settings to use it with."""

    cfg: Config
    arch: Architecture
    meta: Meta
    folder: Path  # the checkpoint folder
    weights: Weights  # training weights; empty if only the EMA was published
    ema: Weights  # empty if the run kept no EMA
    buffers: Weights
    puzzle_embedding: Tensor | None
    asked_data: bool = False  # the overrides say which puzzles to use
    chosen: bool = False  # it is the run's best checkpoint and not its last one

    @property
    def uses_ema(self) -> bool:
        """Whether evaluation uses the EMA: if the run kept one and the settings do not say ema=off."""
        return bool(self.ema) and self.cfg.ema.enabled

    @property
    def eval_weights(self) -> Weights:
        """The weights that evaluation uses."""
        return self.ema if self.uses_ema else self.weights


def split_arguments(arguments: list[str]) -> tuple[Path, list[str], list[str]]:
    """The value of checkpoint=, the other KEY=VALUE arguments, and the rest. Raises ConfigError if checkpoint= is missing."""
    pairs = [a for a in arguments if not a.startswith("-") and is_override(a)]
    checkpoints = [a.removeprefix("checkpoint=") for a in pairs if a.startswith("checkpoint=")]
    if len(checkpoints) != 1 or not checkpoints[0]:
        raise ConfigError("checkpoint= is needed once: checkpoint=RUN with a run folder such as outputs/NAME")
    overrides = [a for a in pairs if not a.startswith("checkpoint=")]
    return Path(config.local_path("checkpoint", checkpoints[0])), overrides, [a for a in arguments if a not in pairs]


def is_override(argument: str) -> bool:
    """Whether an argument is KEY=VALUE. Names of files, such as a sweep's folders, and frames of drawn puzzles have "=" too."""
    key, equals, _ = argument.partition("=")
    folder = os.path.dirname(argument)  # a file that is still to be written has a folder that exists
    return bool(equals and re.match(r"[+~]*[A-Za-z_]\S*$", key)) and (
        key == "checkpoint" or not ("/" in key or os.path.lexists(argument) or (folder and os.path.isdir(folder)))
    )


def open_run(path: Path, overrides: list[str]) -> SavedRun:
    """Load the checkpoint that `path` means, with its own settings and the overrides on top.

    In a run folder, it is the newest one that is not damaged. An override is KEY=VALUE (train.log_every_steps=5) or GROUP=OPTION
    (hardware=cpu). Raises CheckpointError or ConfigError.
    """
    if path.parts[:1] == ("models",) and not path.exists() and (shipped := ROOT / "trm" / path).is_dir():
        path = shipped  # models/NAME, from any working directory
    try:
        folders = find_checkpoints(path)
    except OSError as error:
        raise CheckpointError(f"checkpoint={path}: {error.strerror}: give a run folder such as outputs/NAME") from error
    found = first_whole(folders, log.warning) if len(folders) > 1 else None
    folder, tensors, meta = found or (folders[0], *load_checkpoint(folders[0]))
    own = _settings(folder, meta)
    backend = find_backend(own["hardware"].get("backend", ""))
    if backend is not None and backend.ranks:  # the number of processes that were started now
        own = {**own, "hardware": {**own["hardware"], "num_devices": process_rank()[1]}}
    cfg, names, sizes = _with_overrides(own, overrides), ("seq_len", "vocab_size", "num_puzzle_identifiers"), meta.data
    whole = isinstance(sizes, dict) and sizes.keys() == set(names) and all(type(n) is int and 0 < n < 2**31 for n in sizes.values())
    if not whole:
        raise CheckpointError(f"{folder / META_FILE}: data={sizes} is not the sizes {', '.join(names)}: use another checkpoint")
    arch = architecture(cfg, **sizes)
    _check_tensors(folder, arch, tensors)
    tensors = cast(arch, tensors)

    weights = part(tensors, "weights/")
    if not (cfg.ema.enabled or weights):
        raise CheckpointError(f"{folder}: holds the EMA weights alone: leave ema=off out")
    return SavedRun(
        cfg=cfg,
        arch=arch,
        meta=meta,
        folder=folder,
        weights=weights,
        ema=part(tensors, "ema/"),
        buffers=init_buffers(arch, cfg.seed) | part(tensors, "fixed/"),
        puzzle_embedding=tensors.get("puzzle_embedding"),
        chosen=path.name == BEST or meta.step == best_step(folder.parent) != max(steps_in(folder.parent)),
        asked_data=cfg.data.path != own["data"]["path"] or any(override.startswith(("data.", "data=")) for override in overrides),
    )


@dataclass(frozen=True)
class Published:
    """A trained network in models/, with a card that says how it was trained."""

    name: str
    folder: Path
    task: Task
    words: str  # its accuracy, from the card


def published() -> list[Published]:
    """The trained networks in models/."""
    found = []
    for meta in sorted((ROOT / "trm" / "models").glob(f"*/{META_FILE}")):
        task = task_of(config.data_settings(json.loads(meta.read_bytes())["config"]["data"]))
        card = yaml.safe_load((meta.parent / CARD_FILE).read_text(encoding="utf-8").split("---\n")[1])
        share = card[task.score_names[0] if task.score_names else "exact_accuracy"]
        words = f"it solves {100 * share:.1f} % of {card['held_out_puzzles']:,} held-out puzzles ({task.title})"
        found.append(Published(f"models/{meta.parent.name}", meta.parent, task, words))
    return found


def check_sizes(run: SavedRun, puzzles: Dataset, where: str) -> None:
    """Raise ConfigError if the puzzles, which `where` names, have other sizes than those that the run was trained on."""
    here, trained = (puzzles.metadata.seq_len, puzzles.metadata.vocab_size), (run.arch.seq_len, run.arch.vocab_size)
    if here != trained:
        raise ConfigError(
            f"{where}: puzzles of {here[0]} cells and {here[1]} tokens, but the run was trained on {trained[0]} cells and "
            f"{trained[1]} tokens: give a run and puzzles of the same kind"
        )


def check_test_puzzles(run: SavedRun, test: Dataset) -> list[str]:
    """Lines that say what to know before a result on these test puzzles is read.

    Raises CheckpointError if they are not those that the run was tested on and the overrides do not ask for others, and
    ConfigError if their size is not that of the run's puzzles.
    """
    own, here, where = run.meta.test_digest, test.digest(), f"data.path={run.cfg.data.path}"
    check_sizes(run, test, where)
    if own == here:
        return (run.meta.caveats or []) + chosen_words(run)
    if own is not None and not run.asked_data:
        raise CheckpointError(
            f"{where} holds other test puzzles than the run was tested on: digest {own} in {run.folder}, {here} there: set "
            f"data.path= to the folder of the run's test puzzles, or give {where} on the command line to use the others"
        )
    told = f"digest {own} there, {here} here" if own else "the checkpoint does not name its test puzzles"
    words = [f"{where}: other test puzzles than the run's own ({told})" if own else f"{where}: {told}"]
    task, train = task_of(run.cfg.data), None
    try:
        train = load_dataset(Path(run.cfg.data.path), "train", task)
    except DataError as error:
        log.warning("%s", error)
    if train is None or train.digest() != run.meta.data_digest:
        train = None
        words.append("they may be copies of puzzles that the run was trained on, which this folder does not have to compare")
    return words + caveats(task, train, test)


def chosen_words(run: SavedRun) -> list[str]:
    """A line about a checkpoint that was chosen on the puzzles that it is tested on; empty for others."""
    if not run.chosen or run.meta.scores.selected_on == SELECTION:
        return []
    return [
        f"this checkpoint was chosen as the best of its run by {run.meta.scores.selected_by or 'its score'} on these test "
        "puzzles, so its scores are too high: those of the run's last checkpoint (checkpoint=RUN) do not have this bias"
    ]


def _settings(folder: Path, meta: Meta) -> Any:
    """The settings of a checkpoint, not checked yet: its own, with names and paths from the file beside it."""
    own = meta.config if isinstance(meta.config, dict) else {}
    data = own.get("data")
    if not isinstance(data, dict):
        raise CheckpointError(f"{folder / META_FILE}: has no settings: use another checkpoint")
    if unknown := config.unknown_keys(OmegaConf.create(own)):
        raise CheckpointError(
            f"{folder / META_FILE}: has {unknown[0]}, which is not a setting any more, so this checkpoint has an older format: "
            "train it again, or use the revision that made it"
        )
    # checkpoints that were set aside are in checkpoints.N, their settings in config.yaml.N
    run_dir, number = folder.parent.parent, folder.parent.name.removeprefix(CHECKPOINTS)
    beside = next((file for name in (CONFIG_FILE + number, CONFIG_FILE) if (file := run_dir / name).exists()), None)
    if beside is None:
        # the folder was moved out of its run: the dataset is where these settings build it, if conf/data has this name
        usual = "???"
        if data.get("name") in group_options("data"):
            given = {key: value for key, value in data.items() if key not in ("name", "path") and value is not None}
            usual = compose([f"data={data['name']}", *(override(f"data.{key}", value) for key, value in given.items())]).data.path
        return {**own, "run_name": folder.name, "data": {**data, "path": usual}}
    settings: dict[str, Any] = json.loads(json.dumps(OmegaConf.to_container(config.load_yaml(beside)), default=str))
    if other := config.differences(config.kept(settings), own):
        log.warning(
            "%s was written by another start of the run than %s: the checkpoint's own settings are used (%s)",
            beside,
            folder,
            "; ".join(words.replace(" there, ", " in the file, ").replace(" here", " in the checkpoint") for words in other),
        )
    merged = _merged(settings, own)
    if not is_absent(Path(str(merged["data"].get("path")))):
        merged["data"] |= {"train_csv": None, "test_csv": None}  # they were needed to build it
    return merged


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested settings; if both have a key, the value of `over`."""
    both = {key: value for key, value in over.items() if isinstance(value, dict) and isinstance(under.get(key), dict)}
    return {**under, **over, **{key: _merged(under[key], value) for key, value in both.items()}}


def _check_tensors(folder: Path, arch: Architecture, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError if the model of `arch` cannot be made from the tensors."""
    model = arch.model
    kinds = [kind for kind in ("weights/", "ema/") if any(name.startswith(kind) for name in tensors)] or ["weights/"]
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


def _changed_by(experiment: str, merged: Any) -> dict[str, Any]:
    """The keys in which an experiment differs from the defaults; the run keeps its dataset if it is the experiment's."""
    usual, wanted = (config.flatten(config.to_plain(compose(words))) for words in ([], [f"experiment={experiment}"]))
    changed = {key: value for key, value in wanted.items() if value != usual.get(key) and key != "run_name"}
    data = {key: value for key, value in changed.items() if key.startswith("data.") and key != "data.path"}
    if all(OmegaConf.select(merged, key) == value for key, value in data.items()):
        changed.pop("data.path", None)
    return changed


def _with_overrides(settings: Any, overrides: list[str]) -> Config:
    try:
        merged = OmegaConf.create(_merged(config.to_plain(config.default_config(settings["data"])), settings))
        OmegaConf.set_struct(merged, True)
        for override in overrides:
            key, _, value = override.partition("=")
            if key == "experiment":
                for each, changed in _changed_by(value, merged).items():
                    if each == "data.task":  # another task has other keys
                        data = {**merged.data, "task": changed}
                        merged.data = config.to_plain(config.default_config(data))["data"] | config.without_others(data)
                    OmegaConf.update(merged, each, changed, force_add=False)
            elif key in GROUPS and key in Config.__dataclass_fields__:
                before, merged[key] = merged[key], config.to_plain(compose([override]))[key]
                if key == "inference":  # an option keeps the run's steps and early exit, unless it sets them or cannot have them
                    if merged[key].supervision_steps is None:
                        merged[key].supervision_steps = before.supervision_steps
                    merged[key].early_exit |= (
                        before.early_exit and not config.InferenceConfig(selection=merged[key].selection).in_step
                    )
            else:
                OmegaConf.update(merged, *parsed(override), force_add=False)
        if not any(override.startswith("evaluate.max_variants=") for override in overrides):
            merged.evaluate.max_variants = None  # the setting is for evaluations during training
        return typed(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
