"""What the released TRM, HRM, URM and EqR codes, and trainers in general, call a setting, and what is typed for it here.

The tables serve the hints of refusals and docs/how-to/from_released.md.
"""

import difflib
import re
from collections.abc import Iterable

from trm.config.schema import all_keys

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


def no_option(group: str, option: str, options: list[str]) -> str:
    """What to say about an option that a config group does not have."""
    known = OPTIONS.get(group, {}).get(option.lower())
    near = [known] if known in options else difflib.get_close_matches(option.lower(), options, n=1)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    return f"{group}={option} is not an option of {group}: {hint}choose one of {', '.join(options)}"


def in_dashes(message: str) -> str:
    """argparse's message; of a setting that is written as an option, how it is written here."""
    dashed = re.search(r"unrecognized arguments: .*?--([A-Za-z][\w.-]*)", message)
    if dashed is None:
        return message
    key = dashed[1].replace("-", "_")
    hint = "" if key in all_keys() or key == "checkpoint" else f" ({key_hint(key)})"
    return f"{message}: settings are KEY=VALUE, without dashes: {key}=...{hint}"


def _folded(table: Iterable[str]) -> dict[str, str]:
    return {name.lower(): name for name in table}
