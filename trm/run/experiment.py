"""The parts of a run: `build(cfg)` makes them and starts the devices. Training, benches and tests of the step start here."""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from trm.backends import Runtime, start
from trm.backends.machine import require_machine
from trm.config import Config, RecursionConfig
from trm.core.architecture import Architecture, Weights, architecture
from trm.core.flops import total_steps
from trm.core.initial import init_buffers
from trm.core.metrics import training_names
from trm.core.programs import Program, train_program
from trm.core.recursion import Stage, stages
from trm.core.step import StepConfig, TrainState, draw_min_steps, init_state
from trm.data.build import ensure_dataset
from trm.data.content import Content, as_read, examine
from trm.data.format import Dataset, load_dataset
from trm.data.loader import Host, TrainLoader
from trm.data.pairs import PairTrainLoader
from trm.errors import ConfigError
from trm.ground.rank import process_rank, require_ranks
from trm.tasks.base import task_of

T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """A run's settings, and its parts on this machine."""

    cfg: Config  # with the numbers of puzzles that the dataset folder has
    runtime: Runtime
    dataset: Dataset  # the training split
    loader: TrainLoader | PairTrainLoader
    arch: Architecture
    buffers: Weights  # on the CPU
    total_steps: int
    content: Content  # of the dataset folder

    @property
    def step_config(self) -> StepConfig:
        """The step at full depth."""
        cfg = self.cfg
        return StepConfig(self.arch, cfg.optimizer, cfg.ema.rate, self.total_steps, cfg.ema.start_step, cfg.train.trainable)

    @property
    def stages(self) -> list[Stage]:
        """The stages of the curriculum; a run without one has one stage."""
        return stages(self.cfg.recursion, self.total_steps)

    def program(self, recursion: RecursionConfig) -> Program:
        """The training step with a stage's recursion."""
        arch = dataclasses.replace(self.arch, recursion=recursion)
        return train_program(dataclasses.replace(self.step_config, arch=arch), in_place=self.runtime.can.in_place)

    def first_state(self) -> TrainState:
        """The state before the first step, on the CPU."""
        return init_state(self.cfg, self.arch, self.buffers)

    def to_device(self, state: TrainState) -> TrainState:
        """A state from the CPU on the devices. Each device has all of it, but only its own rows of the carry."""
        carry = self.runtime.shard(self.own_rows(state.carry))
        return self.runtime.replicate(state._replace(carry=None))._replace(carry=carry)  # type: ignore[arg-type]

    def sums(self, known: dict[str, Tensor] | None = None) -> Tensor:
        """Sums of the metrics on the devices, [M] in the order of `training_names`; unknown ones are zero."""
        zero = torch.zeros((), dtype=self.arch.master_dtype)
        sums: Tensor = self.runtime.replicate(torch.stack([(known or {}).get(name, zero) for name in training_names()]))
        return sums

    def host_batch(self, step: int, vote: int = 0) -> dict[str, Any]:
        """This process's rows of the batch of a 0-based step; if there are several processes, with its vote (STOP, FAILED)."""
        batch_size = self.cfg.train.global_batch_size
        min_steps = self.own_rows(draw_min_steps(self.cfg.recursion, self.cfg.seed, step, batch_size))
        batch = {**self.loader.batch(step), "min_steps": min_steps}
        if self.runtime.process_count > 1:
            batch["stop"] = np.full(len(min_steps), vote, dtype=np.int32)
        return batch

    def own_rows(self, tree: T) -> T:
        """This process's rows of arrays or tensors whose first axis is the global batch."""
        local = self.cfg.train.global_batch_size // self.runtime.process_count
        first = self.runtime.process_index * local
        rows: T = pytree.tree_map(lambda leaf: leaf[first : first + local], tree)
        return rows


def build(cfg: Config, runtime: Runtime | None = None) -> Experiment:
    """Load the data, start the devices (or take those of `runtime`), and make the network's buffers.

    The settings get the numbers of puzzles of the dataset folder. Raises ConfigError or DataError if settings, data and machine do
    not go together.
    """
    if runtime is None:
        require_machine(cfg.hardware)  # before a dataset is built; the devices, which take longer, are started after it
    path, task = ensure_dataset(cfg.data), task_of(cfg.data)
    dataset, test = (load_dataset(path, split, task) for split in ("train", "test"))
    cfg = dataclasses.replace(cfg, data=as_read(cfg.data, dataset, test))
    plain = architecture(cfg, **dataset.metadata.sizes)
    steps = total_steps(cfg, plain, dataset.rows_of_epoch)
    runtime = runtime or started(cfg)
    stream: dict[str, Any] = {"seed": cfg.seed, "data_seed": cfg.data.seed, "global_batch_size": cfg.train.global_batch_size}
    stream["host"] = Host(runtime.process_index, runtime.process_count)
    loader: TrainLoader | PairTrainLoader
    if dataset.pairs_task is None:
        loader = TrainLoader(dataset, on_the_fly_aug=cfg.data.on_the_fly_aug if cfg.data.num_aug == 0 else 0, **stream)
    else:
        loader = PairTrainLoader(dataset, **stream)
    content = examine(path, dataset, test, task)
    arch = on_devices(plain, runtime)
    return Experiment(cfg, runtime, dataset, loader, arch, init_buffers(arch, cfg.seed), steps, content)


def started(cfg: Config) -> Runtime:
    """Start the devices of the settings. Raises ConfigError if they and the environment count the processes differently."""
    require_ranks(cfg.hardware.name, cfg.hardware.processes, of_torch=cfg.hardware.can.ranks)
    runtime = start(cfg.hardware)
    rank, ranks = process_rank()
    if ranks > 1 and (rank, ranks) != (runtime.process_index, runtime.process_count):
        raise ConfigError(
            f"hardware={cfg.hardware.name}: the environment says that this is process {rank} of {ranks}, the devices say "
            f"{runtime.process_index} of {runtime.process_count}: start one process on each host, in the order of the hosts, with "
            "the hardware= that describes all of them"
        )
    return runtime


def on_devices(arch: Architecture, runtime: Runtime) -> Architecture:
    """The architecture with the functions that the devices use instead of plain torch."""
    own = {name: getattr(runtime, name) for name in ("linear", "swiglu", "compile_block", "replicate_rows", "share")}
    return dataclasses.replace(arch, **own, torch_kernels=runtime.can.torch_kernels)
