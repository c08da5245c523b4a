"""Several processes of torch's own backends that train together (torch.distributed): NCCL on GPUs, gloo on CPUs.

Each process, a rank, has one device, all weights and its own rows of every batch. `RankShare.exchange` adds up or gathers what
concerns the whole batch. Other results are the same on every rank to the bit, since all compute them from the same numbers.
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

from trm.backends.base import Fn, Rows, T, map_tensors
from trm.backends.native import NativeRuntime
from trm.config import HardwareConfig
from trm.errors import ConfigError, RunFailure
from trm.ground.rank import Rank, rank_of_launcher
from trm.ground.share import R, S, Share

LIMIT_S = 600  # how long a rank waits for the others in one exchange: one of them may write, or compile alone
MOST_BITS = 16  # of a whole number in a float32 of the buffer, and the sign beside the high ones

_wait: Callable[[Tensor], Tensor] = collectives.wait_tensor


class RankShare(Share):
    """One rank's rows of the global batch."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count
        self.exchanges = self.bytes = 0  # all-reduces so far, and this rank's bytes in them

    def exchange(self, sums: S, rows: R) -> tuple[S, R]:
        """One all-reduce of one flat buffer, in the widest type of the tensors: rows are added to zeros in the other ranks' places.

        Whole numbers of rows are sent as two halves of MOST_BITS bits; those of sums must be below 2**24.
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

        def rows_of_all(leaf: Tensor) -> Tensor:  # [count * B, ...], from the halves of each rank's
            flat, shape = next(found), (self.count * leaf.shape[0], *leaf.shape[1:])
            if _is_whole_number(leaf):
                high, low = flat.view(self.count, 2, -1).to(torch.int64).unbind(1)
                flat = (high << MOST_BITS) + low
            return flat.reshape(shape).to(leaf.dtype)

        return new_sums, map_tensors(rows_of_all, rows)

    def total(self, flat: Tensor) -> Tensor:
        """The sum over all ranks of a flat buffer."""
        self.exchanges += 1
        self.bytes += flat.numel() * flat.element_size()
        return _wait(collectives.all_reduce(flat, "sum", cast(Any, dist.group.WORLD)))


def _is_whole_number(leaf: Tensor) -> bool:
    return not leaf.is_floating_point() and leaf.dtype != torch.bool


def _halves(leaf: Tensor) -> Tensor:
    """Whole numbers of 32 bits as two of MOST_BITS, [2, ...]; other tensors as they are."""
    return torch.stack((leaf >> MOST_BITS, leaf & ((1 << MOST_BITS) - 1))) if _is_whole_number(leaf) else leaf


class Ranks(NativeRuntime):
    """Mixed into the runtime of one device. A tensor with this rank's rows is marked by SPLIT, and `fetch` gathers all rows."""

    SPLIT = "trm_is_split"

    def __init__(self, hardware: HardwareConfig) -> None:
        rank = rank_of_launcher()
        device = None
        if hardware.platform == "cuda":  # srun may show each process its own GPU alone
            device = gpu_of(rank, torch.cuda.device_count())
            torch.cuda.set_device(device)
        super().__init__(hardware)
        if device is not None:
            self._device = device  # by number: other threads, such as the one that sends batches, have their own current device
        _join(rank, device)
        self.process_index, self.process_count = rank.rank, rank.ranks
        self.num_devices = rank.ranks
        self.share = self._exchanges = RankShare(rank.rank, rank.ranks)

    def compile(self, function: Fn, rows: Rows | None = None, donate: int | None = None) -> Fn:
        """The function; `rows` of its results are marked as this rank's."""
        compiled = super().compile(function, rows, donate)

        @functools.wraps(function)
        def run(*args: Any) -> Any:
            results = compiled(*args)
            if rows is not None:
                self._split(rows(results))
            return results

        return cast(Fn, run)

    def _split(self, tree: T) -> T:
        for leaf in pytree.tree_leaves(tree):
            if isinstance(leaf, Tensor):
                setattr(leaf, self.SPLIT, True)
        return tree

    def shard(self, tree: T) -> T:
        """Put a copy on the device and mark it as this rank's rows."""
        return self._split(super().shard(map_tensors(torch.clone, tree)))

    def fetch(self, tree: T) -> T:
        """Fetch as on one device. Rows are gathered from all ranks, which must fetch them together, by one exchange of bytes."""
        leaves, structure = pytree.tree_flatten(tree)
        places = [i for i, leaf in enumerate(leaves) if getattr(leaf, self.SPLIT, False)]
        if parts := [leaves[place] for place in places]:
            flat = torch.cat([part.contiguous().view(-1).view(torch.uint8) for part in parts])
            found = flat.new_empty(self.process_count, flat.numel())
            dist.all_gather(list(found), flat)
            columns = torch.split(found, [part.numel() * part.element_size() for part in parts], dim=1)
            for place, part, column in zip(places, parts, columns, strict=True):
                leaves[place] = column.contiguous().view(part.dtype).view(-1, *part.shape[1:])
        return cast(T, super().fetch(pytree.tree_unflatten(leaves, structure)))

    def metrics_line(self) -> str:
        """The line of one device, and the all-reduces so far."""
        share = self._exchanges
        return f"{super().metrics_line()}, {share.exchanges} all-reduces of together {share.bytes / 2**20:.0f} MiB"

    def describe(self) -> str:
        """The line of one device, and the number of this rank."""
        words = f"rank {self.process_index + 1} of {self.process_count} ({dist.get_backend()})"
        return f"{super().describe()} each, {words}"


def gpu_of(rank: Rank, gpus: int) -> torch.device:
    """The GPU of a rank, of so many that it sees. Raises ConfigError where its host has more ranks than GPUs."""
    if rank.local >= gpus and (gpus > 1 or int(os.environ.get("LOCAL_WORLD_SIZE") or "1") > 1):
        raise ConfigError(
            f"process {rank.local} of this host has no GPU of its own, for there are {gpus}: start at most {gpus} on a host "
            "(--nproc-per-node, --ntasks-per-node)"
        )
    return torch.device("cuda", rank.local % gpus)


def _join(rank: Rank, device: torch.device | None) -> None:
    """Meet the other ranks, once a process; `device` is this rank's GPU, None on a CPU."""
    if dist.is_initialized():
        return
    # a signal must end the wait: there is nothing to save yet, and a handler that sets a flag would be heard too late
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
