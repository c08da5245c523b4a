"""The training stream as a queue on the devices: rows that halt take the next rows of the stream, so that none is discarded.

The host does not see which rows halt without reading from the devices, which a step must not wait for. So it puts as many rows
there as could be taken before it looks the next time (when it logs), and then replaces those that were taken. What the step has
taken is part of its state, and row q of the stream is the same whenever it is made: a resumed run goes on with the same rows.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from trm.data.loader import QUEUE, QUEUE_FIRST, Batch, TrainLoader


class RowQueue:
    """Windows of the training stream, `capacity` rows each. Rows are made once, ahead of time in a thread."""

    def __init__(self, loader: TrainLoader, capacity: int) -> None:
        self._loader, self._capacity = loader, capacity
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="queue")
        self._first, self._rows = 0, {name: rows[:0] for name, rows in loader.rows(0, 1).items()}
        self._ahead: Future[Batch] | None = None

    def __enter__(self) -> "RowQueue":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def window(self, first: int) -> Batch:
        """The rows from number `first` of the stream on, in the form that trm/core/fresh_rows.py takes. `first` never goes back."""
        if self._ahead is not None:
            self._append(self._ahead.result())
            self._ahead = None
        taken = min(first - self._first, self._made)
        self._rows, self._first = {name: rows[taken:] for name, rows in self._rows.items()}, first
        if self._made < self._capacity:
            self._append(self._loader.rows(first + self._made, first + self._capacity))
        missing_soon = self._capacity + taken - self._made  # where as many are taken until the next window
        if missing_soon > 0:
            self._ahead = self._pool.submit(self._loader.rows, first + self._made, first + self._made + missing_soon)
        window = {QUEUE + name: rows[: self._capacity] for name, rows in self._rows.items()}
        return window | {QUEUE_FIRST: np.array(first, np.int32)}

    @property
    def _made(self) -> int:
        return len(next(iter(self._rows.values())))

    def _append(self, rows: Batch) -> None:
        self._rows = {name: np.concatenate([kept, rows[name]]) for name, kept in self._rows.items()}
