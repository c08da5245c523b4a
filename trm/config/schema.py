"""The schema of every config group: beside each key its default, its range, words for people, and what it changes.

Hydra composes `conf/` against these dataclasses, so an unknown key or a wrong type is refused while composing; `validate`
then checks ranges and combinations. Below this border the code sees only these dataclasses, never a DictConfig.
Units are in the names (`_steps`, `_s`); ranges and one line of documentation stand beside each key as field metadata.
"""

import dataclasses
import enum
import functools
import importlib
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, BooleanNode, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from trm.config.backends import BACKENDS, Backend, find_backend
from trm.config.paper import TASK
from trm.errors import ConfigError

EXACT = "exact"  # of the scores of an evaluation, the one that every task has
SAMPLE_PUZZLES = 10_000  # of an evaluation during training, where evaluate.max_puzzles does not say it
IGNORE_LABEL = -100  # label of a cell that does not count, in batches
# What a key changes: what training computes; how that is done and what evaluations report of it; where data lies; nothing of these.
NUMBERS, RESULTS, PLACE, NOTHING = "numbers", "results", "place", "nothing"
LARGEST_COUNT = 2**31 - 1  # counts end up in int32 arrays and graphs


def _key(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    changes: str | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field with its documentation, its range (`low`/`high` inclusive, `above`/`below` exclusive) and its role.

    `changes` is NUMBERS, RESULTS, PLACE or NOTHING; None = as its group says, which is NUMBERS unless Config says otherwise.
    `path`: of a file or folder of this machine: a leading ~ is the home folder, and gs://... is refused.
    """
    rule = {
        "doc": doc,
        "choices": choices,
        "low": low,
        "high": high,
        "above": above,
        "below": below,
        "changes": changes,
        "path": path,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=rule)
    return field(default=default, metadata=rule)


@dataclass
class ModelConfig:
    """The network of docs/explanation/what_is_computed.md "Network": a two-block mixer used for every latent update."""

    mixer: str = _key("mlp", "how tokens are mixed", choices=("mlp", "attention"))
    hidden_size: int = _key(512, "width D of tokens and latents", low=2, high=65536)
    num_layers: int = _key(2, "blocks in the network", low=1, high=256)
    num_heads: int = _key(8, "attention heads (attention mixer)", low=1, high=1024)
    expansion: float = _key(4.0, "SwiGLU expansion; width = round(expansion*in*2/3) up to a multiple of 256", above=0, high=64)
    mlp: str = _key(
        "swiglu",
        "the MLP of a block: swiglu; conv_swiglu (URM: a depthwise convolution over a token and the one before it, across channels "
        "only); conv2d_swiglu (the same over a cell of a square grid and its eight neighbours); gated_norm_swiglu (fast recipe: "
        "sigmoid gate, then a norm of the inner values)",
        choices=("swiglu", "conv_swiglu", "conv2d_swiglu", "gated_norm_swiglu"),
    )
    positions: str = _key(
        "none",
        "position encoding; rope2d turns one half of a head's channels by a cell's row, the other by its column",
        choices=("none", "learned", "rope", "rope2d"),
    )
    rope_theta: float = _key(10000.0, "base of the rotary frequencies", above=0)
    rms_norm_eps: float = _key(1e-5, "epsilon of the RMS norms", above=0, below=1)
    puzzle_emb_ndim: int = _key(512, "dimensions of one puzzle's embedding; 0 = none", low=0, high=1048576)
    puzzle_emb_len: int = _key(16, "tokens of the puzzle prefix; 0 = as many as puzzle_emb_ndim needs", low=0, high=4096)
    registers: int = _key(0, "learned tokens between the puzzle prefix and the cells", low=0, high=4096)
    separate_networks: bool = _key(False, "ablation: one network for z_L (f_L) and another for z_H (f_H)")
    loss: str = _key("stablemax", "cross-entropy over the cells", choices=("stablemax", "softmax"))

    @property
    def puzzle_len(self) -> int:
        """Tokens that the puzzle embedding takes before the cells; 0 without a puzzle embedding."""
        if self.puzzle_emb_ndim == 0:
            return 0
        return self.puzzle_emb_len or -(self.puzzle_emb_ndim // -self.hidden_size)

    @property
    def prefix_len(self) -> int:
        """Tokens before the cells: the puzzle embedding's and the registers."""
        return self.puzzle_len + self.registers


@dataclass
class Phase:
    """An early part of a run that recurses less deeply."""

    until: float = _key(MISSING, "share of the run at which the phase ends", above=0, below=1)
    T: int = _key(MISSING, "recursion.T of the phase", low=1, high=1024)
    n: int = _key(MISSING, "recursion.n of the phase", low=1, high=1024)


@dataclass
class RecursionConfig:
    """Latent recursion, deep supervision and halting (paper sections 4 and 5)."""

    variant: str = _key("trm", "the recursion, a file of trm/core/variants")
    T: int = _key(3, "latent recursions per supervision step; all but the last run without gradient", low=1, high=1024)
    n: int = _key(6, "updates of z_L per latent recursion", low=1, high=1024)
    n_sup: int = _key(16, "most supervision steps per puzzle (N_sup)", low=1, high=1024)
    halt_exploration_prob: float = _key(0.1, "chance per row and step that a minimum number of steps is drawn", low=0, high=1)
    act_continue: bool = _key(False, 'the paper\'s "w/ ACT": a continue loss from an extra forward pass')
    damping: float = _key(
        1.0,
        "EqR: share of what a pass of the network computes in the new latent, the old one has the rest; 1 = all",
        above=0,
        high=1,
    )
    noise: float = _key(0.0, "EqR: std of the normal noise on every new latent, in training and in evaluation", low=0, high=100)
    curriculum: list[Phase] = _key(
        [], "phases before the full depth, `[{until: 0.3, T: 1, n: 2}]`: training starts with a shallower recursion"
    )
    supervision_decay: float = _key(
        1.0, "weight of a supervision step's loss against that of the step before; 1 = all alike", above=0, high=1
    )


@dataclass
class LatentsConfig:
    """Where a puzzle's latents start, and how many of them it has in training."""

    init: str = _key(
        "fixed",
        "fixed = one vector for all tokens, drawn once; random = anew for each row, token and channel (EqR)",
        choices=("fixed", "random"),
    )
    heads: int = _key(
        1,
        "copies of a puzzle's reasoning latents in training, of which the one with the least loss wins (winner takes all); "
        "evaluation runs the first",
        low=1,
        high=256,
    )


def draws_numbers(latents: LatentsConfig, recursion: RecursionConfig) -> bool:
    """Whether a forward pass draws random numbers: starts, or noise on the latents."""
    return latents.init == "random" or recursion.noise > 0


@dataclass
class ObjectiveConfig:
    """The loss of a row: cross-entropy over its cells (model.loss) and halt_weight times that of halting."""

    label_smoothing: float = _key(0.0, "share of a cell's target that is spread over the whole vocabulary", low=0, below=1)
    halt_weight: float = _key(0.5, "weight of the halting loss", low=0, high=100)


@dataclass
class EmaConfig:
    """Exponential moving average of the weights, used for evaluation."""

    enabled: bool = _key(True, "keep an EMA and evaluate with it")
    rate: float = _key(0.999, "share of the old average kept per step", low=0, below=1)
    start_step: int = _key(0, "step after which averaging begins; until then the average is the weights", low=0)


@dataclass
class OptimizerConfig:
    """AdamATan2, AdamW or Muon for the weights, sign-SGD for the puzzle embedding."""

    name: str = _key(
        "adam_atan2",
        "update rule of the weights, a file of trm/core/optimizers: adam_atan2, adamw, or muon for the blocks' matrices with "
        "optimizer.others for the rest",
    )
    lr: float = _key(1e-4, "learning rate after warm-up", above=0, high=10)
    weight_decay: float = _key(1.0, "decoupled decay: p *= 1 - lr*weight_decay", low=0, high=1000)
    beta1: float = _key(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = _key(0.95, "decay of the second moment", low=0, below=1)
    eps: float = _key(1e-8, "epsilon of adamw (adam_atan2 has none)", above=0, below=1)
    momentum: float = _key(0.95, "Nesterov momentum of muon", low=0, below=1)
    others: str = _key("adam_atan2", "muon: update rule of all but the blocks' matrices", choices=("adam_atan2", "adamw"))
    matrix_lr: float | None = _key(None, "muon: learning rate of the matrices; null = optimizer.lr", above=0, high=10)
    matrix_weight_decay: float | None = _key(None, "muon: decay of the matrices; null = optimizer.weight_decay", low=0, high=1000)
    matrix_scale: str = _key(
        "adam",
        "muon: size of a matrix's update: adam = as large as Adam's (0.2 times the root of the longer side), aspect = the root of "
        "max(1, rows/columns)",
        choices=("adam", "aspect"),
    )
    clip_grad_norm: float | None = _key(None, "largest norm of all gradients together, longer ones are scaled; null = any", above=0)
    warmup_steps: int = _key(2000, "steps of linear warm-up; step 1 has lr/warmup_steps", low=0)
    schedule: str = _key("constant", "learning rate after warm-up", choices=("constant", "cosine"))
    lr_min_ratio: float = _key(1.0, "cosine: last learning rate as a share of lr", low=0, high=1)
    puzzle_emb_lr: float = _key(1e-4, "learning rate of the puzzle embedding", low=0, high=10)
    puzzle_emb_weight_decay: float = _key(1.0, "decay of the puzzle embedding", low=0, high=1000)


@dataclass
class DataConfig:
    """Which puzzles, how many, and where the dataset folder is; a task's own keys are a subclass beside it (TASKS)."""

    name: str = _key(MISSING, "name of the dataset, part of its folder's name")
    task: str = _key(TASK, "kind of puzzle: a folder of trm/tasks, or MODULE:CLASS of one outside the package")
    source: str = _key("csv", "csv files, generated here, or json files of ARC Prize", choices=("csv", "generated", "json"))
    path: str = _key(MISSING, "the dataset folder (train/ and test/)", changes=PLACE, path=True)
    train_csv: str | None = _key(
        None, "csv (or csv.gz) of training puzzles: question,answer and if need be rating", changes=PLACE, path=True
    )
    test_csv: str | None = _key(None, "csv of test puzzles", changes=PLACE, path=True)
    num_puzzles: int = _key(1000, "training puzzles, drawn from the source with data.seed", low=1)
    num_test_puzzles: int | None = _key(None, "test puzzles; null = all of a csv, 1000 of a generator", low=1, changes=RESULTS)
    num_aug: int = _key(
        0, "augmented variants of each training puzzle stored on disk (0 = augment on the fly)", low=0, high=1000000
    )
    on_the_fly_aug: int = _key(
        1000, "augmented variants of each puzzle that the loader draws from when none are stored", low=0, high=1000000
    )
    min_rating: float | None = _key(
        None, "csv: leave out puzzles rated below it, in training and test (the released builder's min_difficulty)", low=0
    )
    seed: int = _key(0, "seed of the dataset: choice of puzzles, generation, augmentation", low=0, high=2**31 - 1)


# The settings of each task by its name: trm/tasks puts those of its folders here, `task_settings` others when they are named.
TASKS: dict[str, type[DataConfig]] = {}


@dataclass
class HardwareConfig:
    """The machine: backend, devices, number formats."""

    name: str = _key(MISSING, "name of the machine type")
    backend: str = _key("xla", "xla (torch_xla), torch without it (eager, or compiled by inductor), or another of trm/backends")
    platform: str = _key("cpu", "what the devices are", choices=("cpu", "tpu", "cuda"))
    num_hosts: int = _key(1, "hosts (processes) that run one job together", low=1, high=4096)
    devices_per_host: int = _key(1, "devices of each host", low=1, high=256)
    dtype: str = _key("float32", "forward dtype", choices=("float32", "bfloat16", "float64"), changes=NUMBERS)
    loss_dtype: str = _key("float64", "dtype of the cross-entropy", choices=("float32", "float64"), changes=NUMBERS)
    attention: str = _key(
        "auto",
        "how attention is computed, to the same result: scores keeps them all for the backward pass, fused (torch's kernels) and "
        "blocks (any backend) keep none; auto = fused where torch's kernels compute (on a CPU in bfloat16 over 256 tokens alone), "
        "elsewhere blocks over 256 tokens; else scores",
        choices=("auto", "scores", "fused", "blocks"),
    )
    token_multiple: int | None = _key(
        None,
        "the token mixer's products run over this multiple of tokens, filled up with zeros, to the same result; 1 = the tokens as "
        "they are; null = 8 on CUDA, else 1",
        low=1,
        high=1024,
    )
    step_graph: bool = _key(
        False,
        "CUDA: the whole training step is recorded once and replayed as one graph, for networks so small that the host starts "
        "their kernels more slowly than the device runs them",
    )
    compile_cache: str | None = _key(
        None, "folder for compiled graphs kept between runs (TPU only); null = none", changes=NOTHING, path=True
    )
    placement: str | None = _key(
        None,
        "part of the machine that one job gets; null = all of it (pod), or in a sweep on a TPU one chip",
        choices=("chip", "host", "pod"),
        changes=NOTHING,
    )
    jobs: int = _key(
        1,
        "jobs of a sweep side by side on one host (CPU and CUDA; on a TPU the placement says it)",
        low=1,
        high=256,
        changes=NOTHING,
    )

    @property
    def can(self) -> Backend:
        """What the backend can do."""
        found = find_backend(self.backend)
        if found is None:
            raise ConfigError(f"hardware.backend={self.backend} is not one of {', '.join(BACKENDS)}")
        return found

    @property
    def processes(self) -> int:
        """Processes of one job, one on each of its hosts."""
        return self.num_hosts if self.placement in (None, "pod") else 1

    @property
    def local_devices(self) -> int:
        """Devices of one of the job's processes."""
        return 1 if self.placement == "chip" else self.devices_per_host

    @property
    def num_devices(self) -> int:
        """Devices of the whole job."""
        return self.processes * self.local_devices


@dataclass
class TrackingConfig:
    """Where metrics go besides metrics.jsonl; W&B's own are its variables and its settings files, which `wandb offline` writes."""

    wandb: str = _key(
        "auto",
        "W&B mode; auto = as W&B is told, else online with a key and offline without",
        choices=("auto", "online", "offline", "disabled"),
    )
    tensorboard: bool = _key(True, "write TensorBoard event files")
    project: str | None = _key(None, "W&B project; null = W&B's own (WANDB_PROJECT), else trm-scaling-study")
    entity: str | None = _key(None, "W&B entity (team or user); null = W&B's own")
    group: str | None = _key(None, "W&B group; null = W&B's own (WANDB_RUN_GROUP), else in a sweep the sweep's name")
    tags: list[str] = _key([], "W&B tags; none = W&B's own (WANDB_TAGS)")
    notes: str | None = _key(None, "W&B notes; null = W&B's own")
    job_type: str | None = _key(None, "W&B job type; null = W&B's own (WANDB_JOB_TYPE), else train")
    artifact: str = _key("none", "checkpoint that a completed run uploads to W&B as an artifact", choices=("none", "best", "last"))


@dataclass
class RecipeConfig:
    """What the recipe's values are multiplied by, so that an experiment changes the same thing at every size.

    A key that is set by itself (optimizer.lr, train.max_steps, ...) is taken as it is.
    """

    name: str = _key("paper", "the recipe that the values come from")
    lr_scale: float = _key(1.0, "of optimizer.lr", above=0, high=1000)
    length_scale: float = _key(1.0, "of the length in samples: train.epochs, or train.max_steps", above=0, high=1000)
    batch_scale: float = _key(1.0, "of train.global_batch_size; the samples stay: fewer steps", above=0, high=1000)
    data_scale: float = _key(1.0, "of data.num_puzzles; each is seen as often: more steps", above=0, high=1000)
    width_scale: float = _key(1.0, "of model.hidden_size, model.num_heads and model.puzzle_emb_ndim", above=0, high=1000)


@dataclass
class TrainConfig:
    """Length of the run and what happens every so many steps."""

    max_steps: int | None = _key(None, "steps to train; null = from epochs", low=1, changes=NUMBERS)
    epochs: int = _key(50000, "passes over the training puzzles (used when max_steps is null)", low=1, changes=NUMBERS)
    global_batch_size: int = _key(768, "rows of one step over all devices", low=1, high=16777216, changes=NUMBERS)
    log_every_steps: int = _key(100, "fetch and log metrics", low=1)
    eval_every_steps: int | None = _key(5000, "evaluate; null = only at the end", low=1, changes=RESULTS)
    checkpoint_every_steps: int | None = _key(2500, "save; null = only at the end", low=1)
    keep_checkpoints: int = _key(3, "newest checkpoints kept, beside the best", low=1)
    init_from: str | None = _key(
        None,
        "run or checkpoint whose weights a new run starts from, without the rest of its state; null = none",
        changes=NUMBERS,
        path=True,
    )
    trainable: str = _key(
        "all", "what learns: all, or the puzzle embedding alone", choices=("all", "puzzle_embedding"), changes=NUMBERS
    )
    resume: str = _key("auto", "auto = go on from the run folder's newest checkpoint", choices=("auto", "never"))
    progress: str = _key("auto", "progress bar; auto = on a terminal", choices=("auto", "on", "off"))
    profile_steps: list[int] = _key([], "first and last step of a trace for TensorBoard or Perfetto, in RUN/profile", low=1)


@dataclass
class EvaluateConfig:
    """Evaluation during and after training."""

    batch_size: int | None = _key(
        None,
        "rows of one evaluation batch over all devices, or as many as there are where those fill no half of it; "
        "null = train.global_batch_size",
        low=1,
        changes=NOTHING,
    )
    max_puzzles: int | None = _key(
        None,
        f"test puzzles of an evaluation; null = all, but during training a sample of {SAMPLE_PUZZLES:,} (the last one takes all)",
        low=1,
    )
    selection_puzzles: int | None = _key(
        None,
        "puzzles apart from training and test that choose the best checkpoint and score a search; null = as many as test puzzles "
        "where the data is generated (500 at most), else none; 0 = none: the test puzzles choose, which is said beside the number",
        low=0,
    )
    by_difficulty: bool = _key(False, "trm.evaluate: the scores by how hard puzzles are, as their task measures it")
    max_variants: int | None = _key(
        32,
        "variants that vote on a puzzle, of a task where each has an identifier of its own; null = all, which trm.evaluate takes "
        "unless it is told",
        low=1,
    )
    blank_identifiers: bool = _key(
        False, "trm.evaluate: ask the variants of such a task without saying which one it is: what the identifiers are worth"
    )
    votes: str = _key(
        "checkpoint",
        "of such a task: votes of the evaluated checkpoint, or of all evaluations of the run up to it (as the released code)",
        choices=("checkpoint", "run"),
    )
    best_by: str = _key(
        EXACT, "score by which the best checkpoint is chosen: exact, or one of the task's own (optimal, one_path)", changes=NOTHING
    )


# Who answers for the candidates of a puzzle (trm/inference/selection.py)
SELECTIONS = ("last", "vote", "mode", "best_q", "residual", "halt_first", "resample")


@dataclass
class InferenceConfig:
    """What is done with a trained model: symmetric copies x restarts x rollouts of D supervision steps, and who of them answers."""

    name: str = _key("standard", "name of the way")
    copies: int = _key(1, "symmetric copies of a puzzle; the first is the puzzle itself", low=1, high=1024)
    restarts: int = _key(1, "starts of the latents: the model's own, and others drawn at random (EqR)", low=1, high=2048)
    rollouts: int = _key(1, "rollouts of each start, which inference.noise tells apart", low=1, high=2048)
    noise: float = _key(
        0.0, "std of the normal noise that is added to the answer latent before every supervision step (PTRM)", low=0, high=100
    )
    supervision_steps: int | None = _key(
        None, "supervision steps D of a candidate; null = recursion.n_sup, as in training", low=1, high=16384
    )
    early_exit: bool = _key(
        False,
        "a row whose candidate halts takes the next candidate, and the answer of then counts; halt_first does so in any case, and "
        "residual and resample cannot",
    )
    selection: str = _key(
        "last",
        "which candidate answers: last = the only one; vote = the grid of most, the surest among equals; mode = the same, the "
        "first among equals; best_q = the largest halting logit; residual = the least change of the logits (EqR); halt_first = in "
        "a race of all, the first that halts; resample = best_q of candidates that are drawn anew after every step by their "
        "halting probability (guided exploration)",
        choices=SELECTIONS,
    )
    window: int = _key(3, "residual: last supervision steps whose change counts", low=1, high=1024)
    beta: float = _key(0.25, "resample: power of the halting probability by which candidates are drawn", low=0, high=1000)
    seed: int = _key(0, "seed of starts, noise and resampling", low=0, high=2**31 - 1)
    ladder: list[str] = _key(
        [], "trm.evaluate: options of inference that are run one after the other and compared", changes=NOTHING
    )

    @property
    def particles(self) -> int:
        """Candidates of each copy."""
        return self.restarts * self.rollouts

    @property
    def candidates(self) -> int:
        """Candidates of a puzzle."""
        return self.copies * self.particles

    @property
    def is_random(self) -> bool:
        """Whether random numbers are drawn for it."""
        return self.restarts > 1 or self.noise > 0 or self.selection == "resample"

    @property
    def exits_early(self) -> bool:
        """Whether a row that halts takes the next candidate."""
        return self.early_exit or self.selection == "halt_first"

    @property
    def in_step(self) -> bool:
        """Whether the selection compares candidates that have done equally many supervision steps."""
        return self.selection in ("residual", "resample")

    @property
    def rows_together(self) -> int:
        """Rows that have to be in one batch, since what one does depends on the others."""
        return {"halt_first": self.candidates, "resample": self.particles}.get(self.selection, 1)


@dataclass
class Config:
    """One run. Every command that builds a model starts from this."""

    model: ModelConfig = field(default_factory=ModelConfig)
    recursion: RecursionConfig = field(default_factory=RecursionConfig)
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig, metadata={"changes": RESULTS})
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata={"changes": NOTHING})
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"changes": NOTHING})
    recipe: RecipeConfig = field(default_factory=RecipeConfig, metadata={"changes": NOTHING})
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata={"changes": RESULTS})
    inference: InferenceConfig = field(default_factory=InferenceConfig, metadata={"changes": RESULTS})
    run_name: str = _key(MISSING, "name of the run and of its folder under outputs/", changes=NOTHING)
    seed: int = _key(0, "seed of weights, data order and exploration", low=0, high=2**31 - 1)

    @property
    def is_random(self) -> bool:
        """Whether the model draws random numbers in evaluation, beside those of `inference`."""
        return draws_numbers(self.latents, self.recursion)

    @property
    def eval_batch_size(self) -> int:
        """Rows of one evaluation batch over all devices."""
        return self.evaluate.batch_size or self.train.global_batch_size

    @property
    def inference_steps(self) -> int:
        """Supervision steps of a candidate in an evaluation."""
        return self.inference.supervision_steps or self.recursion.n_sup


class _Switch(BooleanNode):
    """A boolean written as a word; omegaconf alone would take every number but 0 for true."""

    def _validate_and_convert_impl(self, value: Any) -> bool:
        if str(value).lower() not in ("true", "false", "on", "off", "yes", "no"):
            raise ValidationError("'$VALUE' is neither true nor false (on, off, yes and no are understood too)")
        return super()._validate_and_convert_impl(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Switch":
        copy = _Switch()
        self._deepcopy_impl(copy, memo)
        return copy


def imported_task(task: str) -> Any:
    """The class that MODULE:CLASS names, from the current folder too. Raises ConfigError where it is no task."""
    module, _, name = task.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"data.task={task} cannot be imported ({reason}): write it as MODULE:CLASS") from error
    settings = getattr(found, "settings", None)
    if not (isinstance(found, type) and isinstance(settings, type) and issubclass(settings, DataConfig)):
        raise ConfigError(f"data.task={task} is no task: name a class that is derived from trm.tasks.base.Task")
    common = keys_of(DataConfig, known=False)
    if taken := [key for key, item in keys_of(settings).items() if key in common and item.default != common[key].default]:
        raise ConfigError(f"data.task={task} has a setting {taken[0]} of its own, and all tasks have data.{taken[0]}: rename it")
    return found


def task_settings(task: str) -> type[DataConfig]:
    """The data settings of a task, which is imported where it is outside the package. Raises ConfigError where there is none."""
    if task not in TASKS:
        if ":" not in task:
            raise ConfigError(f"data.task={task} is unknown: choose one of {', '.join(sorted(TASKS))}, or write MODULE:CLASS")
        TASKS[task] = imported_task(task).settings
        role.cache_clear()
        text_kind.cache_clear()
    return TASKS[task]


def data_settings(plain: Mapping[str, Any]) -> DataConfig:
    """The data settings that a run saved, not checked."""
    return task_settings(plain["task"])(**plain)


def default_config(data: Mapping[str, Any]) -> Config:
    """The schema's defaults, for the task that these data settings name."""
    return Config(data=task_settings(data.get("task", TASK))())


def without_others(data: Mapping[str, Any]) -> dict[str, Any]:
    """Data settings without the keys that only other tasks have."""
    own, all_ = keys_of(task_settings(data.get("task", TASK))), keys_of(DataConfig)
    return {key: value for key, value in data.items() if key in own or key not in all_}


def of_other_tasks(key: str) -> str | None:
    """Why a task does not take a key that only others have; None where no task has it."""
    group, _, name = key.partition(".")
    owners = [f"data.task={task}" for task, settings in TASKS.items() if group == "data" and name in keys_of(settings)]
    return f"{key} is a setting of {' and '.join(owners)} alone: leave it out, or choose such puzzles" if owners else None


def keys_of(group: Any, *, known: bool = True) -> dict[str, dataclasses.Field[Any]]:
    """The keys of a group by name, those of all tasks in the data group where they are `known`; none of what is no group."""
    kinds = [group, *(TASKS.values() if known and group is DataConfig else ())]
    return {item.name: item for kind in kinds if dataclasses.is_dataclass(kind) for item in dataclasses.fields(kind)}


def _composed_data() -> Any:
    """The data settings while Hydra composes, which task they are of not being known yet: with the keys of all of them.

    The value of such a key says that it was not given, and leads to the default that its task has.
    """
    common, all_ = keys_of(DataConfig, known=False), keys_of(DataConfig)
    own = [(key, Any, field(default=_not_given(key))) for key in all_ if key not in common]
    return dataclasses.make_dataclass("DataConfig", own, bases=(DataConfig,))()


def _not_given(key: str) -> str:
    return f"${{trm_default:${{.task}},{key}}}"


def _default_of(task: str, key: str) -> Any:
    """The default of a task's own key; None of another task's."""
    return getattr(task_settings(task)(), key, None)


def _schema(data: Any) -> DictConfig:
    """The schema as omegaconf checks it, with these data settings."""
    defaults: Any = Config(data=data)
    for group in filter(dataclasses.is_dataclass, vars(defaults).values()):
        for item in dataclasses.fields(group):
            if item.type is bool:
                setattr(group, item.name, _Switch(getattr(group, item.name), is_optional=False))
    return cast(DictConfig, OmegaConf.structured(defaults))


def register_schema() -> None:
    """Make the schema known to Hydra: conf/config.yaml names it first, so that composing checks every key and type."""
    ConfigStore.instance().store(name="schema", node=_schema(_composed_data()))
    OmegaConf.register_new_resolver("trm_default", _default_of, replace=True)
    OmegaConf.register_new_resolver("trm_times", _times, replace=True)
    OmegaConf.register_new_resolver("trm_part", _part, replace=True)
    OmegaConf.register_new_resolver("trm_over", lambda value, by: _times(value, 1 / by), replace=True)


def _part(name: str, value: float | None) -> str:
    """A setting as part of a folder's name; nothing where it is null."""
    return "" if value is None else f"_{name}{float(value):g}"


def _times(value: float, *factors: float) -> float:
    """A recipe's value times its ratios; a whole number stays one."""
    product = value * math.prod(factors)
    return round(product) if isinstance(value, int) else float(f"{product:.12g}")  # 3e-4, not 0.00030000000000000003


def from_composed(composed: DictConfig) -> Config:
    """The typed, validated settings of a composed config.

    Raises ConfigError (and omegaconf's own errors, which trm/cli.py reports the same way) with one line for the user.
    """
    from trm.config.checks import validate  # which reads this module

    kind, given = task_settings(OmegaConf.select(composed, "data.task") or TASK), dict(composed.items_ex(resolve=False))
    if isinstance(given.get("data"), DictConfig):
        data = {key: node for key, node in given["data"].items_ex(resolve=False) if node != _not_given(key)}
        for key in data.keys() - keys_of(kind).keys():
            if reason := of_other_tasks(f"data.{key}"):
                raise ConfigError(reason)
        composed = OmegaConf.create({**given, "data": data})
    typed = OmegaConf.merge(_schema(kind()), composed)
    cfg = cast(Config, OmegaConf.to_object(typed))
    for name, group in vars(cfg).items():
        for item in dataclasses.fields(group) if dataclasses.is_dataclass(group) else ():
            if item.metadata.get("path") and (given := getattr(group, item.name)):
                setattr(group, item.name, local_path(f"{name}.{item.name}", given))
    validate(cfg)
    return cfg


def all_keys(node: type = Config, prefix: str = "") -> list[str]:
    """Every key of the schema with dots, groups included."""
    keys = []
    for item in keys_of(node).values():
        keys.append(prefix + item.name)
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            keys += all_keys(item.type, f"{prefix}{item.name}.")
    return keys


@functools.cache
def role(key: str) -> str:
    """What a key changes, group keys such as "model.mixer" and unknown ones included: NUMBERS, RESULTS, PLACE or NOTHING."""
    group, _, name = key.partition(".")
    outer = Config.__dataclass_fields__.get(group)
    inner = keys_of(outer.type).get(name) if outer else None
    found = (inner and inner.metadata.get("changes")) or (outer and outer.metadata.get("changes")) or NUMBERS
    return str(found)


def local_path(key: str, given: str) -> str:
    """A path as it was given, with the home folder in the place of a leading ~; `key` names it in errors.

    Raises ConfigError where it is an address of some storage, of which a path would make a local folder.
    """
    if re.match(r"[A-Za-z][\w+.-]*://", given):
        raise ConfigError(f"{key}={given} is an address, and only this machine's files are read and written: mount it or copy it")
    path = os.path.expanduser(given)
    if path.startswith("~") and path == given:
        raise ConfigError(f"{key}={given}: there is no such user: write the folder out, or ./{given}")
    return path


class TextKind(enum.Enum):
    """What a key whose value is text takes beside it."""

    PLAIN = "text alone: null is a word"
    OPTIONAL = "text, or null for none"
    LIST = "a list of texts"


# Of Hydra's own keys, those whose value is text; what conf/hydra/launcher hands on to Slurm and Ray has no type there.
HYDRA_TEXTS = (
    "run.dir", "sweep.dir", "sweep.subdir", "job.name", "sweeper.score", "sweeper.direction", "launcher.submitit_folder",
    "launcher.name", "launcher.gres", "launcher.partition", "launcher.qos", "launcher.account", "launcher.constraint",
    "launcher.exclude", "launcher.comment", "launcher.address",
)  # fmt: skip
CHOICES = ("experiment", "sweep")  # groups that are no part of the schema


@functools.cache
def text_kind(key: str) -> TextKind | None:
    """How the value of a key is text; None where it is a number, a truth value or a group of keys. Names of options are text."""
    if key in CHOICES or key.partition(".")[0] == "defaults" or key.removeprefix("hydra.") in HYDRA_TEXTS:
        return TextKind.OPTIONAL
    if key.startswith("hydra.sweeper.params."):  # the words of overrides
        return TextKind.PLAIN
    found: Any = Config
    for part in key.split("."):
        fields = keys_of(found)
        if part not in fields:
            return None
        found = fields[part].type
    if dataclasses.is_dataclass(found):  # the name of an option
        return TextKind.OPTIONAL
    return {str: TextKind.PLAIN, str | None: TextKind.OPTIONAL, list[str]: TextKind.LIST}.get(found)


def load_yaml(path: Path, package: str = "") -> DictConfig:
    """The settings in a file, not checked yet: those of the keys under `package`, "" = of the whole config.

    Text is as it stands there (run_name: 2026_11_30). Raises ConfigError where the file cannot be read as settings.
    """
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        _as_written(node, package)
        found = OmegaConf.create(yaml.serialize(node, Dumper=yaml.SafeDumper) if node else {})
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not readable as YAML ({error}): mend it, or replace it by an unharmed copy") from error
    if not isinstance(found, DictConfig):
        raise ConfigError(f"{path}: holds no settings: it must be KEY: VALUE lines")
    return found


def _as_written(node: yaml.Node | None, key: str) -> None:
    """Have the scalars of a YAML tree that the schema calls text read as text, whatever they look like."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            _as_written(value, f"{key}.{name.value}" if key else str(name.value))
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            if isinstance(entry, yaml.MappingNode) or key == "defaults" or text_kind(key) == TextKind.LIST:
                _as_written(entry, key)
    elif isinstance(node, yaml.ScalarNode) and (kind := text_kind(key)) is not None:
        null = node.tag == "tag:yaml.org,2002:null"
        if not null or (kind != TextKind.OPTIONAL and node.value.lower() == "null"):
            node.tag, node.style = "tag:yaml.org,2002:str", node.style or "'"


def unknown_keys(composed: DictConfig) -> list[str]:
    """Keys of a composed config that the schema does not have (Hydra's +KEY=VALUE can add such)."""
    found = []
    for key, value in composed.items_ex(resolve=False):
        group = str(key)
        if group not in Config.__dataclass_fields__:
            found += _leaves(group, value)
        elif isinstance(value, DictConfig):
            known = keys_of(Config.__dataclass_fields__[group].type)
            found += [f"{group}.{name}" for name in map(str, value) if name not in known]
    return found


def _leaves(key: str, value: Any) -> list[str]:
    if not isinstance(value, DictConfig) or not value:
        return [key]
    return [leaf for name, inner in value.items_ex(resolve=False) for leaf in _leaves(f"{key}.{name!s}", inner)]


def to_plain(cfg: Config) -> dict[str, Any]:
    """The settings as plain JSON-ready containers."""
    return dataclasses.asdict(cfg)


def from_plain(plain: dict[str, Any], source: str) -> Config:
    """The settings saved by `to_plain`, checked again; `source` names the file in error messages."""
    try:
        return from_composed(OmegaConf.create(plain))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
