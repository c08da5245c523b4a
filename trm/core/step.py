"""The training step and the evaluation step: pure functions of tensors, the same for every ablation and every machine.

One training step = one supervision step = one optimizer update (docs/explanation/what_is_computed.md "One training step").
The carry survives batches, epochs and evaluations: rows that halted take the new batch's row, the others keep their own puzzle.

Shape legend: B rows of the global batch, K hypotheses (latents.num_hypotheses), C cells, L tokens, D hidden size, M metrics.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from trm.config import IGNORE_LABEL, Config, InferenceConfig, OptimizerConfig, RecursionConfig
from trm.core import parametrization
from trm.core.architecture import Architecture, Weights
from trm.core.candidates import prepared
from trm.core.initial import init_puzzle_embedding, init_weights, with_latents
from trm.core.losses import binary_cross_entropy
from trm.core.metrics import cross_entropy, halting_logit, row_metrics, training_sums, training_vector
from trm.core.model import FURTHER_PASSES, Output, decode, embed, forward, noise_of, recurse
from trm.core.optim import clip_gradients, learning_rate, norm, update_ema, update_puzzle_embedding
from trm.core.optimizers import OPTIMIZERS, Buffers
from trm.core.recursion import Latents
from trm.ground.hashing import Stream, hash64

# inputs [B, C], labels [B, C], puzzle_identifiers [B], min_steps [B] (training), stop [B] (several hosts); all int32.
# rows [B] int64 (evaluation): whose random numbers a row has; without it, those of its place in the batch.
Batch = dict[str, Tensor]


class Carry(NamedTuple):
    """The part of the state that a row takes from one supervision step to the next."""

    latents: Latents  # [B, L, D] each, forward dtype; in training with copies all but the answer [B, K, L, D]
    steps: Tensor  # [B] int32, supervision steps done on the row's puzzle
    halted: Tensor  # [B] bool
    inputs: Tensor  # [B, C] int32
    labels: Tensor  # [B, C] int32
    puzzle_identifiers: Tensor  # [B] int32


class TrainState(NamedTuple):
    """Everything that a training step changes, and all that must be saved to go on."""

    weights: Weights
    optimizer: Buffers  # of the update rule (trm/core/optimizers)
    ema: Weights  # empty where EMA is off
    puzzle_embedding: Tensor | None  # [I, E]
    carry: Carry
    step: Tensor  # scalar int32, updates done


@dataclass(frozen=True)
class StepConfig:
    """The constants of the training step's graph."""

    arch: Architecture
    optimizer: OptimizerConfig
    ema_rate: float
    total_steps: int
    ema_start: int = 0
    trainable: str = "all"  # or "puzzle_embedding" alone


class StepOutputs(NamedTuple):
    """What a step computes beside the new state. Training fetches none of it; parity tests and diagnosis do."""

    loss: Tensor  # scalar, divided by the global batch
    grads: Weights  # of `loss`
    logits: Tensor  # [B, C, V]
    q_halt: Tensor  # [B]
    sums: Tensor  # [M] of this step, in the order of trm.core.metrics.training_names, master dtype


def empty_carry(arch: Architecture, buffers: Weights, batch_size: int, num_hypotheses: int = 1) -> Carry:
    """The carry before the first batch: all rows have halted, so that each takes its puzzle from the batch."""
    starts = with_latents(arch, buffers, batch_size, torch.arange(batch_size), num_hypotheses=num_hypotheses)
    return Carry(
        latents={z: value.contiguous() for z, value in starts.items()},
        steps=torch.zeros(batch_size, dtype=torch.int32),
        halted=torch.ones(batch_size, dtype=torch.bool),
        inputs=torch.zeros(batch_size, arch.seq_len, dtype=torch.int32),
        labels=torch.full((batch_size, arch.seq_len), IGNORE_LABEL, dtype=torch.int32),
        puzzle_identifiers=torch.zeros(batch_size, dtype=torch.int32),
    )


def init_state(cfg: Config, arch: Architecture, buffers: Weights) -> TrainState:
    """The state before the first step, on the CPU."""
    weights = parametrization.scaled(cfg.optimizer, arch, init_weights(arch, cfg.seed))
    return TrainState(
        weights=weights,
        optimizer=OPTIMIZERS[cfg.optimizer.name].init(cfg.optimizer, weights),
        ema={name: w.clone() for name, w in weights.items()} if cfg.ema.enabled else {},
        puzzle_embedding=init_puzzle_embedding(arch),
        carry=empty_carry(arch, buffers, cfg.train.global_batch_size, arch.latents.num_hypotheses),
        step=torch.zeros((), dtype=torch.int32),
    )


def reset_carry(
    arch: Architecture, buffers: Weights, carry: Carry, batch: Batch, step: int | Tensor = 0, num_hypotheses: int = 1
) -> Carry:
    """Rows that halted take the batch's row and start over. The others keep theirs, and the batch's row is discarded.

    Random starts (latents.init=random) are those of `step`.
    """
    halted = carry.halted
    initial = with_latents(arch, buffers, halted.shape[0], batch.get("rows"), step, num_hypotheses)
    return Carry(
        latents={z: torch.where(halted.view(-1, *[1] * (start.ndim - 1)), start, carry.latents[z]) for z, start in initial.items()},
        steps=torch.where(halted, 0, carry.steps),
        halted=halted,
        inputs=torch.where(halted.view(-1, 1), batch["inputs"], carry.inputs),
        labels=torch.where(halted.view(-1, 1), batch["labels"], carry.labels),
        puzzle_identifiers=torch.where(halted, batch["puzzle_identifiers"], carry.puzzle_identifiers),
    )


def draw_min_steps(cfg: RecursionConfig, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Halting exploration of one step: the least number of supervision steps of each row, [B] int32; 0 = no minimum.

    With probability halt_exploration_prob it is drawn from {2..N_sup}. It is drawn on the host, so that it does not depend on the
    devices.
    """
    if cfg.n_sup == 1:
        return np.zeros(batch_size, dtype=np.int32)
    words = hash64(Stream.EXPLORATION, seed, step, np.arange(batch_size), np.arange(2)[:, None])  # [2, B]
    chance, least = (words >> np.uint64(11)) * 2.0**-53
    return np.where(chance < cfg.halt_exploration_prob, 2 + least * (cfg.n_sup - 1), 0).astype(np.int32)


def supervision_weights(recursion: RecursionConfig, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of the rows' losses, [B], in supervision step `steps` (from 1): decay^(steps - 1), scaled to a mean of 1.

    This is the hierarchical supervision weighting of arXiv 2511.08653, where the weights of the N_sup steps add up to 1.
    """
    decay, n_sup = recursion.supervision_decay, recursion.n_sup
    return decay ** (steps - 1).to(dtype) * (n_sup / sum(decay**t for t in range(n_sup)))


def winning_forward(
    arch: Architecture, weights: Weights, buffers: Weights, vectors: Tensor | None, carry: Carry, step: Tensor
) -> tuple[Output, Latents]:
    """Winner takes all (arXiv 2601.19085): all copies recurse, and the row gets the output of the one with the least cross-entropy.

    Only the winner's last latent recursion is repeated with gradient, so that a step keeps no more in memory than without copies.
    Returns the winner's output, and the latents for the carry: the winner's answer, and the other latents of each copy.
    """
    B, K, recursion = carry.halted.shape[0], arch.latents.num_hypotheses, arch.recursion
    answer = arch.latent_names[0]

    def copies(rows: Tensor) -> Tensor:  # [B, ...] -> [B * K, ...]
        return rows.unsqueeze(1).expand(B, K, *rows.shape[1:]).flatten(0, 1)

    x = embed(arch, weights, vectors, carry.inputs)
    noise = noise_of(arch, buffers, arch.share.places(B * K, carry.halted.device), step)
    with torch.no_grad():
        before = {z: copies(value) if z == answer else value.flatten(0, 1) for z, value in carry.latents.items()}
        if recursion.T > 1:
            before = recurse(arch, weights, buffers, before, copies(x), recursion.T - 1, noise)
        passes = 0 if noise is None else noise.passes
        after = recurse(arch, weights, buffers, before, copies(x), 1, noise)
        logits, _, _ = decode(arch, weights, after[answer])
        losses = cross_entropy(arch, logits, copies(carry.labels)).view(B, K)
        wins = torch.arange(K, device=losses.device) == losses.argmin(1, keepdim=True)  # [B, K]

    def of_winner(rows: Tensor) -> Tensor:  # [B * K, ...] -> [B, ...]; a gather would need rows of other devices
        rows = rows.view(B, K, *rows.shape[1:])
        return torch.where(wins.view(B, K, *[1] * (rows.ndim - 2)), rows, 0).sum(1, dtype=rows.dtype)

    if noise is not None:
        noise = noise_of(arch, buffers, of_winner(noise.rows), step, passes)
    latents = recurse(arch, weights, buffers, {z: of_winner(value) for z, value in before.items()}, x, 1, noise)
    others = {z: value.view(B, K, *value.shape[1:]) for z, value in after.items() if z != answer}
    return Output(latents, *decode(arch, weights, latents[answer])), {answer: latents[answer], **others}


def loss_and_grads(
    cfg: StepConfig, state: TrainState, buffers: Weights, batch: Batch
) -> tuple[tuple[Weights, tuple[Tensor, Tensor] | None], Carry, StepOutputs]:
    """Forward, halting, loss and gradients of one supervision step.

    A program computes its own rows. Sums over the global batch are exchanged once, here. Returns the gradients of loss / global
    batch (of the weights; of each row's puzzle vector [B, E] with its identifier [B], or None), the new carry and the outputs.
    """
    arch, recursion, halt_weight = cfg.arch, cfg.arch.recursion, cfg.arch.objective.halt_weight
    carry = reset_carry(arch, buffers, state.carry, batch, state.step, arch.latents.num_hypotheses)
    weights = state.weights
    if cfg.trainable == "all":
        weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    table = state.puzzle_embedding
    vectors = None if table is None else table[carry.puzzle_identifiers].detach().requires_grad_()
    steps = carry.steps + 1
    last = steps >= recursion.n_sup
    rows = arch.share.places(len(steps), steps.device)

    if arch.latents.num_hypotheses > 1:
        out, latents = winning_forward(arch, weights, buffers, vectors, carry, state.step)
    else:
        noise = noise_of(arch, buffers, rows, state.step)
        out = forward(arch, weights, buffers, vectors, carry.latents, carry.inputs, noise=noise)
        latents = out.latents
    latents = {z: value.detach() for z, value in latents.items()}
    halted = last
    if recursion.n_sup > 1:
        wants_halt = halting_logit(arch, out.q_halt, out.q_continue).detach() > 0
        halted = (last | wants_halt) & (steps >= batch["min_steps"])
    values = row_metrics(arch, out, carry.inputs, carry.labels, steps)
    halting_losses, lm_loss = values["q_halt_loss"], values["lm_loss"].sum()
    q_halt_loss, q_continue_loss = halting_losses.sum(), torch.zeros((), dtype=arch.master_dtype, device=lm_loss.device)
    if recursion.act_continue and recursion.n_sup > 1:
        with torch.no_grad():
            noise = noise_of(arch, buffers, rows, state.step, passes=FURTHER_PASSES)
            after = forward(arch, weights, buffers, vectors, latents, carry.inputs, noise=noise)
            best_next = torch.where(last, after.q_halt, torch.maximum(after.q_halt, after.q_continue))
        continue_losses = binary_cross_entropy(out.q_continue, torch.sigmoid(best_next))
        halting_losses, q_continue_loss = halting_losses + continue_losses, continue_losses.sum()
    batch_size = halted.shape[0] * arch.share.count
    loss = (lm_loss + halt_weight * (q_halt_loss + q_continue_loss)) / batch_size
    if recursion.supervision_decay != 1:
        row_losses = values["lm_loss"] + halt_weight * halting_losses
        loss = (supervision_weights(recursion, steps, arch.master_dtype) * row_losses).sum() / batch_size

    trained = weights if cfg.trainable == "all" else {}
    leaves = [*trained.values(), *([] if vectors is None else [vectors])]
    # detached, as the zeros for unused leaves come with requires_grad
    found = [grad.detach() for grad in torch.autograd.grad(loss, leaves, materialize_grads=True)]
    counted = halted & (carry.labels != IGNORE_LABEL).any(-1)
    local = dict(zip(trained, found, strict=False)), training_sums(values, counted, q_continue_loss, batch.get("stop")), loss
    of_vectors = None if vectors is None else (found[-1], carry.puzzle_identifiers)
    (grads, sums, loss), of_vectors = arch.share.exchange(pytree.tree_map(torch.detach, local), of_vectors)
    norms = [norm(grads) if grads else torch.zeros_like(lm_loss), norm(state.weights)]
    new_carry = Carry(latents, steps, halted, carry.inputs, carry.labels, carry.puzzle_identifiers)
    vector = training_vector(arch, sums, norms)
    return (grads, of_vectors), new_carry, StepOutputs(loss, grads, out.logits.detach(), out.q_halt.detach(), vector)


def train_step(
    cfg: StepConfig, state: TrainState, buffers: Weights, batch: Batch, *, in_place: bool = False
) -> tuple[TrainState, StepOutputs]:
    """One training step: the pure function (state, batch) -> (state, outputs) that every run compiles once.

    The gradients and norms of the outputs are those before clipping. With `in_place` a large puzzle embedding is changed in place.
    """
    (grads, of_vectors), carry, outputs = loss_and_grads(cfg, state, buffers, batch)
    step = state.step + 1
    t = step.to(cfg.arch.master_dtype)
    weights, moments, ema = state.weights, state.optimizer, state.ema
    if cfg.trainable == "all":
        grads = clip_gradients(grads, cfg.optimizer.clip_grad_norm)
        lr = learning_rate(cfg.optimizer.lr, t, cfg.optimizer, cfg.total_steps)
        weights, moments = parametrization.update(cfg.optimizer, cfg.arch, weights, moments, grads, t, lr)
        # up to ema_start the average is the weights
        rate = torch.where(step > cfg.ema_start, cfg.ema_rate, 0.0) if cfg.ema_start else cfg.ema_rate
        ema = update_ema(ema, weights, rate)
    table = state.puzzle_embedding
    if table is not None and of_vectors is not None:
        settings, rows = parametrization.puzzle_settings(cfg.optimizer, cfg.arch), cfg.arch.replicate_rows
        table = update_puzzle_embedding(settings, table, *of_vectors, t, cfg.total_steps, replicate_rows=rows, in_place=in_place)
    return TrainState(weights, moments, ema, table, carry, step), outputs


def eval_step(
    arch: Architecture,
    weights: Weights,
    buffers: Weights,
    puzzle_embedding: Tensor | None,
    carry: Carry,
    batch: Batch,
    way: InferenceConfig | None = None,
) -> tuple[Carry, Output, dict[str, Tensor]]:
    """One supervision step without training: the carry, in which no row has halted, the output, and the metrics of each row.

    Evaluation never halts early: it calls this N_sup times with the same batch and reads the last result. The rows are candidates
    of `way`, which may start them at random and add noise.
    """
    carry = reset_carry(arch, buffers, carry, batch)
    if way is not None and way.is_random:
        carry = carry._replace(latents=prepared(arch, way, carry.latents, batch["rows"], carry.steps))
    vectors = None if puzzle_embedding is None else puzzle_embedding[carry.puzzle_identifiers]
    rows = batch["rows"] if "rows" in batch else arch.share.places(len(carry.steps), carry.steps.device)
    noise = noise_of(arch, buffers, rows, carry.steps)
    out = forward(arch, weights, buffers, vectors, carry.latents, carry.inputs, noise=noise)
    no_halt = torch.zeros_like(carry.halted)
    new_carry = Carry(out.latents, carry.steps + 1, no_halt, carry.inputs, carry.labels, carry.puzzle_identifiers)
    return new_carry, out, row_metrics(arch, out, carry.inputs, carry.labels, carry.steps + 1)
