"""FLOPs of a step, counted from its graph, and the number of steps of a FLOP budget.

Nothing is computed here: tensors are on the meta device, which has shapes and dtypes but no values. FLOPs are those of the matrix
products, and a multiply-add counts as two; norms, activations and the optimizer are left out.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from trm.config import LARGEST_COUNT, Config
from trm.config import total_steps as steps_of_settings
from trm.core.architecture import Architecture, Weights
from trm.core.initial import init_buffers, init_puzzle_embedding, weight_shapes
from trm.core.metrics import training_names
from trm.core.programs import Current, eval_program, train_program
from trm.core.recursion import Networks, Stage, stages
from trm.core.step import Batch, Carry, StepConfig, empty_carry, eval_step, init_state, loss_and_grads
from trm.errors import ConfigError

T = TypeVar("T")


def train_arguments(cfg: Config, arch: Architecture, *, votes: bool = False) -> tuple[Current, Weights, Batch]:
    """The arguments of the training step as meta tensors; `votes` adds the batch's "stop", which several hosts have."""
    with FakeTensorMode():
        buffers = init_buffers(arch, cfg.seed)
        state = init_state(cfg, arch, buffers)
    batch = _batch(cfg.train.global_batch_size, arch.seq_len, "min_steps", *(("stop",) if votes else ()))
    sums = torch.empty(len(training_names()), dtype=arch.master_dtype, device="meta")
    return (_to_meta(state), sums), _to_meta(buffers), batch


def eval_arguments(cfg: Config, arch: Architecture, rows: int) -> tuple[Weights, Weights, Tensor | None, Carry, Batch]:
    """The arguments of the evaluation step as meta tensors: weights, buffers, puzzle embedding, carry and batch."""
    weights = {name: torch.empty(shape, dtype=arch.master_dtype, device="meta") for name, shape in weight_shapes(arch).items()}
    with FakeTensorMode():
        buffers = init_buffers(arch, cfg.seed)
        others = buffers, init_puzzle_embedding(arch), empty_carry(arch, buffers, rows)
    return weights, *_to_meta(others), _batch(rows, arch.seq_len)


def _to_meta(tree: T) -> T:
    result: T = pytree.tree_map_only(Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype, device="meta"), tree)
    return result


def _batch(rows: int, cells: int, *others: str) -> Batch:
    shapes = {"inputs": (rows, cells), "labels": (rows, cells)} | dict.fromkeys(("puzzle_identifiers", *others), (rows,))
    return {name: torch.empty(shape, dtype=torch.int32, device="meta") for name, shape in shapes.items()}


def num_bytes(tree: Any) -> int:
    """Bytes of all tensors of a tree."""
    return sum(t.nbytes for t in pytree.tree_leaves(tree) if isinstance(t, Tensor))


def _counted(function: Callable[..., Any], *arguments: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return int(counter.get_total_flops())


def count_train_flops(cfg: Config, step: StepConfig) -> int:
    """FLOPs of one training step over the global batch, from the graph."""
    return _counted(train_program(step).function, *train_arguments(cfg, step.arch))


def count_eval_flops(cfg: Config, arch: Architecture, rows: int) -> int:
    """FLOPs of one supervision step of `rows` puzzles in evaluation, from the graph."""
    return _counted(eval_step, arch, *eval_arguments(cfg, arch, rows))


def count_row_flops(cfg: Config, arch: Architecture) -> int:
    """FLOPs of one supervision step of one candidate of a puzzle, with what the way of inference adds."""
    rows, way = cfg.inference.particles, cfg.inference  # a group is whole
    arch = _as_plain_torch(arch)
    *model, batch = eval_arguments(cfg, arch, rows)
    if way.is_random:
        batch["rows"] = torch.empty(rows, dtype=torch.int64, device="meta")
    return _counted(eval_program(arch, way).function, *model, batch) // rows


def network_flops(cfg: Config, step: StepConfig) -> int:
    """FLOPs of the network in one training step over the global batch: its passes, with and without gradient, and its heads.

    The optimizer is left out, and so is whatever a backend computes twice to save memory.
    """
    arch = _as_plain_torch(step.arch)
    (state, _), buffers, batch = train_arguments(cfg, arch)
    return _counted(loss_and_grads, dataclasses.replace(step, arch=arch), state, buffers, batch)


def depth_flops(cfg: Config, arch: Architecture, T: int, n: int) -> int:
    """`network_flops` at the depth of a stage of the curriculum."""
    arch = dataclasses.replace(arch, recursion=dataclasses.replace(arch.recursion, T=T, n=n, curriculum=[]))
    return network_flops(cfg, StepConfig(arch, cfg.optimizer, cfg.ema.rate, total_steps=1, trainable=cfg.train.trainable))


def training_flops(cfg: Config, arch: Architecture, parts: Sequence[Stage], steps: int) -> int:
    """`network_flops` of the first `steps` steps of a run with these stages, added up."""
    return sum(
        (min(part.stop, steps) - part.start) * depth_flops(cfg, arch, part.recursion.T, part.recursion.n)
        for part in parts
        if part.start < steps
    )


def total_steps(cfg: Config, arch: Architecture, rows_of_epoch: float, count: Callable[..., int] = depth_flops) -> int:
    """Optimizer steps of the run. With train.max_flops it ends at the first step at which the counted FLOPs reach the budget.

    Schedule, warmup_share, curriculum and the last evaluation follow this number. summary.json has the count as `training_flops`.
    `count` is `depth_flops` or gives the same. Raises ConfigError where a budget is more steps than can be counted.
    """
    budget = cfg.train.max_flops
    if budget is None:
        return steps_of_settings(cfg, rows_of_epoch)
    cost = functools.cache(functools.partial(count, cfg, arch))  # of a step, by its T and n

    def spent(steps: int) -> int:
        parts = stages(cfg.recursion, steps)
        return sum((part.stop - part.start) * cost(part.recursion.T, part.recursion.n) for part in parts)

    steps = bisect.bisect_left(range(LARGEST_COUNT + 1), budget, lo=1, key=spent)
    if steps > LARGEST_COUNT:
        raise ConfigError(f"train.max_flops={budget:g} is more than {LARGEST_COUNT:,} steps of this run: lower it")
    return steps


def passes(arch: Architecture) -> tuple[int, int]:
    """Passes of the network in one supervision step, without gradient and with; counted while the variant runs."""
    calls = {False: 0, True: 0}

    def network(h: Tensor, u: Tensor) -> Tensor:
        calls[torch.is_grad_enabled()] += 1
        return u

    token = torch.empty(1, arch.num_tokens, arch.model.hidden_size, dtype=arch.dtype, device="meta")
    own = {name: torch.empty(w.shape, dtype=arch.master_dtype, device="meta") for name, w in arch.variant.weights(arch).items()}
    with torch.enable_grad():  # type: ignore[no-untyped-call]
        latents = dict.fromkeys(arch.latent_names, token)
        arch.variant.run(Networks(network, network, own), latents, token, arch.recursion.T, arch.recursion.n)
    return calls[False], calls[True]


def _as_plain_torch(arch: Architecture) -> Architecture:
    """Plain torch in the place of the backend's functions, which the counter does not know or would count twice."""
    names = ("linear", "swiglu", "compile_block", "replicate_rows", "attend", "token_multiple", "share", "num_devices")
    return dataclasses.replace(arch, **{name: getattr(Architecture, name) for name in names})
