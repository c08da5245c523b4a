"""Metrics of a step's rows: losses, correctness, sums for the log, and the predictions that evaluations keep.

To add a metric, register it in METRICS: logs, metrics.jsonl, dashboards, summary, report and page name it by its key.

Shape legend: B rows, C cells, V vocabulary, M sums, K rows that are shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trm.config import IGNORE_LABEL
from trm.core.architecture import Architecture
from trm.core.losses import binary_cross_entropy, cell_cross_entropy, log_probabilities
from trm.core.model import Output
from trm.errors import ConfigError

STOP, FAILED = 1, 2  # in a batch's "stop": a host that wants to stop, one that cannot go on
MOST_SAMPLES = 8  # puzzles of an evaluation that are shown
LOSS_TERMS = ("lm_loss", "q_halt_loss", "q_continue_loss")
NORMS = ("grad_norm", "weight_norm")


class StepRows(NamedTuple):
    """The input of a metric: one supervision step of the rows of a batch."""

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

    Attributes:
        of: its value for each row, [B].
        every_row: training averages it over all rows instead of those that halted, as it averages losses.
        shown: the log of an evaluation, the report's tables and its page have it beside exact accuracy. It is a share of 1.
    """

    of: Callable[[StepRows], Tensor]
    every_row: bool = False
    shown: bool = False


METRICS: dict[str, Metric] = {
    "accuracy": Metric(lambda rows: rows.right.sum(-1).to(rows.arch.master_dtype) / rows.labelled.sum(-1).clamp_min(1)),
    "exact_accuracy": Metric(lambda rows: rows.exact),
    "q_halt_accuracy": Metric(lambda rows: (rows.out.q_halt >= 0) == rows.exact),
    "steps": Metric(lambda rows: rows.steps),
    "lm_loss": Metric(lambda rows: cross_entropy(rows.arch, rows.out.logits, rows.labels), every_row=True),
    "q_halt_loss": Metric(lambda rows: binary_cross_entropy(rows.out.q_halt, rows.exact), every_row=True),
}


def training_names() -> tuple[str, ...]:
    """The sums of a training step in their order in a vector [M].

    Metrics are sums over the `count` rows that halted, those of `every_row` over all `rows`. `stop_votes` are rows of hosts that
    want to stop, `failure_votes` of hosts that cannot go on. The norms are sums over steps: of the gradients of loss / global
    batch, and of the weights that they were taken at, without the puzzle embedding, which moves by signs. Raises ConfigError for
    a metric that has the name of another sum.
    """
    others = ("rows", "q_continue_loss", "nonfinite_steps", "stop_votes", "failure_votes", *NORMS)
    if taken := METRICS.keys() & {"count", *others}:
        raise ConfigError(f"METRICS[{min(taken)!r}]: a step has a sum of this name: rename the metric")
    return ("count", *METRICS, *others)


def named(names: tuple[str, ...], sums: Tensor) -> dict[str, float]:
    """A vector of sums on the host as numbers by name."""
    return dict(zip(names, sums.tolist(), strict=True))


def halting_logit(arch: Architecture, q_halt: Tensor, q_continue: Tensor) -> Tensor:
    """The logit [B] that is above 0 where the model would stop, by its variant's rule."""
    return arch.variant.halting_logit(arch.recursion, q_halt, q_continue)


def cross_entropy(arch: Architecture, logits_BCV: Tensor, labels_BC: Tensor) -> Tensor:
    """The loss of each row, [B]: the mean over its labelled cells of the loss that the settings choose."""
    return cell_cross_entropy(logits_BCV, labels_BC, arch.model.loss, arch.loss_dtype, arch.objective.label_smoothing)


def row_metrics(arch: Architecture, out: Output, inputs_BC: Tensor, labels_BC: Tensor, steps: Tensor) -> dict[str, Tensor]:
    """Losses, correctness and every other metric of each row, [B] each, by METRICS. Raises ConfigError for another shape."""
    labelled = labels_BC != IGNORE_LABEL
    right = labelled & (out.logits.argmax(-1) == labels_BC)
    exact = right.sum(-1) == labelled.sum(-1)
    rows = StepRows(arch, out, inputs_BC, labels_BC, steps, labelled, right, exact)
    values = {name: metric.of(rows) for name, metric in METRICS.items()}
    for name, value in values.items():
        shape = list(getattr(value, "shape", []))
        if shape != [len(exact)]:
            raise ConfigError(f"METRICS[{name!r}] gives an array {shape}, not [{len(exact)}]: give one number for each row")
    return values


def training_sums(values: dict[str, Tensor], counted: Tensor, q_continue_loss: Tensor, stop: Tensor | None) -> dict[str, Tensor]:
    """Those of `training_names` that are sums over rows of the program. `counted` [B] rows halted and have labels."""
    sums = {"count": counted.sum()}
    for name, value in values.items():
        sums[name] = value.sum() if METRICS[name].every_row else torch.where(counted, value, 0).sum()
    for name, vote in (("stop_votes", STOP), ("failure_votes", FAILED)):
        sums[name] = torch.zeros_like(q_continue_loss) if stop is None else (stop >= vote).sum()
    return {**sums, "rows": torch.ones_like(counted, dtype=torch.int32).sum(), "q_continue_loss": q_continue_loss}


def training_vector(arch: Architecture, sums: dict[str, Tensor], norms: list[Tensor]) -> Tensor:
    """The vector [M] of `training_names`, from the sums over the global batch; `norms` as NORMS names them."""
    loss = sums["lm_loss"] + sums["q_halt_loss"] + sums["q_continue_loss"]
    # torch_xla's isfinite compares with a float64 scalar, which a TPU has to emulate
    nonfinite = ~(loss.abs() < torch.full_like(loss, torch.inf))
    values = {**sums, "nonfinite_steps": nonfinite, **dict(zip(NORMS, norms, strict=True))}
    return torch.stack([values[name].to(arch.master_dtype) for name in training_names()]).detach()


class Predictions(NamedTuple):
    """A model's predictions for candidates of puzzles after supervision steps: the one record that evaluations yield.

    On the devices its fields are tensors of the B rows of a batch after one step. On the host they are arrays, most of them with
    an axis [S] of supervision steps in front. A field that nobody asked for is None.
    """

    values: dict[str, Any]  # [B] each, by METRICS
    halting: Any  # [B] `halting_logit`: above 0 the model wants to stop
    q_halt: Any  # [B]
    answers: Any = None  # [B, C] int32, the most probable tokens
    confidence: Any = None  # [K, C] in the loss dtype, 0..1: the probability of the answers that are shown
    change: Any = None  # [B] of the logits since the step before
    stop: Any = None  # scalar: rows of hosts that want to stop
    candidate: Any = None  # [B] int64, with early exit: whose predictions they are
    halted: Any = None  # [B] int32, with early exit: 1 where it was the candidate's last step


def predictions(arch: Architecture, out: Output, own: Predictions, every: int, stop: Tensor | None = None) -> Predictions:
    """The predictions of all rows of the batch in a supervision step: `own` with the answers and the confidence of those shown.

    `stop` [B] are the votes of several hosts. Shown are the first candidates of the first puzzles of the batch, at most
    MOST_SAMPLES, with `every` candidates each; each of several programs adds its own first rows. No field is the same tensor as
    another result of the step, since torch_xla would return fewer tensors.
    """
    answers, alone = out.logits.argmax(-1), arch.share.count == 1
    rows = slice(0, every * MOST_SAMPLES, every if alone else 1)
    log_shares = log_probabilities(out.logits[rows].to(arch.loss_dtype), arch.model.loss)
    confidence = log_shares.gather(-1, answers[rows].unsqueeze(-1)).squeeze(-1).exp()
    votes = None if stop is None else (stop >= STOP).sum()
    votes, found = arch.share.exchange(votes, own._replace(answers=answers.to(torch.int32), confidence=confidence))
    return found._replace(stop=votes, confidence=found.confidence if alone else found.confidence[: every * MOST_SAMPLES : every])
