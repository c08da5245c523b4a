"""Processes that this one starts and waits for: a command that does not outlive it, and the ranks of a command."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE

from trm.errors import EXIT_FAILED, EXIT_PREEMPTED, EXIT_USER_ERROR
from trm.ground.cores import cores


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
    """Run a command to its end and keep its output; `tell` gets the seconds that it has run, every `every_s` seconds.

    An interruption, or the limit (subprocess.TimeoutExpired, with the output so far), kills the process with its children.
    """
    began = time.monotonic()
    # In a session of its own: one signal reaches all of its processes, and a terminal's signal reaches only this process.
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


def start_ranks(processes: int, module: str, arguments: Sequence[str]) -> int:
    """Run `python -m MODULE ARGUMENTS` in so many processes on this machine, by torchrun's elastic agent; returns the exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    how = ["--standalone", "--nnodes=1", f"--nproc-per-node={processes}", "--monitor-interval=0.2"]
    return torchrun([*how, "-m", module, *arguments])


def torchrun(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments and return the exit code: 143 where a process was preempted, 2 where the input is wrong.

    After any other failure it is 1, as torchrun's own code is after every failure.
    """
    # each import takes a second
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes themselves say what is wrong
    os.environ.pop("HYDRA_FULL_ERROR", None)  # for this process alone: in the others an error is one line
    try:
        run(parse_args(list(arguments)))  # type: ignore[no-untyped-call]
    except SignalException:
        return EXIT_PREEMPTED
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return next((code for code in (EXIT_PREEMPTED, EXIT_USER_ERROR) if code in codes), EXIT_FAILED)
    return 0


if __name__ == "__main__":  # as scripts/jobset.py starts the ranks
    sys.exit(torchrun(sys.argv[1:]))
