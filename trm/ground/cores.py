"""The processor: how many cores this process may use, by its affinity and by its container's CPU quota, and what they can do."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

PROCESS = Path("/proc/self")
CPU_FACTS = Path("/proc/cpuinfo")


def cores() -> int:
    """Threads that may be busy at once without being held back: whole cores, at least one."""
    return max(1, math.floor(min(len(allowed()), quota())))


def allowed() -> list[int]:
    """The numbers of the cores that the system lets this process run on; all of them where it pins no process (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def pin(numbers: Sequence[int]) -> None:
    """Have this process run on these cores alone, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, numbers)


def quota() -> float:
    """Cores' worth of time that this process's control groups grant it, of either version; math.inf without a bound."""
    granted = math.inf
    for group in _control_groups():
        words = _lines(group / "cpu.max") or _lines(group / "cpu.cfs_quota_us") + _lines(group / "cpu.cfs_period_us")
        share = " ".join(words).split()
        if len(share) == 2 and share[0].isdigit():  # no bound is "max", or -1
            granted = min(granted, int(share[0]) / int(share[1]))
    return granted


def multiplies_bfloat16() -> bool:
    """Whether the processor has AVX-512 BF16 or AMX, as Linux tells it."""
    return CPU_FACTS.exists() and not {"avx512_bf16", "amx_bf16"}.isdisjoint(CPU_FACTS.read_text().split())


def _control_groups() -> list[Path]:
    """The folders of the control groups that bound this process's CPU time: its own and all above them that are mounted."""
    own: dict[str, str] = {}
    for line in _lines(PROCESS / "cgroup"):  # 0::/path, or 4:cpu,cpuacct:/path of the first version
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    found = []
    for line in _lines(PROCESS / "mountinfo"):  # 32 31 0:29 /root /mounted/at rw - cgroup cgroup rw,cpu
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if controller in own and (not controller or controller in options.split(",")):
            root, top = mount.split()[3:5]
            # a container may see its own group alone, under a name that only the host knows
            inside = os.path.relpath(own[controller], root) if os.path.commonpath([own[controller], root]) == root else "."
            group = Path(top, inside)
            found += [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # not Linux, or not of this version
        return []
