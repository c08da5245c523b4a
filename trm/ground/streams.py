"""The standard streams of a command: closed ones are /dev/null, and a reader that goes away ends the command without a word."""

import contextlib
import errno
import os
import select
import sys
from collections.abc import Iterator

from trm.errors import EXIT_FAILED, EXIT_PIPE_CLOSED, EXIT_PREEMPTED


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Around a command. Exits with 141 where the output has no reader (`| head`), with 1 and one line where it cannot be written.

    A run that was preempted keeps its 143, which a queue acts upon.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # in this order each takes the lowest free descriptor, its own: no data file can get it
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
        if error.errno == errno.EPIPE:  # of a pipe that nobody reads; else it is another one, and a fault
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
