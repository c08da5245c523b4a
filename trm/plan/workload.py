"""What one run computes: abstract arguments of its steps, FLOPs counted from the graph, and the analytic count beside it.

Nothing is computed here: tensors are on the meta device, which has shapes and dtypes but no values.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from trm.config import Config, total_steps
from trm.core.curriculum import stages
from trm.core.metrics import METRICS
from trm.core.model import Architecture, Weights, architecture, init_fixed, num_parameters, swiglu_width
from trm.core.step import Batch, Carry, StepConfig, TrainState, empty_carry, eval_step, init_state, train_step
from trm.study.placement import place
from trm.tasks.base import task_of

T = TypeVar("T")

GENERATED_TEST_PUZZLES = 1000  # unless told otherwise


def architecture_of(cfg: Config) -> Architecture:
    """The architecture that the run would build from its dataset, derived from the settings: no dataset is needed."""
    return architecture(cfg, **task_of(cfg.data).facts.sizes)


def evaluation_puzzles(cfg: Config) -> tuple[int, bool]:
    """Puzzles of one evaluation, and whether that number is assumed rather than set."""
    known = cfg.data.num_test_puzzles or (GENERATED_TEST_PUZZLES if cfg.data.source == "generated" else None)
    hub = task_of(cfg.data).hub
    number = known or (hub[2] if hub else GENERATED_TEST_PUZZLES)
    if cfg.evaluate.max_puzzles is not None and cfg.evaluate.max_puzzles <= number:
        return cfg.evaluate.max_puzzles, False
    return number, known is None


# ------------------------------------------------------------------------------------------------------------------ arguments


class TrainArguments(NamedTuple):
    """Arguments of the compiled training step (trm/train.py)."""

    state: TrainState
    fixed: Weights
    batch: Batch


class EvalArguments(NamedTuple):
    """Arguments of the compiled evaluation step (trm/inference/evaluator.py)."""

    weights: Weights
    fixed: Weights
    puzzle_embedding: Tensor | None
    carry: Carry
    batch: Batch
    sums: Tensor


def to_meta(tree: T) -> T:
    """The tree with meta tensors of the same shapes and dtypes."""
    result: T = pytree.tree_map_only(Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype, device="meta"), tree)
    return result


def step_config(cfg: Config) -> StepConfig:
    """What the training step is compiled for."""
    return StepConfig(architecture_of(cfg), cfg.optimizer, cfg.ema.rate, total_steps(cfg, cfg.data.num_puzzles))


def train_arguments(cfg: Config) -> TrainArguments:
    """What the training step is called with, as meta tensors."""
    arch, rows = architecture_of(cfg), cfg.train.global_batch_size
    with FakeTensorMode():
        fixed = init_fixed(arch, cfg.seed)
        state = init_state(cfg, arch, fixed)
    batch = _batch(arch, rows) | {"min_steps": _int32(rows)}
    if place(cfg.hardware).processes > 1:
        batch["stop"] = _int32(rows)
    return TrainArguments(to_meta(state), to_meta(fixed), batch)


def eval_arguments(cfg: Config, arch: Architecture | None = None, rows: int | None = None) -> EvalArguments:
    """What the evaluation step is called with, as meta tensors; of the settings' own architecture and batch unless told others."""
    arch, rows = arch or architecture_of(cfg), rows or cfg.eval_batch_size
    with FakeTensorMode():
        fixed = init_fixed(arch, cfg.seed)
        state = init_state(cfg, arch, fixed)
        carry = empty_carry(arch, fixed, rows)
    sums = torch.empty(len(METRICS), dtype=arch.master_dtype, device="meta")
    weights = state.ema or state.weights
    return EvalArguments(
        to_meta(weights), to_meta(fixed), to_meta(state.puzzle_embedding), to_meta(carry), _batch(arch, rows), sums
    )


def _batch(arch: Architecture, rows: int) -> Batch:
    return {
        "inputs": _int32(rows, arch.seq_len),
        "labels": _int32(rows, arch.seq_len),
        "puzzle_identifiers": _int32(rows),
    }


def _int32(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def num_bytes(tree: Any) -> int:
    """Bytes of all tensors of a tree."""
    return sum(t.numel() * t.element_size() for t in pytree.tree_leaves(tree) if isinstance(t, Tensor))


# ---------------------------------------------------------------------------------------------------------------------- FLOPs


def count_train_flops(cfg: Config) -> int:
    """FLOPs of one training step over the global batch: the matrix products of the graph, a multiply-add counted as two."""
    with FlopCounterMode(display=False) as counter:
        train_step(step_config(cfg), *train_arguments(cfg))
    return int(counter.get_total_flops())


def count_eval_flops(cfg: Config) -> int:
    """FLOPs of one evaluation step (one supervision step of one evaluation batch), counted likewise."""
    return _count_eval_flops(architecture_of(cfg), eval_arguments(cfg))


def count_row_flops(cfg: Config, arch: Architecture) -> int:
    """FLOPs of one supervision step of one puzzle in evaluation, by a model that has been built."""
    return _count_eval_flops(arch, eval_arguments(cfg, arch, 1))


def _count_eval_flops(arch: Architecture, arguments: EvalArguments) -> int:
    with FlopCounterMode(display=False) as counter:
        eval_step(arch, *arguments)
    return int(counter.get_total_flops())


def passes(cfg: Config) -> tuple[int, int] | None:
    """Passes of the network in one supervision step (without gradient, with); None for a recursion that is not listed here."""
    T, n = cfg.recursion.T, cfg.recursion.n
    if cfg.recursion.variant in ("trm", "single_z", "multi_scale_z"):
        return (T - 1) * (n + 1), n + 1
    if cfg.recursion.variant == "one_step_gradient":
        return T * (n + 1) - 2, 2
    return None


def pass_flops(arch: Architecture) -> int:
    """FLOPs of one pass of the network over one row (SPEC.md "Network"): 2 for each weight and position that it meets."""
    model, D, L = arch.model, arch.model.hidden_size, arch.num_tokens
    channel = 2 * L * 3 * D * swiglu_width(D, model.expansion)
    tokens = 2 * D * 3 * L * swiglu_width(L, model.expansion)
    attention = 2 * L * 4 * D * D + 2 * 2 * L * L * D  # qkv and out; scores and weighted values
    return model.num_layers * (channel + (tokens if model.mixer == "mlp" else attention))


def analytic_train_flops(cfg: Config) -> int | None:
    """The count of SPEC.md ("about 43 GFLOP" a sample of the paper's setting): a pass with gradient costs three without.

    Norms, activations and the optimizer are left out, as in the counted figure. None where `passes` is.
    """
    counted = passes(cfg)
    if counted is None:
        return None
    arch, (without, with_gradient) = architecture_of(cfg), counted
    row = pass_flops(arch) * (without + 3 * with_gradient) + 3 * _head_flops(arch)
    if cfg.recursion.act_continue and cfg.recursion.n_sup > 1:
        row += pass_flops(arch) * (without + with_gradient) + _head_flops(arch)
    return row * cfg.train.global_batch_size


def analytic_eval_flops(cfg: Config) -> int | None:
    """The same for one evaluation step: every pass without gradient."""
    counted = passes(cfg)
    if counted is None:
        return None
    arch = architecture_of(cfg)
    return (pass_flops(arch) * sum(counted) + _head_flops(arch)) * cfg.eval_batch_size


def _head_flops(arch: Architecture) -> int:
    """lm_head on every token and q_head on one."""
    return 2 * arch.model.hidden_size * (arch.num_tokens * arch.vocab_size + 2)


# ------------------------------------------------------------------------------------------------------------------- workload


@dataclass(frozen=True)
class Workload:
    """What a run asks of a machine. FLOPs are over the global batch."""

    parameters: int
    global_batch: int
    train_steps: int
    train_flops: int  # of a step, the mean over the run
    analytic_train_flops: int | None
    eval_flops: int
    analytic_eval_flops: int | None
    eval_calls: int  # evaluation steps of the whole run
    evaluations: int
    test_puzzles: int
    test_puzzles_assumed: bool
    weight_bytes: int
    state_bytes: int  # weights, moments and EMA, on every chip
    carry_bytes: int  # over all chips
    gradient_bytes: int  # of one gradient in the weights' own dtype, what the chips must add up


def _mean_step(cfg: Config, flops: Callable[[Config], int | None]) -> int:
    """The mean over the run's steps of what a step costs, where a curriculum makes the first ones cheaper."""
    steps = total_steps(cfg, cfg.data.num_puzzles)
    parts = [(stage.stop - stage.start, replace(cfg, recursion=stage.recursion)) for stage in stages(cfg.recursion, steps)]
    return sum(length * (flops(part) or 0) for length, part in parts) // steps


def workload(cfg: Config) -> Workload:
    """Count what one run computes."""
    arguments, steps = train_arguments(cfg), total_steps(cfg, cfg.data.num_puzzles)
    state = arguments.state
    every = cfg.train.eval_every_steps
    evaluations = 1 if every is None else steps // every + (steps % every > 0)
    puzzles, assumed = evaluation_puzzles(cfg)
    batches = -(puzzles // -cfg.eval_batch_size)
    return Workload(
        parameters=num_parameters(architecture_of(cfg)),
        global_batch=cfg.train.global_batch_size,
        train_steps=steps,
        train_flops=_mean_step(cfg, count_train_flops),
        analytic_train_flops=None if passes(cfg) is None else _mean_step(cfg, analytic_train_flops),
        eval_flops=count_eval_flops(cfg),
        analytic_eval_flops=analytic_eval_flops(cfg),
        eval_calls=evaluations * batches * cfg.recursion.n_sup,
        evaluations=evaluations,
        test_puzzles=puzzles,
        test_puzzles_assumed=assumed,
        weight_bytes=num_bytes(state.weights),
        state_bytes=num_bytes((state.weights, state.m, state.v, state.ema, state.puzzle_embedding)),
        carry_bytes=num_bytes(state.carry),
        gradient_bytes=num_bytes((state.weights, state.puzzle_embedding)),
    )
