"""Stopping a run from outside: SIGTERM, SIGINT and submitit's SIGUSR2 ask it to save and end, a second one ends it at once.

What is no run has nothing to save: it ends at the first one (`stoppable`).
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType

from trm.errors import plain_line

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # beside SIGINT, which Python raises as KeyboardInterrupt itself


class StopSignal:
    """While entered, the first signal only sets `requested`; the loop looks at it after each step."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.requested = True


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Around a command: SIGINT, SIGTERM and SIGHUP are a KeyboardInterrupt in it, so that it takes away what is half done.

    Its notes are then the command's last line on stderr; exits with 128 + the signal's number. A signal that is ignored, as under
    nohup, stays so.
    """
    received: int = signal.SIGINT

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        raise KeyboardInterrupt

    taken = [number for number in ENDINGS if signal.getsignal(number) == signal.SIG_DFL]
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
