"""The network: embeddings, the two-block mixer, the two heads (docs/explanation/what_is_computed.md "Network"; paper section 4).

Everything is a pure function of flat dicts of tensors. Weights are kept in a master dtype (float32, or float64 for parity) and
cast to the forward dtype where they are used, as the reference does.

Shape legend: B rows, C cells, P prefix tokens, L = P + C tokens, D hidden size, H heads, K head size, V vocabulary, I identifiers.
"""

from __future__ import annotations  # torch.compile cannot evaluate the annotations of nested functions

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from trm.config import Config, LatentsConfig, ModelConfig, ObjectiveConfig, RecursionConfig, draws_numbers
from trm.core.attention import Attend, attention_for, scores
from trm.core.latents import STD_OF_CUT_NORMAL, Noise, damped, random_starts
from trm.core.recursion import OWN, Latents, Networks, Variant
from trm.core.variants import VARIANTS

Weights = dict[str, Tensor]
Blocks = Callable[..., Tensor]
Passes = Callable[[Tensor], Tensor]  # [B, L, D] -> [B, L, D]


def _itself(rows: Tensor) -> Tensor:
    return rows


def _as_it_is(blocks: Blocks) -> Blocks:
    return blocks


@dataclass(frozen=True)
class Architecture:
    """All that determines the shapes and the arithmetic of the network."""

    model: ModelConfig
    recursion: RecursionConfig
    seq_len: int  # C
    vocab_size: int  # V
    num_puzzle_identifiers: int  # I
    dtype: torch.dtype  # forward dtype
    loss_dtype: torch.dtype
    num_devices: int = 1  # that the rows of a batch are split over
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    attend: Attend = scores
    token_multiple: int = 1  # of tokens in the token mixer's products
    # what the backend puts in the place of plain torch (trm/backends/base.py)
    linear: Callable[[Tensor, Tensor], Tensor] = F.linear
    swiglu: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    compile_block: Callable[[Blocks], Blocks] = _as_it_is
    whole: Callable[[Tensor], Tensor] = _itself
    torch_kernels: bool = True  # whether torch's own kernels compute

    @property
    def master_dtype(self) -> torch.dtype:
        """Dtype of weights, moments and EMA: at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def num_tokens(self) -> int:
        """L: prefix and cells."""
        return self.model.prefix_len + self.seq_len

    @property
    def variant(self) -> Variant:
        """The recursion, with what it owns."""
        return VARIANTS[self.recursion.variant]

    @property
    def latent_names(self) -> tuple[str, ...]:
        """The latents of the recursion variant; the first is decoded."""
        return self.variant.latents(self.recursion.n)

    @property
    def is_random(self) -> bool:
        """Whether its forward pass draws random numbers."""
        return draws_numbers(self.latents, self.recursion)


def architecture(cfg: Config, *, seq_len: int, vocab_size: int, num_puzzle_identifiers: int) -> Architecture:
    """The architecture that a config describes for a dataset of these sizes."""
    dtype = getattr(torch, cfg.hardware.dtype)
    return Architecture(
        model=cfg.model,
        recursion=cfg.recursion,
        latents=cfg.latents,
        objective=cfg.objective,
        seq_len=seq_len,
        vocab_size=vocab_size,
        num_puzzle_identifiers=num_puzzle_identifiers,
        dtype=dtype,
        loss_dtype=getattr(torch, cfg.hardware.loss_dtype),
        num_devices=cfg.hardware.num_devices,
        attend=attention_for(cfg.hardware, cfg.model.prefix_len + seq_len),
        token_multiple=cfg.hardware.token_multiple or cfg.hardware.can.token_multiple.get(cfg.hardware.platform, 1),
    )


# ------------------------------------------------------------------------------------------------------------- initial values


# What the depthwise convolution of an MLP sees: the token before and the token itself; a cell and its neighbours in the grid
CONV_KERNELS = {"conv_swiglu": (2,), "conv2d_swiglu": (3, 3)}


def swiglu_width(in_features: int, expansion: float) -> int:
    """Inner width of a SwiGLU: round(expansion * in * 2/3), rounded up to a multiple of 256."""
    return -(round(expansion * in_features * 2 / 3) // -256) * 256


def weight_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that the optimizer trains, in a fixed order (the puzzle embedding is not among them)."""
    model, D = arch.model, arch.model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (arch.vocab_size, D)}
    if model.positions == "learned":
        shapes["embed_positions"] = (arch.num_tokens, D)
    if model.registers:
        shapes["embed_registers"] = (model.registers, D)
    token_width, channel_width = swiglu_width(arch.num_tokens, model.expansion), swiglu_width(D, model.expansion)
    for net in ("f_L", "f_H") if model.separate_networks else ("net",):
        for i in range(model.num_layers):
            block = f"{net}.{i}"
            if model.mixer == "mlp":
                shapes[f"{block}.token_mlp.gate_up"] = (2 * token_width, arch.num_tokens)
                shapes[f"{block}.token_mlp.down"] = (arch.num_tokens, token_width)
            else:
                shapes[f"{block}.attention.qkv"] = (3 * D, D)
                shapes[f"{block}.attention.out"] = (D, D)
            shapes[f"{block}.mlp.gate_up"] = (2 * channel_width, D)
            if model.mlp in CONV_KERNELS:
                shapes[f"{block}.mlp.conv.weight"] = (channel_width, 1, *CONV_KERNELS[model.mlp])
                shapes[f"{block}.mlp.conv.bias"] = (channel_width,)
            shapes[f"{block}.mlp.down"] = (D, channel_width)
    shapes |= {"lm_head": (arch.vocab_size, D), "q_head.weight": (2, D), "q_head.bias": (2,)}
    return shapes | {f"{OWN}{name}": weight.shape for name, weight in arch.variant.weights(arch).items()}


def own_weights(weights: Weights) -> Weights:
    """The variant's own among the weights, by the names that the variant gives them."""
    return {name.removeprefix(OWN): weight for name, weight in weights.items() if name.startswith(OWN)}


def num_parameters(arch: Architecture) -> int:
    """Trained values as the paper counts them: without the puzzle embedding, which is a buffer in the released code."""
    return sum(math.prod(shape) for shape in weight_shapes(arch).values())


def truncated_normal(shape: tuple[int, ...], std: float, seed: int, name: str, dtype: torch.dtype) -> Tensor:
    """Normal values cut at two sigma, whose standard deviation after the cut is `std`.

    Each tensor has a generator of its own, seeded by (seed, name): a variant that adds a tensor leaves the others as they were.
    """
    bound = math.erf(math.sqrt(2))  # probability mass within two sigma
    uniform = torch.rand(shape, generator=_generator(seed, name), dtype=torch.float64) * (2 * bound) - bound
    normal = (torch.erfinv(uniform) * math.sqrt(2)).clamp_(-2, 2)
    return (normal * (std / STD_OF_CUT_NORMAL)).to(dtype)


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big"))


def init_weights(arch: Architecture, seed: int) -> Weights:
    """Initial weights: truncated normal of std 1/sqrt(fan_in); q_head is zero with bias -5, so that halting starts improbable."""
    weights: Weights = {}
    own = arch.variant.weights(arch)
    for name, shape in weight_shapes(arch).items():
        if name.startswith(OWN) and (init := own[name.removeprefix(OWN)].init) is not None:
            weights[name] = init(shape).to(arch.master_dtype)
        elif name == "q_head.weight":
            weights[name] = torch.zeros(shape, dtype=arch.master_dtype)
        elif name == "q_head.bias":
            weights[name] = torch.full(shape, -5.0, dtype=arch.master_dtype)
        elif ".conv." in name:  # as torch's Conv1d: uniform within 1/sqrt(fan_in), the bias too
            uniform = torch.rand(shape, generator=_generator(seed, name), dtype=torch.float64)
            weights[name] = ((2 * uniform - 1) * math.prod(CONV_KERNELS[arch.model.mlp]) ** -0.5).to(arch.master_dtype)
        else:
            # the last axis is fan_in of a linear layer, and D of an embedding table: 1/sqrt(D) there too
            weights[name] = truncated_normal(shape, shape[-1] ** -0.5, seed, name, arch.master_dtype)
    return weights


def init_fixed(arch: Architecture, seed: int) -> Weights:
    """Tensors that are never trained: each latent's initial value [D] in the forward dtype, and the rotary tables [L, K].

    Of latents with several copies (latents.heads) copy 1, 2, ... has one more vector, "init.NAME.1", ...; where starts are drawn
    anew there is none. What draws random numbers has their seed, "random.seed".
    """
    names = [] if arch.latents.init == "random" else [f"init.{z}" for z in arch.latent_names]
    if names:
        names += [f"init.{z}.{copy}" for z in arch.latent_names[1:] for copy in range(1, arch.latents.heads)]
    fixed = {name: truncated_normal((arch.model.hidden_size,), 1.0, seed, name, arch.dtype) for name in names}
    if arch.is_random:
        fixed["random.seed"] = torch.tensor(seed, dtype=torch.int64)
    if arch.model.positions.startswith("rope"):
        angles = _rope_angles(arch)
        fixed |= {"rope.cos": angles.cos(), "rope.sin": angles.sin()}
    return fixed


def _rope_angles(arch: Architecture) -> Tensor:
    """The rotary angles of every token and channel of a head, [L, K].

    rope2d turns the first half of the channels by a cell's row and the second by its column; the tokens before the cells are where
    the first cell is.
    """
    head_size, dtype = arch.model.hidden_size // arch.model.num_heads, arch.master_dtype

    def angles(positions: Tensor, channels: int) -> Tensor:
        frequencies = 1.0 / arch.model.rope_theta ** (torch.arange(0, channels, 2, dtype=dtype) / channels)
        return torch.outer(positions.to(dtype), frequencies).repeat(1, 2)

    if arch.model.positions == "rope":
        return angles(torch.arange(arch.num_tokens), head_size)
    cells = F.pad(torch.arange(arch.seq_len), (arch.model.prefix_len, 0))
    side = math.isqrt(arch.seq_len)
    return torch.cat([angles(cells // side, head_size // 2), angles(cells % side, head_size // 2)], dim=1)


def init_puzzle_embedding(arch: Architecture) -> Tensor | None:
    """The puzzle embedding [I, puzzle_emb_ndim], initially zero, or None where the model has none."""
    if arch.model.puzzle_emb_ndim == 0:
        return None
    return torch.zeros(arch.num_puzzle_identifiers, arch.model.puzzle_emb_ndim, dtype=arch.master_dtype)


# ------------------------------------------------------------------------------------------------------------------- network


def _linear(arch: Architecture, x: Tensor, weight: Tensor) -> Tensor:
    return arch.linear(x, weight.to(x.dtype))


def rms_norm(x: Tensor, eps: float, dim: int = -1) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the axis `dim`, without a learned scale, computed in at least float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(dim, keepdim=True) + eps)).to(x.dtype)


def swiglu(arch: Architecture, x: Tensor, gate_up: Tensor, down: Tensor, conv: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """down(silu(gate) * up); gate and up share one matrix, gate first. What is inside is model.mlp's.

    gated_norm_swiglu: down(norm(gate * up) * sigmoid(gate)), the norm over the inner width.
    conv_swiglu and conv2d_swiglu, given `conv`: down(silu(convolution of silu(gate) * up)), depthwise.
    """
    if arch.swiglu is not None and arch.model.mlp == "swiglu":
        return arch.swiglu(x, gate_up.to(x.dtype), down.to(x.dtype))
    gate, up = _linear(arch, x, gate_up).chunk(2, dim=-1)
    if arch.model.mlp == "gated_norm_swiglu":
        return _linear(arch, torch.sigmoid(gate) * rms_norm(gate * up, arch.model.rms_norm_eps), down)
    inner = F.silu(gate) * up
    if conv is not None:
        weight, bias = (t.to(x.dtype) for t in conv)
        seen = _convolution(inner, weight) if weight.ndim == 3 else _convolution_2d(inner, weight, arch.seq_len, arch.torch_kernels)
        inner = F.silu(seen + bias)
    return _linear(arch, inner, down)


def _convolution(x_BLW: Tensor, weight_W1K: Tensor) -> Tensor:
    """Along the tokens, each channel by itself: token i sees i-1, which is zero before the first, and i."""
    before, own = weight_W1K[:, 0].unbind(-1)
    return F.pad(x_BLW, (0, 0, 1, 0))[:, :-1] * before + x_BLW * own


def _convolution_2d(x_BLW: Tensor, weight_W1KK: Tensor, seq_len: int, torch_kernels: bool) -> Tensor:
    """Over the square grid of the last `seq_len` tokens, each channel by itself, zero around it; one before them sees itself."""
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


def attention(arch: Architecture, weights: Weights, fixed: Weights, block: str, h_BLD: Tensor) -> Tensor:
    """Self-attention without mask or bias. [B, L, D] -> [B, L, D]; the softmax runs in at least float32."""
    B, L, D = h_BLD.shape
    heads = arch.model.num_heads
    qkv = _linear(arch, h_BLD, weights[f"{block}.attention.qkv"]).view(B, L, 3 * heads, D // heads)
    q, k, v = qkv.chunk(3, dim=2)  # [B, L, H, K]
    if "rope.cos" in fixed:
        parts = 2 if arch.model.positions == "rope2d" else 1
        q, k = (rotate(t, fixed["rope.cos"], fixed["rope.sin"], parts) for t in (q, k))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, L, K]
    return _linear(arch, arch.attend(q, k, v).transpose(1, 2).reshape(B, L, D), weights[f"{block}.attention.out"])


def mix_tokens(arch: Architecture, h_BLD: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The token MLP with its residual and norm, both over the token axis, as in the released code. [B, L, D] -> [B, L, D].

    Its products alone run over a multiple of `arch.token_multiple` tokens. The tokens and weights that fill it up are zeros, which
    add nothing to a sum, and they are cut off before the norm, whose mean is over L tokens.
    """
    L, fill = h_BLD.shape[1], -h_BLD.shape[1] % arch.token_multiple
    t = h_BLD.transpose(1, 2)
    t = F.pad(t, (0, fill)) if fill else t.contiguous()  # inductor makes both part of what is computed before
    if fill:
        gate_up, down = F.pad(gate_up, (0, fill)), F.pad(down, (0, 0, 0, fill))
    mixed = swiglu(arch, t, gate_up, down)
    if fill:
        t, mixed = t[..., :L], mixed[..., :L]
    return rms_norm(t + mixed, arch.model.rms_norm_eps).transpose(1, 2).contiguous()


def blocks(arch: Architecture, weights: Weights, fixed: Weights, name: str, h: Tensor) -> Tensor:
    """The post-norm blocks called `name` ("net", "f_L" or "f_H"). [B, L, D] -> [B, L, D]."""
    eps = arch.model.rms_norm_eps
    for i in range(arch.model.num_layers):
        block = f"{name}.{i}"
        if arch.model.mixer == "mlp":
            h = mix_tokens(arch, h, weights[f"{block}.token_mlp.gate_up"], weights[f"{block}.token_mlp.down"])
        else:
            h = rms_norm(h + attention(arch, weights, fixed, block, h), eps)
        mlp = f"{block}.mlp"
        conv = (weights[f"{mlp}.conv.weight"], weights[f"{mlp}.conv.bias"]) if arch.model.mlp in CONV_KERNELS else None
        h = rms_norm(h + swiglu(arch, h, weights[f"{mlp}.gate_up"], weights[f"{mlp}.down"], conv), eps)
    return h


def network(arch: Architecture, weights: Weights, fixed: Weights, name: str) -> Passes:
    """`blocks` as a function [B, L, D] -> [B, L, D]."""
    run = arch.compile_block(blocks)
    own = {key: weight for key, weight in weights.items() if key.startswith(f"{name}.")}
    if arch.num_devices > 1 and any(weight.requires_grad for weight in own.values()):
        return _with_own_weights(arch, own, lambda own, h: run(arch, own, fixed, name, h))
    return lambda h: run(arch, own, fixed, name, h)


def _with_own_weights(arch: Architecture, weights: Weights, run: Callable[[Weights, Tensor], Tensor]) -> Passes:
    """`run` on each device's rows with weights of that device's own, copies of the `weights`.

    Their gradients then add up over the passes of the recursion on each device, and over the devices once: one all-reduce the size
    of the gradient. With the same weights for all rows, XLA sums over the devices in every pass.
    """
    N = arch.num_devices
    copies = {key: weight.expand(N, *weight.shape) for key, weight in weights.items()}
    return lambda h: torch.vmap(run)(copies, h.view(N, -1, *h.shape[1:])).flatten(0, 1)


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
    """The two heads on the answer latent, or the variant's own: logits [B, C, V], q_halt [B] and q_continue [B]."""
    if arch.variant.decode is not None:
        return arch.variant.decode(arch, weights, answer_BLD)
    logits = _linear(arch, answer_BLD, weights["lm_head"])[:, arch.model.prefix_len :]
    first = answer_BLD[:, 0]
    q = F.linear(first, weights["q_head.weight"].to(first.dtype), weights["q_head.bias"].to(first.dtype)).to(arch.master_dtype)
    return logits, q[:, 0], q[:, 1]


def forward(
    arch: Architecture,
    weights: Weights,
    fixed: Weights,
    puzzle_vectors: Tensor | None,
    latents: Latents,
    inputs_BC: Tensor,
    observe: Callable[[Latents], None] | None = None,
    noise: Noise | None = None,
) -> Output:
    """One supervision step's forward pass: embed the question, recurse, decode the answer and the halting values.

    `observe`, for looking at a step from outside, is called with the latents after each latent recursion. `noise` is needed where
    recursion.noise is above 0.
    """
    x = embed(arch, weights, puzzle_vectors, inputs_BC)
    latents = recurse(arch, weights, fixed, latents, x, arch.recursion.T, noise, observe)
    return Output(latents, *decode(arch, weights, latents[arch.latent_names[0]]))


def recurse(
    arch: Architecture,
    weights: Weights,
    fixed: Weights,
    latents: Latents,
    x: Tensor,
    T: int,
    noise: Noise | None = None,
    observe: Callable[[Latents], None] | None = None,
) -> Latents:
    """T latent recursions, the last one with gradient."""
    separate, recursion = arch.model.separate_networks, arch.recursion
    f_L = damped(network(arch, weights, fixed, "f_L" if separate else "net"), recursion, noise)
    f_H = damped(network(arch, weights, fixed, "f_H"), recursion, noise) if separate else f_L
    return arch.variant.run(Networks(f_L, f_H, own_weights(weights)), latents, x, T, recursion.n, observe)


def noise_of(arch: Architecture, fixed: Weights, rows: Tensor, step: int | Tensor, passes: int = 0) -> Noise | None:
    """The noise of rows [B] int64 at a step (scalar or [B]) after so many passes of the network; None where the model has none."""
    return Noise(fixed["random.seed"], rows, step, passes) if arch.recursion.noise else None


def with_latents(
    arch: Architecture, fixed: Weights, batch_size: int, rows: Tensor | None = None, step: int | Tensor = 0, heads: int = 1
) -> Latents:
    """Every latent at its start: the answer [B, L, D], the others [B, heads, L, D], or [B, L, D] where there is one of each.

    Starts that are drawn anew are those of `rows` [B] int64 (None = 0, 1, ...) at `step`.
    """
    shape = (arch.num_tokens, arch.model.hidden_size)
    first, *others = arch.latent_names
    shapes = {first: shape} | dict.fromkeys(others, shape if heads == 1 else (heads, *shape))
    if arch.latents.init == "random":
        seed = fixed["random.seed"]
        rows = torch.arange(batch_size, device=seed.device) if rows is None else rows
        return random_starts(seed, rows, shapes, step, arch.dtype)
    starts = {z: fixed[f"init.{z}"] for z in shapes}
    if heads > 1:
        own = {z: [starts[z], *(fixed[f"init.{z}.{copy}"] for copy in range(1, heads))] for z in others}
        starts |= {z: torch.stack(vectors).unsqueeze(1) for z, vectors in own.items()}  # [heads, 1, D]
    return {z: start.expand(batch_size, *shapes[z]) for z, start in starts.items()}
