"""How much of a long piece of work is done, shown as a bar or in the log."""

import contextlib
import importlib
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

BAR_EVERY_S, WORDS_EVERY_S = 0.5, 30.0
QUIET_S = 3.0  # before the bar of a command's work


class _Terminal:
    """stderr for a bar. Where nobody reads stderr any more the bar ends, but not the work."""

    def write(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


@contextlib.contextmanager
def progress_bar(
    mode: str,
    first_step: int,
    total_steps: int,
    unit: str = "step",
    *,
    leave: bool = True,
    what: str | None = None,
    quiet_s: float = 0.0,
) -> Iterator[tqdm]:
    """A tqdm bar on stderr where `mode` is on, or where it is auto on a terminal or in a notebook; else a silent bar.

    Log lines stay above the bar, which is not shown in the first `quiet_s` seconds. `what` is the text before it. `leave` keeps the
    full bar on the screen.
    """
    ipython = sys.modules.get("IPython")
    notebook = "ipykernel" in sys.modules and ipython is not None and hasattr(ipython.get_ipython(), "kernel")
    shown = mode == "on" or (mode == "auto" and (notebook or sys.stderr.isatty()))
    widget = notebook and importlib.util.find_spec("ipywidgets") is not None
    kind = importlib.import_module("tqdm.notebook").tqdm if widget else tqdm
    with (
        logging_redirect_tqdm() if shown and not notebook else contextlib.nullcontext(),
        kind(
            total=total_steps,
            initial=first_step,
            desc=what,
            disable=not shown,
            delay=quiet_s,
            unit=unit,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stderr if notebook else _Terminal(),
        ) as bar,
    ):
        yield bar


class Progress:
    """Tells how much of a piece of work is done: by a bar on a terminal, else by a line every half minute (the log, or `say`)."""

    def __init__(self, what: str, total: int, bar: tqdm, *, words: bool, say: Callable[[str], None] | None = None) -> None:
        """`bar` comes from `progress_bar`; where it is silent and `words` is set, lines take its place."""
        self._what, self._total, self._bar, self._say = what, total, bar, say or log.info
        self._every_s = BAR_EVERY_S if not bar.disable else WORDS_EVERY_S if words else None
        self._began = self._told = time.perf_counter()

    def due(self) -> bool:
        """Whether it is time for `tell`."""
        return self._every_s is not None and time.perf_counter() - self._told >= self._every_s

    def tell(self, done: int) -> None:
        """Show that `done` of the total are done."""
        self._told = time.perf_counter()
        if not self._bar.disable:
            self._bar.update(done - self._bar.n)
        elif done:
            left_s = (self._told - self._began) * (self._total - done) / done
            self._say(f"{self._what}: {done} of {self._total}, {tqdm.format_interval(left_s)} left")


@contextlib.contextmanager
def work(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Around a piece of a command's work, which calls the function that it gets with the number of parts done.

    Shows a bar on a terminal, else a line every half minute, on stderr; the first seconds show nothing. An interruption carries the
    number of parts done as a note, for the command's last line (`trm.ground.signals.stoppable`).
    """
    now = 0
    with progress_bar("auto", 0, total, unit, leave=False, what=what, quiet_s=QUIET_S) as bar:
        progress = Progress(what, total, bar, words=True, say=lambda line: _Terminal().write(f"{line}\n"))

        def done(count: int) -> None:
            nonlocal now
            now = min(count, total)
            if progress.due():
                progress.tell(now)

        try:
            yield done
        except KeyboardInterrupt as stopped:
            stopped.add_note(f"{what}: {now:,} of {total:,}")
            raise
