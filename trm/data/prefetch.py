"""Making batches ahead of the step, in a thread."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """The results of `make(step)` for each of `steps` in order, made in a thread up to `depth` ahead of `next`.

    An error in `make` is raised by the `next` that would have returned its result.

    Attributes:
        made_s: seconds spent in `make` since the last `lap`.
        waited_s: seconds that `next` stood still since then.
    """

    def __init__(self, make: Callable[[int], T], steps: Iterable[int], depth: int = 2) -> None:
        self._make, self._steps, self._depth = make, iter(steps), depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: deque[Future[T]] = deque()
        self._lock = threading.Lock()
        self.made_s = self.waited_s = 0.0

    def __enter__(self) -> "Prefetcher[T]":
        self._fill()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def next(self) -> T:
        """The next result; raises IndexError after the last one."""
        began = time.perf_counter()
        result = self._ahead.popleft().result()
        self.waited_s += time.perf_counter() - began
        self._fill()
        return result

    def lap(self) -> tuple[float, float]:
        """(made_s, waited_s) since the last lap; both start again at zero."""
        with self._lock:
            seconds = (self.made_s, self.waited_s)
            self.made_s = self.waited_s = 0.0
        return seconds

    def _fill(self) -> None:
        while len(self._ahead) < self._depth and (step := next(self._steps, None)) is not None:
            self._ahead.append(self._pool.submit(self._timed, step))

    def _timed(self, step: int) -> T:
        began = time.perf_counter()
        result = self._make(step)
        with self._lock:  # `lap` reads and resets it in another thread
            self.made_s += time.perf_counter() - began
        return result
