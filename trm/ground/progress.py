"""How long work takes and how much of it is done: a clock of training steps, and progress shown as a bar or in the log."""

import contextlib
import importlib
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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


class Lap(NamedTuple):
    """Steps and seconds between two laps."""

    steps: int
    seconds: float
    call_s: float  # the part of `seconds` in the calls of the compiled step


class Clock:
    """Counts the seconds of training steps, without those while it is `paused` (to compile, evaluate and save)."""

    def __init__(self) -> None:
        self._paused = False
        self.reset(0)

    @property
    def total_s(self) -> float:
        """Seconds counted since the last reset; read it while the clock runs."""
        return self._counted + time.perf_counter() - self._started

    def reset(self, step: int) -> None:
        """Start over at `step`."""
        self._counted, self._started = 0.0, time.perf_counter()  # seconds before the last start, and the time of that start
        self._lap_s, self._lap_step, self._call_s = 0.0, step, 0.0

    def lap(self, step: int) -> Lap:
        """Steps and seconds since the last lap or reset."""
        total = self.total_s
        lap = Lap(step - self._lap_step, total - self._lap_s, self._call_s)
        self._lap_s, self._lap_step, self._call_s = total, step, 0.0
        return lap

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Also count the time inside as a call of the step."""
        began = time.perf_counter()
        yield
        self._call_s += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time inside; may be entered again inside."""
        if self._paused:
            yield
            return
        self._counted, self._paused = self.total_s, True
        try:
            yield
        finally:
            self._started, self._paused = time.perf_counter(), False
