"""The paper's test exact accuracies, and which of them a run's settings correspond to.

Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks", arXiv 2510.04871: Sudoku-Extreme (9x9), trained on
1,000 puzzles. The schema's defaults (trm/config/schema.py) are the paper's settings, so a row is what it changes in them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CITATION = "Jolicoeur-Martineau, arXiv 2510.04871"
TASK = "sudoku"
DATASET = "sudoku_extreme"
DATASET_LABEL = "Sudoku-Extreme 9x9, 1,000 training puzzles"


@dataclass(frozen=True)
class PaperRow:
    """One reported number: test exact accuracy as a share of 1, and the settings that differ from the paper's main model."""

    name: str
    exact_accuracy: float
    changes: Mapping[str, Any] = field(default_factory=dict)


ROWS = (
    PaperRow("TRM, T=3 n=6, MLP", 0.874),
    PaperRow("with ACT continue loss", 0.861, {"recursion.act_continue": True}),
    PaperRow("separate f_H and f_L networks", 0.824, {"model.separate_networks": True}),
    PaperRow("no EMA", 0.799, {"ema.enabled": False}),
    PaperRow("4 layers, n=3", 0.795, {"model.num_layers": 4, "recursion.n": 3}),
    PaperRow("self-attention", 0.747, {"model.mixer": "attention"}),
    PaperRow("T=2 n=2", 0.737, {"recursion.T": 2, "recursion.n": 2}),
    PaperRow("1-step gradient", 0.565, {"recursion.variant": "one_step_gradient"}),
    PaperRow("multi-scale z", 0.776, {"recursion.variant": "multi_scale_z"}),
    PaperRow("single z", 0.719, {"recursion.variant": "single_z"}),
    PaperRow("T=1 n=2", 0.632, {"recursion.T": 1, "recursion.n": 2}),
    PaperRow("T=2 n=4", 0.819, {"recursion.T": 2, "recursion.n": 4}),
    PaperRow("T=4 n=8", 0.842, {"recursion.T": 4, "recursion.n": 8}),
    PaperRow("T=6 n=6", 0.858, {"recursion.T": 6, "recursion.n": 6}),
)

# What the paper's table varies. A run has a paper's value where it agrees with a row in all of these.
ABLATED: Mapping[str, Any] = {
    "model.mixer": "mlp",
    "model.num_layers": 2,
    "model.separate_networks": False,
    "recursion.variant": "trm",
    "recursion.T": 3,
    "recursion.n": 6,
    "recursion.act_continue": False,
    "ema.enabled": True,
}

# What the paper holds fixed. Only a run that agrees in these too can be compared with its value.
FIXED: Mapping[str, Any] = {
    "data.name": DATASET,
    "data.task": "sudoku",
    "data.box_rows": 3,
    "data.num_puzzles": 1000,
    "model.hidden_size": 512,
    "model.expansion": 4.0,
    "model.rms_norm_eps": 1e-5,
    "model.puzzle_emb_ndim": 512,
    "model.puzzle_emb_len": 16,
    "model.loss": "stablemax",
    "recursion.n_sup": 16,
    "recursion.halt_exploration_prob": 0.1,
    "recursion.curriculum": [],
    "recursion.supervision_decay": 1.0,
    "optimizer.name": "adam_atan2",
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 1.0,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.95,
    "optimizer.warmup_steps": 2000,
    "optimizer.schedule": "constant",
    "optimizer.clip_grad_norm": None,
    "optimizer.puzzle_emb_lr": 1e-4,
    "optimizer.puzzle_emb_weight_decay": 1.0,
    "train.global_batch_size": 768,
}
TEST_PUZZLES = 422_786
AUGMENTATIONS = 1000
STEPS = 65_104


@dataclass(frozen=True)
class PaperMatch:
    """A row of the paper with the same ablation, and the other settings in which the run is unlike the paper."""

    row: PaperRow
    unlike: tuple[str, ...]  # "KEY=VALUE (paper: VALUE)"

    @property
    def comparable(self) -> bool:
        """True where the run differs from the paper in nothing, so that a difference of the two numbers means something."""
        return not self.unlike

    @property
    def same_puzzles(self) -> bool:
        """True where the run's puzzles are of the paper's kind and size, so that its value may stand beside the run's."""
        return not any(words.startswith(("data.task=", "data.box_rows=")) for words in self.unlike)


def find(settings: Mapping[str, Any], total_steps: int | None, test_puzzles: int | None = None) -> PaperMatch | None:
    """The paper's row for a run's settings (flat, with dotted keys) and its planned length; None where it has none.

    `test_puzzles` are those that its result was measured on; None where that is not known.
    """
    ablation = {key: settings.get(key) for key in ABLATED}
    for row in ROWS:
        if ablation == {**ABLATED, **row.changes}:
            return PaperMatch(row, tuple(_unlike(settings, total_steps, test_puzzles)))
    return None


def _unlike(settings: Mapping[str, Any], total_steps: int | None, test_puzzles: int | None) -> list[str]:
    expected = dict(FIXED)
    actual = {key: settings.get(key) for key in FIXED}
    if settings.get("ema.enabled"):
        expected["ema.rate"], actual["ema.rate"] = 0.999, settings.get("ema.rate")
    attention = settings.get("model.mixer") == "attention"
    expected["model.positions"], actual["model.positions"] = "rope" if attention else "none", settings.get("model.positions")
    if attention:
        for key, value in (("model.num_heads", 8), ("model.rope_theta", 10000.0)):
            expected[key], actual[key] = value, settings.get(key)
    # stored on disk or drawn while loading: both are 1,000 augmented variants of every puzzle
    expected["augmented variants"] = AUGMENTATIONS
    actual["augmented variants"] = settings.get("data.num_aug") or settings.get("data.on_the_fly_aug")
    expected["steps"], actual["steps"] = STEPS, total_steps
    if test_puzzles is not None:
        expected["test puzzles"], actual["test puzzles"] = TEST_PUZZLES, test_puzzles
    return [f"{key}={actual[key]} (paper: {value})" for key, value in expected.items() if actual[key] != value]
