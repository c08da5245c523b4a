"""How a command ends from outside: signals that ask it to stop, and standard streams that are closed or that nobody reads.

The first signal asks a run to save and end. A second SIGTERM, SIGINT or SIGQUIT ends it at once.
"""

import contextlib
import errno
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from trm.errors import EXIT_FAILED, EXIT_PIPE_CLOSED, EXIT_PREEMPTED, plain_line

log = logging.getLogger(__name__)

DELIBERATE = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# From a closing terminal, Slurm and submitit before a time limit, a limit on CPU time (repeated each second), and a clock.
WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGALRM)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Block signals while a sweep starts a job: the job gets SIGTERM from the sweep, and no signal to the whole process group."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGQUIT, *WARNINGS} - {signal.SIGXCPU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignal:
    """While entered, the first signal only sets `requested`, which the loop reads after each step.

    SIGHUP stays ignored where it is ignored, as under nohup, and an alarm that other code in this process has set stays theirs.
    Only the main thread can handle signals: in another thread this logs a warning and changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deliberate = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            log.warning("this thread is not the main one, so no signal can stop the run: it runs to its end")
            return self
        left = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        left |= {signal.SIGALRM} if callable(signal.getsignal(signal.SIGALRM)) else set()
        self._previous = {number: signal.signal(number, self._on_signal) for number in {*DELIBERATE, *WARNINGS} - left}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._deliberate and number in DELIBERATE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.requested, self._deliberate = True, self._deliberate or number in DELIBERATE


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turn signals into KeyboardInterrupt, for a command that saves nothing. Exits with 128 + the signal's number.

    The notes of the interruption are the command's last line on stderr. An ignored signal stays ignored, as under nohup.
    """
    received: int = signal.SIGINT

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        raise KeyboardInterrupt

    taken = [number for number in (signal.SIGTERM, *WARNINGS) if signal.getsignal(number) == signal.SIG_DFL]  # Python has SIGINT
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as stopped:
        notes = plain_line("; ".join(getattr(stopped, "__notes__", [])))
        print(f"stopped: {notes}" if notes else "stopped", file=sys.stderr)
        sys.exit(128 + received)
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Open closed standard streams on /dev/null. Exits with 141 where nobody reads the output (`| head`), with 1 and one line where
    it cannot be written, and with 143 where the run was preempted, since a queue acts on that code.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # in this order each stream takes its own number, the lowest free one
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - for the rest of the process
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    code: object = None
    try:
        try:
            yield
        except SystemExit as end:
            code = end.code
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    except OSError as error:
        unread = []
        if error.errno == errno.EPIPE:  # where both pipes have readers, another pipe is broken, which is a fault
            poll = select.poll()
            for number in (1, 2):
                poll.register(number, 0)
            unread = [number for number, _ in poll.poll(0)]
        full = error.errno == errno.ENOSPC and error.filename is None
        if not unread and not full:
            raise
        if full:
            print(f"error: the output cannot be written: {error.strerror}: send it elsewhere", file=sys.stderr)
        for number in unread or (1,):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # the interpreter flushes once more at its end
        sys.exit(EXIT_PREEMPTED if code == EXIT_PREEMPTED else EXIT_PIPE_CLOSED if unread else EXIT_FAILED)
