"""A clock that leaves out compiling, evaluating and saving."""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple


class Lap(NamedTuple):
    """Steps and seconds between two laps."""

    steps: int
    seconds: float
    call_s: float  # the part of `seconds` in the calls of the compiled step


class Clock:
    """Seconds spent in training steps; stands still while paused."""

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
