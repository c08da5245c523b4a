"""Stopping a run from outside: a signal asks it to save and end; a second SIGTERM, SIGINT or SIGQUIT ends it at once."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from trm.errors import plain_line

log = logging.getLogger(__name__)

DELIBERATE = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Of a terminal that is closed, of Slurm and submitit before a time limit, of a limit on CPU time, which repeats it each second, and
# of a clock.
WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGALRM)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Around the start of a sweep's job, which never gets what is sent to a whole group: the sweep tells its jobs by SIGTERM."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGQUIT, *WARNINGS} - {signal.SIGXCPU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignal:
    """While entered, the first signal only sets `requested`; the loop looks at it after each step.

    SIGHUP stays ignored where it is, as under nohup, and an alarm that somebody else in this process has set stays theirs. Only the
    main thread can handle signals: entered in another one, this says so in the log and changes nothing.
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
    """Around a command that has nothing to save: the signals are a KeyboardInterrupt in it. Exits with 128 + the signal's number.

    The interruption's notes are the command's last line on stderr. A signal that is ignored, as under nohup, stays so.
    """
    received: int = signal.SIGINT

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        raise KeyboardInterrupt

    taken = [number for number in (signal.SIGTERM, *WARNINGS) if signal.getsignal(number) == signal.SIG_DFL]  # SIGINT is Python's
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
