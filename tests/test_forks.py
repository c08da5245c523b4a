"""Jobs as forks of one process: what that process has imported is there, and what a job leaves behind is its own."""

import subprocess
import sys

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from trm.study import local

local.command_module = lambda: "wave"  # a module that nothing here imports, in the place of a command
log = Path(sys.argv[1])


def ended(work):
    job = local.Fork(work, log)
    while job.process.is_alive():
        time.sleep(0.02)
    return job.last_words()


print(ended(lambda: print("imported", "wave" in sys.modules)))
print(ended(lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


def test_a_job_finds_the_command_imported_and_an_earlier_log_does_not_speak_for_it(tmp_path):
    log = tmp_path / "logs" / "job.log"
    command = [sys.executable, "-c", SCRIPT, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    first, killed = done.stdout.splitlines()
    assert first == f"the process ended without a summary: imported True (log: {log})"
    assert killed == f"the process ended without a summary (killed by signal 9) (log: {log})"
