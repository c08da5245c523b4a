"""What this process may use of the machine: cores (by affinity and CPU quota), memory, disk and GPUs, found without torch."""

import contextlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

PROCESS = Path("/proc/self")
CPU_FACTS = Path("/proc/cpuinfo")
MEMORY_FACTS = Path("/proc/meminfo")
DEVICES = Path("/dev")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def cores() -> int:
    """How many threads can be busy at once: whole cores, at least one."""
    return max(1, math.floor(min(len(allowed()), quota())))


def allowed() -> list[int]:
    """The numbers of the cores on which the system lets this process run; all cores where it pins no process (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def pin(numbers: Sequence[int]) -> None:
    """Let this process run on these cores only, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, numbers)


def quota() -> float:
    """How many cores' time this process's control groups grant it (version 1 or 2); math.inf without a limit."""
    own: dict[str, str] = {}
    for line in _lines(PROCESS / "cgroup"):  # 0::/path, or 4:cpu,cpuacct:/path of the first version
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    groups = []  # the folders of this process's groups and of the mounted ones above, which limit it too
    for line in _lines(PROCESS / "mountinfo"):  # 32 31 0:29 /root /mounted/at rw - cgroup cgroup rw,cpu
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if controller in own and (not controller or controller in options.split(",")):
            root, top = mount.split()[3:5]
            # a container may see only its own group, under a name that only the host knows
            inside = os.path.relpath(own[controller], root) if os.path.commonpath([own[controller], root]) == root else "."
            group = Path(top, inside)
            groups += [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]
    granted = math.inf
    for group in groups:
        words = _lines(group / "cpu.max") or _lines(group / "cpu.cfs_quota_us") + _lines(group / "cpu.cfs_period_us")
        share = " ".join(words).split()
        if len(share) == 2 and share[0].isdigit():  # without a limit it is "max" or -1
            granted = min(granted, int(share[0]) / int(share[1]))
    return granted


def multiplies_bfloat16() -> bool:
    """Whether Linux lists AVX-512 BF16 or AMX among the processor's features."""
    return CPU_FACTS.exists() and not {"avx512_bf16", "amx_bf16"}.isdisjoint(CPU_FACTS.read_text().split())


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # not Linux, or not of this version
        return []


def available_memory() -> int:
    """Bytes that a new process could use: the system's free memory, within this control group's limit."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", MEMORY_FACTS.read_text(), re.MULTILINE) if MEMORY_FACTS.exists() else None
    # outside Linux: all of the memory
    available = 1024 * int(match[1]) if match else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(FileNotFoundError):  # no limit: the root group, or the first version of control groups
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((group / "memory.current").read_text()))
    return available


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists, in which `path` would be made."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def folder_bytes(path: Path) -> int:
    """Bytes of all files below a folder; 0 where it is missing."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def visible_gpus() -> list[str]:
    """The GPUs by their names in CUDA_VISIBLE_DEVICES; where it is not set, the numbers of all GPUs that this process sees.

    CUDA counts what a process sees from 0: in a container with two of eight GPUs their device files may be nvidia4 and nvidia5.
    """
    given = os.environ.get(VISIBLE)
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return names[: next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))]  # as CUDA reads it
    return [str(number) for number, _ in enumerate(DEVICES.glob("nvidia[0-9]*"))]
