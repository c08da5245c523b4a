"""Memory and disk: what is free and what is taken."""

import contextlib
import os
import re
from pathlib import Path

MEMORY_FACTS = Path("/proc/meminfo")


def available_memory() -> int:
    """Bytes that a new process could take: what the system has free, within this control group's limit."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", MEMORY_FACTS.read_text(), re.MULTILINE) if MEMORY_FACTS.exists() else None
    # elsewhere than on Linux all of the memory
    available = 1024 * int(match[1]) if match else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(FileNotFoundError):  # no limit: the root group, or the first version of control groups
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((group / "memory.current").read_text()))
    return available


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists: what making `path` would write into."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def folder_bytes(path: Path) -> int:
    """Bytes of all files below a folder; 0 where it is missing."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
