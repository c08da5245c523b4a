"""What one run asks of a machine: parameters, FLOPs, bytes and evaluations, from its settings alone."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from trm.config import LARGEST_COUNT, SAMPLE_PUZZLES, Config
from trm.core.architecture import Architecture, architecture
from trm.core.curriculum import stages
from trm.core.flops import count_eval_flops, count_train_flops, num_bytes, total_steps, train_arguments
from trm.core.initial import num_parameters
from trm.core.step import StepConfig
from trm.data.content import GENERATED_TEST_PUZZLES, SELECTION_PUZZLES
from trm.tasks.base import task_of


def architecture_of(cfg: Config) -> Architecture:
    """The architecture that the run would build from its dataset, derived from the settings: no dataset is needed."""
    return architecture(cfg, **task_of(cfg.data).facts.sizes)


def evaluation_puzzles(cfg: Config) -> tuple[int, int, bool]:
    """Puzzles of an evaluation during training and of the last one, and whether the latter is assumed rather than set.

    Of puzzles of pairs it is rows: test inputs, of a part of the puzzles as many as they have in the mean, each in its variants.
    """
    facts = task_of(cfg.data).facts
    if facts.test_rows is not None and facts.test_puzzles is not None:
        there = max(facts.test_puzzles, 1)
        inputs = math.ceil(facts.test_rows * min(cfg.evaluate.max_puzzles or there, there) / there)
        rows = inputs * min(1 + (cfg.data.num_aug or cfg.data.on_the_fly_aug), cfg.evaluate.max_variants or LARGEST_COUNT)
        return rows, rows, False
    known = cfg.data.num_test_puzzles or (GENERATED_TEST_PUZZLES if cfg.data.source == "generated" else None)
    hub, most = task_of(cfg.data).hub, cfg.evaluate.max_puzzles
    there = known or (hub.test_puzzles if hub else GENERATED_TEST_PUZZLES)
    last = min(there, most or there)
    return min(last, most or SAMPLE_PUZZLES), last, known is None and last == there


def planned_steps(cfg: Config) -> int:
    """Optimizer steps of the run."""
    rows_of_epoch = cfg.data.num_puzzles * task_of(cfg.data).facts.rows_of_puzzle
    return total_steps(cfg, architecture_of(cfg), rows_of_epoch)


def step_config(cfg: Config, steps: int | None = None) -> StepConfig:
    """What the training step is compiled for, in a run of so many steps; None = as many as it has."""
    steps = steps or planned_steps(cfg)
    return StepConfig(architecture_of(cfg), cfg.optimizer, cfg.ema.rate, steps, cfg.ema.start_step, cfg.train.trainable)


@dataclass(frozen=True)
class Workload:
    """What a run asks of a machine. FLOPs are over the global batch."""

    parameters: int
    global_batch: int
    train_steps: int
    train_flops: int  # of a step, the mean over the run
    eval_flops: int
    eval_calls: int  # evaluation steps of the whole run
    evaluations: int
    sample_puzzles: int  # of each but the last
    test_puzzles: int  # of the last
    test_puzzles_assumed: bool
    selection_puzzles: int  # of each beside
    weight_bytes: int
    state_bytes: int  # weights, moments and EMA, on every chip
    carry_bytes: int  # over all chips
    gradient_bytes: int  # of one gradient in the weights' own dtype, what the chips must add up
    table_rows_bytes: int  # what they must gather: the batch's rows of a larger puzzle embedding


def table_rows_bytes(table: Tensor | None, batch: int) -> int:
    """What the chips gather of a batch's rows of the puzzle embedding, [B, E], and of which are one puzzle's, [B, B].

    0 of a table that is no larger than the batch (trm/core/optim.py).
    """
    return 0 if table is None or len(table) <= batch else batch * (table.shape[1] + batch) * table.element_size()


def workload(cfg: Config) -> Workload:
    """Count what one run computes."""
    arch, steps = architecture_of(cfg), planned_steps(cfg)
    # a curriculum makes the first steps cheaper
    parts = [(stage.stop - stage.start, replace(cfg, recursion=stage.recursion)) for stage in stages(cfg.recursion, steps)]
    (state, _), _, _ = train_arguments(cfg, arch)
    batch, table = cfg.train.global_batch_size, state.puzzle_embedding  # of a large one the batch's rows alone are added up
    every = cfg.train.eval_every_steps
    evaluations = 1 if every is None else steps // every + (steps % every > 0)
    sample, puzzles, assumed = evaluation_puzzles(cfg)
    # those that choose the best checkpoint, in every evaluation that takes so many test puzzles (`selection_evaluator`)
    selection = min(cfg.data.num_test_puzzles or GENERATED_TEST_PUZZLES, SELECTION_PUZZLES)
    selection = min(selection, sample if (asked := cfg.evaluate.selection_puzzles) is None else asked)
    selection = selection if cfg.data.source == "generated" else 0
    rows = [number * cfg.inference.candidates for number in (sample, puzzles, selection)]
    batches, last_batches, beside = (-(number // -cfg.eval_batch_size) for number in rows)
    return Workload(
        parameters=num_parameters(arch),
        global_batch=batch,
        train_steps=steps,
        train_flops=sum(length * (count_train_flops(part, step_config(part, steps)) or 0) for length, part in parts) // steps,
        eval_flops=count_eval_flops(cfg, arch, cfg.eval_batch_size),
        eval_calls=((evaluations - 1) * batches + last_batches + evaluations * beside) * cfg.inference_steps,
        evaluations=evaluations,
        sample_puzzles=sample,
        test_puzzles=puzzles,
        test_puzzles_assumed=assumed,
        selection_puzzles=selection,
        weight_bytes=num_bytes(state.weights),
        state_bytes=num_bytes((state.weights, state.optimizer, state.ema, state.puzzle_embedding)),
        carry_bytes=num_bytes(state.carry),
        gradient_bytes=num_bytes((state.weights, None if table is None else table[:batch])),
        table_rows_bytes=table_rows_bytes(table, batch),
    )
