"""The network: embeddings, the two-block mixer, the two heads (docs/explanation/what_is_computed.md "Network"; paper section 4).

Everything is a pure function of flat dicts of tensors. Weights are kept in a master dtype (float32, or float64 for parity) and
cast to the forward dtype where they are used, as the reference does.

Shape legend: B rows, C cells, P prefix tokens, L = P + C tokens, D hidden size, H heads, K head size, V vocabulary, I identifiers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trm.config import RecursionConfig
from trm.core.architecture import Architecture, Weights
from trm.core.initial import CONV_KERNELS
from trm.core.recursion import OWN, Latents, Net, Networks
from trm.ground.rng import RECURSION_NOISE, normal

Passes = Callable[[Tensor], Tensor]  # [B, L, D] -> [B, L, D]
FURTHER_PASSES = 1 << 20  # more than a supervision step has: where the noise of another forward pass of the same step begins


def _linear(arch: Architecture, x: Tensor, weight: Tensor) -> Tensor:
    return arch.linear(x, weight.to(x.dtype))


def rms_norm(x: Tensor, eps: float, dim: int = -1) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the axis `dim`, without a learned scale, computed in at least float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(dim, keepdim=True) + eps)).to(x.dtype)


def swiglu(arch: Architecture, x: Tensor, gate_up: Tensor, down: Tensor, conv: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """down(silu(gate) * up), or another model.mlp; gate and up share one matrix, gate first.

    gated_norm_swiglu: down(norm(gate * up) * sigmoid(gate)), the norm over the inner width.
    conv_swiglu and conv2d_swiglu, given `conv`: down(silu(convolution of silu(gate) * up)), depthwise. The first is along the
    tokens: token i sees i-1, which is zero before the first, and i.
    """
    if arch.swiglu is not None and arch.model.mlp == "swiglu":
        return arch.swiglu(x, gate_up.to(x.dtype), down.to(x.dtype))
    gate, up = _linear(arch, x, gate_up).chunk(2, dim=-1)
    if arch.model.mlp == "gated_norm_swiglu":
        return _linear(arch, torch.sigmoid(gate) * rms_norm(gate * up, arch.model.rms_norm_eps), down)
    inner = F.silu(gate) * up
    if conv is not None:
        weight, bias = (t.to(x.dtype) for t in conv)
        if weight.ndim == 3:
            before, own = weight[:, 0].unbind(-1)
            seen = F.pad(inner, (0, 0, 1, 0))[:, :-1] * before + inner * own
        else:
            seen = _convolution_2d(inner, weight, arch.seq_len, arch.torch_kernels)
        inner = F.silu(seen + bias)
    return _linear(arch, inner, down)


def _convolution_2d(x_BLW: Tensor, weight_W1KK: Tensor, seq_len: int, torch_kernels: bool) -> Tensor:
    """Over the square grid of the last `seq_len` tokens, zero around it, each channel by itself; earlier tokens see themselves."""
    B, L, W = x_BLW.shape
    side = math.isqrt(seq_len)
    before, cells = x_BLW[:, : L - seq_len], x_BLW[:, L - seq_len :]
    grid = cells.reshape(B, side, side, W)
    if torch_kernels:
        seen = F.conv2d(grid.permute(0, 3, 1, 2), weight_W1KK, padding=1, groups=W).permute(0, 2, 3, 1)
    else:  # torch_xla leaves the gradients of its convolution to a TPU's bfloat16
        wide, weight = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (grid, weight_W1KK[:, 0]))
        wide = F.pad(wide, (0, 0, 1, 1, 1, 1))
        parts = [wide[:, i : i + side, j : j + side] * weight[:, i, j] for i in range(3) for j in range(3)]
        seen = torch.stack(parts).sum(0).to(grid.dtype)
    return torch.cat((before * weight_W1KK[:, 0, 1, 1], seen.reshape(B, seq_len, W)), dim=1)


def rotate(x_BLHK: Tensor, cos_LK: Tensor, sin_LK: Tensor, parts: int = 1) -> Tensor:
    """Rotary position encoding, computed in the tables' dtype: each of the channels' `parts` in the half-rotation layout."""
    x = x_BLHK.to(cos_LK.dtype)
    halves = x.chunk(2 * parts, dim=-1)
    turned = torch.cat([part for i in range(parts) for part in (-halves[2 * i + 1], halves[2 * i])], dim=-1)
    return (x * cos_LK.unsqueeze(-2) + turned * sin_LK.unsqueeze(-2)).to(x_BLHK.dtype)


def attention(arch: Architecture, weights: Weights, buffers: Weights, block: str, h_BLD: Tensor) -> Tensor:
    """Self-attention without mask or bias. [B, L, D] -> [B, L, D]; the softmax runs in at least float32."""
    B, L, D = h_BLD.shape
    heads = arch.model.num_heads
    qkv = _linear(arch, h_BLD, weights[f"{block}.attention.qkv"]).view(B, L, 3 * heads, D // heads)
    q, k, v = qkv.chunk(3, dim=2)  # [B, L, H, K]
    if "rope.cos" in buffers:
        parts = 2 if arch.model.positions == "rope2d" else 1
        q, k = (rotate(t, buffers["rope.cos"], buffers["rope.sin"], parts) for t in (q, k))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, L, K]
    return _linear(arch, arch.attend(q, k, v).transpose(1, 2).reshape(B, L, D), weights[f"{block}.attention.out"])


def mix_tokens(arch: Architecture, h_BLD: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The token MLP with its residual and norm, both over the token axis, as in the released code. [B, L, D] -> [B, L, D].

    Its products alone run over a multiple of `arch.token_multiple` tokens. The added tokens and weights are zeros, which add
    nothing to a sum. They are cut off before the norm, whose mean is over L tokens.
    """
    L, fill = h_BLD.shape[1], -h_BLD.shape[1] % arch.token_multiple
    t = h_BLD.transpose(1, 2)
    t = F.pad(t, (0, fill)) if fill else t.contiguous()  # inductor fuses either with the kernel before
    if fill:
        gate_up, down = F.pad(gate_up, (0, fill)), F.pad(down, (0, 0, 0, fill))
    mixed = swiglu(arch, t, gate_up, down)
    if fill:
        t, mixed = t[..., :L], mixed[..., :L]
    return rms_norm(t + mixed, arch.model.rms_norm_eps).transpose(1, 2).contiguous()


def blocks(arch: Architecture, weights: Weights, buffers: Weights, name: str, h: Tensor) -> Tensor:
    """The post-norm blocks called `name` ("net", "f_L" or "f_H"). [B, L, D] -> [B, L, D]."""
    eps = arch.model.rms_norm_eps
    for i in range(arch.model.num_layers):
        block = f"{name}.{i}"
        if arch.model.mixer == "mlp":
            h = mix_tokens(arch, h, weights[f"{block}.token_mlp.gate_up"], weights[f"{block}.token_mlp.down"])
        else:
            h = rms_norm(h + attention(arch, weights, buffers, block, h), eps)
        mlp = f"{block}.mlp"
        conv = (weights[f"{mlp}.conv.weight"], weights[f"{mlp}.conv.bias"]) if arch.model.mlp in CONV_KERNELS else None
        h = rms_norm(h + swiglu(arch, h, weights[f"{mlp}.gate_up"], weights[f"{mlp}.down"], conv), eps)
    return h


def network(arch: Architecture, weights: Weights, buffers: Weights, name: str) -> Passes:
    """`blocks` as a function [B, L, D] -> [B, L, D].

    Where weights with a gradient are on several devices, each computes its rows with copies of its own, whose gradients add up over
    the passes of the recursion on each device, and over the devices once: one all-reduce the size of the gradient. With the same
    weights for all rows, XLA sums over the devices in every pass.
    """
    run, N = arch.compile_block(blocks), arch.num_devices
    own = {key: weight for key, weight in weights.items() if key.startswith(f"{name}.")}
    if N == 1 or not any(weight.requires_grad for weight in own.values()):
        return lambda h: run(arch, own, buffers, name, h)
    copies = {key: weight.expand(N, *weight.shape) for key, weight in own.items()}
    on_each = torch.vmap(lambda own, h: run(arch, own, buffers, name, h))
    return lambda h: on_each(copies, h.view(N, -1, *h.shape[1:])).flatten(0, 1)


def embed(arch: Architecture, weights: Weights, puzzle_vectors: Tensor | None, inputs_BC: Tensor) -> Tensor:
    """The embedded question x [B, L, D]: sqrt(D) * (puzzle prefix ++ registers ++ token embeddings), learned positions where asked.

    `puzzle_vectors` [B, puzzle_emb_ndim] are the rows' puzzle embeddings, zero-padded here to the tokens of model.puzzle_len.
    """
    D, P = arch.model.hidden_size, arch.model.puzzle_len
    x = F.embedding(inputs_BC, weights["embed_tokens"].to(arch.dtype))
    if arch.model.registers:
        registers = weights["embed_registers"].to(arch.dtype).expand(x.shape[0], -1, -1)
        x = torch.cat((registers, x), dim=1)
    if puzzle_vectors is not None:
        prefix = F.pad(puzzle_vectors.to(arch.dtype), (0, P * D - puzzle_vectors.shape[-1]))
        x = torch.cat((prefix.view(-1, P, D), x), dim=1)
    if arch.model.positions == "learned":
        x = math.sqrt(0.5) * (x + weights["embed_positions"].to(arch.dtype))  # keeps the variance
    return math.sqrt(D) * x


@dataclass(frozen=True)
class Output:
    """What one supervision step computes."""

    latents: Latents  # [B, L, D] each
    logits: Tensor  # [B, C, V] in the forward dtype
    q_halt: Tensor  # [B] in at least float32
    q_continue: Tensor  # [B] likewise


def decode(arch: Architecture, weights: Weights, answer_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two heads on the answer latent, or those of the variant: logits [B, C, V], q_halt [B] and q_continue [B]."""
    if arch.variant.decode is not None:
        return arch.variant.decode(arch, weights, answer_BLD)
    logits = _linear(arch, answer_BLD, weights["lm_head"])[:, arch.model.prefix_len :]
    first = answer_BLD[:, 0]
    q = F.linear(first, weights["q_head.weight"].to(first.dtype), weights["q_head.bias"].to(first.dtype)).to(arch.master_dtype)
    return logits, q[:, 0], q[:, 1]


@dataclass
class Noise:
    """The noise of one supervision step (EqR, arXiv 2605.21488): every call draws that of one more pass of the network."""

    seed: Tensor  # int64 scalar
    rows: Tensor  # [B] int64, whose noise is whose
    step: int | Tensor  # scalar or [B]
    passes: int = 0  # of the network, drawn so far

    def __call__(self, like: Tensor) -> Tensor:
        """Standard normal numbers for latents [B, L, D], in their dtype."""
        shape, number = tuple(like.shape[1:]), self.passes
        self.passes += 1
        return normal(self.seed, self.rows, shape, stream=RECURSION_NOISE, step=self.step, application=number, dtype=like.dtype)


def damped(net: Passes, recursion: RecursionConfig, noise: Noise | None) -> Net:
    """The update of a latent u by a network that sees h (EqR): (1 - damping) u + damping net(h) + recursion.noise e."""
    damping = recursion.damping

    def update(h: Tensor, u: Tensor) -> Tensor:
        new = net(h)
        if damping != 1:
            new = (1 - damping) * u + damping * new
        return new if noise is None else new + recursion.noise * noise(new)

    return update


def forward(
    arch: Architecture,
    weights: Weights,
    buffers: Weights,
    puzzle_vectors: Tensor | None,
    latents: Latents,
    inputs_BC: Tensor,
    observe: Callable[[Latents], None] | None = None,
    noise: Noise | None = None,
) -> Output:
    """One supervision step's forward pass: embed the question, recurse, decode the answer and the halting values.

    `observe` is called with the latents after each latent recursion, so that a step can be watched. `noise` is needed where
    recursion.noise is above 0.
    """
    x = embed(arch, weights, puzzle_vectors, inputs_BC)
    latents = recurse(arch, weights, buffers, latents, x, arch.recursion.T, noise, observe)
    return Output(latents, *decode(arch, weights, latents[arch.latent_names[0]]))


def recurse(
    arch: Architecture,
    weights: Weights,
    buffers: Weights,
    latents: Latents,
    x: Tensor,
    T: int,
    noise: Noise | None = None,
    observe: Callable[[Latents], None] | None = None,
) -> Latents:
    """T latent recursions, the last one with gradient."""
    separate, recursion = arch.model.separate_networks, arch.recursion
    f_L = damped(network(arch, weights, buffers, "f_L" if separate else "net"), recursion, noise)
    f_H = damped(network(arch, weights, buffers, "f_H"), recursion, noise) if separate else f_L
    own = {name.removeprefix(OWN): weight for name, weight in weights.items() if name.startswith(OWN)}
    return arch.variant.run(Networks(f_L, f_H, own), latents, x, T, recursion.n, observe)


def noise_of(arch: Architecture, buffers: Weights, rows: Tensor, step: int | Tensor, passes: int = 0) -> Noise | None:
    """The noise of rows [B] int64 at a step (scalar or [B]) after `passes` passes of the network; None for a model without."""
    return Noise(buffers["random.seed"], rows, step, passes) if arch.recursion.noise else None
