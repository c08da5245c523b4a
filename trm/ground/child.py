"""A process that this one waits for, and that does not outlive it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE


def ended(
    command: Sequence[str],
    every_s: float,
    tell: Callable[[float], None],
    *,
    given: bytes | None = None,
    limit_s: float | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end and keep what it writes; `tell` is told every `every_s` seconds for how long it has run.

    Where the wait ends otherwise, interrupted or by the limit (subprocess.TimeoutExpired, with what was written), the process is
    killed with its children.
    """
    began = time.monotonic()
    # a session of its own: one signal reaches all of its processes, and a terminal's reaches this process alone
    with subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        try:
            while True:
                try:
                    out, err = process.communicate(given, timeout=every_s)
                    return subprocess.CompletedProcess(command, process.returncode, out, err)
                except subprocess.TimeoutExpired as waited:
                    given, seconds = None, time.monotonic() - began
                    if limit_s is not None and seconds >= limit_s:
                        raise subprocess.TimeoutExpired(command, limit_s, waited.output, waited.stderr) from None
                    tell(seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
