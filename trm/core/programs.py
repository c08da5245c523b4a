"""The steps as they are compiled: which of their results are split over the devices by rows, and whose memory they may take."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from trm.config import InferenceConfig
from trm.core.architecture import Architecture, Weights
from trm.core.candidates import change, resampled
from trm.core.metrics import Predictions, halting_logit, predictions
from trm.core.model import decode
from trm.core.step import Batch, Carry, StepConfig, TrainState, eval_step, train_step


class Program(NamedTuple):
    """The arguments of a runtime's `compile`."""

    function: Callable[..., Any]
    rows: Callable[[Any], Any]  # picks the results whose first axis is rows of the batch
    donate: int | None = None


Current = tuple[TrainState, Tensor]  # with sums [M] since the last log, in the order of trm.core.metrics.training_names


def train_program(cfg: StepConfig, *, in_place: bool = False) -> Program:
    """((state, sums), buffers, batch) -> (state, sums) in the memory of the old ones, which the step may change if `in_place`."""

    def training_step(current: Current, buffers: Weights, batch: Batch) -> Current:
        state, outputs = train_step(cfg, current[0], buffers, batch, in_place=in_place)
        return state, current[1] + outputs.sums

    return Program(training_step, lambda current: current[0].carry, donate=0)


ONE = InferenceConfig()  # one candidate of each puzzle


def eval_program(arch: Architecture, way: InferenceConfig = ONE) -> Program:
    """(weights, buffers, puzzle embedding, carry, batch) -> the carry, and the predictions of the rows, the candidates of `way`."""

    def evaluation_step(
        weights: Weights, buffers: Weights, puzzle_embedding: Tensor | None, carry: Carry, batch: Batch
    ) -> tuple[Carry, Predictions]:
        # the carry has the latents that the step before decoded
        before = decode(arch, weights, carry.latents[arch.latent_names[0]])[0] if way.selection == "residual" else None
        carry, out, values = eval_step(arch, weights, buffers, puzzle_embedding, carry, batch, way)
        if way.selection == "resample":
            carry = carry._replace(latents=resampled(way, carry.latents, out.q_halt, batch["rows"], carry.steps))
        moved = None if before is None else change(out.logits, before)
        halting = halting_logit(arch, out.q_halt, out.q_continue)
        own = Predictions(values, halting + 0, out.q_halt, change=moved)
        return carry, predictions(arch, out, own, way.candidates, batch.get("stop"))

    return Program(evaluation_step, lambda results: results[0])
