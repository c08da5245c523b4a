"""Error lines in this project's terms: for what Hydra and omegaconf refuse, and for names that other codes use.

The tables of names also serve docs/how-to/from_released.md.
"""

import difflib
import re
from collections.abc import Iterable

from hydra.errors import OverrideParseException

from trm.config.groups import GROUPS, group_options
from trm.config.overrides import quoting_hint
from trm.config.schema import all_keys, of_other_tasks
from trm.errors import plain_line

# Name in the released codes' configs and dataset builders (last part of a dotted one): what to type here, what else differs.
RELEASED = {
    "arch": ("model=", "recursion= sets how often it recurses"),
    "H_cycles": ("recursion.T", ""),
    "L_cycles": ("recursion.n", ""),
    "halt_max_steps": ("recursion.n_sup", ""),
    "loops": ("recursion.n_sup", ""),
    "L_layers": ("model.num_layers", ""),
    "H_layers": ("model.num_layers", "model.separate_networks=true gives z_H its own network"),
    "pos_encodings": ("model.positions", ""),
    "forward_dtype": ("hardware.dtype", ""),
    "mlp_t": ("model.mixer", "mlp for True, attention for False"),
    "no_ACT_continue": ("recursion.act_continue", "inverted: false for True"),
    "loss_type": ("model.loss", "stablemax or softmax, without _cross_entropy"),
    "data_path": ("data.path", ""),
    "data_paths": ("data.path", "one folder, without brackets"),
    "data_paths_test": ("data.test_csv", "the folder of data.path holds train/ and test/"),
    "eval_interval": ("train.eval_every_steps", "in steps, not epochs: epochs * puzzles / batch"),
    "min_eval_interval": ("train.eval_every_steps", "there is no separate first evaluation"),
    "checkpoint_every_eval": ("train.checkpoint_every_steps", "every evaluation also saves a checkpoint"),
    "lr_warmup_steps": ("optimizer.warmup_steps", ""),
    "lr_min_ratio": ("optimizer.lr_min_ratio", "with optimizer.schedule=cosine"),
    "optimizer_name": ("optimizer=", ""),
    "project_name": ("tracking.project", ""),
    "checkpoint_path": ("run_name", "outputs/RUN_NAME/checkpoints"),
    "load_checkpoint": ("python -m trm.interop import FILE RUN", "a run resumes from its own folder automatically"),
    "ema_rate": ("ema.rate", ""),
    "evaluators": ("nothing", "every evaluation reports cell and exact accuracy"),
    "eval_save_outputs": ("nothing", "trm.solve and trm.report show answers"),
    "output_dir": ("data.path", "the folder of a dataset; run_name names a run's folder"),
    "subsample_size": ("data.num_puzzles", ""),
    "min_difficulty": ("data.min_rating", ""),
    "input_file_prefix": ("data.source_dir", "the folder of the files, without their arc-agi"),
    "test_set_name": ("data.test_subsets", "a list"),
    "freeze_weights": ("train.trainable", "puzzle_embedding for True"),
    "source_repo": ("data.train_csv", "and data.test_csv; without them the pinned dataset is downloaded"),
    "lambda_": ("recursion.damping", "EqR"),
    "noise_scale": ("recursion.noise", "EqR; use it with latents.init=random"),
}
# What other trainers call it: the key here, or the group with "=".
ELSEWHERE = {
    "learning_rate": "optimizer.lr", "wd": "optimizer.weight_decay", "grad_clip": "optimizer.clip_grad_norm",
    "max_grad_norm": "optimizer.clip_grad_norm", "warmup": "optimizer.warmup_steps", "num_warmup_steps": "optimizer.warmup_steps",
    "batch_size": "train.global_batch_size", "train_batch_size": "train.global_batch_size",
    "per_device_train_batch_size": "train.global_batch_size", "num_epochs": "train.epochs", "max_epochs": "train.epochs",
    "num_train_epochs": "train.epochs", "steps": "train.max_steps", "num_steps": "train.max_steps",
    "total_steps": "train.max_steps", "max_iters": "train.max_steps", "eval_every": "train.eval_every_steps",
    "eval_steps": "train.eval_every_steps", "log_interval": "train.log_every_steps", "log_every": "train.log_every_steps",
    "logging_steps": "train.log_every_steps", "save_every": "train.checkpoint_every_steps",
    "save_interval": "train.checkpoint_every_steps", "save_steps": "train.checkpoint_every_steps", "ema_decay": "ema.rate",
    "ema.decay": "ema.rate", "use_ema": "ema=", "dim": "model.hidden_size", "d_model": "model.hidden_size",
    "hidden_dim": "model.hidden_size", "n_embd": "model.hidden_size", "n_layers": "model.num_layers", "depth": "model.num_layers",
    "n_heads": "model.num_heads", "device": "hardware=", "gpus": "hardware=", "num_gpus": "hardware=",
    "precision": "hardware.dtype", "compile": "hardware.backend", "use_wandb": "tracking=", "wandb_mode": "tracking=",
    "wandb_project": "tracking.project", "wandb_entity": "tracking.entity", "random_seed": "seed", "dataset": "data=",
    "difficulty": "data.min_rating", "name": "run_name", "resume_from": "train.resume",
}  # fmt: skip
# Keys that went, and what to type instead.
GONE = {
    "latents.heads": "it is latents.num_hypotheses now",
    "evaluate.early_exit": "it is inference.early_exit now",
    "evaluate.augmentations": "symmetric copies that vote are inference=votes8, or inference.copies=N inference.selection=vote",
    "evaluate.supervision_steps": "an evaluation reports the accuracy after each of its inference.supervision_steps=D (--out DIR)",
}
# Words for an option of a group that other codes take.
OPTIONS = {
    "ema": {**dict.fromkeys(("true", "1", "yes"), "on"), **dict.fromkeys(("false", "0", "no", "none", "null"), "off")},
    "optimizer": {"adamatan2": "adam_atan2", "adam": "adamw"},
    "tracking": {"true": "auto", "false": "none", "disabled": "none", "online": "wandb"},
    "hardware": {"cuda": "gpu", "tpu": "v4_8"},
    "model": {"trm": "mlp"},
}
# What a value must be where omegaconf cannot convert it.
TYPES = {"Integer": "a whole number", "Float": "a number"}


def key_hint(key: str) -> str:
    """What to type instead of a key that the schema does not have."""
    if key in GONE:
        return GONE[key]
    keys, last = all_keys(), key.rpartition(".")[2]
    if same := [k for k in keys if k.lower() == key.lower()]:
        return f"did you mean {same[0]}?"
    if name := _folded(RELEASED).get(last.lower()):
        write, note = RELEASED[name]
        return f"what the released code calls {name} is {write} here" + (f" ({note})" if note else "")
    if name := _folded(ELSEWHERE).get(key.lower()) or _folded(ELSEWHERE).get(last.lower()):
        return f"did you mean {ELSEWHERE[name]}?"
    if ends := [k for k in keys if k.rpartition(".")[2].lower() == last.lower()]:
        return f"did you mean {' or '.join(sorted(ends, key=len))}?"
    by_last = {k.rpartition(".")[2]: k for k in reversed(keys)}
    near = difflib.get_close_matches(key, keys, n=1) or [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1)]
    return f"did you mean {near[0]}?" if near else "`python -m trm.train --cfg job` prints all keys"


def near_option(given: str, options: Iterable[str]) -> str | None:
    """The option of a command, such as --watch, that begins like what was given or is spelled almost like it."""
    name = given.partition("=")[0]
    begun = [option for option in options if name.startswith("--") and option.startswith(name)]
    return next(iter(begun or difflib.get_close_matches(name, options, n=1, cutoff=0.75)), None)


def no_option(group: str, option: str, options: list[str]) -> str:
    """What to say about an option that a config group does not have."""
    known = OPTIONS.get(group, {}).get(option.lower())
    near = [known] if known in options else difflib.get_close_matches(option.lower(), options, n=1)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    return f"{group}={option} is not an option of {group}: {hint}choose one of {', '.join(options)}"


def _folded(table: Iterable[str]) -> dict[str, str]:
    return {name.lower(): name for name in table}


def unknown_key(key: str) -> str:
    """The error line for a key that the schema does not have."""
    return of_other_tasks(key) or f"{key} is not a config key: {key_hint(key)}"


def one_line(error: BaseException) -> str:
    """The error's message on a single line, in this project's terms where Hydra's would mislead."""
    return plain_line(_in_our_terms(error))


def _in_our_terms(error: BaseException) -> str:
    text, reason = str(error), error.__cause__ or error.__context__
    if not text:  # Hydra has errors that only pass another one on
        return one_line(reason) if reason else type(error).__name__
    if isinstance(error, OverrideParseException):
        return f"{error.override}: Hydra cannot read this override: {quoting_hint(error.override)}"
    if there := re.match(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"+{there[1]}: the key exists already: leave out the +"
    if (wrong := re.match(r"(?:In '[^']*': )?Could not find '([^'/]+)/([^']*)'", text)) and wrong[1] in GROUPS:
        return no_option(wrong[1], wrong[2], group_options(wrong[1]))
    if several := re.match(r"Ambiguous value for argument '(.*?)'\s", text):
        return f"{several[1]}: the key has several values: give one, write a list as [a,b], or add --multirun for a sweep"
    key = _full_key(text)
    if key and (wrong := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", text, re.DOTALL)):
        return f"{key}={wrong[1]}: the value must be {TYPES.get(wrong[2], wrong[2])}"
    if missing := re.search(r"has missing mandatory value: (\w+)", text):
        return f"{key}: its entry has no {missing[1]}: give it, as docs/reference/config.md shows"
    if key and "is not Optional" in text:
        return f"{key}=null: the key needs a value"
    if unknown := re.match(r"Could not override '([^']+)'", text) or re.match(r"Key '([^']+)' (?:is )?not in", text):
        inside = _full_key(str(reason)) or ""  # model={mixr:mlp}: the reason names model.mixr
        if inside and "." not in inside and inside != unknown[1] and unknown[1] in all_keys():  # entries of a list have keys too
            return f"{unknown[1]}: its entries have no key {inside}: docs/reference/config.md shows one"
        return unknown_key(key or (inside if inside.startswith(f"{unknown[1]}.") else unknown[1]))
    if text.startswith("Error merging override") and reason is not None:  # the reason is one level down
        given, told = text.splitlines()[0].removeprefix("Error merging override "), one_line(reason)
        key, _, words = told.partition("=")
        return f"{given}: {words.rpartition(': ')[2] if words and given.lstrip('+').startswith(f'{key}=') else told}"
    if key and "is not a ListConfig" in text:
        return f"{key} is a list: write {key}=[...]"
    text = text.split("Config search path:")[0].split("\nSee https://hydra.cc")[0]
    lines = [line.strip() for line in text.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type=")))
    return f"{key}: {text}" if key and key not in text else text


def _full_key(text: str) -> str | None:
    """The key that omegaconf names on a line of its own."""
    match = re.search(r"full_key: (\S+)", text)
    return match[1] if match else None
