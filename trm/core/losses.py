"""Losses of one supervision step (docs/explanation/what_is_computed.md "One training step" item 3; paper section 4.6 for halting).

Shape legend: B rows, C cells, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trm.config import IGNORE_LABEL


def log_stablemax(logits: Tensor) -> Tensor:
    """Logarithm of stablemax over the last axis: s(x) = 1/(1-x) for x < 0 and x+1 otherwise, normalised (arXiv 2501.04697)."""
    s = torch.where(logits < 0, 1 / (1 - logits.clamp(max=0)), logits.clamp(min=0) + 1)
    return torch.log(s / s.sum(-1, keepdim=True))


def log_probabilities(logits: Tensor, kind: str) -> Tensor:
    """Logarithm of the probabilities over the last axis that the loss `kind` ("stablemax" or "softmax") gives to `logits`."""
    return log_stablemax(logits) if kind == "stablemax" else F.log_softmax(logits, dim=-1)


def cell_cross_entropy(logits_BCV: Tensor, labels_BC: Tensor, kind: str, dtype: torch.dtype, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled cells of each row, [B] in `dtype`; `kind` is "stablemax" or "softmax".

    Logits come in the forward dtype and are widened here. A row without labelled cells has loss 0. `smoothing` is the share of a
    target that is spread over the whole vocabulary.
    """
    log_share = log_probabilities(logits_BCV.to(dtype), kind)
    labelled = labels_BC != IGNORE_LABEL
    target = torch.where(labelled, labels_BC, 0).long().unsqueeze(-1)
    of_target = log_share.gather(-1, target).squeeze(-1)
    if smoothing:
        of_target = (1 - smoothing) * of_target + smoothing * log_share.mean(-1)
    cell_loss = -torch.where(labelled, of_target, 0)
    return cell_loss.sum(-1) / labelled.sum(-1).clamp_min(1)


def binary_cross_entropy(logits_B: Tensor, target_B: Tensor) -> Tensor:
    """Binary cross-entropy of each row, [B]."""
    return F.binary_cross_entropy_with_logits(logits_B, target_B.to(logits_B.dtype), reduction="none")
