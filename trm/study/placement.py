"""Where the jobs of a sweep run: hardware facts and `hardware.placement` to processes, environment and jobs at once.

Pure: tables and arithmetic, no devices. Facts of TPU v4: a host has four chips in a 2x2x1 block, each chip is one device of the
runtime (megacore), and a slice of H hosts is a block of hosts. libtpu reads from the environment which chips a process may use
and how the processes of one job tile the slice (https://cloud.google.com/tpu/docs/v4; names as in torch_xla's tpu.py).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trm.config import HardwareConfig, nearest_batches
from trm.errors import ConfigError
from trm.ground.cores import VISIBLE, visible_gpus

CHIP_BOUNDS = {1: "1,1,1", 4: "2,2,1"}  # chips of one process -> how they lie
HOST_BOUNDS = {1: "1,1,1", 2: "1,1,2", 4: "1,1,4", 8: "1,2,4", 16: "2,2,4"}  # hosts of a v4 slice -> how they lie
FIRST_PORT = 8476
RAY_PARTS = 10_000  # of one resource of Ray


@dataclass(frozen=True)
class Placement:
    """How the jobs of a sweep share a machine."""

    processes: int  # of one job, one on each of its hosts
    devices_per_process: int
    jobs_per_host: int  # jobs that run on one host at once; 1 where a job needs several hosts
    jobs_at_once: int  # on the whole machine

    @property
    def devices(self) -> int:
        """Devices of one job."""
        return self.processes * self.devices_per_process


def place(hardware: HardwareConfig) -> Placement:
    """How `hardware.placement` divides the machine. On a CPU as many jobs run side by side as hardware.jobs says."""
    if hardware.can.ranks and hardware.devices_per_host == 1:
        per_host = gpu_jobs(hardware) if hardware.platform == "cuda" else max(hardware.jobs, 1)
        return Placement(1, _gpus_of_job(hardware), per_host, per_host)
    processes, per_process = hardware.processes, hardware.local_devices
    per_host = max(hardware.jobs, 1)
    if hardware.platform == "tpu":
        per_host = hardware.devices_per_host // per_process
    return Placement(processes, per_process, per_host, per_host * hardware.num_hosts // processes)


def _gpus_of_job(hardware: HardwareConfig) -> int:
    """Devices of one job on torch's own backends: one where the placement is a chip, else hardware.num_devices.

    Raises ConfigError where they are all GPUs of this machine, which has none, and where other jobs would share several.
    """
    if hardware.placement == "chip" or hardware.num_devices:
        width = hardware.devices
    else:
        width = len(visible_gpus()) if hardware.platform == "cuda" else 1
    if width == 0:
        raise ConfigError(
            "hardware.num_devices=null: a job of this sweep gets all GPUs of this machine, which has none: set it to the number of "
            "GPUs of one job"
        )
    if width > 1 and hardware.jobs_per_device > 1 and hardware.platform == "cuda":
        raise ConfigError(
            f"hardware.jobs_per_device={hardware.jobs_per_device}: a job on {width} GPUs shares none of them: set it to 1, or "
            "hardware.placement=chip"
        )
    return width


def gpu_jobs(hardware: HardwareConfig) -> int:
    """Jobs side by side on the GPUs of this machine: hardware.jobs, or as many as they have room for where it is 0 (auto).

    Where no GPU is seen, as on the host that a queue is told from, it is hardware.jobs. Raises ConfigError where there is no room.
    """
    gpus, width, each = len(visible_gpus()), _gpus_of_job(hardware), hardware.jobs_per_device
    room = gpus // width * each
    if gpus and hardware.jobs > room:
        raise ConfigError(
            f"hardware.jobs={hardware.jobs}: {gpus} GPU(s) have room for {room} job(s) of {width} GPU(s) each at "
            f"hardware.jobs_per_device={each}: use hardware.jobs=auto, or more jobs a device"
        )
    if hardware.jobs > 1 or not gpus:
        return max(hardware.jobs, 1)
    return room if hardware.jobs == 0 or each > 1 else 1


def gpu_environment(hardware: HardwareConfig, slot: Sequence[int]) -> dict[str, str]:
    """Which GPUs a job in this slot of its host sees; where none is known, all."""
    gpus = visible_gpus()
    chosen = dict.fromkeys(gpus[place // hardware.jobs_per_device] for place in slot) if gpus else {}
    return {VISIBLE: ",".join(chosen)} if chosen else {}


def lock_names(hardware: HardwareConfig, slot: Sequence[int]) -> list[str]:
    """What every sweep on this host calls the places of a slot, whichever of its GPUs CUDA_VISIBLE_DEVICES shows to the sweep.

    A place on a GPU is its part of the GPU, such as 0_1of2: sweeps may differ in hardware.jobs_per_device.
    """
    gpus = visible_gpus() if hardware.platform == "cuda" else []
    each = hardware.jobs_per_device
    return [f"{gpus[place // each].replace('/', '-')}_{place % each}of{each}" if gpus else str(place) for place in slot]


def overlap(name: str, other: str) -> bool:
    """Whether two names of `lock_names` stand for places that have a part of a device in common."""
    parts = [re.fullmatch(r"(.+)_(\d+)of(\d+)", each) for each in (name, other)]
    if not (parts[0] and parts[1] and parts[0][1] == parts[1][1]):
        return name == other
    (first, of), (second, of_other) = ((int(part[2]), int(part[3])) for part in parts if part)
    return first * of_other < (second + 1) * of and second * of < (first + 1) * of_other


def batch_per_device(global_batch: int, hardware: HardwareConfig) -> int:
    """Rows of the global batch on each device of the job. Raises ConfigError, with the nearest batches that divide."""
    devices = place(hardware).devices
    if global_batch % devices:
        nearest = nearest_batches(global_batch, devices)
        raise ConfigError(f"train.global_batch_size={global_batch} does not divide over {devices} devices: use {nearest}")
    return global_batch // devices


def environment(hardware: HardwareConfig, chips: Sequence[int]) -> dict[str, str]:
    """What libtpu must find in the environment of one process that may use these chips of its host. Empty without a TPU.

    A job on a part of a slice is told that it is alone. A job on the whole slice takes its place in it from the TPU's metadata.
    """
    if hardware.platform != "tpu":
        return {}
    placed = place(hardware)
    own = set(range(hardware.devices_per_host))
    if not len(chips) == len(own & set(chips)) == placed.devices_per_process:
        raise ConfigError(
            f"hardware.placement={hardware.placement} gives a process {placed.devices_per_process} of the chips "
            f"0..{hardware.devices_per_host - 1}, not {list(chips)}"
        )
    slice_topology(hardware)  # which refuses hosts that are no slice
    found = {
        "TPU_VISIBLE_CHIPS": ",".join(map(str, chips)),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": CHIP_BOUNDS[len(chips)],
        "TPU_PROCESS_BOUNDS": HOST_BOUNDS[placed.processes],
    }
    if placed.processes == 1:
        port = str(FIRST_PORT + chips[0])
        found |= {"CLOUD_TPU_TASK_ID": "0", "TPU_PROCESS_PORT": port, "TPU_PROCESS_ADDRESSES": f"localhost:{port}"}
    return found


def slots_of_host(hardware: HardwareConfig) -> list[tuple[int, ...]]:
    """The slots of one host, each with the places on devices that it stands for; on a CPU only their number matters.

    A GPU has hardware.jobs_per_device places; with fewer jobs than places, each may take any that are free.
    """
    placed = place(hardware)
    width = 1 if hardware.platform == "cpu" else placed.devices_per_process
    if hardware.platform == "cuda" and (gpus := len(visible_gpus())):
        # first one place on each GPU, so that jobs spread over them
        each = hardware.jobs_per_device
        if width == 1:
            return [(gpu * each + place,) for place in range(each) for gpu in range(gpus)]
        return [tuple(range(first, first + width)) for first in range(0, gpus - width + 1, width)]
    return [tuple(range(i * width, (i + 1) * width)) for i in range(placed.jobs_per_host)]


def cores_of_slot(cores: Sequence[int], slot: int, slots: int) -> list[int]:
    """The CPU cores for one of several jobs side by side: an equal share of those that the process may use, at least one."""
    return list(cores[slot::slots]) or [cores[slot % len(cores)]]


def slurm_resources(hardware: HardwareConfig) -> dict[str, Any]:
    """What one job asks of Slurm, and how many of the sweep's jobs may run at once."""
    placed = place(hardware)
    asked: dict[str, Any] = {"nodes": placed.processes, "tasks_per_node": 1, "array_parallelism": placed.jobs_at_once}
    if hardware.devices_per_host > 1 or hardware.platform == "tpu":
        return asked | {"gres": f"tpu:{placed.devices_per_process}"}
    if hardware.can.ranks:  # a task for each device, all on one host unless the launcher's settings say otherwise
        gres = {"gres": f"gpu:{placed.devices}"} if hardware.platform == "cuda" else {}
        return asked | {"tasks_per_node": placed.devices} | gres
    return asked


def expand_indices(text: str) -> tuple[int, ...]:
    """Slurm's list of device indices, such as "0-1,3", as numbers."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def ray_resources(hardware: HardwareConfig) -> dict[str, float]:
    """What one job asks of Ray on each of its hosts, beside cores."""
    if hardware.platform == "cuda":
        # Ray counts in parts of RAY_PARTS and rounds: six jobs of 0.1667 would not fit on one GPU
        share = RAY_PARTS // hardware.jobs_per_device / RAY_PARTS
        return {"GPU": float(_gpus_of_job(hardware)) if hardware.jobs_per_device == 1 else share}
    return {"TPU": float(place(hardware).devices_per_process)} if hardware.platform == "tpu" else {}


def ray_cores(hardware: HardwareConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Cores of a job on a Ray cluster: an equal share of its node among the jobs that the node's devices have room for.

    `nodes` are the resources of each node. Those without the devices do not count where others have them; the least share does.
    """
    asked = ray_resources(hardware)
    able = [node for node in nodes if all(node.get(name, 0) >= amount for name, amount in asked.items())] or nodes
    rooms = [[int(node.get(name, 0) / amount) for name, amount in asked.items()] or [hardware.jobs] for node in able]
    return max(1, min(int(node.get("CPU", 0)) // max(1, *room) for node, room in zip(able, rooms, strict=True)))


def slice_topology(hardware: HardwareConfig) -> str:
    """How the chips of one job's hosts lie, such as 2x4x4. Raises ConfigError where the hosts are no TPU v4 slice."""
    placed = place(hardware)
    hosts, chips = HOST_BOUNDS.get(placed.processes), CHIP_BOUNDS.get(placed.devices_per_process)
    if hardware.platform != "tpu" or hosts is None or chips is None:
        raise ConfigError(
            f"hardware={hardware.name}: {placed.processes} host(s) with {placed.devices_per_process} {hardware.platform} device(s) "
            f"each are no TPU v4 slice, which has {', '.join(map(str, HOST_BOUNDS))} hosts of 4 chips"
        )
    return "x".join(str(int(h) * int(c)) for h, c in zip(hosts.split(","), chips.split(","), strict=True))


def ray_slice(hardware: HardwareConfig, cpus: int) -> dict[str, Any]:
    """The arguments of Ray's slice placement group for a job on several hosts: a bundle for each host, with `cpus` cores."""
    bundle = {"TPU": float(place(hardware).devices_per_process), "CPU": float(cpus)}
    return {"topology": slice_topology(hardware), "accelerator_version": "v4", "resources_per_bundle": bundle}
