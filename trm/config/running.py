"""The settings of a run around the network: data, machine, length, dashboards, and the ratios of its recipe."""

from dataclasses import dataclass

from omegaconf import MISSING

from trm.config.backends import BACKENDS, Backend, find_backend
from trm.config.keys import NOTHING, NUMBERS, PLACE, RESULTS, key
from trm.config.paper import TASK
from trm.errors import ConfigError


@dataclass
class DataConfig:
    """The puzzles, their number and the dataset folder. A subclass holds the keys that only one task has (TASKS)."""

    name: str = key(MISSING, "name of the dataset, part of its folder's name")
    task: str = key(TASK, "kind of puzzle: a folder of trm/tasks, or MODULE:CLASS of one outside the package")
    source: str = key("csv", "csv files, a generator, or ARC Prize's json files", choices=("csv", "generated", "json"))
    path: str = key(MISSING, "the dataset folder (train/ and test/)", changes=PLACE, path=True)
    train_csv: str | None = key(
        None, "csv (or csv.gz) of training puzzles: columns question, answer and, if needed, rating", changes=PLACE, path=True
    )
    test_csv: str | None = key(None, "csv of test puzzles", changes=PLACE, path=True)
    num_puzzles: int = key(1000, "training puzzles, drawn from the source with data.seed", low=1)
    num_test_puzzles: int | None = key(None, "test puzzles; null = all of a csv, or 1000 generated ones", low=1, changes=RESULTS)
    num_aug: int = key(0, "augmented variants of each training puzzle stored on disk (0 = augment on the fly)", low=0, high=1000000)
    on_the_fly_aug: int = key(1000, "variants of each puzzle that the loader draws from if none are stored", low=0, high=1000000)
    min_rating: float | None = key(None, "csv: lowest rating of a puzzle (the released builder's min_difficulty)", low=0)
    seed: int = key(0, "seed of the dataset: choice of puzzles, generation, augmentation", low=0, high=2**31 - 1)


@dataclass
class HardwareConfig:
    """The machine: backend, devices, number formats."""

    name: str = key(MISSING, "name of the machine type")
    backend: str = key(
        "xla", "what compiles and runs the step: inductor or eager (torch alone), xla (torch_xla), or another file of trm/backends"
    )
    platform: str = key("cpu", "what the devices are", choices=("cpu", "tpu", "cuda"))
    num_hosts: int = key(1, "hosts (processes) that run one job together", low=1, high=4096)
    devices_per_host: int = key(1, "devices of each host", low=1, high=256)
    num_devices: int | None = key(
        1,
        "devices of one job on torch's own backends, one process for each; null = as many as torchrun or srun starts, otherwise "
        "all GPUs of this machine, or two processes on a CPU",
        low=1,
        high=4096,
        changes=NOTHING,
    )
    dtype: str = key("float32", "forward dtype", choices=("float32", "bfloat16", "float64"), changes=NUMBERS)
    loss_dtype: str = key("float64", "dtype of the cross-entropy", choices=("float32", "float64"), changes=NUMBERS)
    attention: str = key(
        "auto",
        "how attention is computed; the result is the same. scores keeps all attention scores for the backward pass; fused "
        "(torch's kernels) and blocks (any backend) keep none. auto = fused with torch's kernels (on a CPU only in bfloat16 and "
        "over 256 tokens), otherwise blocks over 256 tokens and scores up to 256",
        choices=("auto", "scores", "fused", "blocks"),
    )
    token_multiple: int | None = key(
        None,
        "the token mixer pads with zeros to a multiple of this, with the same result; 1 = none; null = 8 on CUDA, otherwise 1",
        low=1,
        high=1024,
    )
    step_graph: bool = key(
        False, "CUDA: record the whole training step once and replay it as one graph, which makes small networks faster"
    )
    compile_cache: str | None = key(None, "TPU: folder that keeps compiled graphs between runs", changes=NOTHING, path=True)
    placement: str | None = key(
        None,
        "part of the machine that one job gets; null = the whole machine (pod), or one chip in a sweep on a TPU",
        choices=("chip", "host", "pod"),
        changes=NOTHING,
    )
    jobs: int = key(
        1,
        "jobs of a sweep that run at once on one host (on a TPU hardware.placement decides); auto (0) = as many as the GPUs hold",
        low=0,
        high=256,
        changes=NOTHING,
    )
    jobs_per_device: int = key(1, "jobs of a sweep that share a GPU", low=1, high=64, changes=NOTHING)

    @property
    def can(self) -> Backend:
        """What the backend can do."""
        found = find_backend(self.backend)
        if found is None:
            raise ConfigError(f"hardware.backend={self.backend} is not one of {', '.join(BACKENDS)}")
        return found

    @property
    def hosts(self) -> int:
        """Hosts of one job."""
        return self.num_hosts if self.placement in (None, "pod") else 1

    @property
    def processes(self) -> int:
        """Processes of one job: one on each of its hosts, on torch's own backends one for each device."""
        if self.can.ranks:
            return 1 if self.placement == "chip" else self.num_devices or 1
        return self.hosts

    @property
    def local_devices(self) -> int:
        """Devices of one of the job's processes."""
        return 1 if self.placement == "chip" else self.devices_per_host

    @property
    def devices(self) -> int:
        """Devices of the whole job."""
        return self.processes * self.local_devices


@dataclass
class TrackingConfig:
    """Where metrics go besides metrics.jsonl. "W&B's own" means its variables and its settings files (`wandb offline`)."""

    wandb: str = key(
        "auto",
        "W&B mode; auto = W&B's own, otherwise online with a key and offline without",
        choices=("auto", "online", "offline", "disabled"),
    )
    tensorboard: bool = key(True, "write TensorBoard event files")
    project: str | None = key(None, "W&B project; null = W&B's own (WANDB_PROJECT), else trm-scaling-study")
    entity: str | None = key(None, "W&B entity (team or user); null = W&B's own")
    group: str | None = key(None, "W&B group; null = W&B's own (WANDB_RUN_GROUP), else in a sweep the sweep's name")
    tags: list[str] = key([], "W&B tags; none = W&B's own (WANDB_TAGS)")
    notes: str | None = key(None, "W&B notes; null = W&B's own")
    job_type: str | None = key(None, "W&B job type; null = W&B's own (WANDB_JOB_TYPE), else train")
    artifact: str = key("none", "checkpoint that a completed run uploads to W&B as an artifact", choices=("none", "best", "last"))


@dataclass
class RecipeConfig:
    """Factors of the recipe's values, so that an experiment makes the same change at every size.

    A key that is set directly (optimizer.lr, train.max_steps, ...) is not multiplied.
    """

    name: str = key("paper", "the recipe that the values come from")
    lr_scale: float = key(1.0, "factor of optimizer.lr", above=0, high=1000)
    length_scale: float = key(1.0, "factor of train.epochs, or of train.max_steps", above=0, high=1000)
    batch_scale: float = key(1.0, "factor of train.global_batch_size; the number of samples stays the same", above=0, high=1000)
    data_scale: float = key(1.0, "factor of data.num_puzzles; each puzzle is seen equally often", above=0, high=1000)
    width_scale: float = key(1.0, "factor of model.hidden_size, model.num_heads and model.puzzle_emb_ndim", above=0, high=1000)


@dataclass
class TrainConfig:
    """Length of the run, and the steps at which it logs, evaluates and saves."""

    max_steps: int | None = key(None, "steps to train; null = from epochs", low=1, changes=NUMBERS)
    max_flops: float | None = key(
        None, "training FLOPs after which the run ends; it replaces max_steps and epochs", above=0, changes=NUMBERS
    )
    epochs: int = key(50000, "passes over the training puzzles, if max_steps and max_flops are null", low=1, changes=NUMBERS)
    global_batch_size: int = key(768, "rows of one step over all devices", low=1, high=16777216, changes=NUMBERS)
    log_every_steps: int = key(100, "steps between two logs of the metrics", low=1)
    eval_every_steps: int | None = key(5000, "steps between two evaluations; null = only at the end", low=1, changes=RESULTS)
    checkpoint_every_steps: int | None = key(2500, "steps between two checkpoints; null = only at the end", low=1)
    keep_checkpoints: int = key(3, "number of newest checkpoints that are kept, besides the best", low=1)
    init_from: str | None = key(
        None, "run or checkpoint whose weights a new run starts from; the rest of its state is new", changes=NUMBERS, path=True
    )
    trainable: str = key("all", "which weights are trained", choices=("all", "puzzle_embedding"), changes=NUMBERS)
    resume: str = key("auto", "auto = continue from the newest checkpoint; never = start again", choices=("auto", "never"))
    progress: str = key("auto", "progress bar; auto = on a terminal", choices=("auto", "on", "off"))
    profile_steps: list[int] = key([], "first and last step of a trace for TensorBoard or Perfetto, in RUN/profile", low=1)
