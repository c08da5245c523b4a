"""Batches of a dataset: a training stream that is a pure function of (seed, step), and an evaluation pass over each row once.

The training stream is an endless row of positions. Position q is puzzle q mod G in the order of epoch q // G (an epoch takes every
base puzzle once), in a variant drawn by hashing (seed, q); step s takes the positions [s * B, (s + 1) * B). So every batch is full,
any step can be drawn without the steps before it, and hosts that share a batch need not talk.
Shapes: G groups, B rows of the global batch, N rows, L tokens.
"""

import copy
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from trm.config import IGNORE_LABEL
from trm.data.format import Dataset
from trm.errors import DataError
from trm.ground.hashing import Stream, hash64, permutations
from trm.tasks.augment import augment, undo
from trm.tasks.base import Scores, Split, Task

T = TypeVar("T")
Numbers = NDArray[np.int64]
Batch = dict[str, NDArray[np.int32]]
Keys = Callable[[Numbers, Numbers], NDArray[Any]]  # int64, unlike the other parts of a batch

# Rows that TrainLoader makes at a time, of several steps where a step has fewer: numpy's calls then cost little per row.
BLOCK_ROWS = 768


class Host(NamedTuple):
    """One of the hosts that share a batch: its number and how many hosts there are."""

    number: int = 0
    total: int = 1

    def rows(self, global_batch_size: int) -> slice:
        """The contiguous share of the global batch that this host loads. Raises DataError."""
        if global_batch_size % self.total:
            raise DataError(f"a batch of {global_batch_size} rows does not divide over {self.total} hosts")
        local = global_batch_size // self.total
        return slice(self.number * local, (self.number + 1) * local)


ALONE = Host()


class RowMaker:
    """Rows of any variant of a dataset's puzzles, read or made here; each row is a function of its place alone.

    Variants are read where the dataset stores them. They are made by the symmetries of the task where `symmetric` is set, and from
    the draws of a `PairsTask` where the dataset has draws.

    Attributes:
        num_variants: variants of each puzzle, itself included [G].
        num_pairs: rows of each variant [G].
    """

    def __init__(
        self, dataset: Dataset, data_seed: int, *, symmetric: bool = False, by_row: bool = False, moved: bool = False
    ) -> None:
        """`by_row`: each row is a group. `moved`: all rows of a variant but one have a random place on the canvas (in training)."""
        self.dataset, self._seed, self._moved = dataset, data_seed, moved
        self._stored = dataset.counts is None and not symmetric
        groups = np.arange(dataset.num_rows + 1) if by_row else np.asarray(dataset.group_indices, np.int64)
        self._first_puzzle, self._first_row = groups[:-1], np.asarray(dataset.puzzle_indices, np.int64)
        self.num_variants = np.diff(groups) if dataset.counts is None else np.asarray(dataset.counts, np.int64)
        self.num_pairs = np.diff(self._first_row)[self._first_puzzle]
        tokens: Any = None if self._stored else np.uint8
        self._base: Split = np.asarray(dataset.inputs, tokens), np.asarray(dataset.labels, tokens)

    def batch(self, groups: Numbers, variants: Numbers, pairs: Numbers | int = 0) -> Batch:
        """The given pairs [N] of the given variants [N] of groups [N]; labels that do not count are IGNORE_LABEL."""
        puzzles = self._first_puzzle[groups]
        if self._stored:
            puzzles = puzzles + variants
            rows = self._first_row[puzzles] + pairs
            inputs, labels = (array[rows] for array in self._base)
        else:
            inputs, labels = self.made(groups, variants, pairs)
        identifiers = self.dataset.puzzle_identifiers[puzzles]
        targets = labels.astype(np.int32)
        if (ignored := self.dataset.metadata.ignore_label_id) is not None:
            targets[targets == ignored] = IGNORE_LABEL
        if self.dataset.draws is not None:
            identifiers = identifiers + variants
        return {"inputs": inputs.astype(np.int32), "labels": targets, "puzzle_identifiers": identifiers.astype(np.int32)}

    def made(self, groups: Numbers, variants: Numbers, pairs: Numbers | int = 0) -> Split:
        """Questions and answers [N, L] of the same rows, made from the base rows."""
        data, task = self.dataset, self.dataset.pairs_task
        if task is None:
            assert data.task is not None
            return augment(data.task, *self._base, seed=self._seed, puzzles=groups, variants=variants)
        assert data.draws is not None
        places = None
        if self._moved:
            still = hash64(Stream.STILL, self._seed, groups, variants) % self.num_pairs[groups].astype(np.uint64)
            words = hash64(Stream.OFFSET, self._seed, groups[:, None], variants[:, None], np.reshape(pairs, (-1, 1)), np.arange(2))
            places = np.where((still == pairs)[:, None], 0.0, (words >> np.uint64(11)) / 2.0**53)
        draws = data.draws[data.puzzle_identifiers[groups] + variants]
        return task.vary(self._base, self._first_row[groups] + pairs, draws, places)


class TrainLoader:
    """The training stream of one host.

    `seed` orders the puzzles and draws their variants; `data_seed` (data.seed) makes the variants. The variants are those that the
    dataset stores, or else the variants 0..on_the_fly_aug, made here; the stream is the same.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        global_batch_size: int,
        on_the_fly_aug: int,
        data_seed: int,
        host: Host = ALONE,
    ):
        self._num_groups, self._seed, self._global_batch_size = dataset.num_groups, seed, global_batch_size
        self._rows = host.rows(global_batch_size)
        on_the_fly = on_the_fly_aug > 0 and dataset.num_rows == dataset.num_groups
        if on_the_fly:
            _require_symmetry(dataset, "data.on_the_fly_aug=0")
        self._maker = RowMaker(dataset, data_seed, symmetric=on_the_fly)
        if on_the_fly:
            self._maker.num_variants = np.full(self._num_groups, on_the_fly_aug + 1)
        self._block_steps = max(1, BLOCK_ROWS // (self._rows.stop - self._rows.start))
        self._block_number, self._block = -1, dict[str, NDArray[np.int32]]()
        self._first_epoch, self._orders = 0, np.empty((0, dataset.num_groups), np.int64)  # [epochs from the first on, G]

    def batch(self, step: int) -> Batch:
        """This host's rows of the batch of `step` (from 0): inputs, labels [B_local, L] and puzzle_identifiers [B_local].

        They are made together with the rows of neighbouring steps and must not be written to.
        """
        number, place = divmod(step, self._block_steps)
        if number != self._block_number:
            steps = np.arange(number * self._block_steps, (number + 1) * self._block_steps)
            positions = steps[:, None] * self._global_batch_size + np.arange(self._rows.start, self._rows.stop)
            self._block_number, self._block = number, self._rows_at(positions.ravel())
        local = self._rows.stop - self._rows.start
        return {name: rows[place * local : (place + 1) * local] for name, rows in self._block.items()}

    def _rows_at(self, positions: Numbers) -> Batch:
        """Rows of rising positions."""
        epochs, places = np.divmod(positions, self._num_groups)
        first, last = int(epochs[0]), int(epochs[-1])
        known = self._orders[first - self._first_epoch :] if first >= self._first_epoch else self._orders[:0]
        if last >= first + len(known):
            new = np.arange(first + len(known), last + 1)[:, None]
            keys = hash64(Stream.EPOCH, self._seed, new, np.arange(self._num_groups))
            # Only the orders from here on are kept: the next rows mostly need the same.
            self._first_epoch, self._orders = first, np.concatenate([known, permutations(keys)])
        groups = self._orders[epochs - self._first_epoch, places]
        draws = hash64(Stream.VARIANT, self._seed, positions)
        variants = (draws % self._maker.num_variants[groups].astype(np.uint64)).astype(np.int64)
        return self._maker.batch(groups, variants)


def _require_symmetry(dataset: Dataset, without: str) -> None:
    """Raise DataError where the symmetries of the puzzles are not known; `without` is the setting that needs none."""
    if dataset.task is None or dataset.task.symmetry is None:
        raise DataError(f"{without.partition('=')[0]}: the symmetries of these puzzles are not known: set {without}")


class EvalLoader:
    """One pass over `max_puzzles` rows (None = all) from the first on, in order; over all hosts each row counts once.

    The last batch is filled with rows of padding whose labels are all IGNORE_LABEL. Iterating again repeats the pass.
    With `copies` above 1 each puzzle comes that many times in a row, as itself and in the variants 1, 2, ... of `data_seed`
    (trm/tasks/augment.py), each of them `repeats` times; raises DataError where the puzzles' symmetries are not known. `keys` makes
    the batch's "rows" from the puzzles (their places in the split) and the number of each row among its puzzle's rows.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        global_batch_size: int,
        max_puzzles: int | None = None,
        copies: int = 1,
        repeats: int = 1,
        keys: Keys | None = None,
        data_seed: int = 0,
        host: Host = ALONE,
    ):
        self._copies, self._repeats, self._keys, self._data_seed = copies, repeats, keys, data_seed
        self.global_batch_size = global_batch_size
        self._rows = host.rows(global_batch_size)
        self._take(dataset, max_puzzles)

    def _take(self, dataset: Dataset, most: int | None) -> None:
        if self._copies > 1:
            _require_symmetry(dataset, "inference.copies=1")
        self.dataset = dataset
        self._maker = RowMaker(dataset, self._data_seed, symmetric=self._copies > 1, by_row=dataset.pairs_task is None)
        self._first = 0  # the pass's first puzzle
        self.num_puzzles = dataset.num_rows if most is None else min(most, dataset.num_rows)

    @property
    def num_rows(self) -> int:
        """Rows of the pass: the puzzles with their copies, each as often as it is repeated."""
        return self.num_puzzles * self._copies * self._repeats

    def of(self, dataset: Dataset, most: int) -> "EvalLoader":
        """A pass over at most `most` puzzles of another split, in batches of the same size."""
        other = copy.copy(self)
        other._take(dataset, most)
        return other

    def only(self, puzzle: int, count: int = 1) -> "EvalLoader":
        """The pass over `count` puzzles of the split from this one on, in batches of the same size."""
        other = copy.copy(self)
        other._first, other.num_puzzles = puzzle, count
        return other

    def rest(self) -> "EvalLoader | None":
        """The pass over the puzzles after this pass's last; None where it takes all of them."""
        first = self._first + self.num_puzzles
        return self.only(first, self.dataset.num_rows - first) if first < self.dataset.num_rows else None

    def __len__(self) -> int:
        """Batches of the pass, the same on every host."""
        return math.ceil(self.num_rows / self.global_batch_size)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of the pass (fewer where it ends before), the same on every host."""
        puzzles, places = self._places_at(start, stop)
        batch = self._maker.batch(puzzles, places // self._repeats)
        return batch if self._keys is None else {**batch, "rows": self._keys(puzzles, places)}

    def puzzles(self, start: int, stop: int) -> Batch:
        """The puzzles `start` to `stop` of the pass, each once as itself."""
        puzzles = np.arange(start, min(stop, self.num_puzzles)) + self._first
        return self._maker.batch(puzzles, np.zeros_like(puzzles))

    def questions(self) -> Batch:
        """The puzzles with their copies, each once however often it is repeated, and then a row of padding."""
        puzzles, copies = np.divmod(np.arange(self.num_puzzles * self._copies), self._copies)
        batch = self._maker.batch(puzzles + self._first, copies)
        if self._keys is not None:
            batch["rows"] = self._keys(puzzles + self._first, copies * self._repeats)
        return self._filled(batch, 1)

    def undo(self, cells: NDArray[np.integer], start: int = 0) -> NDArray[np.integer]:
        """Answers to the rows of the pass from `start` on, [..., R, L] tokens, as answers to the puzzles themselves."""
        if self._copies == 1:
            return cells
        assert self.task is not None
        *times, rows, length = cells.shape
        puzzles, places = (np.tile(at, math.prod(times)) for at in self._places_at(start, start + rows))
        flat, variants = cells.reshape(-1, length), places // self._repeats
        return undo(self.task, flat, seed=self._data_seed, puzzles=puzzles, variants=variants).reshape(cells.shape)

    def _places_at(self, start: int, stop: int) -> tuple[Numbers, Numbers]:
        """The puzzle of each of these rows of the pass, and the number of the row among the puzzle's rows."""
        rows = np.arange(min(start, self.num_rows), min(stop, self.num_rows))
        puzzles, places = np.divmod(rows, self._copies * self._repeats)
        return puzzles + self._first, places

    @property
    def task(self) -> Task | None:
        """The task of the puzzles; None where they are not what the settings say."""
        return self.dataset.task

    @property
    def score_names(self) -> tuple[str, ...]:
        """The task's own scores; empty where the task is not known."""
        return () if self.task is None else self.task.score_names

    def scores(self, answers: NDArray[np.integer], puzzles: Batch) -> Scores:
        """The task's own scores of answers [N, L] to puzzles of the pass; all False for a puzzle without labels."""
        assert self.task is not None
        labelled = (puzzles["labels"] != IGNORE_LABEL).any(axis=1)
        return {name: has & labelled for name, has in self.task.scores(puzzles["inputs"], puzzles["labels"], answers).items()}

    def __iter__(self) -> Iterator[Batch]:
        """This host's rows of every batch, in the form of `TrainLoader.batch`."""
        for start in range(0, self.num_rows, self.global_batch_size):
            yield self.padded(start + self._rows.start, start + self._rows.stop)

    def padded(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of the pass, with rows of padding after its end."""
        filled = self.rows(start, stop)
        return self._filled(filled, stop - start - len(filled["inputs"]))

    def _filled(self, batch: Batch, missing: int) -> Batch:
        """The batch with so many rows of padding."""
        facts = self.dataset.metadata
        fill = {"inputs": facts.pad_id, "labels": IGNORE_LABEL, "puzzle_identifiers": facts.blank_identifier_id, "rows": 0}
        return {
            name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), constant_values=fill[name])
            for name, array in batch.items()
        }


class Prefetcher(Generic[T]):
    """The results of `make(step)` for each of `steps` in order, made in a thread up to `depth` ahead of `next`.

    An error in `make` is raised by the `next` that would have returned its result.

    Attributes:
        made_s: seconds spent in `make` since the last `lap`.
        waited_s: seconds that `next` waited since then.
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
        def timed(step: int) -> T:
            began = time.perf_counter()
            result = self._make(step)
            with self._lock:  # `lap` reads and resets it in another thread
                self.made_s += time.perf_counter() - began
            return result

        while len(self._ahead) < self._depth and (step := next(self._steps, None)) is not None:
            self._ahead.append(self._pool.submit(timed, step))
