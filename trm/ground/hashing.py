"""Counter-based randomness: pure functions of integers, so any row of any stream can be drawn alone, in any order.

The finaliser is splitmix64's (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195). NumPy's generators are not
used because their streams may change between versions, and datasets must be reproducible to the byte.
"""

import itertools
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_MOST_COMPARED = 3  # so few keys are sorted by comparing all pairs, which is several times faster


class Stream(IntEnum):
    """The use of a random number. It is the first word hashed, so that one seed gives independent streams."""

    AUGMENT = 1
    EPOCH = 2
    VARIANT = 3
    TRAIN_ROWS = 4
    TEST_ROWS = 5
    GENERATE = 6
    SYMMETRY = 7
    COLOURS = 8
    STILL = 9
    OFFSET = 10
    PAIRS = 11
    CHOICE = 12
    SPLIT = 13
    EXPLORATION = 14


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words one to one (any shape)."""
    x = x ^ (x >> _SHIFTS[0])
    x *= _MULTIPLIERS[0]
    x ^= x >> _SHIFTS[1]
    x *= _MULTIPLIERS[1]
    x ^= x >> _SHIFTS[2]
    return x


def hash64(*words: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """One uniform 64-bit word per element of the broadcast words; `hash64(hash64(a), b)` is not `hash64(a, b)`."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = mix64((state + _GAMMA) ^ np.asarray(word).astype(np.uint64))
    return state


@cache
def _order_of_comparisons(n: int) -> NDArray[np.int64]:
    """Orders of n keys [2 ** pairs, n], one for each result of comparing all pairs i < j: a bit each, 1 where key j is less."""
    pairs = list(itertools.combinations(range(n), 2))
    table = np.zeros((2 ** len(pairs), n), np.int64)  # rows that stay empty are results that cannot occur
    for order in itertools.permutations(range(n)):
        table[sum((order.index(j) < order.index(i)) << bit for bit, (i, j) in enumerate(pairs))] = order
    return table


def permutations(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Uniform permutations of 0..n-1 from random keys [..., n]: the order of the keys without their last bits, ties by position."""
    n = keys.shape[-1]
    bits = np.uint64((n - 1).bit_length())
    tagged = keys >> bits
    if n <= _MOST_COMPARED:
        code = np.zeros(keys.shape[:-1], np.uint8)
        for bit, (i, j) in enumerate(itertools.combinations(range(n), 2)):
            code |= (tagged[..., j] < tagged[..., i]).view(np.uint8) << np.uint8(bit)
        return _order_of_comparisons(n).take(code, axis=0)
    # Sorting keys that carry their index in the low bits is several times faster than argsort on short rows.
    tagged <<= bits
    tagged |= np.arange(n, dtype=np.uint64)
    tagged.sort(axis=-1)
    tagged &= (np.uint64(1) << bits) - np.uint64(1)
    return tagged.view(np.int64)
