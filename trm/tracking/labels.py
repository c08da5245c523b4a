"""The labels by which a dashboard groups runs, since a panel takes one config key: the recursion and the variant in words."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trm.config import Config, flatten, kept, matching, paper, to_plain

# The words for the settings that the study varies, where they differ from the paper's (the schema's defaults).
WORDS = {
    "data.name": "{}",
    "data.num_puzzles": "{} puzzles",
    "recursion.variant": "{}",
    "recursion.act_continue": "ACT",
    "recursion.n_sup": "N_sup {}",
    "recursion.damping": "damping {:g}",
    "recursion.noise": "noise {:g}",
    "latents.init": "{} starts",
    "latents.num_hypotheses": "{} hypotheses",
    "ema.enabled": "no EMA",
    "model.mixer": "{}",
    "model.mlp": "{}",
    "model.num_layers": "{} layers",
    "model.hidden_size": "width {}",
    "model.separate_networks": "separate networks",
    "optimizer.name": "{}",
    "optimizer.lr": "lr {:g}",
    "optimizer.warmup_steps": "warm-up {}",
    "train.global_batch_size": "batch {}",
    "train.epochs": "{} epochs",
    "train.max_steps": "{} steps",
    "train.max_flops": "{:g} FLOPs",
}
ID_DIGITS = 6


@dataclass(frozen=True)
class Labels:
    """The labels of a run. Runs have the same labels if and only if they differ in the seed alone."""

    recursion: str  # t3_n6
    variant: str  # t3_n6, then what differs from the paper's main model, then the digest
    digest: str | None  # of all settings but the seed, and of the puzzles: equal where the runs may be averaged
    paper_exact_accuracy: float | None  # for the same ablation, puzzles and inference; batch, length and learning rate may differ


def labels(cfg: Config, data: Mapping[str, Any] | None = None) -> Labels:
    """The labels of a run with these settings on these puzzles (`data`: trm/data/content.py made plain; None = not read yet)."""
    settings, expected = flatten(to_plain(cfg)), flatten(to_plain(Config())) | {"data.name": paper.DATASET}
    recursion = f"t{cfg.recursion.T}_n{cfg.recursion.n}"
    if cfg.train.max_steps is not None or cfg.train.max_flops is not None:
        settings["train.epochs"] = expected["train.epochs"]  # the run ignores train.epochs then
    words = [form.format(settings[key]) for key, form in WORDS.items() if settings[key] != expected[key]]
    match = matching.find(settings, None, *(() if data is None else (data["test_puzzles"], data.get("caveats", ()))))
    value, variant = match.row.exact_accuracy if match and match.same_measure else None, ", ".join([recursion, *words])
    if data is None:
        return Labels(recursion, variant, None, value)
    identity = {**kept(to_plain(cfg)), "seed": None, "puzzles": [data["train_digest"], data["test_digest"]]}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]
    return Labels(recursion, f"{variant} #{digest}", digest, value)
