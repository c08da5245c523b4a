"""How OpenMP's threads wait for one another beside other processes; in processes of their own, since it is settled at a start."""

import os
import subprocess
import sys
import textwrap

import pytest
from running import environment

from trm.backends import openmp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp's threads are watched on Linux alone")


def answer(script: str, **given: str) -> str:
    inherited = {name: value for name, value in environment().items() if name not in openmp.VARIABLES}
    argv = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(argv, env=inherited | {"OMP_NUM_THREADS": "2"} | given, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, "adaptive"),
        ({"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT=7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "OMP_WAIT_POLICY=PASSIVE"),
        ({"OMP_NUM_THREADS": "1"}, "None"),  # nobody to wait for
    ],
)
def test_the_environment_decides_where_it_says_how_threads_wait(given, policy):
    script = """
        import threading
        from trm.backends import start
        from trm.backends.openmp import wait_policy
        from trm.config import HardwareConfig
        start(HardwareConfig(name="cpu", backend="eager"))
        watched = "cores" in {thread.name for thread in threading.enumerate()}
        print(wait_policy(), watched)
    """
    assert answer(script, **given) == f"{policy} {policy == 'adaptive'}"


def test_in_a_crowd_threads_sleep_instead_of_spinning_until_it_ends():
    """Counted in what they give up by themselves: a thread that sleeps at each barrier switches at each, one that spins at none."""
    script = """
        import resource, torch
        from pathlib import Path
        from trm.backends import openmp

        x = torch.ones(1 << 16)

        def switches():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
            for _ in range(500):
                x.add(1)
            return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before

        def tasks():
            return len(list(Path("/proc/self/task").iterdir()))

        switches()
        alone, tasks_alone = switches(), tasks()
        crowd = openmp.Crowd(openmp._libgomp(), 2)
        switches()  # by then it is there
        crowded = switches()
        crowd.end()
        print(alone, crowded, switches(), tasks() <= tasks_alone)
    """
    alone, crowded, after, all_gone = answer(script).split()
    assert int(crowded) > 500 > 5 * max(int(alone), int(after))
    assert all_gone == "True"


def test_the_crowd_comes_and_goes_with_the_others():
    """Others take one of the two cores, a tenth of one, half of one, and nothing."""
    script = """
        import threading, time
        from trm.backends import openmp

        others = 1.0
        def seconds(cores):
            now = time.monotonic()
            used.append((now - last[0]) * others)
            last[0] = now
            return now, sum(used), 0.0
        used, last = [], [time.monotonic()]
        openmp._seconds = seconds
        openmp.LOOK_EVERY_S = 0.02
        openmp.os.sched_getaffinity = lambda process: {0, 1}

        def crowded(wanted):
            for _ in range(1000):
                if ("crowd" in {thread.name for thread in threading.enumerate()}) == wanted:
                    return True
                time.sleep(0.01)
            return False

        assert openmp.share_cores()
        for others in (1.0, 0.1, 0.5, 0.0):
            print(crowded(others > openmp.OTHERS), end=" ")
    """
    assert answer(script) == "True True True True"


def test_what_all_processes_have_spent_on_these_cores(tmp_path, monkeypatch):
    file = tmp_path / "stat"
    tick = os.sysconf("SC_CLK_TCK")
    lines = [f"cpu{i} {i} 20 300 9 9 4000 50000 7 6 5" for i in range(11)]
    file.write_text("\n".join(["cpu  1 1 1 1 1 1 1 0 0 0", *lines, "intr 5"]))
    monkeypatch.setattr(openmp, "PROCESSORS", file)
    assert openmp.busy_seconds({1, 10}) == (2 * 54320 + 11) / tick
