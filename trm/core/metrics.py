"""What a step says of its rows: losses, correctness, sums for the log, and what is kept of a few rows to be shown.

To add a metric, register it in METRICS; nothing else has to know of it.

Shape legend: B rows, C cells, V vocabulary, M sums, K rows that are shown.
"""

from __future__ import annotations  # torch.compile cannot evaluate the annotations of nested functions

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trm.config import IGNORE_LABEL
from trm.core.architecture import Architecture
from trm.core.losses import binary_cross_entropy, cell_cross_entropy, log_probabilities
from trm.core.model import Output

STOP, FAILED = 1, 2  # in a batch's "stop": a host that wants to stop, one that cannot go on
MOST_SAMPLES = 8  # puzzles of an evaluation that are shown
LOSS_TERMS = ("lm_loss", "q_halt_loss", "q_continue_loss")
NORMS = ("grad_norm", "weight_norm")


class StepRows(NamedTuple):
    """What a metric may look at: one supervision step of the rows of a batch."""

    arch: Architecture
    out: Output
    inputs: Tensor  # [B, C]
    labels: Tensor  # [B, C]
    steps: Tensor  # [B] int32, supervision steps done on the row's puzzle, this one included
    labelled: Tensor  # [B, C] bool, cells that count
    right: Tensor  # [B, C] bool, labelled cells whose most probable token is the label
    exact: Tensor  # [B] bool, every labelled cell is right


@dataclass(frozen=True)
class Metric:
    """A number of each row, averaged over puzzles: in training over the rows that halted, in evaluation over the test puzzles.

    Registering one in METRICS is all that it takes: logs, metrics.jsonl, dashboards, summary, report and page name it by its key.

    Attributes:
        of: its value for each row, [B].
        every_row: training averages it over all rows rather than those that halted, as it does losses.
        shown: of a share of 1, whether the log of an evaluation, the report's tables and its page have it beside exact accuracy.
    """

    of: Callable[[StepRows], Tensor]
    every_row: bool = False
    shown: bool = False


def _accuracy(rows: StepRows) -> Tensor:
    return rows.right.sum(-1).to(rows.arch.master_dtype) / rows.labelled.sum(-1).clamp_min(1)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "exact_accuracy": Metric(lambda rows: rows.exact),
    "q_halt_accuracy": Metric(lambda rows: (rows.out.q_halt >= 0) == rows.exact),
    "steps": Metric(lambda rows: rows.steps),
    "lm_loss": Metric(lambda rows: cross_entropy(rows.arch, rows.out.logits, rows.labels), every_row=True),
    "q_halt_loss": Metric(lambda rows: binary_cross_entropy(rows.out.q_halt, rows.exact), every_row=True),
}


def training_names() -> tuple[str, ...]:
    """The sums of a training step in their order in a vector [M].

    Metrics are sums over the `count` rows that halted, those of `every_row` over all `rows`. `nonfinite_steps` counts steps whose
    loss was not finite, `stop_votes` rows of hosts that want to stop, `failure_votes` those of hosts that cannot go on. The norms
    are sums over steps: of the gradients of loss / global batch, and of the weights that they were taken at. As in the released
    code the puzzle embedding, which moves by signs, is none of the weights.
    """
    return ("count", *METRICS, "rows", "q_continue_loss", "nonfinite_steps", "stop_votes", "failure_votes", *NORMS)


def evaluation_names() -> tuple[str, ...]:
    """The sums of an evaluation step in their order in a vector [M]: over the `count` puzzles that have labels."""
    return ("count", *METRICS, "stop_votes")


def named(names: tuple[str, ...], sums: Tensor) -> dict[str, float]:
    """A vector of sums on the host as numbers by name."""
    return dict(zip(names, sums.tolist(), strict=True))


def halting_logit(arch: Architecture, q_halt: Tensor, q_continue: Tensor) -> Tensor:
    """The logit [B] that is above 0 where the model would stop, by its variant's rule."""
    return arch.variant.halting_logit(arch.recursion, q_halt, q_continue)


def wants_to_halt(arch: Architecture, q_halt: Tensor, q_continue: Tensor) -> Tensor:
    """Whether the model would stop here, [B] bool (docs/explanation/what_is_computed.md "One training step" items 2 and 3)."""
    return halting_logit(arch, q_halt, q_continue) > 0


class RowResults(NamedTuple):
    """Results of one supervision step for each row."""

    values: dict[str, Tensor]  # [B] each, by METRICS
    exact: Tensor  # [B] bool, every labelled cell is right
    labelled: Tensor  # [B] bool, the row has labelled cells (padding has none)


def cross_entropy(arch: Architecture, logits_BCV: Tensor, labels_BC: Tensor) -> Tensor:
    """The loss of each row's cells, [B], the mean over its labelled cells, as the settings have it."""
    return cell_cross_entropy(logits_BCV, labels_BC, arch.model.loss, arch.loss_dtype, arch.objective.label_smoothing)


def row_results(arch: Architecture, out: Output, inputs_BC: Tensor, labels_BC: Tensor, steps: Tensor) -> RowResults:
    """Losses, correctness and every other metric of each row."""
    labelled = labels_BC != IGNORE_LABEL
    right = labelled & (out.logits.argmax(-1) == labels_BC)
    num_labelled = labelled.sum(-1)
    exact = right.sum(-1) == num_labelled
    rows = StepRows(arch, out, inputs_BC, labels_BC, steps, labelled, right, exact)
    return RowResults({name: metric.of(rows) for name, metric in METRICS.items()}, exact, num_labelled > 0)


def _sums(arch: Architecture, values: dict[str, Tensor], counted: Tensor, everywhere: Tensor | None) -> dict[str, Tensor]:
    """Sums of the rows' metrics: over those in `counted` [B] bool, of metrics of every row over `everywhere` (None = all)."""
    sums = {"count": counted.sum()}
    for name, value in values.items():
        among = everywhere if METRICS[name].every_row else counted
        sums[name] = value.sum() if among is None else torch.where(among, value, 0).sum()
    return sums


def training_sums(
    arch: Architecture, rows: RowResults, halted: Tensor, q_continue_loss: Tensor, stop: Tensor | None
) -> dict[str, Tensor]:
    """Those of `training_names` that are sums over the program's rows. `stop` [B] are the votes of several hosts."""
    votes = [torch.zeros_like(q_continue_loss) if stop is None else (stop >= vote).sum() for vote in (STOP, FAILED)]
    return {
        **_sums(arch, rows.values, halted & rows.labelled, None),
        "rows": torch.ones_like(halted, dtype=torch.int32).sum(),
        "q_continue_loss": q_continue_loss,
        **dict(zip(("stop_votes", "failure_votes"), votes, strict=True)),
    }


def training_vector(arch: Architecture, sums: dict[str, Tensor], norms: list[Tensor]) -> Tensor:
    """The vector [M] of `training_names`, from the sums over the global batch; `norms` as NORMS names them."""
    loss = sums["lm_loss"] + sums["q_halt_loss"] + sums["q_continue_loss"]
    # torch_xla's isfinite compares with a float64 scalar, which a TPU has to emulate
    nonfinite = ~(loss.abs() < torch.full_like(loss, torch.inf))
    values = {**sums, "nonfinite_steps": nonfinite, **dict(zip(NORMS, norms, strict=True))}
    return _stacked(arch, [values[name] for name in training_names()])


def evaluation_sums(arch: Architecture, rows: RowResults, counted: Tensor, stop: Tensor | None = None) -> Tensor:
    """The vector [M] of `evaluation_names`, over the rows in `counted` [B] bool that have labels."""
    counted = counted & rows.labelled
    sums = _sums(arch, rows.values, counted, counted)
    votes = torch.zeros_like(sums["count"]) if stop is None else (stop >= STOP).sum()
    return _stacked(arch, [*sums.values(), votes])


def _stacked(arch: Architecture, sums: list[Tensor]) -> Tensor:
    return torch.stack([value.to(arch.master_dtype) for value in sums]).detach()


# what is kept of rows


class Shown(NamedTuple):
    """Answers for the first K rows of a batch, or the first K puzzles; with a leading axis [S] after each supervision step."""

    predictions: Tensor  # [K, C] int32
    confidence: Tensor  # [K, C] in the loss dtype
    q_halt: Tensor  # [K] `halting_logit`


def shown_rows(arch: Architecture, logits_BCV: Tensor, q_halt_B: Tensor, every: int = 1) -> Shown:
    """What is shown of a supervision step's answers: the first rows of the batch, at most MOST_SAMPLES, of puzzles with `every`
    candidates their first ones. `first_shown` has to pick them where the program does not see the whole batch.

    `q_halt_B` is their `halting_logit`.
    """
    step = every if arch.share.count == 1 else 1
    logits, q_halt_B = (rows[: every * MOST_SAMPLES : step] for rows in (logits_BCV, q_halt_B))
    predictions = logits.argmax(-1)
    log_shares = log_probabilities(logits.to(arch.loss_dtype), arch.model.loss)
    confidence = log_shares.gather(-1, predictions.unsqueeze(-1)).squeeze(-1).exp()
    return Shown(predictions.to(torch.int32), confidence, q_halt_B)


def first_shown(arch: Architecture, shown: Shown, every: int = 1) -> Shown:
    """Those of `shown_rows` that are shown, where each of several programs has said what its own first rows may add."""
    return shown if arch.share.count == 1 else Shown(*(rows[: every * MOST_SAMPLES : every] for rows in shown))


class RowTrace(NamedTuple):
    """What one supervision step says of every row; over the batches of a pass joined, and on the CPU, in a `Trace`."""

    values: dict[str, Tensor]  # [B] each, by METRICS
    halts: Tensor  # [B] bool, the model wants to stop
    q_halt: Tensor  # [B]
    change: Tensor | None  # [B] of the logits since the step before, where a selection asks for it
