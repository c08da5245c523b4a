"""Published test exact accuracies, each with the settings that it was measured under.

Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks", arXiv 2510.04871: Sudoku-Extreme (9x9), trained on
1,000 puzzles. The schema's defaults (trm/config) are the paper's settings, and a row has only its changes to them. FIELD has rows
of later publications, with the further settings that these keep fixed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CITATION = "Jolicoeur-Martineau, arXiv 2510.04871"
TASK = "sudoku"
DATASET = "sudoku_extreme"
DATASET_LABEL = "Sudoku-Extreme 9x9, 1,000 training puzzles"
TEST_PUZZLES = 422_786
AUGMENTATIONS = 1000
STEPS = 65_104


@dataclass(frozen=True)
class PaperRow:
    """One reported number: test exact accuracy as a share of 1, and the settings that differ from the paper's main model."""

    name: str
    exact_accuracy: float
    changes: Mapping[str, Any] = field(default_factory=dict)
    source: str = CITATION
    fixed: Mapping[str, Any] = field(default_factory=dict)  # settings of the whole publication that differ from the defaults
    steps: int = STEPS
    test_puzzles: int = TEST_PUZZLES
    augmentations: int = AUGMENTATIONS


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

NO_PREFIX: dict[str, Any] = {"model.puzzle_emb_ndim": 0, "model.puzzle_emb_len": 0}
EQR: dict[str, Any] = {"recursion.damping": 0.95, "recursion.noise": 0.01, "latents.init": "random"}
EQR_SOURCE, SIC_SOURCE, URM_SOURCE = "EqR, arXiv 2605.21488", "Speed is Confidence, arXiv 2601.19085", "URM, arXiv 2512.14693"
FAST = {"recursion.T": 6, "recursion.n": 9, "model.mlp": "gated_norm_swiglu"}
FAST_FIXED = {
    **NO_PREFIX,
    "model.registers": 1,
    "model.loss": "softmax",
    "objective.label_smoothing": 0.2,
    "objective.halt_weight": 0.05,
    "optimizer.name": "muon",
    "optimizer.others": "adamw",
    "optimizer.matrix_lr": 0.02,
    "optimizer.matrix_weight_decay": 0.005,
    "optimizer.matrix_scale": "aspect",
    "optimizer.warmup_steps": 0,
    "optimizer.schedule": "cosine",
    "optimizer.lr_min_ratio": 0.0,
    "optimizer.clip_grad_norm": 1.0,
    "ema.rate": 0.9,
    "ema.start_step": 5000,
    "train.global_batch_size": 384,
}
URM = {
    "recursion.variant": "single_state",
    "recursion.T": 2,
    "model.mixer": "attention",
    "model.mlp": "conv_swiglu",
    "model.num_layers": 4,
}
MAZE: dict[str, Any] = {"model.mixer": "attention", "recursion.n": 4}
MAZE_1 = {**MAZE, "model.num_layers": 1}
MAZES: dict[str, Any] = {"test_puzzles": 1000, "augmentations": 0}
# Generated mazes are not those of the paper, which are a file
UNIQUE_FIXED: dict[str, Any] = {
    **{"data.name": "maze_unique", "data.task": "maze", "data.source": "csv", "data.path_min": 100, "data.path_max": 140},
    **{"model.hidden_size": 128, "model.num_heads": 2, "model.puzzle_emb_ndim": 128},
}
FIELD = (
    PaperRow("EqR, 16 steps, 1 start", 0.864, EQR, EQR_SOURCE, NO_PREFIX),
    PaperRow("fast recipe", 0.855, FAST, SIC_SOURCE, FAST_FIXED, steps=8_000),
    PaperRow("winner takes all, K=4", 0.969, {**FAST, "latents.num_hypotheses": 4}, SIC_SOURCE, FAST_FIXED, steps=36_000),
    PaperRow("URM", 0.776, URM, URM_SOURCE, {"train.global_batch_size": 1024, "model.puzzle_emb_len": 0}, steps=48_828),
    PaperRow("TRM on Maze-Hard", 0.853, MAZE, fixed={"data.name": "maze_hard", "data.task": "maze"}, **MAZES),
    PaperRow("TRM on Maze-Unique", 0.449, MAZE_1, EQR_SOURCE, UNIQUE_FIXED, steps=130_208, **MAZES),
    PaperRow(
        "EqR on Maze-Unique, 16 steps, 1 start", 0.822, EQR | MAZE_1, EQR_SOURCE, UNIQUE_FIXED | NO_PREFIX, steps=130_208, **MAZES
    ),
)

# What the tables vary. A run has a published value where it agrees with a row in all of these.
ABLATED = (
    *("model.mixer", "model.num_layers", "model.separate_networks", "model.mlp"),
    *("recursion.variant", "recursion.T", "recursion.n", "recursion.act_continue", "recursion.damping", "recursion.noise"),
    *("latents.init", "latents.num_hypotheses", "ema.enabled"),
)
