"""How many cores a process takes to be its own: affinity and control groups, read from files as containers have them."""

import math
import os

import pytest
import torch

from trm import backends
from trm.backends import start
from trm.config import HardwareConfig
from trm.ground import cores

V2 = "31 23 0:28 {root} {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 {root} {top} rw - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Fills the files of a container: lines of /proc/self/cgroup and mountinfo, and what its control groups say."""

    def fill(own, mounted, groups, root="/"):
        for name, text in {"proc/cgroup": own, "proc/mountinfo": mounted.format(root=root, top=tmp_path / "top"), **groups}.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        monkeypatch.setattr(cores, "PROCESS", tmp_path / "proc")

    return fill


@pytest.mark.parametrize(
    ("own", "mounted", "groups", "root", "granted"),
    [
        ("0::/", V2, {"top/cpu.max": "100000 100000"}, "/", 1),
        ("0::/", V2, {"top/cpu.max": "max 100000"}, "/", math.inf),
        ("0::/", V2, {}, "/", math.inf),  # the host's own group has no such file
        ("0::/a/b", V2, {"top/a/cpu.max": "150000 100000", "top/a/b/cpu.max": "max 100000"}, "/", 1.5),  # of the group above
        ("0::/docker/x", V2, {"top/cpu.max": "50000 100000"}, "/docker/x", 0.5),  # by the host's name for it
        ("0::/", V2, {"top/cpu.max": "50000 100000"}, "/../..", 0.5),
        ("5:cpuset:/c\n4:cpu,cpuacct:/d", V1, {"top/d/cpu.cfs_quota_us": "200000", "top/d/cpu.cfs_period_us": "100000"}, "/", 2),
        ("4:cpu,cpuacct:/", V1, {"top/cpu.cfs_quota_us": "-1", "top/cpu.cfs_period_us": "100000"}, "/", math.inf),
        ("4:cpu,cpuacct:/docker/x", V1, {"top/cpu.cfs_quota_us": "30000", "top/cpu.cfs_period_us": "10000"}, "/docker/x", 3),
        ("4:memory:/", V1, {"top/cpu.cfs_quota_us": "30000", "top/cpu.cfs_period_us": "10000"}, "/", math.inf),
    ],
)
def test_a_container_s_quota(container, own, mounted, groups, root, granted):
    container(own, mounted, groups, root)
    assert cores.quota() == granted


def test_without_linux_there_is_no_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "PROCESS", tmp_path)
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name)
    cores.pin([0])
    assert (cores.quota(), cores.allowed(), cores.cores()) == (math.inf, list(range(os.cpu_count())), os.cpu_count())


@pytest.mark.parametrize(("granted", "found"), [(0.5, 1), (1.9, 1), (2, 2), (5, 4), (math.inf, 4)])
def test_cores_are_whole_and_at_least_one(monkeypatch, granted, found):
    monkeypatch.setattr(cores, "quota", lambda: granted)
    monkeypatch.setattr(cores, "allowed", lambda: [3, 4, 5, 9])
    assert cores.cores() == found


@pytest.mark.parametrize(
    ("granted", "jobs", "said", "threads"),
    [
        (math.inf, 1, None, 4),
        (2.5, 1, None, 2),
        (0.5, 1, None, 1),
        (2.5, 1, "4", 4),  # the user's own word
        (2, 2, "4", 1),
        (math.inf, 3, None, 2),  # of six cores, of which this job is let on four
    ],
)
def test_threads_of_a_run(monkeypatch, granted, jobs, said, threads):
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    for module in (backends, cores):
        monkeypatch.setattr(module, "quota", lambda: granted)
        monkeypatch.setattr(module, "allowed", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", said) if said else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    start(HardwareConfig(name="cpu", backend="eager", jobs=jobs))
    assert (taken or [4])[-1] == threads
    assert os.environ.get("PJRT_NPROC") == (None if granted == math.inf else str(cores.cores()))
    monkeypatch.delenv("PJRT_NPROC", raising=False)
