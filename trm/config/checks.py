"""Ranges and combinations of settings, and the limits of W&B's fields. Pure, and without torch."""

import dataclasses
import hashlib
import itertools
import math
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trm.config.backends import BACKENDS
from trm.config.keys import LARGEST_COUNT
from trm.config.network import OptimizerConfig, Phase
from trm.config.running import TrackingConfig
from trm.config.schema import Config
from trm.errors import ConfigError, holds_secret

LONGEST_NAME, LONGEST_TAG = 128, 64  # characters that W&B takes
NOT_IN_ADDRESSES = "/\\#?%:"
OUTSIDE = {"low": (operator.lt, "at least"), "high": (operator.gt, "at most")}
OUTSIDE |= {"above": (operator.le, "above"), "below": (operator.ge, "below")}

_CHECKS: list[Callable[[Config], None]] = []


def register_check(check: Callable[[Config], None]) -> Callable[[Config], None]:
    """Have `validate` call a check of a module that config does not import, such as a task's."""
    _CHECKS.append(check)
    return check


def validate(cfg: Config) -> None:
    """Check ranges and combinations. Pure; raises ConfigError naming the key, its value and the fix."""
    ratios = [f"recipe.{name}={value:g}" for name, value in vars(cfg.recipe).items() if name.endswith("_scale") and value != 1]
    errors = itertools.chain.from_iterable(
        of(cfg) for of in (_of_model, _of_optimizer, _of_run, _of_inference, _of_hardware, _of_data)
    )
    for error in itertools.chain(_of_values(cfg, "", ratios), errors):
        raise ConfigError(error)
    check_wandb(cfg.tracking)
    for check in _CHECKS:
        check(cfg)


def _of_values(node: Any, path: str, ratios: Sequence[str]) -> Iterator[str]:
    """Errors of single values: wrong type, wrong text, out of range. One of the recipe's `ratios` may have caused the latter."""
    for item in dataclasses.fields(node):
        key, value, rule = path + item.name, getattr(node, item.name), item.metadata
        if dataclasses.is_dataclass(value):
            yield from _of_values(value, key + ".", ratios)
        elif item.type == list[Phase]:
            for i, phase in enumerate(value):
                yield from _of_values(phase, f"{key}[{i}].", ratios)
        elif isinstance(value, list):
            kind, words, example = (int, "whole numbers", "[1,2]") if item.type == list[int] else (str, "words", "[a,b]")
            if not all(type(entry) is kind for entry in value):
                yield f"{key}={value} is not a list of {words}: write {key}={example}"
            for entry in value:
                yield from _of_value(key, entry, rule, ratios)
        elif value is not None:
            yield from _of_value(key, value, rule, ratios)


def _of_value(key: str, value: Any, rule: Any, ratios: Sequence[str]) -> Iterator[str]:
    if isinstance(value, str):
        if holds_secret(value):
            yield f"{key} holds the W&B key, and settings are written to files: keep it only in the environment"
        if "${" in value or value == "???" or any("\ud800" <= c <= "\udfff" or c == "\0" for c in value):
            yield f"{key}={value} cannot be kept in a config file: leave out ${{, ??? and characters that are not UTF-8"
    if rule.get("choices") and value not in rule["choices"]:
        yield f"{key}={value} is not one of {', '.join(rule['choices'])}"
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key}={value} is not a finite number"
    bounds = [(name, bound, f"{bound:g}") for name in OUTSIDE if (bound := rule.get(name)) is not None]
    bounds += [("high", LARGEST_COUNT, str(LARGEST_COUNT))] if isinstance(value, int) else []
    for name, bound, shown in bounds:
        wrong, words = OUTSIDE[name]
        if wrong(value, bound) and ratios and not key.startswith("recipe."):
            fix = f"where it is the recipe's value times its ratio, change {' or '.join(ratios)}"
            yield f"{key}={value} must be {words} {shown}: {fix}"
        elif wrong(value, bound):
            yield f"{key}={value} is out of range: it must be {words} {shown}"


def _of_model(cfg: Config) -> Iterator[str]:
    model = cfg.model
    attention, head_size = model.mixer == "attention", model.hidden_size // model.num_heads
    if attention and model.hidden_size % model.num_heads:
        yield f"model.num_heads={model.num_heads} does not divide model.hidden_size={model.hidden_size}: choose a divisor"
    if attention and head_size % {"rope": 2, "rope2d": 4}.get(model.positions, 1):
        needed = "an even head size" if model.positions == "rope" else "a head size that 4 divides"
        yield f"model.positions={model.positions} needs {needed}, not {head_size} (hidden_size/num_heads): change model.num_heads"
    if not attention and model.positions.startswith("rope"):
        yield f"model.positions={model.positions} works on attention only: set model.mixer=attention or model.positions=none"
    if model.puzzle_emb_ndim == 0 and model.puzzle_emb_len:
        yield f"model.puzzle_emb_len={model.puzzle_emb_len} needs model.puzzle_emb_ndim above 0: set model.puzzle_emb_len=0"
    if model.puzzle_len * model.hidden_size < model.puzzle_emb_ndim:
        yield (
            f"model.puzzle_emb_ndim={model.puzzle_emb_ndim} does not fit in model.puzzle_emb_len={model.puzzle_emb_len} tokens of "
            f"{model.hidden_size}: raise model.puzzle_emb_len to {-(model.puzzle_emb_ndim // -model.hidden_size)} or set it to 0"
        )
    if cfg.train.trainable == "puzzle_embedding" and model.puzzle_emb_ndim == 0:
        yield "train.trainable=puzzle_embedding, but model.puzzle_emb_ndim=0 makes no such embedding: set train.trainable=all"


def _of_optimizer(cfg: Config) -> Iterator[str]:
    """Settings of muon and of mup without them; mup without a base width, or with one that does not go with the model."""
    optimizer, model = cfg.optimizer, cfg.model
    for name in ("others", "matrix_lr", "matrix_weight_decay", "matrix_scale"):
        if optimizer.name != "muon" and (value := getattr(optimizer, name)) != getattr(OptimizerConfig, name):
            yield f"optimizer.{name}={value} is a setting of muon: set optimizer=muon or leave it out"
    if optimizer.parametrization == "standard":
        for name in ("base_hidden_size", "base_num_layers", "decay_with_rate"):
            if value := getattr(optimizer, name):
                yield f"optimizer.{name}={value} is a setting of mup: set optimizer.parametrization=mup or leave it out"
        return
    base, head_size = optimizer.base_hidden_size, model.hidden_size // model.num_heads
    if base is None:
        yield "optimizer.parametrization=mup needs optimizer.base_hidden_size: set it to the width that the learning rate is for"
        return
    if model.mixer == "attention" and base % head_size:
        yield (
            f"optimizer.base_hidden_size={base} has no heads of {head_size} channels: heads have the same size at all widths "
            "(recipe.width_scale keeps it): change model.num_heads or the base"
        )


def _of_run(cfg: Config) -> Iterator[str]:
    """The length, the batches, the phases, the name and what is uploaded."""
    train, devices = cfg.train, cfg.hardware.devices
    if train.max_flops is not None and train.max_steps is not None:
        both = f"train.max_flops={train.max_flops:g} and train.max_steps={train.max_steps}"
        yield f"{both} both set the length of the run: set one of them to null"
    batches = {"train.global_batch_size": train.global_batch_size, "evaluate.batch_size": cfg.evaluate.batch_size or devices}
    for key, batch in batches.items():
        if batch % devices:
            yield f"{key}={batch} does not divide over {devices} devices: use {nearest_batches(batch, devices)}"
    steps, ends = train.profile_steps, [phase.until for phase in cfg.recursion.curriculum]
    if steps and (len(steps) != 2 or steps[0] > steps[1]):
        yield f"train.profile_steps={steps}: give the first and the last step, such as train.profile_steps=[10,13]"
    if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
        yield f"recursion.curriculum: its phases end at {ends} of the run: give each phase a later `until` than the one before"
    if (artifact := cfg.tracking.artifact) != "none" and cfg.tracking.wandb == "disabled":
        yield f"tracking.artifact={artifact} is an upload to W&B, which is off: choose tracking=auto, wandb or offline"
    parts = cfg.run_name.split("/")
    if {"", ".", ".."} & set(parts) or not cfg.run_name.isprintable() or any(len(os.fsencode(part)) > 200 for part in parts):
        yield f"run_name={cfg.run_name!r} is not a folder name for outputs/: choose letters, digits, - and _"


def _of_inference(cfg: Config) -> Iterator[str]:
    way = cfg.inference
    if way.candidates > 1 and way.selection == "last":
        yield (
            f"inference.selection=last is for one candidate and there are {way.candidates}: choose which one answers, such as "
            "inference.selection=vote, best_q or residual"
        )
    if way.rollouts > 1 and way.noise == 0 and not cfg.is_random:
        yield f"inference.rollouts={way.rollouts} give the same answer without noise: set inference.noise, such as 0.3"
    if way.selection == "resample" and way.particles == 1:
        yield "inference.selection=resample draws among rollouts and restarts: set inference.rollouts above 1"
    if way.selection == "residual" and way.window >= cfg.inference_steps:
        yield (
            f"inference.window={way.window} changes of the logits need more supervision steps than {cfg.inference_steps}: lower it "
            "or raise inference.supervision_steps"
        )
    if way.early_exit and way.in_step:
        yield (
            f"inference.selection={way.selection} compares candidates after equally many supervision steps: set "
            "inference.early_exit=false"
        )
    if cfg.evaluate.by_difficulty and way.ladder:
        yield "evaluate.by_difficulty needs one way of inference: leave it out, or name one, such as inference=votes8"


def _of_hardware(cfg: Config) -> Iterator[str]:
    """What the backend cannot do."""
    hardware, can = cfg.hardware, cfg.hardware.can
    named, there = f"hardware.backend={hardware.backend}", f"hardware.platform={hardware.platform}"
    if hardware.platform not in can.float64 and "float64" in (hardware.dtype, hardware.loss_dtype):
        yield f"{named} has no float64 on {there}: set hardware.dtype=bfloat16 or float32 and hardware.loss_dtype=float32"
    if hardware.dtype == "float64" and hardware.loss_dtype != "float64":
        yield "hardware.dtype=float64 needs hardware.loss_dtype=float64"
    if hardware.platform not in can.platforms:
        others = " or ".join(name for name, backend in BACKENDS.items() if hardware.platform in backend.platforms)
        fix = f"set hardware.backend={others}, or hardware.platform={' or '.join(can.platforms)}"
        yield f"{named} does not run on {there}: {fix}"
    if hardware.attention == "fused" and hardware.dtype == "float64" and not can.fused_float64:
        yield f"hardware.attention=fused: {named} cannot compile it in float64: set hardware.attention=auto"
    if (folder := hardware.compile_cache) is not None and hardware.platform not in can.compile_cache:
        yield f"hardware.compile_cache={folder}: {named} keeps no compiled graphs on {there}: set it to null"
    if hardware.step_graph and hardware.platform not in can.step_graph:
        yield f"hardware.step_graph=true: {named} cannot record a step on {there}: set it to false"
    if hardware.step_graph and can.ranks and hardware.devices > 1:
        yield "hardware.step_graph=true is for one device: set it to false, or hardware.num_devices=1"
    if hardware.hosts * hardware.local_devices > 1 and not can.multi_device:
        fix = "; several devices are hardware.num_devices=N, a process for each" if can.ranks else ""
        yield f"{named} runs on one device: set hardware.devices_per_host=1 and hardware.num_hosts=1{fix}"
    if hardware.num_devices != 1 and not can.ranks:
        yield (
            f"hardware.num_devices={hardware.num_devices} is for torch's own backends (hardware=gpus or cpu_ranks): on {named} set "
            "hardware.devices_per_host and hardware.num_hosts"
        )
    if hardware.processes > 1 and not (can.multi_process or can.ranks):
        yield f"{named} runs on one host: set hardware.num_hosts=1"


def _of_data(cfg: Config) -> Iterator[str]:
    data, asked = cfg.data, cfg.evaluate.selection_puzzles
    if not data.path:
        yield "data.path is empty: name the dataset's folder"
    if data.num_puzzles * (data.num_aug + 1) > LARGEST_COUNT:
        yield f"data.num_puzzles={data.num_puzzles} in {data.num_aug + 1} variants are too many rows: lower data.num_aug"
    if data.source == "generated" and (data.train_csv or data.test_csv):
        yield "data.train_csv and data.test_csv are for data.source=csv: remove them or choose another data="
    if data.source == "generated" and data.min_rating is not None:
        yield "data.min_rating is for data.source=csv, whose puzzles are rated: remove it or choose another data="
    if data.source != "generated" and asked:
        yield (
            f"evaluate.selection_puzzles={asked}: data.source={data.source} has only training and test puzzles: leave it out; then "
            "the test puzzles choose the best checkpoint, and its score is marked"
        )


def check_training(cfg: Config) -> None:
    """Raise ConfigError where a run is asked for what only the evaluation of a checkpoint does."""
    for key in ("blank_identifiers", "by_difficulty"):
        if getattr(cfg.evaluate, key):
            raise ConfigError(f"evaluate.{key} works in python -m trm.evaluate checkpoint=RUN alone: leave it out")
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


def check_wandb(tracking: TrackingConfig) -> None:
    """Check every field that goes to W&B, which refuses some wrong ones only when an offline run is synced. Raises ConfigError."""
    if tracking.wandb == "disabled":
        return
    for key in ("project", "entity"):
        check_address(f"tracking.{key}", getattr(tracking, key))
    _check_text("tracking.group", tracking.group, LONGEST_NAME)
    _check_text("tracking.job_type", tracking.job_type, LONGEST_TAG)
    for number, tag in enumerate(tracking.tags):
        _check_text(f"tracking.tags[{number}]", tag, LONGEST_TAG)


def check_address(key: str, text: str | None) -> None:
    """Check a name that is a part of addresses: a project's or an entity's; None passes. Raises ConfigError."""
    _check_text(key, text, LONGEST_NAME)
    if found := [c for c in NOT_IN_ADDRESSES if c in (text or "")]:
        raise ConfigError(f"{key}={text}: not a name for W&B: leave out {' '.join(found)}")


def _check_text(key: str, text: str | None, most: int) -> None:
    if text is not None and not text.strip():
        raise ConfigError(f"{key} is empty, which W&B refuses: name it or leave it out")
    if text is not None and len(text) > most:
        raise ConfigError(f"{key}={text}: W&B takes {most} characters, not {len(text)}: shorten it")


def shortened(text: str) -> str:
    """A name of this program's making as W&B takes it; a hash tells one that had to be cut from others."""
    if len(text) <= LONGEST_NAME:
        return text
    return f"{text[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
