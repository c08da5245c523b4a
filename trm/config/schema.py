"""The schema of every config group, and the one place where settings are validated.

Hydra composes `conf/` against these dataclasses, so an unknown key or a wrong type is refused while composing; `validate`
then checks ranges and combinations. Below this border the code sees only these dataclasses, never a DictConfig.
Units are in the names (`_steps`, `_s`); ranges and one line of documentation stand beside each key as field metadata.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, BooleanNode, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from trm.errors import ConfigError, holds_secret

SAMPLE_PUZZLES = 10_000  # of an evaluation during training, where evaluate.max_puzzles does not say it
IGNORE_LABEL = -100  # label of a cell that does not count, in batches
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
) -> Any:
    """A dataclass field with its documentation and its range (`low`/`high` inclusive, `above`/`below` exclusive)."""
    return field(
        default=default,
        metadata={"doc": doc, "choices": choices, "low": low, "high": high, "above": above, "below": below},
    )


@dataclass
class ModelConfig:
    """The network of SPEC.md "Network": two-block mixer used for every latent update."""

    mixer: str = _key("mlp", "how tokens are mixed", choices=("mlp", "attention"))
    hidden_size: int = _key(512, "width D of tokens and latents", low=2, high=65536)
    num_layers: int = _key(2, "blocks in the network", low=1, high=256)
    num_heads: int = _key(8, "attention heads (attention mixer)", low=1, high=1024)
    expansion: float = _key(4.0, "SwiGLU expansion; width = round(expansion*in*2/3) up to a multiple of 256", above=0, high=64)
    positions: str = _key("none", "position encoding", choices=("none", "learned", "rope"))
    rope_theta: float = _key(10000.0, "base of the rotary frequencies", above=0)
    rms_norm_eps: float = _key(1e-5, "epsilon of the RMS norms", above=0, below=1)
    puzzle_emb_ndim: int = _key(512, "dimensions of one puzzle's embedding; 0 = none", low=0, high=1048576)
    puzzle_emb_len: int = _key(16, "tokens of the puzzle prefix; 0 = as many as puzzle_emb_ndim needs", low=0, high=4096)
    separate_networks: bool = _key(False, "ablation: one network for z_L (f_L) and another for z_H (f_H)")
    loss: str = _key("stablemax", "cross-entropy over the cells", choices=("stablemax", "softmax"))

    @property
    def prefix_len(self) -> int:
        """Tokens that the puzzle embedding takes before the cells; 0 without a puzzle embedding."""
        if self.puzzle_emb_ndim == 0:
            return 0
        return self.puzzle_emb_len or -(self.puzzle_emb_ndim // -self.hidden_size)


@dataclass
class Phase:
    """An early part of a run that recurses less deeply."""

    until: float = _key(MISSING, "share of the run at which the phase ends", above=0, below=1)
    T: int = _key(MISSING, "recursion.T of the phase", low=1, high=1024)
    n: int = _key(MISSING, "recursion.n of the phase", low=1, high=1024)


@dataclass
class RecursionConfig:
    """Latent recursion, deep supervision and halting (paper sections 4 and 5)."""

    variant: str = _key("trm", "name of a recursion registered in trm/core/recursion.py")
    T: int = _key(3, "latent recursions per supervision step; all but the last run without gradient", low=1, high=1024)
    n: int = _key(6, "updates of z_L per latent recursion", low=1, high=1024)
    n_sup: int = _key(16, "most supervision steps per puzzle (N_sup)", low=1, high=1024)
    halt_exploration_prob: float = _key(0.1, "chance per row and step that a minimum number of steps is drawn", low=0, high=1)
    act_continue: bool = _key(False, 'the paper\'s "w/ ACT": a continue loss from an extra forward pass')
    curriculum: list[Phase] = field(
        default_factory=list,
        metadata={"doc": "phases before the full depth, `[{until: 0.3, T: 1, n: 2}]`: training starts with a shallower recursion"},
    )
    supervision_decay: float = _key(
        1.0, "weight of a supervision step's loss against that of the step before; 1 = all alike", above=0, high=1
    )


@dataclass
class EmaConfig:
    """Exponential moving average of the weights, used for evaluation."""

    enabled: bool = _key(True, "keep an EMA and evaluate with it")
    rate: float = _key(0.999, "share of the old average kept per step", low=0, below=1)


@dataclass
class OptimizerConfig:
    """AdamATan2, AdamW or Muon for the weights, sign-SGD for the puzzle embedding."""

    name: str = _key(
        "adam_atan2",
        "update rule of the weights; muon is for the blocks' matrices, with adam_atan2 for the rest",
        choices=("adam_atan2", "adamw", "muon"),
    )
    lr: float = _key(1e-4, "learning rate after warm-up", above=0, high=10)
    weight_decay: float = _key(1.0, "decoupled decay: p *= 1 - lr*weight_decay", low=0, high=1000)
    beta1: float = _key(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = _key(0.95, "decay of the second moment", low=0, below=1)
    eps: float = _key(1e-8, "epsilon of adamw (adam_atan2 has none)", above=0, below=1)
    momentum: float = _key(0.95, "Nesterov momentum of muon", low=0, below=1)
    clip_grad_norm: float | None = _key(None, "largest norm of all gradients together, longer ones are scaled; null = any", above=0)
    warmup_steps: int = _key(2000, "steps of linear warm-up; step 1 has lr/warmup_steps", low=0)
    schedule: str = _key("constant", "learning rate after warm-up", choices=("constant", "cosine"))
    lr_min_ratio: float = _key(1.0, "cosine: last learning rate as a share of lr", low=0, high=1)
    puzzle_emb_lr: float = _key(1e-4, "learning rate of the puzzle embedding", low=0, high=10)
    puzzle_emb_weight_decay: float = _key(1.0, "decay of the puzzle embedding", low=0, high=1000)


@dataclass
class DataConfig:
    """Which puzzles, how many, and where the dataset folder is."""

    name: str = _key(MISSING, "name of the dataset, part of its folder's name")
    task: str = _key("sudoku", "kind of puzzle: a folder of trm/tasks")
    source: str = _key("csv", "csv files, or generated here", choices=("csv", "generated"))
    box_rows: int = _key(3, "rows of a Sudoku box", low=1, high=5)
    box_cols: int = _key(3, "columns of a Sudoku box", low=1, high=5)
    path: str = _key(MISSING, "the dataset folder (train/ and test/)")
    train_csv: str | None = _key(None, "csv of training puzzles: source,question,answer,rating")
    test_csv: str | None = _key(None, "csv of test puzzles")
    num_puzzles: int = _key(1000, "training puzzles, drawn from the source with data.seed", low=1)
    num_test_puzzles: int | None = _key(None, "test puzzles; null = all of a csv, 1000 of a generator", low=1)
    num_aug: int = _key(
        0, "augmented variants of each training puzzle stored on disk (0 = augment on the fly)", low=0, high=1000000
    )
    on_the_fly_aug: int = _key(
        1000, "augmented variants of each puzzle that the loader draws from when none are stored", low=0, high=1000000
    )
    seed: int = _key(0, "seed of the dataset: choice of puzzles, generation, augmentation", low=0, high=2**31 - 1)

    @property
    def side(self) -> int:
        """Cells along one side of the grid."""
        return self.box_rows * self.box_cols


@dataclass
class HardwareConfig:
    """The machine: backend, devices, number formats."""

    name: str = _key(MISSING, "name of the machine type")
    backend: str = _key("xla", "torch_xla, or torch without it", choices=("xla", "eager", "inductor"))
    platform: str = _key("cpu", "what the devices are", choices=("cpu", "tpu", "cuda"))
    num_hosts: int = _key(1, "hosts (processes) that run one job together", low=1, high=4096)
    devices_per_host: int = _key(1, "devices of each host", low=1, high=256)
    dtype: str = _key("float32", "forward dtype", choices=("float32", "bfloat16", "float64"))
    loss_dtype: str = _key("float64", "dtype of the cross-entropy", choices=("float32", "float64"))
    compile_cache: str | None = _key(None, "folder for compiled graphs kept between runs (TPU only); null = none")
    placement: str | None = _key(
        None,
        "part of the machine that one job gets; null = all of it (pod), or in a sweep on a TPU one chip",
        choices=("chip", "host", "pod"),
    )
    jobs: int = _key(1, "jobs of a sweep side by side on one host (CPU and CUDA; on a TPU the placement says it)", low=1, high=256)

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
    """Where metrics go besides metrics.jsonl."""

    wandb: str = _key("auto", "W&B mode; auto = online with a key, else offline", choices=("auto", "online", "offline", "disabled"))
    tensorboard: bool = _key(True, "write TensorBoard event files")
    project: str = _key("trm-scaling-study", "W&B project")
    entity: str | None = _key(None, "W&B entity (team or user)")
    group: str | None = _key(None, "W&B group; the sweep's name in a sweep")
    tags: list[str] = field(default_factory=list, metadata={"doc": "W&B tags"})
    notes: str | None = _key(None, "W&B notes")
    job_type: str = _key("train", "W&B job type")
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

    max_steps: int | None = _key(None, "steps to train; null = from epochs", low=1)
    epochs: int = _key(50000, "passes over the training puzzles (used when max_steps is null)", low=1)
    global_batch_size: int = _key(768, "rows of one step over all devices", low=1, high=16777216)
    log_every_steps: int = _key(100, "fetch and log metrics", low=1)
    eval_every_steps: int | None = _key(5000, "evaluate; null = only at the end", low=1)
    checkpoint_every_steps: int | None = _key(2500, "save; null = only at the end", low=1)
    keep_checkpoints: int = _key(3, "newest checkpoints kept, beside the best", low=1)
    resume: str = _key("auto", "auto = go on from the run folder's newest checkpoint", choices=("auto", "never"))
    progress: str = _key("auto", "progress bar; auto = on a terminal", choices=("auto", "on", "off"))
    profile_steps: list[int] = field(
        default_factory=list,
        metadata={"doc": "first and last step of a trace for TensorBoard or Perfetto, in RUN/profile", "low": 1},
    )


@dataclass
class EvaluateConfig:
    """Evaluation during and after training."""

    batch_size: int | None = _key(None, "rows of one evaluation batch over all devices; null = train.global_batch_size", low=1)
    max_puzzles: int | None = _key(
        None,
        f"test puzzles of an evaluation; null = all, but during training a sample of {SAMPLE_PUZZLES:,} (the last one takes all)",
        low=1,
    )
    early_exit: bool = _key(False, "a row that halts takes the next puzzle; its answer of then counts")
    supervision_steps: list[int] = field(
        default_factory=list,
        metadata={"doc": "trm.evaluate: accuracy against compute, after so many supervision steps each", "low": 1, "high": 1024},
    )
    augmentations: int = _key(1, "trm.evaluate: symmetric copies of a puzzle that vote on its answer; 1 = none", low=1, high=64)


@dataclass
class Config:
    """One run. Every command that builds a model starts from this."""

    model: ModelConfig = field(default_factory=ModelConfig)
    recursion: RecursionConfig = field(default_factory=RecursionConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    run_name: str = _key(MISSING, "name of the run and of its folder under outputs/")
    seed: int = _key(0, "seed of weights, data order and exploration", low=0, high=2**31 - 1)

    @property
    def eval_batch_size(self) -> int:
        """Rows of one evaluation batch over all devices."""
        return self.evaluate.batch_size or self.train.global_batch_size


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


def _schema() -> DictConfig:
    """The schema as omegaconf checks it."""
    defaults: Any = Config()
    for group in filter(dataclasses.is_dataclass, vars(defaults).values()):
        for item in dataclasses.fields(group):
            if item.type is bool:
                setattr(group, item.name, _Switch(getattr(group, item.name), is_optional=False))
    return cast(DictConfig, OmegaConf.structured(defaults))


def register_schema() -> None:
    """Make the schema known to Hydra: conf/config.yaml names it first, so that composing checks every key and type."""
    ConfigStore.instance().store(name="schema", node=_schema())
    OmegaConf.register_new_resolver("trm_times", _times, replace=True)
    OmegaConf.register_new_resolver("trm_over", lambda value, by: _times(value, 1 / by), replace=True)


def _times(value: float, *factors: float) -> float:
    """A recipe's value times its ratios; a whole number stays one."""
    product = value * math.prod(factors)
    return round(product) if isinstance(value, int) else float(f"{product:.12g}")  # 3e-4, not 0.00030000000000000003


def from_composed(composed: DictConfig) -> Config:
    """The typed, validated settings of a composed config.

    Raises ConfigError (and omegaconf's own errors, which trm/cli.py reports the same way) with one line for the user.
    """
    typed = OmegaConf.merge(_schema(), composed)
    cfg = cast(Config, OmegaConf.to_object(typed))
    validate(cfg)
    return cfg


def all_keys(node: type = Config, prefix: str = "") -> list[str]:
    """Every key of the schema with dots, groups included."""
    keys = []
    for item in dataclasses.fields(node):
        keys.append(prefix + item.name)
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            keys += all_keys(item.type, f"{prefix}{item.name}.")
    return keys


def load_yaml(path: Path) -> DictConfig:
    """The settings in a file, not checked yet. Raises ConfigError where it cannot be read as such."""
    try:
        found = OmegaConf.load(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not readable as YAML ({error}): mend it, or replace it by an unharmed copy") from error
    if not isinstance(found, DictConfig):
        raise ConfigError(f"{path}: holds no settings: it must be KEY: VALUE lines")
    return found


def unknown_keys(composed: DictConfig) -> list[str]:
    """Keys of a composed config that the schema does not have (Hydra's +KEY=VALUE can add such)."""
    found = []
    for key, value in composed.items_ex(resolve=False):
        group = str(key)
        if group not in Config.__dataclass_fields__:
            found.append(group)
        elif isinstance(value, DictConfig):
            known = getattr(Config.__dataclass_fields__[group].type, "__dataclass_fields__", {})
            found += [f"{group}.{name}" for name in map(str, value) if name not in known]
    return found


def to_plain(cfg: Config) -> dict[str, Any]:
    """The settings as plain JSON-ready containers."""
    return dataclasses.asdict(cfg)


def from_plain(plain: dict[str, Any], source: str) -> Config:
    """The settings saved by `to_plain`, checked again; `source` names the file in error messages."""
    try:
        return from_composed(OmegaConf.create(plain))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def validate(cfg: Config) -> None:
    """Check ranges and combinations. Pure; raises ConfigError naming the key, its value and the fix."""
    _check_ranges(cfg, "")
    model, hardware = cfg.model, cfg.hardware
    if model.mixer == "attention":
        if model.hidden_size % model.num_heads:
            raise ConfigError(
                f"model.num_heads={model.num_heads} does not divide model.hidden_size={model.hidden_size}: choose a divisor"
            )
        if model.positions == "rope" and (model.hidden_size // model.num_heads) % 2:
            raise ConfigError(
                f"model.positions=rope needs an even head size, but model.hidden_size/model.num_heads = "
                f"{model.hidden_size // model.num_heads}: change model.num_heads"
            )
    elif model.positions == "rope":
        raise ConfigError("model.positions=rope works on attention only: set model.mixer=attention or model.positions=none")
    if model.puzzle_emb_ndim == 0 and model.puzzle_emb_len:
        raise ConfigError(
            f"model.puzzle_emb_len={model.puzzle_emb_len} needs model.puzzle_emb_ndim above 0: set model.puzzle_emb_len=0"
        )
    if model.prefix_len * model.hidden_size < model.puzzle_emb_ndim:
        raise ConfigError(
            f"model.puzzle_emb_ndim={model.puzzle_emb_ndim} does not fit in model.puzzle_emb_len={model.puzzle_emb_len} tokens of "
            f"{model.hidden_size}: raise model.puzzle_emb_len to {-(model.puzzle_emb_ndim // -model.hidden_size)} or set it to 0"
        )
    if round(model.expansion * min(model.hidden_size, cfg.data.side**2 + model.prefix_len) * 2 / 3) < 1:
        raise ConfigError(f"model.expansion={model.expansion} leaves the SwiGLU no width: raise it")
    _check_batch("train.global_batch_size", cfg.train.global_batch_size, hardware.num_devices)
    if cfg.evaluate.batch_size is not None:
        _check_batch("evaluate.batch_size", cfg.evaluate.batch_size, hardware.num_devices)
    profiled = cfg.train.profile_steps
    if profiled and (len(profiled) != 2 or profiled[0] > profiled[1]):
        raise ConfigError(f"train.profile_steps={profiled}: give the first and the last step, such as train.profile_steps=[10,13]")
    evaluate = cfg.evaluate
    if evaluate.early_exit + bool(evaluate.supervision_steps) + (evaluate.augmentations > 1) > 1:
        raise ConfigError(
            "evaluate.early_exit, evaluate.supervision_steps and evaluate.augmentations are three ways to evaluate: choose one "
            "(the curve of evaluate.supervision_steps tells the accuracy with early exit too)"
        )
    if hardware.platform == "tpu" and (hardware.backend != "xla" or "float64" in (hardware.dtype, hardware.loss_dtype)):
        raise ConfigError(
            "hardware.platform=tpu needs hardware.backend=xla, hardware.dtype=bfloat16 or float32 and hardware.loss_dtype=float32"
        )
    if hardware.compile_cache is not None and hardware.platform != "tpu":
        raise ConfigError(
            f"hardware.compile_cache={hardware.compile_cache}: torch_xla loads compiled graphs again on a TPU only: set it to null"
        )
    if hardware.backend != "xla" and hardware.num_devices > 1:
        raise ConfigError(
            f"hardware.backend={hardware.backend} runs on one device: set hardware.devices_per_host=1 and hardware.num_hosts=1"
        )
    if hardware.backend == "xla" and hardware.platform == "cuda":
        raise ConfigError("hardware.platform=cuda runs without torch_xla: set hardware.backend=inductor or eager")
    if cfg.tracking.artifact != "none" and cfg.tracking.wandb == "disabled":
        raise ConfigError(
            f"tracking.artifact={cfg.tracking.artifact} is an upload to W&B, which is off: choose tracking=auto, wandb or offline"
        )
    parts = cfg.run_name.split("/")
    if {"", ".", ".."} & set(parts) or not cfg.run_name.isprintable() or any(len(os.fsencode(part)) > 200 for part in parts):
        raise ConfigError(f"run_name={cfg.run_name!r} is no name for a folder under outputs/: choose letters, digits, - and _")
    if not cfg.data.path:
        raise ConfigError("data.path is empty: name the dataset's folder")
    if cfg.data.num_puzzles * (cfg.data.num_aug + 1) > LARGEST_COUNT:
        raise ConfigError(
            f"data.num_puzzles={cfg.data.num_puzzles} in {cfg.data.num_aug + 1} variants are too many rows: lower data.num_aug"
        )
    if hardware.dtype == "float64" and hardware.loss_dtype != "float64":
        raise ConfigError("hardware.dtype=float64 needs hardware.loss_dtype=float64")
    if cfg.data.source == "generated" and (cfg.data.train_csv or cfg.data.test_csv):
        raise ConfigError("data.train_csv and data.test_csv are for data.source=csv: remove them or choose another data=")
    if not 2 <= cfg.data.side <= 25:
        raise ConfigError(f"data.box_rows*data.box_cols={cfg.data.side}: the grid's side must be 2 to 25")
    ends = [phase.until for phase in cfg.recursion.curriculum]
    if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
        raise ConfigError(
            f"recursion.curriculum: they end at {ends} of the run: give each phase a later `until` than the one before"
        )
    if cfg.recursion.variant != RecursionConfig.variant:  # importing torch takes seconds, which commands without a model save
        from trm.core.recursion import VARIANTS

        if cfg.recursion.variant not in VARIANTS:
            raise ConfigError(f"recursion.variant={cfg.recursion.variant} is unknown: choose one of {', '.join(VARIANTS)}")
        latent_names = VARIANTS[cfg.recursion.variant].latent_names
        if any(latent_names(phase.n) != latent_names(cfg.recursion.n) for phase in cfg.recursion.curriculum):
            raise ConfigError(
                f"recursion.curriculum: recursion.variant={cfg.recursion.variant} has other latents with another n: give every "
                f"phase n={cfg.recursion.n}"
            )


def _check_ranges(node: Any, path: str) -> None:
    for item in dataclasses.fields(node):
        key, value = path + item.name, getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, key + ".")
            continue
        if item.type == list[Phase]:
            for i, phase in enumerate(value):
                _check_ranges(phase, f"{key}[{i}].")
            continue
        if isinstance(value, list):
            entry_type, words, example = (int, "whole numbers", "[1,2]") if item.type == list[int] else (str, "words", "[a,b]")
            if not all(type(entry) is entry_type for entry in value):
                raise ConfigError(f"{key}={value} is not a list of {words}: write {key}={example}")
        _check_text(key, value)
        for entry in value if isinstance(value, list) else [value]:
            if entry is not None:
                _check_range(key, entry, item.metadata)


def _check_range(key: str, value: Any, rule: Mapping[str, Any]) -> None:
    if rule.get("choices") and value not in rule["choices"]:
        raise ConfigError(f"{key}={value} is not one of {', '.join(rule['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} is not a finite number")
    for name, wrong, words in (
        ("low", operator.lt, "at least"),
        ("high", operator.gt, "at most"),
        ("above", operator.le, "above"),
        ("below", operator.ge, "below"),
    ):
        bound = rule.get(name)
        if bound is not None and wrong(value, bound):
            raise ConfigError(f"{key}={value} is out of range: it must be {words} {bound:g}")
    if isinstance(value, int) and value > LARGEST_COUNT:
        raise ConfigError(f"{key}={value} is out of range: it must be at most {LARGEST_COUNT}")


def _check_text(key: str, value: Any) -> None:
    """Text must come back as it is from the files that keep it: YAML, JSON and names of folders."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and holds_secret(text):
            raise ConfigError(f"{key} holds the W&B key, and settings are written to files: leave it in the environment alone")
        if isinstance(text, str) and ("${" in text or text == "???" or any("\ud800" <= c <= "\udfff" or c == "\0" for c in text)):
            raise ConfigError(f"{key}={text} cannot be kept in a config file: leave out ${{, ??? and characters that are not UTF-8")


def _check_batch(key: str, batch: int, num_devices: int) -> None:
    if batch % num_devices:
        raise ConfigError(f"{key}={batch} does not divide over {num_devices} devices: use {nearest_batches(batch, num_devices)}")


def nearest_batches(batch: int, num_devices: int) -> str:
    """The batches nearest to this one that divide over the devices, as words."""
    low = batch // num_devices * num_devices
    return " or ".join(str(v) for v in (low, low + num_devices) if v)


def total_steps(cfg: Config, num_train_puzzles: int) -> int:
    """Optimizer steps of the run: train.max_steps, or as many full batches as train.epochs give (SPEC.md item 8)."""
    if cfg.train.max_steps is not None:
        return cfg.train.max_steps
    steps = cfg.train.epochs * num_train_puzzles // cfg.train.global_batch_size
    if steps == 0:
        raise ConfigError(
            f"train.epochs={cfg.train.epochs} of {num_train_puzzles} puzzles do not fill one batch of "
            f"train.global_batch_size={cfg.train.global_batch_size}: raise train.epochs or lower train.global_batch_size"
        )
    return steps


def numerics(plain: dict[str, Any]) -> dict[str, Any]:
    """Of a config made plain: the settings that change a run's numbers. Two runs that agree here compute the same thing.

    Left out: names, paths, tracking, intervals of logging and saving, and which and how many devices do the work.
    """
    left_out = ("task", "path", "train_csv", "test_csv", "num_test_puzzles")
    data = {k: v for k, v in plain["data"].items() if k not in left_out}
    return {
        **{group: plain[group] for group in ("model", "recursion", "ema", "optimizer")},
        "data": data,
        "hardware": {k: plain["hardware"][k] for k in ("dtype", "loss_dtype")},
        "train": {k: plain["train"][k] for k in ("max_steps", "epochs", "global_batch_size")},
        "seed": plain["seed"],
    }


def digest(cfg: Config) -> str:
    """Sixteen hexadecimal digits that stand for the config's `numerics`."""
    return hashlib.sha256(json.dumps(numerics(to_plain(cfg)), sort_keys=True).encode()).hexdigest()[:16]


def differences(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys in which two nested dicts differ, each as "KEY=there (there), here (here)"."""
    found = []
    for key in sorted(saved.keys() | current.keys()):
        there, here = saved.get(key), current.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            found += differences(there, here, f"{prefix}{key}.")
        elif there != here:
            found.append(f"{prefix}{key}={there} there, {here} here")
    return found


def resume_conflicts(saved: dict[str, Any], cfg: Config) -> list[str]:
    """Why a checkpoint with the plain config `saved` cannot be gone on with under `cfg`; empty where it can.

    The length of the run may change, unless the learning rate or the depth depends on it. Keys that the schema gained since then
    have their defaults.
    """
    there, here = numerics(_completed(saved, to_plain(Config()))), numerics(to_plain(cfg))
    if cfg.optimizer.schedule == "constant" and not cfg.recursion.curriculum:
        for side in (there, here):
            side["train"] = {"global_batch_size": side["train"]["global_batch_size"]}
    return differences(there, here)


def _completed(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The nested dict with what it lacks of `defaults`."""
    return {
        **defaults,
        **{k: _completed(v, defaults[k]) if isinstance(v, dict) and k in defaults else v for k, v in saved.items()},
    }
