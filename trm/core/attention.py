"""Attention without mask or bias, in three ways that compute the same; two of them do not keep the scores.

It is the mixer of docs/explanation/what_is_computed.md "Network". Where the backward pass needs the shares of every pass of the
recursion, [B, H, L, L] each, they are most of a step's memory at 900 tokens. Shape legend: B rows, H heads, L tokens, K head
size, S tokens of a block. q, k and v are [B, H, L, K], and so is the result.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trm.config import HardwareConfig

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
BLOCK_TOKENS = 256


def scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v as it is written; the softmax runs in at least float32."""
    return torch.softmax(_logits(q, k), dim=-1).to(v.dtype) @ v


def blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same in blocks of queries, for compilers without such a kernel; the backward pass computes the shares again.

    It does so in blocks of keys: a compiler would recognise the blocks of the forward pass, and keep those. As in FlashAttention-2
    (Dao 2023, arXiv 2307.08691, section 3.1) but for the order of the forward's sums.
    """
    out: Tensor = _Blocks.apply(q, k, v)[0]  # type: ignore[no-untyped-call]
    return out


# fused: torch's own kernels; those for CPU and CUDA keep nothing of size L x L
ATTENTION: dict[str, Attend] = {"scores": scores, "fused": F.scaled_dot_product_attention, "blocks": blocks}


def attention_for(hardware: HardwareConfig, num_tokens: int) -> Attend:
    """The function that hardware.attention chooses. auto takes the fused kernels where the backend has them; elsewhere it takes
    blocks for more than 256 tokens and scores for fewer.

    Two cases are exceptions. For few tokens in bfloat16 on a CPU the fused kernel's backward pass takes four times as long as
    scores; in float64 torch 2.9's compiler mistakes the type of what that kernel keeps.
    """
    choice, few = hardware.attention, num_tokens <= BLOCK_TOKENS
    if choice == "auto":
        best = hardware.can.attention
        slow = hardware.platform == "cpu" and hardware.dtype == "bfloat16" and few
        if best == "fused" and (slow or hardware.dtype == "float64"):
            best = "blocks"
        choice = "scores" if few and best == "blocks" else best
    return ATTENTION[choice]


def _logits(q: Tensor, k: Tensor) -> Tensor:
    """q k^T / sqrt(K), [B, H, Lq, Lk] in at least float32; `_logits(k, q)` is its transpose."""
    logits: Tensor = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Blocks(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        outs, sums = [], []
        for part in torch.split(q, BLOCK_TOKENS, dim=-2):
            logits = _logits(part, k)
            outs.append(torch.softmax(logits, dim=-1).to(v.dtype) @ v)
            sums.append(torch.logsumexp(logits, dim=-1))
        return torch.cat(outs, dim=-2), torch.cat(sums, dim=-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, sums = ctx.saved_tensors
        grad, scale = grads[0], q.shape[-1] ** -0.5
        mean = (grad * out).to(sums.dtype).sum(-1).unsqueeze(-2)  # [B, H, 1, L]: from it the gradient of a share is counted
        grad_q, grads_k, grads_v = torch.zeros_like(q), [], []
        for key, value in zip(*(torch.split(part, BLOCK_TOKENS, dim=-2) for part in (k, v)), strict=True):
            shares = torch.exp(_logits(key, q) - sums.unsqueeze(-2))  # [B, H, S, L]
            grad_logits = (shares * ((value @ grad.transpose(-2, -1)).to(sums.dtype) - mean) * scale).to(q.dtype)
            grads_v.append(shares.to(grad.dtype) @ grad)
            grads_k.append(grad_logits @ q)
            grad_q = grad_q + grad_logits.transpose(-2, -1) @ key
        return grad_q, torch.cat(grads_k, dim=-2), torch.cat(grads_v, dim=-2)
