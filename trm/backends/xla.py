"""Devices, compilation, sharding and transfers by torch_xla; no other module imports it."""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from trm.backends.base import Fn, Rows, Runtime, T, map_tensors
from trm.config import HardwareConfig
from trm.errors import ConfigError

log = logging.getLogger(__name__)

# torch_xla's timers, in nanoseconds. The host's time for an execution includes waiting for its turn
XLA_TIMES = {
    "CompileTime": "compiled",
    "ExecuteTime": "executed",
    "TransferToDeviceTime": "sent to the devices",
    "TransferFromDeviceTime": "fetched",
}

COMPUTED = -1


class _XlaFunction:
    """A pure function, traced once by torch_xla's lazy tensors and from then on run as one cached XLA computation.

    This is the second half of `torch.compile(backend="openxla")`. The first half analyses the bytecode of 21 unrolled network
    passes, which takes longer than XLA's compile; a pure function of tensors does not need it.
    """

    def __init__(
        self, function: Callable[..., Any], donate: int | None, drain: Callable[[], None] | None, lock: threading.RLock
    ) -> None:
        """`drain`, if any, is called after each execution. Tracing holds `lock`, as it runs what other threads have left."""
        self._function, self._donate, self._drain, self._lock = function, donate, drain, lock
        self._graph: Callable[..., Any] | None = None
        self._shapes: list[tuple[torch.Size, torch.dtype]] = []
        self._places: list[int | None] = []  # of each result: COMPUTED, its place among the arguments, or None for None
        self.recompiles = 0  # for other shapes than the first

    def __call__(self, *args: Any) -> Any:
        graph, tensors = self.graph_for(args)
        returned = graph(*tensors)  # a lone result comes bare
        computed = iter([returned] if isinstance(returned, Tensor) else returned)
        if self._drain is not None:
            self._drain()
        results = [next(computed) if place == COMPUTED else None if place is None else tensors[place] for place in self._places]
        return pytree.tree_unflatten(results, self._result_structure)

    def graph_for(self, args: tuple[Any, ...]) -> tuple[Callable[..., Any], list[Tensor]]:
        """The graph for such arguments, traced and compiled but not run, and their tensors."""
        leaves, structure = pytree.tree_flatten(args)
        tensors = [leaf for leaf in leaves if leaf is not None]
        shapes = [(t.shape, t.dtype) for t in tensors]
        if self._graph is None or shapes != self._shapes:
            if self._graph is not None:
                self.recompiles += 1
                changed = [] if len(shapes) == len(self._shapes) else [f"{len(self._shapes)} tensors became {len(shapes)}"]
                for i, (old, new) in enumerate(zip(self._shapes, shapes, strict=False)):
                    if old != new:
                        changed.append(f"tensor {i}: {old[1]} {list(old[0])} became {new[1]} {list(new[0])}")
                log.warning("compiling again: %s", "; ".join(changed))
            with self._lock:
                self._graph, self._shapes = self._trace(leaves, structure, tensors), shapes
        return self._graph, tensors

    def _trace(self, leaves: list[Any], structure: pytree.TreeSpec, tensors: list[Tensor]) -> Callable[..., Any]:
        from torch_xla import _XLAC
        from torch_xla._dynamo import dynamo_bridge

        there = [leaf is not None for leaf in leaves]

        def flat(*flat_tensors: Tensor) -> list[Tensor]:
            given = iter(flat_tensors)
            args = pytree.tree_unflatten([next(given) if present else None for present in there], structure)
            results, self._result_structure = pytree.tree_flatten(self._function(*args))
            # the graph computes only results that are none of its arguments, since torch_xla fails on those that are
            arguments = {_XLAC._xla_get_tensor_id(tensor): place for place, tensor in enumerate(flat_tensors)}
            self._places = [None if r is None else arguments.get(_XLAC._xla_get_tensor_id(r), COMPUTED) for r in results]
            if self._donate is not None:
                kept = {id(flat_tensors[place]) for place in self._places if place not in (None, COMPUTED)}
                for leaf in pytree.tree_leaves(args[self._donate]):
                    if leaf is not None and id(leaf) not in kept:
                        _XLAC._set_buffer_donation(leaf, True)
            return [result for result, place in zip(results, self._places, strict=True) if place == COMPUTED]

        flat.xla_args = tensors  # type: ignore[attr-defined]
        flat.parameters = tuple  # type: ignore[attr-defined]
        graph: Callable[..., Any] = dynamo_bridge.extract_internal(flat)
        flat.xla_args = ()  # type: ignore[attr-defined]  # else the first arguments stay in memory as long as the graph
        for tensor in tensors:  # else any other graph that they are given to takes their memory too
            _XLAC._set_buffer_donation(tensor, False)
        return graph


def _by_rows(tensor: Tensor) -> tuple[str | None, ...]:
    """The mesh axes of a tensor whose first axis is split over the devices."""
    return ("data", *[None] * (tensor.ndim - 1))


class XlaRuntime(Runtime):
    """torch_xla on CPU or TPU; SPMD over a 1-D mesh where there is more than one device."""

    _always_spmd = False

    def __init__(self, hardware: HardwareConfig) -> None:
        self.can = hardware.can
        os.environ["PJRT_DEVICE"] = hardware.platform.upper()
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA warns at every compile that its SPMD partitioner will be replaced
        if hardware.platform == "cpu":
            os.environ["CPU_NUM_DEVICES"] = str(hardware.local_devices)
        try:
            import torch_xla
            import torch_xla.backends
            import torch_xla.core.xla_model as xm
            import torch_xla.debug.metrics as xla_metrics
            import torch_xla.distributed.spmd as spmd
            import torch_xla.runtime as xr
        except (ImportError, OSError, AttributeError, RuntimeError) as error:  # a library of another torch fails in any of these
            raise ConfigError(
                f"torch_xla does not load with torch {torch.__version__} ({error}): run `make setup`, or use hardware.backend=eager"
            ) from error
        self._torch_xla, self._xm, self._metrics, self._spmd = torch_xla, xm, xla_metrics, spmd
        # float32 is computed in float32; by default a TPU multiplies in bfloat16. torch_xla warns about this setting
        logging.getLogger("torch_xla.backends").setLevel(logging.ERROR)
        torch_xla.backends.set_mat_mul_precision("highest")
        self._lock = threading.RLock()  # one thread at a time changes what torch_xla keeps of its live tensors
        self._compiled: list[_XlaFunction] = []
        self._mesh = None
        if hardware.compile_cache is not None:  # before the first use of the devices
            xr.initialize_cache(compile_cache(hardware.compile_cache), readonly=False)
        if hardware.devices > 1 or self._always_spmd:
            xr.use_spmd()
        try:
            found = xr.global_runtime_device_count()
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"hardware={hardware.name} needs {hardware.devices} {hardware.platform} devices and this machine gives none "
                f"({str(error).splitlines()[0]}): use hardware=cpu, or start on the right machine"
            ) from error
        if found != hardware.devices:
            raise ConfigError(
                f"hardware={hardware.name} expects {hardware.devices} {hardware.platform} devices, found {found}: choose the "
                "hardware= that matches this machine, for example hardware=cpu"
            )
        if hardware.devices > 1:
            self._mesh = spmd.Mesh(np.arange(found), (found,), ("data",))
        self.num_devices = found
        self.process_index, self.process_count = xr.process_index(), xr.process_count()
        self._device = torch_xla.device()
        self._platform = hardware.platform
        if self.process_count > 1:
            self._order_mesh()

    def replicate_rows(self, rows: Tensor) -> Tensor:
        if self._mesh is not None:
            self._spmd.mark_sharding(rows, self._mesh, (None,) * rows.ndim)
        return rows

    def compile(self, function: Fn, rows: Rows | None = None, donate: int | None = None) -> Fn:
        # XLA's virtual CPU devices mix up the all-reduces of two executions that are under way at once, and hang
        drain = self.wait if self._platform == "cpu" and self.num_devices > 1 else None
        compiled: Any = _XlaFunction(self._placing(function, rows), donate, drain, self._lock)
        self._compiled.append(compiled)
        return cast(Fn, compiled)

    def _placing(self, function: Fn, rows: Rows | None) -> Fn:
        """The function with the sharding of each of its results declared.

        The partitioner might choose another sharding for a result that comes back as an argument than the graph was made for: it
        would be traced again, outside the lock and without donation.
        """
        if self._mesh is None:
            return function

        def placing(*args: Any) -> Any:
            results = function(*args)
            split = {id(leaf) for leaf in pytree.tree_leaves(rows(results) if rows else ())}
            given = {id(leaf) for leaf in pytree.tree_leaves(args)}  # lie as they were sent
            whole = {id(leaf): leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor) and id(leaf) not in given}
            for key, leaf in whole.items():
                self._spmd.mark_sharding(leaf, self._mesh, _by_rows(leaf) if key in split else (None,) * leaf.ndim)
            return results

        placing.__name__ = getattr(function, "__name__", placing.__name__)
        return cast(Fn, placing)

    def prepare(self, compiled: Callable[..., Any], *args: Any) -> None:
        cast(_XlaFunction, compiled).graph_for(args)

    def _order_mesh(self) -> None:
        """Order the mesh's devices as the processes, which must call it together. Raises ConfigError where rows stay mixed up."""
        local = self.num_devices // self.process_count
        own = torch.arange(local, dtype=torch.int32) + self.process_index * local
        for attempt in range(2):
            found = self.fetch(self._shard(own)).tolist()
            if found == list(range(self.num_devices)):
                return
            if attempt == 0 and sorted(found) == list(range(self.num_devices)):
                self._mesh = self._spmd.Mesh(np.argsort(found), (self.num_devices,), ("data",))
        raise ConfigError(
            f"hardware: rows 0 to {self.num_devices - 1}, one sent to each device, come back as {found}: start one process on each "
            "host, each with the same number of devices"
        )

    def replicate(self, tree: T) -> T:
        return map_tensors(lambda tensor: self._send(tensor, (None,) * tensor.ndim), tree)

    def shard(self, tree: T) -> T:
        return map_tensors(self._shard, tree)

    def _shard(self, tensor: Tensor) -> Tensor:
        # minibatch: each process passes its own rows of the global tensor
        return self._send(tensor, _by_rows(tensor), minibatch=self.process_count > 1)

    def _send(self, tensor: Tensor, axes: tuple[str | None, ...], minibatch: bool = False) -> Tensor:
        """Send a CPU tensor to the devices now: a later trace would send it together with those of other threads, and fail."""
        sharding = None if self._mesh is None else self._spmd.ShardingSpec(self._mesh, axes, minibatch=minibatch)
        with self._lock:
            on_device: Tensor = self._xm.send_cpu_data_to_device([tensor], self._device, input_sharding=sharding)[0]
        return on_device

    def fetch(self, tree: T) -> T:
        leaves, structure = pytree.tree_flatten(tree)
        # all in one transfer; under SPMD each tensor alone would be gathered by a computation of its own
        fetched = iter(self._torch_xla._XLAC._xla_get_cpu_tensors([leaf for leaf in leaves if isinstance(leaf, Tensor)]))
        result: T = pytree.tree_unflatten([next(fetched) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
        return result

    def wait(self) -> None:
        self._xm.wait_device_ops()

    def compile_count(self) -> int:
        return int(self._metrics.counter_value("UncachedCompile") or 0)

    def metrics_line(self) -> str:
        parts = []
        for name, words in XLA_TIMES.items():
            count, nanoseconds, _ = self._metrics.metric_data(name) or (0, 0.0, ())
            parts.append(f"{words} {count} ({nanoseconds / 1e9:.2f} s)")
        return ", ".join([*parts, f"recompiled for other shapes {sum(each.recompiles for each in self._compiled)}"])

    @contextlib.contextmanager
    def profile(self, folder: Path) -> Iterator[None]:
        from torch_xla.debug import profiler

        profiler.start_trace(folder)
        try:
            yield
            self.wait()
        finally:
            profiler.stop_trace()

    def describe(self) -> str:
        return (
            f"torch_xla {self._torch_xla.__version__} on {self.num_devices} {self._platform} device(s), "
            f"process {self.process_index + 1} of {self.process_count}"
        )


def compile_cache(folder: str) -> str:
    """This process's own part of the folder: torch_xla writes a graph's file in place, so others would read half of it."""
    chips = os.environ.get("TPU_VISIBLE_CHIPS", "all").replace(",", "_")
    return os.path.join(os.path.abspath(folder), f"{socket.gethostname()}-chips_{chips}")


class TracingRuntime(XlaRuntime):
    """Devices on paper: writes the XLA module that a TPU of as many chips would compile. Compiles and computes nothing."""

    _always_spmd = True  # torch_xla lowers for the device that PJRT_DEVICE names only where devices are virtual

    def __init__(self, num_devices: int) -> None:
        super().__init__(HardwareConfig(name="trace", devices_per_host=num_devices))
        os.environ["PJRT_DEVICE"] = "TPU"

    def lower(self, function: Callable[..., Any], rows: Rows, *args: Any) -> tuple[bytes, list[int]]:
        """Trace a function of tensors with the shapes and dtypes of `args` (trees of tensors on any device, meta too).

        Returns the HloModuleProto, and for each tensor of `args` in the order of their tree its parameter's number in the module,
        -1 for a tensor that the function does not use. The module's other parameters are scalars that torch_xla sends with the
        program. The module does not say how arguments are split over the devices, nor which are donated.
        """
        from torch_xla.core.xla_builder import create_placeholder_tensor

        placed = map_tensors(lambda tensor: create_placeholder_tensor(tensor.shape, tensor.dtype), args)
        results = [leaf for leaf in pytree.tree_leaves(self._placing(function, rows)(*placed)) if isinstance(leaf, Tensor)]
        context = self._torch_xla._XLAC.lowering.LoweringContext(function.__name__)
        context.build(results)
        tensors = [leaf for leaf in pytree.tree_leaves(placed) if isinstance(leaf, Tensor)]
        return context.hlo(), [context.tensor_parameter_id(tensor) for tensor in tensors]
