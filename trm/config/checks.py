"""Ranges and combinations of settings. Pure, and without torch."""

import dataclasses
import itertools
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trm.config.backends import BACKENDS
from trm.config.keys import LARGEST_COUNT
from trm.config.network import ModelConfig, OptimizerConfig, Phase
from trm.config.running import HardwareConfig
from trm.config.schema import Config
from trm.config.wandb import check_wandb
from trm.errors import ConfigError, holds_secret

_CHECKS: list[Callable[[Config], None]] = []


def validate(cfg: Config) -> None:
    """Check ranges and combinations. Pure; raises ConfigError naming the key, its value and the fix."""
    ratios = [f"recipe.{name}={value:g}" for name, value in vars(cfg.recipe).items() if name.endswith("_scale") and value != 1]
    _check_ranges(cfg, "", ratios)
    _check_model(cfg.model)
    if cfg.train.trainable == "puzzle_embedding" and cfg.model.puzzle_emb_ndim == 0:
        raise ConfigError(
            "train.trainable=puzzle_embedding needs a puzzle embedding, and model.puzzle_emb_ndim=0 has none: set "
            "train.trainable=all or a model with one"
        )
    _check_matrices(cfg.optimizer)
    _check_parametrization(cfg)
    if cfg.train.max_flops is not None and cfg.train.max_steps is not None:
        raise ConfigError(
            f"train.max_flops={cfg.train.max_flops:g} and train.max_steps={cfg.train.max_steps} both set the length of the run: "
            "set one of them to null"
        )
    devices, batches = cfg.hardware.devices, {"train.global_batch_size": cfg.train.global_batch_size}
    for key, batch in (batches | {"evaluate.batch_size": cfg.evaluate.batch_size or devices}).items():
        if batch % devices:
            raise ConfigError(f"{key}={batch} does not divide over {devices} devices: use {nearest_batches(batch, devices)}")
    profiled = cfg.train.profile_steps
    if profiled and (len(profiled) != 2 or profiled[0] > profiled[1]):
        raise ConfigError(f"train.profile_steps={profiled}: give the first and the last step, such as train.profile_steps=[10,13]")
    _check_inference(cfg)
    _check_backend(cfg.hardware)
    if cfg.tracking.artifact != "none" and cfg.tracking.wandb == "disabled":
        raise ConfigError(
            f"tracking.artifact={cfg.tracking.artifact} is an upload to W&B, which is off: choose tracking=auto, wandb or offline"
        )
    check_wandb(cfg.tracking)
    parts = cfg.run_name.split("/")
    if {"", ".", ".."} & set(parts) or not cfg.run_name.isprintable() or any(len(os.fsencode(part)) > 200 for part in parts):
        raise ConfigError(f"run_name={cfg.run_name!r} is not a folder name for outputs/: choose letters, digits, - and _")
    _check_data(cfg)
    ends = [phase.until for phase in cfg.recursion.curriculum]
    if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
        raise ConfigError(
            f"recursion.curriculum: its phases end at {ends} of the run: give each phase a later `until` than the one before"
        )
    for check in _CHECKS:
        check(cfg)


def _check_model(model: ModelConfig) -> None:
    """Refuse sizes that do not go together."""
    if model.mixer == "attention":
        if model.hidden_size % model.num_heads:
            raise ConfigError(
                f"model.num_heads={model.num_heads} does not divide model.hidden_size={model.hidden_size}: choose a divisor"
            )
        head_size, divisor = model.hidden_size // model.num_heads, {"rope": 2, "rope2d": 4}.get(model.positions, 1)
        if head_size % divisor:
            needed = "an even head size" if divisor == 2 else "a head size that 4 divides"
            raise ConfigError(
                f"model.positions={model.positions} needs {needed}, but model.hidden_size/model.num_heads = "
                f"{head_size}: change model.num_heads"
            )
    elif model.positions.startswith("rope"):
        raise ConfigError(
            f"model.positions={model.positions} works on attention only: set model.mixer=attention or model.positions=none"
        )
    if model.puzzle_emb_ndim == 0 and model.puzzle_emb_len:
        raise ConfigError(
            f"model.puzzle_emb_len={model.puzzle_emb_len} needs model.puzzle_emb_ndim above 0: set model.puzzle_emb_len=0"
        )
    if model.puzzle_len * model.hidden_size < model.puzzle_emb_ndim:
        raise ConfigError(
            f"model.puzzle_emb_ndim={model.puzzle_emb_ndim} does not fit in model.puzzle_emb_len={model.puzzle_emb_len} tokens of "
            f"{model.hidden_size}: raise model.puzzle_emb_len to {-(model.puzzle_emb_ndim // -model.hidden_size)} or set it to 0"
        )


def _check_data(cfg: Config) -> None:
    """Refuse what the source of the puzzles does not have."""
    data = cfg.data
    if not data.path:
        raise ConfigError("data.path is empty: name the dataset's folder")
    if data.num_puzzles * (data.num_aug + 1) > LARGEST_COUNT:
        raise ConfigError(
            f"data.num_puzzles={data.num_puzzles} in {data.num_aug + 1} variants are too many rows: lower data.num_aug"
        )
    if data.source == "generated" and (data.train_csv or data.test_csv):
        raise ConfigError("data.train_csv and data.test_csv are for data.source=csv: remove them or choose another data=")
    if data.source == "generated" and data.min_rating is not None:
        raise ConfigError("data.min_rating is for data.source=csv, whose puzzles are rated: remove it or choose another data=")
    if data.source != "generated" and cfg.evaluate.selection_puzzles:
        raise ConfigError(
            f"evaluate.selection_puzzles={cfg.evaluate.selection_puzzles}: data.source={data.source} has no puzzles but for "
            "training and test: leave it out; then the test puzzles choose the best checkpoint, and its score is marked"
        )


def _check_backend(hardware: HardwareConfig) -> None:
    """Refuse what the backend cannot do, whichever it is."""
    can, named = hardware.can, f"hardware.backend={hardware.backend}"
    if hardware.platform not in can.float64 and "float64" in (hardware.dtype, hardware.loss_dtype):
        raise ConfigError(
            f"{named} has no float64 on hardware.platform={hardware.platform}: set hardware.dtype=bfloat16 or float32 and "
            "hardware.loss_dtype=float32"
        )
    if hardware.dtype == "float64" and hardware.loss_dtype != "float64":
        raise ConfigError("hardware.dtype=float64 needs hardware.loss_dtype=float64")
    if hardware.platform not in can.platforms:
        others = [name for name, backend in BACKENDS.items() if hardware.platform in backend.platforms]
        raise ConfigError(
            f"{named} does not run on hardware.platform={hardware.platform}: set hardware.backend={' or '.join(others)}, or "
            f"hardware.platform={' or '.join(can.platforms)}"
        )
    if hardware.attention == "fused" and hardware.dtype == "float64" and not can.fused_float64:
        raise ConfigError(f"hardware.attention=fused: {named} cannot compile it in float64: set hardware.attention=auto")
    if hardware.compile_cache is not None and hardware.platform not in can.compile_cache:
        raise ConfigError(
            f"hardware.compile_cache={hardware.compile_cache}: {named} keeps no compiled graphs on "
            f"hardware.platform={hardware.platform}: set it to null"
        )
    if hardware.step_graph and hardware.platform not in can.step_graph:
        raise ConfigError(
            f"hardware.step_graph=true: {named} cannot record a step on hardware.platform={hardware.platform}: set it to false"
        )
    if hardware.step_graph and can.ranks and hardware.devices > 1:
        raise ConfigError("hardware.step_graph=true is for one device: set it to false, or hardware.num_devices=1")
    if hardware.hosts * hardware.local_devices > 1 and not can.multi_device:
        fix = "; several devices are hardware.num_devices=N, a process for each" if can.ranks else ""
        raise ConfigError(f"{named} runs on one device: set hardware.devices_per_host=1 and hardware.num_hosts=1{fix}")
    if hardware.num_devices != 1 and not can.ranks:
        raise ConfigError(
            f"hardware.num_devices={hardware.num_devices} is of torch's own backends (hardware=gpus or cpu_ranks): on {named} set "
            "hardware.devices_per_host and hardware.num_hosts"
        )
    if hardware.processes > 1 and not (can.multi_process or can.ranks):
        raise ConfigError(f"{named} runs on one host: set hardware.num_hosts=1")


def _check_inference(cfg: Config) -> None:
    way = cfg.inference
    if way.candidates > 1 and way.selection == "last":
        raise ConfigError(
            f"inference.selection=last is for one candidate and there are {way.candidates}: choose which one answers, such as "
            "inference.selection=vote, best_q or residual"
        )
    if way.rollouts > 1 and way.noise == 0 and not cfg.is_random:
        raise ConfigError(f"inference.rollouts={way.rollouts} give the same answer without noise: set inference.noise, such as 0.3")
    if way.selection == "resample" and way.particles == 1:
        raise ConfigError("inference.selection=resample draws among rollouts and restarts: set inference.rollouts above 1")
    if way.selection == "residual" and way.window >= cfg.inference_steps:
        raise ConfigError(
            f"inference.window={way.window} changes of the logits need more supervision steps than {cfg.inference_steps}: lower it "
            "or raise inference.supervision_steps"
        )
    if way.early_exit and way.in_step:
        raise ConfigError(
            f"inference.selection={way.selection} compares candidates after equally many supervision steps: set "
            "inference.early_exit=false"
        )
    if cfg.evaluate.by_difficulty and way.ladder:
        raise ConfigError("evaluate.by_difficulty needs one way of inference: leave it out, or name one, such as inference=votes8")


def _check_matrices(optimizer: OptimizerConfig) -> None:
    defaults = OptimizerConfig()
    for name in ("others", "matrix_lr", "matrix_weight_decay", "matrix_scale"):
        value = getattr(optimizer, name)
        if optimizer.name != "muon" and value != getattr(defaults, name):
            raise ConfigError(f"optimizer.{name}={value} is a setting of muon: set optimizer=muon or leave it out")


def _check_parametrization(cfg: Config) -> None:
    """Refuse mup where its base is missing or has other heads of attention, and its settings without it."""
    optimizer, model = cfg.optimizer, cfg.model
    if optimizer.parametrization == "standard":
        for name in ("base_hidden_size", "base_num_layers", "decay_with_rate"):
            if value := getattr(optimizer, name):
                raise ConfigError(
                    f"optimizer.{name}={value} is a setting of mup: set optimizer.parametrization=mup or leave it out"
                )
        return
    base, head_size = optimizer.base_hidden_size, model.hidden_size // model.num_heads
    if base is None:
        raise ConfigError(
            "optimizer.parametrization=mup needs optimizer.base_hidden_size: set it to the width that the learning rate is of"
        )
    if model.mixer == "attention" and base % head_size:
        raise ConfigError(
            f"optimizer.base_hidden_size={base} has no heads of {head_size} channels: heads have the same size at all widths "
            "(recipe.width_scale keeps it): change model.num_heads or the base"
        )


def register_check(check: Callable[[Config], None]) -> Callable[[Config], None]:
    """Have `validate` call a check of a module that config does not know: what recursions and tasks there are."""
    _CHECKS.append(check)
    return check


def check_training(cfg: Config) -> None:
    """Raise ConfigError where a run is asked for what only the evaluation of a checkpoint does."""
    if cfg.evaluate.blank_identifiers:
        raise ConfigError("evaluate.blank_identifiers works in python -m trm.evaluate checkpoint=RUN alone: leave it out")
    if cfg.evaluate.by_difficulty:
        raise ConfigError("evaluate.by_difficulty works in python -m trm.evaluate checkpoint=RUN alone: leave it out")
    if cfg.inference.ladder:
        raise ConfigError(
            f"inference={cfg.inference.name} compares ways of inference, which python -m trm.evaluate checkpoint=RUN does: name "
            "one for the evaluations of a run, such as inference=votes8"
        )


def check_widths(cfg: Config, seq_len: int) -> None:
    """Raise ConfigError where the SwiGLUs of a puzzle of so many cells would have no width."""
    model = cfg.model
    if round(model.expansion * min(model.hidden_size, seq_len + model.prefix_len) * 2 / 3) < 1:
        raise ConfigError(f"model.expansion={model.expansion} leaves the SwiGLU no width: raise it")
    for key, value, other in (("positions", "rope2d", "rope"), ("mlp", "conv2d_swiglu", "conv_swiglu")):
        if getattr(model, key) == value and math.isqrt(seq_len) ** 2 != seq_len:
            raise ConfigError(f"model.{key}={value} needs a square grid, and these puzzles have {seq_len} cells: choose {other}")


def _check_ranges(node: Any, path: str, ratios: Sequence[str]) -> None:
    for item in dataclasses.fields(node):
        key, value = path + item.name, getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, key + ".", ratios)
            continue
        if item.type == list[Phase]:
            for i, phase in enumerate(value):
                _check_ranges(phase, f"{key}[{i}].", ratios)
            continue
        if isinstance(value, list):
            entry_type, words, example = (int, "whole numbers", "[1,2]") if item.type == list[int] else (str, "words", "[a,b]")
            if not all(type(entry) is entry_type for entry in value):
                raise ConfigError(f"{key}={value} is not a list of {words}: write {key}={example}")
        _check_text(key, value)
        for entry in value if isinstance(value, list) else [value]:
            if entry is not None:
                _check_range(key, entry, item.metadata, ratios)


OUTSIDE = {"low": (operator.lt, "at least"), "high": (operator.gt, "at most")}
OUTSIDE |= {"above": (operator.le, "above"), "below": (operator.ge, "below")}


def _check_range(key: str, value: Any, rule: Mapping[str, Any], ratios: Sequence[str]) -> None:
    """Refuse a value outside its range, with the ratios of the recipe that may have put it there."""
    if rule.get("choices") and value not in rule["choices"]:
        raise ConfigError(f"{key}={value} is not one of {', '.join(rule['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} is not a finite number")
    bounds = [(name, bound, f"{bound:g}") for name in OUTSIDE if (bound := rule.get(name)) is not None]
    bounds += [("high", LARGEST_COUNT, str(LARGEST_COUNT))] if isinstance(value, int) else []
    for name, bound, shown in bounds:
        wrong, words = OUTSIDE[name]
        if wrong(value, bound) and ratios and not key.startswith("recipe."):
            fix = f"where it is the recipe's value times its ratio, change {' or '.join(ratios)}"
            raise ConfigError(f"{key}={value} must be {words} {shown}: {fix}")
        if wrong(value, bound):
            raise ConfigError(f"{key}={value} is out of range: it must be {words} {shown}")


def _check_text(key: str, value: Any) -> None:
    """Text must come back as it is from the files that keep it: YAML, JSON and names of folders."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and holds_secret(text):
            raise ConfigError(f"{key} holds the W&B key, and settings are written to files: keep it only in the environment")
        if isinstance(text, str) and ("${" in text or text == "???" or any("\ud800" <= c <= "\udfff" or c == "\0" for c in text)):
            raise ConfigError(f"{key}={text} cannot be kept in a config file: leave out ${{, ??? and characters that are not UTF-8")


def nearest_batches(batch: int, num_devices: int) -> str:
    """The batches nearest to this one that divide over the devices, as words."""
    low = batch // num_devices * num_devices
    return " or ".join(str(v) for v in (low, low + num_devices) if v)


def total_steps(cfg: Config, rows_of_epoch: float) -> int:
    """Optimizer steps of the run: train.max_steps, or as many full batches as train.epochs give.

    An epoch has a row for each base puzzle, or as many as a puzzle has in the mean (docs/explanation/what_is_computed.md item 8).
    """
    if cfg.train.max_steps is not None:
        return cfg.train.max_steps
    steps = int(cfg.train.epochs * rows_of_epoch // cfg.train.global_batch_size)
    if steps == 0:
        raise ConfigError(
            f"train.epochs={cfg.train.epochs} of {rows_of_epoch:g} puzzles do not fill one batch of "
            f"train.global_batch_size={cfg.train.global_batch_size}: raise train.epochs or lower train.global_batch_size"
        )
    return steps
