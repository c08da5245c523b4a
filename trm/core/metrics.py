"""What a step says of its rows: losses, correctness, sums for the log, and what is kept of a few rows to be shown.

Shape legend: B rows, C cells, V vocabulary, M metrics, K rows that are shown.
"""

from __future__ import annotations  # torch.compile cannot evaluate the annotations of nested functions

from typing import NamedTuple

import torch
from torch import Tensor

from trm.config import IGNORE_LABEL, RecursionConfig
from trm.core.losses import binary_cross_entropy, cell_cross_entropy, log_probabilities
from trm.core.model import Architecture, Output

# Sums over rows. Training counts the rows that halted in the step, evaluation every puzzle; losses are sums over `rows` rows.
# `nonfinite_steps` counts steps: those whose loss was not a finite number; `stop_votes` rows of hosts that want to stop, for
# whatever reason, `failure_votes` those of hosts that cannot go on (STOP, FAILED in a batch's "stop").
# The norms are sums over training steps: of the gradients of loss / global batch, and of the weights that they were taken at. As in
# the released code the puzzle embedding, which moves by signs, is none of the weights.
LOSS_TERMS = ("lm_loss", "q_halt_loss", "q_continue_loss")
HALTED_METRICS = ("count", "accuracy", "exact_accuracy", "q_halt_accuracy", "steps")
ROW_METRICS = (*HALTED_METRICS, "rows", *LOSS_TERMS, "nonfinite_steps", "stop_votes", "failure_votes")
NORMS = ("grad_norm", "weight_norm")
METRICS = (*ROW_METRICS, *NORMS)
STOP, FAILED = 1, 2
MOST_SAMPLES = 8  # puzzles of an evaluation that are shown


def wants_to_halt(recursion: RecursionConfig, q_halt: Tensor, q_continue: Tensor) -> Tensor:
    """Whether the model would stop here, [B] bool (SPEC.md "One training step" items 2 and 3)."""
    return q_halt > q_continue if recursion.act_continue else q_halt > 0


class RowResults(NamedTuple):
    """Results of one supervision step for each row, [B] each."""

    lm_loss: Tensor  # mean over the labelled cells
    q_halt_loss: Tensor
    accuracy: Tensor  # share of labelled cells that are right
    exact: Tensor  # bool, every labelled cell is right
    labelled: Tensor  # bool, the row has labelled cells (padding has none)


def cross_entropy(arch: Architecture, logits_BCV: Tensor, labels_BC: Tensor) -> Tensor:
    """The loss of each row's cells, [B], as the settings have it."""
    return cell_cross_entropy(logits_BCV, labels_BC, arch.model.loss, arch.loss_dtype, arch.objective.label_smoothing)


def row_results(arch: Architecture, out: Output, labels_BC: Tensor) -> RowResults:
    """Losses and correctness of each row."""
    labelled = labels_BC != IGNORE_LABEL
    right = labelled & (out.logits.argmax(-1) == labels_BC)
    num_labelled, num_right = labelled.sum(-1), right.sum(-1)
    exact = num_right == num_labelled
    return RowResults(
        lm_loss=cross_entropy(arch, out.logits, labels_BC),
        q_halt_loss=binary_cross_entropy(out.q_halt, exact),
        accuracy=num_right.to(arch.master_dtype) / num_labelled.clamp_min(1),
        exact=exact,
        labelled=num_labelled > 0,
    )


def sum_metrics(
    arch: Architecture,
    out: Output,
    rows: RowResults,
    steps: Tensor,
    counted: Tensor,
    losses: list[Tensor],
    in_losses: Tensor | None = None,
    stop: Tensor | None = None,
) -> Tensor:
    """The METRICS vector [M]: quantities of the rows in `counted` [B] bool, and sums of losses over `in_losses` (None = all).

    `losses` are the sums that LOSS_TERMS name. The norms are zero: they are known only after the gradients, and not in evaluation.
    """
    counted = counted & rows.labelled
    values = [
        counted,
        torch.where(counted, rows.accuracy, 0),
        counted & rows.exact,
        counted & ((out.q_halt >= 0) == rows.exact),
        torch.where(counted, steps, 0),
        torch.ones_like(steps) if in_losses is None else in_losses,
    ]
    dtype = arch.master_dtype
    loss = sum(losses[1:], losses[0])
    # torch_xla's isfinite compares with a float64 scalar, which a TPU has to emulate
    nonfinite = ~(loss.abs() < torch.full_like(loss, torch.inf))
    votes = [torch.zeros_like(losses[0]) if stop is None else (stop >= vote).sum() for vote in (STOP, FAILED)]
    totals = [value.sum() for value in values]
    sums = torch.stack([value.to(dtype) for value in (*totals, *losses, nonfinite, *votes)])
    return torch.nn.functional.pad(sums, (0, len(NORMS)))


def eval_metrics(
    arch: Architecture, out: Output, rows: RowResults, steps: Tensor, counted: Tensor, stop: Tensor | None = None
) -> Tensor:
    """The METRICS vector [M] of an evaluation: quantities and losses of the rows in `counted` [B] bool that have labels."""
    counted = counted & rows.labelled
    keep = counted.to(arch.master_dtype)
    losses = [(rows.lm_loss * keep).sum(), (rows.q_halt_loss * keep).sum()]
    return sum_metrics(arch, out, rows, steps, counted, [*losses, torch.zeros_like(losses[1])], in_losses=counted, stop=stop)


# what is kept of rows


class Shown(NamedTuple):
    """Answers for the first K rows of a batch, or the first K puzzles; with a leading axis [S] after each supervision step."""

    predictions: Tensor  # [K, C] int32
    confidence: Tensor  # [K, C] in the loss dtype
    q_halt: Tensor  # [K] `halting_logit`


def halting_logit(recursion: RecursionConfig, q_halt: Tensor, q_continue: Tensor) -> Tensor:
    """The logit that is above 0 where the model would stop by the rule of trm.core.step.wants_to_halt, [B]."""
    return q_halt - q_continue if recursion.act_continue else q_halt


def shown_rows(arch: Architecture, logits_BCV: Tensor, q_halt_B: Tensor, every: int = 1) -> Shown:
    """What is shown of a supervision step's answers: the first rows of the batch, at most MOST_SAMPLES, of puzzles with `every`
    candidates their first ones.

    `q_halt_B` is their `halting_logit`.
    """
    logits, q_halt_B = (rows[: every * MOST_SAMPLES : every] for rows in (logits_BCV, q_halt_B))
    predictions = logits.argmax(-1)
    log_shares = log_probabilities(logits.to(arch.loss_dtype), arch.model.loss)
    confidence = log_shares.gather(-1, predictions.unsqueeze(-1)).squeeze(-1).exp()
    return Shown(predictions.to(torch.int32), confidence, q_halt_B)


class RowTrace(NamedTuple):
    """What one supervision step says of every row; over the batches of a pass joined, and on the CPU, in a `Trace`."""

    exact: Tensor  # [B] bool
    halts: Tensor  # [B] bool, the model wants to stop
    q_halt: Tensor  # [B]
    accuracy: Tensor  # [B]
    lm_loss: Tensor  # [B]
    q_halt_loss: Tensor  # [B]
    change: Tensor | None  # [B] of the logits since the step before, where a selection asks for it
