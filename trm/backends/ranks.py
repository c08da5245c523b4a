"""Several processes of torch's own backends that train together (torch.distributed): NCCL on GPUs, gloo on CPUs.

Each process, a rank, has one device, all weights and its own rows of every batch. What a program says of the whole batch, it learns
in `RankShare.exchange`; its other results are the same on every rank, to the bit, since all compute them from the same numbers.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.utils._pytree as pytree
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

from trm.backends.base import Fn, Rows, T, map_tensors, none
from trm.backends.native import NativeRuntime
from trm.config import HardwareConfig
from trm.errors import RunFailure
from trm.ground.rank import Rank, rank_of_launcher
from trm.ground.share import R, S, Share

LIMIT_S = 600  # how long a rank waits for the others in one exchange: one of them may write, or compile alone
MOST_BITS = 16  # of a whole number that a float32 of the buffer takes, with the sign that is added to the high ones


_wait: Callable[[Tensor], Tensor] = collectives.wait_tensor


class RankShare(Share):
    """One rank's rows of the global batch."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count
        self.exchanges = self.bytes = 0  # all-reduces so far, and what this rank gave to them

    def exchange(self, sums: S, rows: R) -> tuple[S, R]:
        """One all-reduce of one flat buffer, in the widest type of the tensors: rows are added to zeros in the other ranks' places.

        Whole numbers of rows go as two halves of MOST_BITS bits; those of sums must be below 2**24.
        """
        sum_leaves, row_leaves = ([leaf for leaf in pytree.tree_leaves(tree) if leaf is not None] for tree in (sums, rows))
        if not sum_leaves and not row_leaves:
            return sums, rows
        floats = [leaf.dtype for leaf in (*sum_leaves, *row_leaves) if leaf.ndim and leaf.is_floating_point()]
        dtype = functools.reduce(torch.promote_types, floats, torch.float32)
        parts = [leaf.to(dtype).reshape(-1) for leaf in sum_leaves]
        for leaf in row_leaves:
            own = _halves(leaf).to(dtype).reshape(-1)
            before, after = own.new_zeros(self.index * own.numel()), own.new_zeros((self.count - 1 - self.index) * own.numel())
            parts += [before, own, after]
        total = self.total(torch.cat(parts))
        sizes = [leaf.numel() for leaf in sum_leaves] + [self.count * _halves(leaf).numel() for leaf in row_leaves]
        found = iter(torch.split(total, sizes))
        new_sums = map_tensors(lambda leaf: next(found).view(leaf.shape).to(leaf.dtype), sums)
        return new_sums, map_tensors(lambda leaf: self._whole_rows(next(found), leaf), rows)

    def total(self, flat: Tensor) -> Tensor:
        """The sum over all ranks of a flat buffer."""
        self.exchanges += 1
        self.bytes += flat.numel() * flat.element_size()
        return _wait(collectives.all_reduce(flat, "sum", cast(Any, dist.group.WORLD)))

    def _whole_rows(self, flat: Tensor, like: Tensor) -> Tensor:
        """The rows of all ranks, [count * B, ...], from what `_halves` made of each rank's."""
        shape = (self.count * like.shape[0], *like.shape[1:])
        if not _is_whole_number(like):
            return flat.view(shape).to(like.dtype)
        high, low = flat.view(self.count, 2, -1).to(torch.int64).unbind(1)
        return ((high << MOST_BITS) + low).reshape(shape).to(like.dtype)


def _is_whole_number(leaf: Tensor) -> bool:
    return not leaf.is_floating_point() and leaf.dtype != torch.bool


def _halves(leaf: Tensor) -> Tensor:
    """Whole numbers of 32 bits as two of MOST_BITS, [2, ...]; other tensors as they are."""
    return torch.stack((leaf >> MOST_BITS, leaf & ((1 << MOST_BITS) - 1))) if _is_whole_number(leaf) else leaf


class Ranks(NativeRuntime):
    """What is a rank's own in the runtime of one device, which it is mixed into.

    A tensor whose first axis is this rank's rows says so in an attribute, SPLIT, so that `fetch` gives all ranks' rows.
    """

    SPLIT = "trm_is_split"

    def __init__(self, hardware: HardwareConfig) -> None:
        rank = rank_of_launcher()
        device = None
        if hardware.platform == "cuda":  # srun may show each process its own GPU alone
            device = torch.device("cuda", rank.local % torch.cuda.device_count())
            torch.cuda.set_device(device)
        super().__init__(hardware)
        if device is not None:
            self._device = device  # by number: other threads, as that which sends batches, have a current device of their own
        join(rank, device)
        self.process_index, self.process_count = rank.rank, rank.ranks
        self.num_devices = rank.ranks
        self.share = self._exchanges = RankShare(rank.rank, rank.ranks)

    def compile(self, function: Fn, rows: Rows = none, donate: int | None = None) -> Fn:
        """The function; `rows` of its results know that they are this rank's."""
        compiled = super().compile(function, rows, donate)

        @functools.wraps(function)
        def run(*args: Any) -> Any:
            results = compiled(*args)
            self._split(rows(results))
            return results

        return cast(Fn, run)

    def _split(self, tree: T) -> T:
        for leaf in pytree.tree_leaves(tree):
            if isinstance(leaf, Tensor):
                setattr(leaf, self.SPLIT, True)
        return tree

    def shard(self, tree: T) -> T:
        """As on one device; a copy, which alone is marked."""
        return self._split(super().shard(map_tensors(torch.clone, tree)))

    def fetch(self, tree: T) -> T:
        """As on one device; rows are gathered from all ranks, which must fetch them together."""
        leaves, structure = pytree.tree_flatten(tree)
        places = [i for i, leaf in enumerate(leaves) if getattr(leaf, self.SPLIT, False)]
        for place, rows in zip(places, self._gathered([leaves[place] for place in places]), strict=True):
            leaves[place] = rows
        return cast(T, super().fetch(pytree.tree_unflatten(leaves, structure)))

    def _gathered(self, parts: list[Tensor]) -> list[Tensor]:
        """Each of the tensors with the rows of all ranks, by one exchange of bytes."""
        if not parts:
            return []
        flat = torch.cat([part.contiguous().view(-1).view(torch.uint8) for part in parts])
        found = flat.new_empty(self.process_count, flat.numel())
        dist.all_gather(list(found), flat)
        sizes = [part.numel() * part.element_size() for part in parts]
        columns = torch.split(found, sizes, dim=1)
        return [column.contiguous().view(part.dtype).view(-1, *part.shape[1:]) for part, column in zip(parts, columns, strict=True)]

    def metrics_line(self) -> str:
        """With what the ranks have exchanged."""
        share = self._exchanges
        return f"{super().metrics_line()}, {share.exchanges} all-reduces of together {share.bytes / 2**20:.0f} MiB"

    def describe(self) -> str:
        """With which of the ranks this is."""
        words = f"rank {self.process_index + 1} of {self.process_count} ({dist.get_backend()})"
        return f"{super().describe()} each, {words}"


def over_ranks(runtime: Callable[[HardwareConfig], Any]) -> Callable[[HardwareConfig], Any]:
    """The runtime of one device as that of one of several ranks."""
    assert isinstance(runtime, type)
    return type(f"Ranks{runtime.__name__}", (Ranks, runtime), {})


def join(rank: Rank, device: torch.device | None) -> None:
    """Meet the other ranks, once a process; `device` is this rank's GPU, None on a CPU."""
    if dist.is_initialized():
        return
    # while this waits, a signal that only set a flag would be heard too late: there is nothing to save yet
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    backend = "gloo" if device is None else "nccl"
    os.environ |= {"MASTER_ADDR": rank.address, "MASTER_PORT": str(rank.port)}
    limit = timedelta(seconds=LIMIT_S)
    try:
        dist.init_process_group(backend, "env://", limit, rank.ranks, rank.rank, device_id=device)
    except (dist.DistError, RuntimeError) as error:
        where = f"{rank.address}:{rank.port}"
        raise RunFailure(f"rank {rank.rank}: the {rank.ranks} processes of this run do not meet at {where}: {error}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
