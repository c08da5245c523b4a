"""Where training starts: the shapes and first values of the weights, the tensors that are never trained, and the latents' starts.

Shape legend: B rows, L tokens, D hidden size, K head size, I identifiers.
"""

import hashlib
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from trm.core.architecture import Architecture, Weights
from trm.core.recursion import OWN, Latents
from trm.ground.rng import STARTS, normal

# Standard deviation of a standard normal cut at two sigma
STD_OF_CUT_NORMAL = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
# The depthwise convolution of an MLP sees the token before and the token itself, or a cell and its neighbours in the grid
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


def num_parameters(arch: Architecture) -> int:
    """Trained values as the paper counts them: without the puzzle embedding, which is a buffer in the released code."""
    return sum(math.prod(shape) for shape in weight_shapes(arch).values())


def num_recurrent_parameters(arch: Architecture) -> int:
    """Trained values of the blocks, which a supervision step passes many times."""
    return sum(math.prod(shape) for name, shape in weight_shapes(arch).items() if name.startswith(("net.", "f_L.", "f_H.")))


def _uniform(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """In [0, 1), from a generator of the tensor's own, so that a variant that adds a tensor changes no other."""
    own = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
    return torch.rand(shape, generator=torch.Generator().manual_seed(own), dtype=torch.float64)


def truncated_normal(shape: tuple[int, ...], std: float, seed: int, name: str, dtype: torch.dtype) -> Tensor:
    """Normal values cut at two sigma, whose standard deviation after the cut is `std`."""
    bound = math.erf(math.sqrt(2))  # probability mass within two sigma
    normal = (torch.erfinv(_uniform(shape, seed, name) * (2 * bound) - bound) * math.sqrt(2)).clamp_(-2, 2)
    return (normal * (std / STD_OF_CUT_NORMAL)).to(dtype)


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
            bound = math.prod(CONV_KERNELS[arch.model.mlp]) ** -0.5
            weights[name] = ((2 * _uniform(shape, seed, name) - 1) * bound).to(arch.master_dtype)
        else:
            # the last axis is fan_in of a linear layer, and D of an embedding table: 1/sqrt(D) there too
            weights[name] = truncated_normal(shape, shape[-1] ** -0.5, seed, name, arch.master_dtype)
    return weights


def init_buffers(arch: Architecture, seed: int) -> Weights:
    """Tensors that are never trained: each latent's initial value [D] in the forward dtype, and the rotary tables [L, K].

    With several copies of the latents (latents.num_hypotheses), copies 1, 2, ... have vectors of their own, "init.NAME.1", ....
    With latents.init=random no latent has a vector. A model that draws random numbers has their seed, "random.seed".
    """
    names = [] if arch.latents.init == "random" else [f"init.{z}" for z in arch.latent_names]
    if names:
        names += [f"init.{z}.{copy}" for z in arch.latent_names[1:] for copy in range(1, arch.latents.num_hypotheses)]
    buffers = {name: truncated_normal((arch.model.hidden_size,), 1.0, seed, name, arch.dtype) for name in names}
    if arch.is_random:
        buffers["random.seed"] = torch.tensor(seed, dtype=torch.int64)
    if arch.model.positions.startswith("rope"):
        angles = _rope_angles(arch)
        buffers |= {"rope.cos": angles.cos(), "rope.sin": angles.sin()}
    return buffers


def _rope_angles(arch: Architecture) -> Tensor:
    """The rotary angles of every token and channel of a head, [L, K].

    rope2d turns the first half of the channels by a cell's row and the second by its column. The tokens before the cells have the
    place of the first cell.
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
    """The puzzle embedding [I, puzzle_emb_ndim], initially zero; None for a model without one."""
    if arch.model.puzzle_emb_ndim == 0:
        return None
    return torch.zeros(arch.num_puzzle_identifiers, arch.model.puzzle_emb_ndim, dtype=arch.master_dtype)


def random_starts(
    seed: int | Tensor, rows: Tensor, shapes: Mapping[str, tuple[int, ...]], step: int | Tensor, dtype: torch.dtype
) -> Latents:
    """Latents [B, *shape] of independent values (EqR, arXiv 2605.21488): normal, cut at two sigma, std 1 after the cut.

    `rows` [B] int64 says whose random numbers a row has.
    """
    return {
        z: normal(seed, rows, shape, stream=STARTS, step=step, application=i, truncated=True, dtype=dtype) / STD_OF_CUT_NORMAL
        for i, (z, shape) in enumerate(shapes.items())
    }


def with_latents(
    arch: Architecture,
    buffers: Weights,
    batch_size: int,
    rows: Tensor | None = None,
    step: int | Tensor = 0,
    num_hypotheses: int = 1,
) -> Latents:
    """Every latent at its start: the answer [B, L, D], the others [B, K, L, D], or [B, L, D] of one hypothesis.

    Random starts (latents.init=random) are those of `rows` [B] int64 at `step`; None = the rows' places in the global batch.
    """
    shape = (arch.num_tokens, arch.model.hidden_size)
    first, *others = arch.latent_names
    shapes = {first: shape} | dict.fromkeys(others, shape if num_hypotheses == 1 else (num_hypotheses, *shape))
    if arch.latents.init == "random":
        seed = buffers["random.seed"]
        rows = arch.share.places(batch_size, seed.device) if rows is None else rows
        return random_starts(seed, rows, shapes, step, arch.dtype)
    starts = {z: buffers[f"init.{z}"] for z in shapes}
    if num_hypotheses > 1:
        own = {z: [starts[z], *(buffers[f"init.{z}.{copy}"] for copy in range(1, num_hypotheses))] for z in others}
        starts |= {z: torch.stack(vectors).unsqueeze(1) for z, vectors in own.items()}  # [K, 1, D]
    return {z: start.expand(batch_size, *shapes[z]) for z, start in starts.items()}
