"""A local sweep's jobs as forks of one process that has imported what all of them need.

Each job is a process of its own all the same: it has its own memory, can be killed, and what it breaks is broken for it alone. What
it does not do again are the seconds of imports, and what is imported lies in memory once.
"""

import contextlib
import multiprocessing
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import cloudpickle

from trm.cli import command_module
from trm.ground.signals import held_back

LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")  # a socket's path has 107 bytes at most


class Fork:
    """One job: `work` in a process of its own, whose output goes to a file."""

    def __init__(self, work: Callable[[], object], log: Path, *, preload: Sequence[str] = ()) -> None:
        context = multiprocessing.get_context("forkserver")
        command = command_module()  # of the sweep, and so of its jobs; None where a file is run, which is small
        context.set_forkserver_preload([command, *preload] if command else [])
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)  # an earlier attempt's last words are not this one's
        self._process: ForkServerProcess = context.Process(
            target=_run, args=(cloudpickle.dumps(work), str(log), dict(os.environ), os.getcwd())
        )
        resource_tracker.ensure_running()  # which multiprocessing starts first, and lets SIGINT through afterwards
        with _as_multiprocessing_needs(), held_back():
            self._process.start()

    def done(self) -> bool:
        """Whether the process has ended."""
        return not self._process.is_alive()

    def terminate(self) -> None:
        """Ask the job to save and end."""
        self._process.terminate()

    def last_words(self) -> str:
        """How the process ended, with the last line that it wrote."""
        code = self._process.exitcode
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()] if self.log.exists() else []
        killed = f" (killed by signal {-code})" if code is not None and code < 0 else ""
        said = f": {lines[-1].strip()}" if lines else ""
        return f"the process ended without a summary{killed}{said} (log: {self.log})"


@contextlib.contextmanager
def _as_multiprocessing_needs() -> Iterator[None]:
    """An empty main module and a short folder for temporary files.

    A child runs the main module once more, which here is the sweep's own command; and the system limits the path of the socket.
    """
    before = sys.modules["__main__"], tempfile.tempdir
    folders = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    tempfile.tempdir = next((f for f in folders if len(os.fsencode(f)) <= LONGEST_FOLDER and os.access(f, os.W_OK)), None)
    try:
        yield
    finally:
        sys.modules["__main__"], tempfile.tempdir = before


def _run(pickled: bytes, log: str, environment: dict[str, str], folder: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    cloudpickle.loads(pickled)()
