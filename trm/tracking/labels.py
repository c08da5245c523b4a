"""What a dashboard groups runs by, since its panels take one config key each: the recursion and the variant in words."""

from dataclasses import asdict, dataclass
from typing import Any

from trm.config import Config, paper, to_plain

# The settings that the study varies, as a label says them where they are not the paper's (the schema's defaults).
WORDS = {
    "data.name": "{}",
    "data.num_puzzles": "{} puzzles",
    "recursion.variant": "{}",
    "recursion.act_continue": "ACT",
    "recursion.n_sup": "N_sup {}",
    "ema.enabled": "no EMA",
    "model.mixer": "{}",
    "model.num_layers": "{} layers",
    "model.hidden_size": "width {}",
    "model.separate_networks": "separate networks",
    "optimizer.name": "{}",
    "optimizer.lr": "lr {:g}",
    "optimizer.warmup_steps": "warm-up {}",
    "train.global_batch_size": "batch {}",
    "train.epochs": "{} epochs",
}


@dataclass(frozen=True)
class Labels:
    """A run's labels; runs that differ in the seed alone have the same."""

    recursion: str  # t3_n6
    variant: str  # t3_n6, then what differs from the paper's main model
    paper_exact_accuracy: float | None  # of the same ablation on the same puzzles, whatever batch, length or learning rate

    def plain(self) -> dict[str, Any]:
        """As a part of the run's config on a dashboard."""
        return asdict(self)


def labels(cfg: Config) -> Labels:
    """The labels of a run with these settings."""
    settings, expected = _flat(cfg), _flat(Config()) | {"data.name": paper.DATASET}
    recursion = f"t{cfg.recursion.T}_n{cfg.recursion.n}"
    words = [form.format(settings[key]) for key, form in WORDS.items() if settings[key] != expected[key]]
    match = paper.find(settings, None)
    same_puzzles = all(settings[key] == paper.FIXED[key] for key in ("data.name", "data.num_puzzles"))
    return Labels(recursion, ", ".join([recursion, *words]), match.row.exact_accuracy if match and same_puzzles else None)


def _flat(cfg: Config) -> dict[str, Any]:
    groups = {group: values for group, values in to_plain(cfg).items() if isinstance(values, dict)}
    return {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
