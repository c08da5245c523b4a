"""Starting sweeps of fake_job.py (or of a real command), stopping them, and reading what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FAKE_JOB = Path(__file__).parent / "fake_job.py"
ROOT = Path(__file__).parents[1]


def put_unread_data(folder):
    """Something where a sweep whose jobs read no data would build a dataset."""
    unread = Path(folder) / "data" / "sudoku_extreme_n1000_aug0_seed0" / "unread"
    unread.parent.mkdir(parents=True, exist_ok=True)
    unread.touch()


def start(folder, *arguments, orders=None, command=(str(FAKE_JOB),), inside=(), **environment):
    env = os.environ | environment | {"FAKE_JOB": json.dumps(orders or {}), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if command == (str(FAKE_JOB),):
        put_unread_data(folder)
    # a test run started in the background ignores SIGINT, and would hand that down: a user's terminal does not
    return subprocess.Popen(
        [*inside, sys.executable, *command, *arguments],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,  # so that a signal can reach it and its jobs at once
    )


def sweep(folder, *arguments, **options):
    process = start(folder, *arguments, **options)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def summaries(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("multirun/*/*/summary.json"))}


def wait_for(condition, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def children(process):
    """The processes that a process has started, that run another program and are still there."""
    command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes() not in (command, b"")]


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # ended, and nobody has asked how
    except FileNotFoundError:
        return True


def stopped(process, number=signal.SIGINT):
    """Exit code, stdout and stderr of a process that gets a signal."""
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err
