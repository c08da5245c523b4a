"""A clock that leaves out compiling, evaluating and saving, and the progress bar."""

import contextlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


class Clock:
    """Seconds spent in training steps; stands still while paused."""

    def __init__(self) -> None:
        self._counted = 0.0  # seconds before the last start
        self._started = time.perf_counter()
        self._lap_s, self._lap_step = 0.0, 0

    @property
    def total_s(self) -> float:
        """Seconds counted since the last reset; read it while the clock runs."""
        return self._counted + time.perf_counter() - self._started

    def reset(self, step: int) -> None:
        """Forget what was counted and start over at `step`."""
        self._counted, self._started = 0.0, time.perf_counter()
        self._lap_s, self._lap_step = 0.0, step

    def lap(self, step: int) -> tuple[int, float]:
        """Steps and seconds since the last lap or reset."""
        total = self.total_s
        steps, seconds = step - self._lap_step, total - self._lap_s
        self._lap_s, self._lap_step = total, step
        return steps, seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside."""
        self._counted = self.total_s
        try:
            yield
        finally:
            self._started = time.perf_counter()


@contextlib.contextmanager
def progress_bar(mode: str, first_step: int, total_steps: int, unit: str = "step") -> Iterator[tqdm]:
    """A tqdm bar on stderr where `mode` is on, or auto on a terminal; log lines stay above it. Otherwise a silent one."""
    shown = mode == "on" or (mode == "auto" and sys.stderr.isatty())
    with (
        logging_redirect_tqdm() if shown else contextlib.nullcontext(),
        tqdm(total=total_steps, initial=first_step, disable=not shown, unit=unit, dynamic_ncols=True) as bar,
    ):
        yield bar
