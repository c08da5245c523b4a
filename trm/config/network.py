"""The settings of the network, its recursion and latents, the loss and the optimizer."""

from dataclasses import dataclass

from omegaconf import MISSING

from trm.config.keys import key


@dataclass
class ModelConfig:
    """The network of docs/explanation/what_is_computed.md "Network": a two-block mixer used for every latent update."""

    mixer: str = key("mlp", "the layer that mixes the tokens", choices=("mlp", "attention"))
    hidden_size: int = key(512, "width D of tokens and latents", low=2, high=65536)
    num_layers: int = key(2, "blocks in the network", low=1, high=256)
    num_heads: int = key(8, "attention heads (attention mixer)", low=1, high=1024)
    expansion: float = key(4.0, "SwiGLU expansion; width = round(expansion*in*2/3) up to a multiple of 256", above=0, high=64)
    mlp: str = key(
        "swiglu",
        "the MLP of a block: swiglu; conv_swiglu (URM: a depthwise convolution over a token and the previous one); conv2d_swiglu "
        "(over a cell of a square grid and its eight neighbours); gated_norm_swiglu (fast recipe: sigmoid gate, then a norm)",
        choices=("swiglu", "conv_swiglu", "conv2d_swiglu", "gated_norm_swiglu"),
    )
    positions: str = key(
        "none",
        "position encoding; rope2d rotates half of a head's channels by the cell's row, and half by its column",
        choices=("none", "learned", "rope", "rope2d"),
    )
    rope_theta: float = key(10000.0, "base of the rotary frequencies", above=0)
    rms_norm_eps: float = key(1e-5, "epsilon of the RMS norms", above=0, below=1)
    puzzle_emb_ndim: int = key(512, "dimensions of one puzzle's embedding; 0 = none", low=0, high=1048576)
    puzzle_emb_len: int = key(16, "tokens of the puzzle prefix; 0 = as many as puzzle_emb_ndim needs", low=0, high=4096)
    registers: int = key(0, "learned tokens between the puzzle prefix and the cells", low=0, high=4096)
    separate_networks: bool = key(False, "ablation: one network for z_L (f_L) and another for z_H (f_H)")
    loss: str = key("stablemax", "cross-entropy over the cells", choices=("stablemax", "softmax"))

    @property
    def puzzle_len(self) -> int:
        """Tokens that the puzzle embedding takes before the cells; 0 without a puzzle embedding."""
        return (self.puzzle_emb_len or -(self.puzzle_emb_ndim // -self.hidden_size)) if self.puzzle_emb_ndim else 0

    @property
    def prefix_len(self) -> int:
        """Tokens before the cells: the puzzle embedding's and the registers."""
        return self.puzzle_len + self.registers


@dataclass
class Phase:
    """An early part of a run that recurses less deeply."""

    until: float = key(MISSING, "share of the run at which the phase ends", above=0, below=1)
    T: int = key(MISSING, "recursion.T of the phase", low=1, high=1024)
    n: int = key(MISSING, "recursion.n of the phase", low=1, high=1024)


@dataclass
class RecursionConfig:
    """Latent recursion, deep supervision and halting (paper sections 4 and 5)."""

    variant: str = key("trm", "the recursion, a file of trm/core/variants")
    T: int = key(3, "latent recursions per supervision step; all but the last run without gradient", low=1, high=1024)
    n: int = key(6, "updates of z_L per latent recursion", low=1, high=1024)
    n_sup: int = key(16, "largest number of supervision steps per puzzle (N_sup)", low=1, high=1024)
    halt_exploration_prob: float = key(0.1, "probability per row and step that a minimum number of steps is drawn", low=0, high=1)
    act_continue: bool = key(False, 'the paper\'s "w/ ACT": a continue loss from an extra forward pass')
    damping: float = key(
        1.0, "EqR: weight of the network's output in a new latent; the old latent has the rest; 1 = no damping", above=0, high=1
    )
    noise: float = key(0.0, "EqR: std of the normal noise on every new latent, in training and in evaluation", low=0, high=100)
    curriculum: list[Phase] = key([], "phases of shallower recursion at the start, such as `[{until: 0.3, T: 1, n: 2}]`")
    supervision_decay: float = key(1.0, "weight of a supervision step's loss relative to the step before", above=0, high=1)


@dataclass
class LatentsConfig:
    """The start of a puzzle's latents, and the number of their copies in training."""

    init: str = key(
        "fixed",
        "fixed = one vector for all tokens, drawn once; random = drawn for each row, token and channel (EqR)",
        choices=("fixed", "random"),
    )
    num_hypotheses: int = key(
        1,
        "copies of a puzzle's reasoning latents in training; only the copy with the least loss gets a gradient (winner takes all); "
        "evaluations use the first",
        low=1,
        high=256,
    )


def draws_numbers(latents: LatentsConfig, recursion: RecursionConfig) -> bool:
    """Whether a forward pass draws random numbers: starts, or noise on the latents."""
    return latents.init == "random" or recursion.noise > 0


@dataclass
class ObjectiveConfig:
    """The loss of a row: cross-entropy over its cells (model.loss) plus halt_weight times the halting loss."""

    label_smoothing: float = key(0.0, "share of a cell's target that is spread over the whole vocabulary", low=0, below=1)
    halt_weight: float = key(0.5, "weight of the halting loss", low=0, high=100)


@dataclass
class EmaConfig:
    """Exponential moving average of the weights, used for evaluation."""

    enabled: bool = key(True, "keep an EMA and evaluate with it")
    rate: float = key(0.999, "share of the old average kept per step", low=0, below=1)
    start_step: int = key(0, "step after which averaging begins; until then the average equals the weights", low=0)


@dataclass
class OptimizerConfig:
    """AdamATan2, AdamW or Muon for the weights, sign-SGD for the puzzle embedding."""

    name: str = key(
        "adam_atan2",
        "update rule, a file of trm/core/optimizers: adam_atan2, adamw, or muon (blocks' matrices; optimizer.others for the rest)",
    )
    lr: float = key(1e-4, "learning rate after warm-up", above=0, high=10)
    weight_decay: float = key(1.0, "decoupled decay: p *= 1 - lr*weight_decay", low=0, high=1000)
    beta1: float = key(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = key(0.95, "decay of the second moment", low=0, below=1)
    eps: float = key(1e-8, "epsilon of adamw (adam_atan2 has none)", above=0, below=1)
    momentum: float = key(0.95, "Nesterov momentum of muon", low=0, below=1)
    others: str = key("adam_atan2", "muon: update rule of all but the blocks' matrices", choices=("adam_atan2", "adamw"))
    matrix_lr: float | None = key(None, "muon: learning rate of the matrices; null = optimizer.lr", above=0, high=10)
    matrix_weight_decay: float | None = key(None, "muon: decay of the matrices; null = optimizer.weight_decay", low=0, high=1000)
    matrix_scale: str = key(
        "adam",
        "muon: factor of a matrix's update: adam = 0.2 * root of the longer side, aspect = root of max(1, rows/columns)",
        choices=("adam", "aspect"),
    )
    clip_grad_norm: float | None = key(None, "largest norm of all gradients together; null = no limit", above=0)
    parametrization: str = key(
        "standard",
        "standard, or mup (maximal updates): initial values and learning rates follow the width, so that the best learning rate at "
        "optimizer.base_hidden_size is also the best at other widths (docs/explanation/scaling.md)",
        choices=("standard", "mup"),
    )
    base_hidden_size: int | None = key(None, "mup: the width at which mup and standard are the same", low=2, high=65536)
    base_num_layers: int | None = key(None, "mup: the same for model.num_layers; null = nothing follows the depth", low=1, high=256)
    decay_with_rate: bool = key(
        False, "mup: weight decay is scaled with the learning rate; false = lr * weight_decay is constant (arXiv 2510.19093)"
    )
    warmup_steps: int = key(2000, "steps of linear warm-up; step 1 has lr/warmup_steps", low=0)
    warmup_share: float | None = key(None, "warm-up as a share of the run's steps; it replaces warmup_steps", low=0, below=1)
    schedule: str = key("constant", "learning rate after warm-up", choices=("constant", "cosine"))
    lr_min_ratio: float = key(1.0, "cosine: last learning rate as a share of lr", low=0, high=1)
    puzzle_emb_lr: float = key(1e-4, "learning rate of the puzzle embedding", low=0, high=10)
    puzzle_emb_weight_decay: float = key(1.0, "decay of the puzzle embedding", low=0, high=1000)
