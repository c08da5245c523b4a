"""What a step computes: its arguments as abstract tensors, FLOPs counted from its graph, and the analytic count beside them.

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
from trm.core.attention import blocks
from trm.core.curriculum import Stage
from trm.core.metrics import evaluation_names, training_names
from trm.core.model import Architecture, Weights, init_fixed, swiglu_width
from trm.core.programs import Current, eval_program, train_program
from trm.core.step import Batch, Carry, StepConfig, empty_carry, eval_step, init_state

T = TypeVar("T")


# ------------------------------------------------------------------------------------------------------------------ arguments


class TrainArguments(NamedTuple):
    """Arguments of the compiled training step."""

    current: Current
    fixed: Weights
    batch: Batch


class EvalArguments(NamedTuple):
    """Arguments of the compiled evaluation step."""

    weights: Weights
    fixed: Weights
    puzzle_embedding: Tensor | None
    carry: Carry
    batch: Batch
    sums: Tensor


def train_arguments(cfg: Config, arch: Architecture, *, votes: bool = False) -> TrainArguments:
    """What the training step is called with, as meta tensors; with `votes`, as on several hosts, that to stop as well."""
    rows = cfg.train.global_batch_size
    with FakeTensorMode():
        fixed = init_fixed(arch, cfg.seed)
        state = init_state(cfg, arch, fixed)
    batch = _batch(arch, rows) | {name: _int32(rows) for name in (("min_steps", "stop") if votes else ("min_steps",))}
    sums = torch.empty(len(training_names()), dtype=arch.master_dtype, device="meta")
    return TrainArguments((_to_meta(state), sums), _to_meta(fixed), batch)


def eval_arguments(cfg: Config, arch: Architecture, rows: int) -> EvalArguments:
    """What the evaluation step is called with, as meta tensors."""
    with FakeTensorMode():
        fixed = init_fixed(arch, cfg.seed)
        state = init_state(cfg, arch, fixed)
        carry = empty_carry(arch, fixed, rows)
    sums = torch.empty(len(evaluation_names()), dtype=arch.master_dtype, device="meta")
    trees = _to_meta((state.ema or state.weights, fixed, state.puzzle_embedding, carry))
    return EvalArguments(*trees, _batch(arch, rows), sums)


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
    # as plain torch computes it: the counter does not know what backends put in its place
    arch = dataclasses.replace(arch, linear=F.linear, swiglu=None, compile_block=lambda blocks: blocks, num_devices=1)
    arguments = eval_arguments(cfg, arch, rows)
    if way.is_random:
        arguments.batch["rows"] = torch.empty(rows, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        eval_program(arch, way).function(*arguments)
    return int(counter.get_total_flops()) // rows


def passes(cfg: Config) -> tuple[int, int] | None:
    """Passes of the network in one supervision step (without gradient, with); None for a recursion that is not listed here."""
    T, n = cfg.recursion.T, cfg.recursion.n
    if cfg.recursion.variant in ("trm", "single_z", "multi_scale_z"):
        return (T - 1) * (n + 1), n + 1
    if cfg.recursion.variant == "one_step_gradient":
        return T * (n + 1) - 2, 2
    if cfg.recursion.variant == "single_state":
        return (T - 1) * n, n
    return None


def pass_flops(arch: Architecture) -> int:
    """FLOPs of one pass of the network over one row (SPEC.md "Network"): 2 for each weight and position that it meets."""
    model, D, L = arch.model, arch.model.hidden_size, arch.num_tokens
    channel = 2 * L * 3 * D * swiglu_width(D, model.expansion)
    tokens = 2 * D * 3 * L * swiglu_width(L, model.expansion)
    attention = 2 * L * 4 * D * D + 2 * 2 * L * L * D  # qkv and out; scores and weighted values
    return model.num_layers * (channel + (tokens if model.mixer == "mlp" else attention))


def analytic_train_flops(cfg: Config, arch: Architecture) -> int | None:
    """The count of SPEC.md ("about 43 GFLOP" a sample of the paper's setting): a pass with gradient costs three without.

    None where `passes` is.
    """
    counted = passes(cfg)
    if counted is None:
        return None
    without, with_gradient = counted
    if (copies := arch.latents.heads) > 1:  # all of them without gradient, then the winner's last latent recursion
        last = sum(counted) // cfg.recursion.T
        without = copies * sum(counted) + last - with_gradient
    row = pass_flops(arch) * (without + 3 * with_gradient) + (3 if copies == 1 else copies + 3) * _head_flops(arch)
    if cfg.recursion.act_continue and cfg.recursion.n_sup > 1:
        row += pass_flops(arch) * (without + with_gradient) + _head_flops(arch)
    return row * cfg.train.global_batch_size


def training_flops(cfg: Config, arch: Architecture, parts: Sequence[Stage], steps: int) -> int | None:
    """The same of the first `steps` steps of a run with these stages; None where `passes` is."""
    total = 0
    for part in parts:
        found = analytic_train_flops(dataclasses.replace(cfg, recursion=part.recursion), arch)
        if found is None:
            return None
        total += max(min(part.stop, steps) - part.start, 0) * found
    return total


def recomputed_train_flops(cfg: Config, arch: Architecture) -> int:
    """What a training step's graph has beyond the analytic count: attention in blocks makes its scores again for each gradient.

    0 of other attention, and where `passes` is None.
    """
    counted, L = passes(cfg), arch.num_tokens
    if counted is None or arch.model.mixer == "mlp" or arch.attend is not blocks:
        return 0
    return counted[1] * arch.model.num_layers * 2 * L * L * arch.model.hidden_size * cfg.train.global_batch_size


def analytic_eval_flops(cfg: Config, arch: Architecture) -> int | None:
    """The same for one evaluation step: every pass without gradient."""
    counted = passes(cfg)
    return None if counted is None else (pass_flops(arch) * sum(counted) + _head_flops(arch)) * cfg.eval_batch_size


def _head_flops(arch: Architecture) -> int:
    """lm_head on every token and q_head on one."""
    return 2 * arch.model.hidden_size * (arch.num_tokens * arch.vocab_size + 2)
