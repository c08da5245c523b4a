"""A training step as one CUDA graph: its kernels are recorded once and then replayed, without work on the host.

A small network's step is thousands of kernels of a few microseconds, and the host starts them more slowly than the device runs
them. The step is recorded unchanged, with the blocks that inductor compiled. A replay reads and writes the same memory every time:
arguments are copied there, and the state stays there.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from trm.errors import RunFailure

WARM_UP = 2  # calls before the recording: inductor compiles in the first and tunes its kernels by the second
Work = Callable[[], None]

log = logging.getLogger(__name__)


def cuda_graph(work: Work) -> Work:
    """`work` as a CUDA graph: a function that replays its kernels. Recording computes nothing."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # meanwhile another thread sends the next batch
        work()
    return graph.replay


class Replayed:
    """A pure function of tensor trees whose result takes the place of the argument `donate`, recorded after WARM_UP calls.

    Its arguments have the same shapes at each call, and it returns the same tensors at each: no caller reads a donated one again.
    """

    def __init__(self, function: Callable[..., Any], donate: int, record: Callable[[Work], Work] = cuda_graph) -> None:
        self._function, self._donate, self._record = function, donate, record
        self._calls = 0
        self._replay: Work | None = None
        self._arguments: tuple[Any, ...] = ()  # in the memory that the recording reads
        self._places: list[Tensor] = []  # their tensors
        self._copied: list[Tensor] = []  # what was last copied there

    def __call__(self, *args: Any) -> Any:
        """The function's result. Raises RunFailure where the function cannot be recorded."""
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._function(*args)
        if self._replay is None:
            self._arguments = pytree.tree_map_only(Tensor, torch.clone, args)
            self._places = self._copied = _tensors(self._arguments)
            try:
                self._replay = self._record(self._step)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                words = f"hardware.step_graph=true: the training step cannot be recorded as a CUDA graph ({reason})"
                raise RunFailure(f"{words}: set hardware.step_graph=false") from error
            log.info("the training step is recorded as one CUDA graph")
        given = _tensors(args)
        for place, before, tensor in zip(self._places, self._copied, given, strict=True):
            if tensor is not place and tensor is not before:
                place.copy_(tensor)
        self._copied = given
        self._replay()
        return self._arguments[self._donate]

    def _step(self) -> None:
        """Run the function and write its result into the memory of the donated argument."""
        results, places = _tensors(self._function(*self._arguments)), _tensors(self._arguments[self._donate])
        taken = {place.data_ptr() for place in self._places}
        # a result that is another argument's memory is copied before that is overwritten
        results = [r if r is place or r.data_ptr() not in taken else r.clone() for r, place in zip(results, places, strict=True)]
        for place, result in zip(places, results, strict=True):
            if result is not place:
                place.copy_(result)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
