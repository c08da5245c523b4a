"""Random numbers by counter: a function of only (seed, stream, step, application, row, element).

Noise and random starts are then the same on one device and on eight and for every split of rows into batches, and a resumed run
needs no state of a generator. The generator is Threefry-2x32 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as
easy as 1, 2, 3"), with 13 rounds, the fewest that pass BigCrush there: additions, rotations and exclusive ors of 32 bits, which
every backend has. Words are int32 whose sums wrap around.

Shape legend: B rows.
"""

import math

import torch
from torch import Tensor

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
ROUNDS = 13
PARITY = 0x1BD11BDA
WORD = 1 << 32

# The streams, whose numbers are independent.
STARTS, RECURSION_NOISE, ROLLOUT_NOISE, RESAMPLING = range(4)

Number = int | Tensor  # a scalar, or [B]


def _word(value: Number, like: Tensor) -> Tensor:
    """The low 32 bits of a number as an int32 that broadcasts over [B, elements]."""
    if isinstance(value, int):
        unsigned = value % WORD
        return torch.full((1, 1), unsigned - WORD if unsigned >= WORD // 2 else unsigned, dtype=torch.int32, device=like.device)
    low = value.to(torch.int64) & (WORD - 1)
    return torch.where(low >= WORD // 2, low - WORD, low).to(torch.int32).view(-1, 1)


def _shifted(word: Tensor, bits: int) -> Tensor:
    """A word shifted right, with zeros from the left. torch_xla's >> divides and would round, so the low bits are cleared first."""
    return ((word & -(1 << bits)) >> bits) & ((1 << (32 - bits)) - 1)


def threefry(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two int32 words of 32 random bits for each counter (two int32 words) under a key (two int32 words); they broadcast."""
    keys = (*key, key[0] ^ key[1] ^ PARITY)
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(ROUNDS):
        rotation = ROTATIONS[i % 8]
        a = a + b
        b = (b << rotation) | _shifted(b, 32 - rotation)
        b = b ^ a
        if i % 4 == 3:
            injection = i // 4 + 1
            a, b = a + keys[injection % 3], b + keys[(injection + 1) % 3] + injection
    return a, b


def uniform(
    seed: Number,
    rows: Tensor,
    shape: tuple[int, ...],
    *,
    stream: int,
    step: Number = 0,
    application: Number = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in the open interval (0, 1), [B, *shape]. See `normal` for the arguments."""
    return _joined(_two_uniforms(seed, rows, math.prod(shape), stream, step, application, dtype), shape)


def normal(
    seed: Number,
    rows: Tensor,
    shape: tuple[int, ...],
    *,
    stream: int,
    step: Number = 0,
    application: Number = 0,
    truncated: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers [B, *shape]; `truncated`: the standard normal given that it lies within [-2, 2] (its std is 0.88).

    seed, step, application: an int, or an int64 tensor, scalar or [B]. rows: [B] int64, a number of each row: different
    rows get independent numbers. 16-bit types get the rounded numbers of float32.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    first, second = _two_uniforms(seed, rows, math.prod(shape), stream, step, application, exact)
    if truncated:
        within = math.erf(math.sqrt(2))  # the probability of [-2, 2]
        halves = math.sqrt(2) * torch.erfinv(within * (2 * first - 1)), math.sqrt(2) * torch.erfinv(within * (2 * second - 1))
    else:  # Box and Muller 1958
        radius, angle = torch.sqrt(-2 * torch.log(first)), 2 * math.pi * second
        halves = radius * torch.cos(angle), radius * torch.sin(angle)
    return _joined(halves, shape).to(dtype)


def _joined(halves: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The numbers [B, *shape] of the rows, from two halves; the last number is left out where their count is odd."""
    return torch.cat(halves, dim=1)[:, : math.prod(shape)].reshape(-1, *shape)


def _two_uniforms(
    seed: Number, rows: Tensor, count: int, stream: int, step: Number, application: Number, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Two independent sets of uniform numbers in (0, 1), [B, ceil(count / 2)] each."""
    key = threefry((_word(seed, rows), _word(seed >> 32, rows)), (_word(stream, rows), _word(step, rows)))
    key = threefry(key, (_word(application, rows), _word(rows >> 32, rows)))
    elements = torch.arange((count + 1) // 2, dtype=torch.int32, device=rows.device).view(1, -1)
    words = threefry(key, (_word(rows, rows), elements))
    # 23 bits, so that float32 holds the middle of every interval: never 0 or 1
    first, second = (_shifted(word, 9).to(dtype) * 2.0**-23 + 2.0**-24 for word in words)
    return first, second
