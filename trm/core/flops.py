"""What a step computes: its arguments as abstract tensors, and FLOPs counted from its graph.

Nothing is computed here: tensors are on the meta device, which has shapes and dtypes but no values. FLOPs are those of the matrix
products, a multiply-add counted as two; norms, activations and the optimizer are left out.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from trm.config import Config
from trm.core.architecture import Architecture, Weights
from trm.core.attention import scores
from trm.core.curriculum import Stage
from trm.core.initial import init_buffers, init_puzzle_embedding, weight_shapes
from trm.core.metrics import training_names
from trm.core.programs import Current, eval_program, train_program
from trm.core.recursion import Networks
from trm.core.step import Batch, Carry, StepConfig, TrainState, empty_carry, eval_step, init_state, loss_and_grads
from trm.ground.share import WHOLE

T = TypeVar("T")


# ------------------------------------------------------------------------------------------------------------------ arguments


class TrainArguments(NamedTuple):
    """Arguments of the compiled training step."""

    current: Current
    buffers: Weights
    batch: Batch


class EvalArguments(NamedTuple):
    """Arguments of the compiled evaluation step."""

    weights: Weights
    buffers: Weights
    puzzle_embedding: Tensor | None
    carry: Carry
    batch: Batch


def train_arguments(cfg: Config, arch: Architecture, *, votes: bool = False) -> TrainArguments:
    """What the training step is called with, as meta tensors; with `votes`, as on several hosts, that to stop as well."""
    rows = cfg.train.global_batch_size
    with FakeTensorMode():
        buffers = init_buffers(arch, cfg.seed)
        state = init_state(cfg, arch, buffers)
    batch = _batch(arch, rows) | {name: _int32(rows) for name in (("min_steps", "stop") if votes else ("min_steps",))}
    sums = torch.empty(len(training_names()), dtype=arch.master_dtype, device="meta")
    return TrainArguments((_to_meta(state), sums), _to_meta(buffers), batch)


def eval_arguments(cfg: Config, arch: Architecture, rows: int) -> EvalArguments:
    """What the evaluation step is called with, as meta tensors."""
    return EvalArguments(*_network(arch, cfg.seed, rows), _batch(arch, rows))


def _network(arch: Architecture, seed: int, rows: int, num_hypotheses: int = 1) -> tuple[Weights, Weights, Tensor | None, Carry]:
    """Weights, buffers, puzzle embedding and the carry of so many rows, as meta tensors."""
    weights = {name: torch.empty(shape, dtype=arch.master_dtype, device="meta") for name, shape in weight_shapes(arch).items()}
    with FakeTensorMode():
        buffers = init_buffers(arch, seed)
        others = buffers, init_puzzle_embedding(arch), empty_carry(arch, buffers, rows, num_hypotheses)
    return weights, *_to_meta(others)


def _to_meta(tree: T) -> T:
    result: T = pytree.tree_map_only(Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype, device="meta"), tree)
    return result


def _batch(arch: Architecture, rows: int) -> Batch:
    cells = {name: _int32(rows, arch.seq_len) for name in ("inputs", "labels")}
    return cells | {"puzzle_identifiers": _int32(rows)}


def _int32(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def num_bytes(tree: Any) -> int:
    """Bytes of all tensors of a tree."""
    return sum(t.nbytes for t in pytree.tree_leaves(tree) if isinstance(t, Tensor))


# ---------------------------------------------------------------------------------------------------------------------- FLOPs


def count_train_flops(cfg: Config, step: StepConfig) -> int:
    """FLOPs of one training step over the global batch, from the graph."""
    with FlopCounterMode(display=False) as counter:
        train_program(step).function(*train_arguments(cfg, step.arch))
    return int(counter.get_total_flops())


def count_eval_flops(cfg: Config, arch: Architecture, rows: int) -> int:
    """FLOPs of one supervision step of so many puzzles in evaluation, from the graph."""
    with FlopCounterMode(display=False) as counter:
        eval_step(arch, *eval_arguments(cfg, arch, rows))
    return int(counter.get_total_flops())


def count_row_flops(cfg: Config, arch: Architecture) -> int:
    """The same of one candidate of a puzzle, with what its `inference` adds."""
    rows, way = cfg.inference.particles, cfg.inference  # a group is whole
    arch = _as_plain_torch(arch)
    arguments = eval_arguments(cfg, arch, rows)
    if way.is_random:
        arguments.batch["rows"] = torch.empty(rows, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        eval_program(arch, way).function(*arguments)
    return int(counter.get_total_flops()) // rows


def network_flops(cfg: Config, step: StepConfig) -> int:
    """FLOPs of the network in one training step over the global batch: its passes, with and without gradient, and its heads.

    The optimizer is left out, and so is what a backend computes twice to save memory.
    """
    arch, rows = _as_plain_torch(step.arch), cfg.train.global_batch_size
    weights, buffers, table, carry = _network(arch, cfg.seed, rows, arch.latents.num_hypotheses)
    state = TrainState(weights, {}, {}, table, carry, _int32())
    with FlopCounterMode(display=False) as counter:
        loss_and_grads(dataclasses.replace(step, arch=arch), state, buffers, _batch(arch, rows) | {"min_steps": _int32(rows)})
    return int(counter.get_total_flops())


def stage_flops(cfg: Config, arch: Architecture, stage: Stage) -> int:
    """The same at the depth of one stage of the curriculum."""
    arch = dataclasses.replace(arch, recursion=stage.recursion)
    return network_flops(cfg, StepConfig(arch, cfg.optimizer, cfg.ema.rate, stage.stop, trainable=cfg.train.trainable))


def training_flops(cfg: Config, arch: Architecture, parts: Sequence[Stage], steps: int) -> int:
    """The same of the first `steps` steps of a run with these stages."""
    total = 0
    for part in parts:
        if count := max(min(part.stop, steps) - part.start, 0):
            total += count * stage_flops(cfg, arch, part)
    return total


def passes(arch: Architecture) -> tuple[int, int]:
    """Passes of the network in one supervision step, without gradient and with, counted as the variant makes them."""
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
    """Without what backends put in the place of plain torch, which the counter does not know, or would count twice."""
    plain: dict[str, Any] = {"linear": F.linear, "swiglu": None, "compile_block": lambda blocks: blocks, "attend": scores}
    plain |= {"token_multiple": 1, "share": WHOLE}  # zeros are not counted
    return dataclasses.replace(arch, **plain, num_devices=1, replicate_rows=lambda rows: rows)
