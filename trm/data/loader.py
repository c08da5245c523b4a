"""Batches of a dataset: a training stream that is a pure function of (seed, step), and an evaluation pass that counts once.

The training stream is an endless row of positions. Position q is puzzle q mod G of epoch q // G's order (every base puzzle once
an epoch), in a variant drawn by hashing (seed, q); step s takes positions [s * B, (s + 1) * B). So there is never a partial
batch, any step can be drawn without the steps before it, and hosts that share a batch need not talk.
Shapes: G groups, B rows of the global batch, L tokens.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trm.config import IGNORE_LABEL
from trm.data.format import Dataset
from trm.errors import DataError
from trm.ground.hashing import Stream, hash64, permutations
from trm.tasks.augment import augment, undo
from trm.tasks.base import Scores, Task

Batch = dict[str, NDArray[np.int32]]
Keys = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[Any]]  # int64, the one part of a batch that is

# Rows that TrainLoader makes at a time, of several steps where a step has fewer: numpy's calls then cost little a row
BLOCK_ROWS = 768


class Host(NamedTuple):
    """One of the hosts that share a batch: its number and how many there are."""

    number: int = 0
    total: int = 1

    def rows(self, global_batch_size: int) -> slice:
        """The contiguous share of the global batch that this host loads. Raises DataError."""
        if global_batch_size % self.total:
            raise DataError(f"a batch of {global_batch_size} rows does not divide over {self.total} hosts")
        local = global_batch_size // self.total
        return slice(self.number * local, (self.number + 1) * local)


ALONE = Host()


def as_batch(dataset: Dataset, inputs: NDArray[np.integer], labels: NDArray[np.integer], identifiers: NDArray[np.integer]) -> Batch:
    """Rows of a dataset [N, L] with their puzzle identifiers [N] as a batch; labels that do not count are IGNORE_LABEL."""
    targets = labels.astype(np.int32)
    if (ignored := dataset.metadata.ignore_label_id) is not None:
        targets[targets == ignored] = IGNORE_LABEL
    return {"inputs": inputs.astype(np.int32), "labels": targets, "puzzle_identifiers": identifiers.astype(np.int32)}


class _Variants:
    """Variants of a dataset's puzzles as batches: stored, or made here from `data_seed`.

    `without` is the setting that does without making them, which a refusal names; None where they are stored.
    """

    def __init__(self, dataset: Dataset, data_seed: int, without: str | None):
        self._seed, self._task = data_seed, None
        if without is not None:
            if dataset.task is None or dataset.task.symmetry is None:
                raise DataError(f"{without.partition('=')[0]}: the symmetries of these puzzles are not known: set {without}")
            self._task = dataset.task
        self._take(dataset)

    def _take(self, dataset: Dataset) -> None:
        self._dataset = dataset
        if self._task is not None:
            self._base = np.asarray(dataset.inputs, np.uint8), np.asarray(dataset.labels, np.uint8)

    def of(self, dataset: Dataset) -> "_Variants":
        """The same of another split."""
        other = copy.copy(self)
        other._take(dataset)
        return other

    def batch(self, rows: NDArray[np.int64], variants: NDArray[np.int64]) -> Batch:
        """Given variants of the puzzles whose own rows are these."""
        data = self._dataset
        if self._task is None:
            rows = rows + variants
            return as_batch(data, data.inputs[rows], data.labels[rows], data.puzzle_identifiers[rows])
        made = augment(self._task, *self._base, seed=self._seed, puzzles=rows, variants=variants)
        return as_batch(data, *made, data.puzzle_identifiers[rows])

    def undo(self, cells: NDArray[np.integer], rows: NDArray[np.int64], variants: NDArray[np.int64]) -> NDArray[np.integer]:
        """Answers to such variants as answers to the puzzles; those to stored rows as they are."""
        return cells if self._task is None else undo(self._task, cells, seed=self._seed, puzzles=rows, variants=variants)


class TrainLoader:
    """The training stream of one host.

    `seed` orders puzzles and draws variants; `data_seed` (data.seed) is what the variants themselves are made from. Where the
    dataset stores variants those are drawn from, else variants 0..on_the_fly_aug are made here; the stream is the same.
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
        self._dataset = dataset
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._rows = host.rows(global_batch_size)
        self._first_row = np.asarray(dataset.group_indices[:-1], np.int64)
        self._num_variants = np.diff(np.asarray(dataset.group_indices, np.int64))
        on_the_fly = on_the_fly_aug > 0 and dataset.num_rows == dataset.num_groups
        self._variants = _Variants(dataset, data_seed, "data.on_the_fly_aug=0" if on_the_fly else None)
        if on_the_fly:
            self._num_variants[:] = on_the_fly_aug + 1
        self._block_steps = max(1, BLOCK_ROWS // (self._rows.stop - self._rows.start))
        self._block_number, self._block = -1, dict[str, NDArray[np.int32]]()
        self._first_epoch, self._orders = 0, np.empty((0, dataset.num_groups), np.int64)  # [epochs from the first on, G]

    def batch(self, step: int) -> Batch:
        """This host's rows of the batch of `step` (from 0): inputs, labels [B_local, L] and puzzle_identifiers [B_local].

        They are made with those of the steps around it and must not be written to.
        """
        number, place = divmod(step, self._block_steps)
        if number != self._block_number:
            steps = np.arange(number * self._block_steps, (number + 1) * self._block_steps)
            positions = steps[:, None] * self._global_batch_size + np.arange(self._rows.start, self._rows.stop)
            self._block_number, self._block = number, self._rows_at(positions.ravel())
        local = self._rows.stop - self._rows.start
        return {name: rows[place * local : (place + 1) * local] for name, rows in self._block.items()}

    def _rows_at(self, positions: NDArray[np.int64]) -> Batch:
        """Rows of rising positions."""
        epochs, places = np.divmod(positions, self._dataset.num_groups)
        first, last = int(epochs[0]), int(epochs[-1])
        known = self._orders[first - self._first_epoch :] if first >= self._first_epoch else self._orders[:0]
        if last >= first + len(known):
            new = np.arange(first + len(known), last + 1)[:, None]
            keys = hash64(Stream.EPOCH, self._seed, new, np.arange(self._dataset.num_groups))
            # Only the orders from here on are kept: the next rows mostly need the same.
            self._first_epoch, self._orders = first, np.concatenate([known, permutations(keys)])
        groups = self._orders[epochs - self._first_epoch, places]
        draws = hash64(Stream.VARIANT, self._seed, positions)
        variants = (draws % self._num_variants[groups].astype(np.uint64)).astype(np.int64)
        return self._variants.batch(self._first_row[groups], variants)


class EvalLoader:
    """One pass over `max_puzzles` rows (None = all) from the first on, in order; over all hosts each counts once.

    The last batch is filled with rows of padding whose labels are all IGNORE_LABEL. Iterating again repeats the pass.
    With `copies` above 1 each puzzle comes that many times in a row, as itself and in the variants 1, 2, ... of `data_seed`
    (trm/tasks/augment.py), each of them `repeats` times; raises DataError where the puzzles' symmetries are not known. `keys`, of
    puzzles (by their place in the split) and which of its rows this is, are the batch's "rows".
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
        self.dataset, self._copies, self._repeats, self._keys = dataset, copies, repeats, keys
        self._variants = _Variants(dataset, data_seed, "inference.copies=1" if copies > 1 else None)
        self.global_batch_size = global_batch_size
        self._rows = host.rows(global_batch_size)
        self._first = 0  # row of the pass
        self.num_puzzles = dataset.num_rows if max_puzzles is None else min(max_puzzles, dataset.num_rows)

    @property
    def num_rows(self) -> int:
        """Rows of the pass: the puzzles with their copies, and these as often as they are repeated."""
        return self.num_puzzles * self._copies * self._repeats

    def of(self, dataset: Dataset, most: int) -> "EvalLoader":
        """A pass over at most so many puzzles of another split, in batches of the same size."""
        other = copy.copy(self)
        other.dataset, other._variants = dataset, self._variants.of(dataset)
        other._first, other.num_puzzles = 0, min(most, dataset.num_rows)
        return other

    def only(self, puzzle: int, count: int = 1) -> "EvalLoader":
        """The pass over this puzzle of the split alone, or over so many from it on, in batches of the same size."""
        other = copy.copy(self)
        other._first, other.num_puzzles = puzzle, count
        return other

    def rest(self) -> "EvalLoader | None":
        """The pass over the rows that come after these; None where there are none."""
        first = self._first + self.num_puzzles
        return self.only(first, self.dataset.num_rows - first) if first < self.dataset.num_rows else None

    def __len__(self) -> int:
        """Batches of the pass, the same on every host."""
        return math.ceil(self.num_rows / self.global_batch_size)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of the pass (fewer where it ends before), the same on every host."""
        puzzles, places = self._places_at(start, stop)
        batch = self._variants.batch(puzzles, places // self._repeats)
        return batch if self._keys is None else {**batch, "rows": self._keys(puzzles, places)}

    def puzzles(self, start: int, stop: int) -> Batch:
        """The puzzles themselves, `start` to `stop` of the pass's."""
        puzzles = np.arange(start, min(stop, self.num_puzzles)) + self._first
        return self._variants.batch(puzzles, np.zeros_like(puzzles))

    def questions(self) -> Batch:
        """The puzzles with their copies, each once however often it is repeated, and then a row of padding."""
        puzzles, copies = np.divmod(np.arange(self.num_puzzles * self._copies), self._copies)
        batch = self._variants.batch(puzzles + self._first, copies)
        if self._keys is not None:
            batch["rows"] = self._keys(puzzles + self._first, copies * self._repeats)
        return self._filled(batch, 1)

    def undo(self, cells: NDArray[np.integer], start: int = 0) -> NDArray[np.integer]:
        """Answers to the rows of the pass from `start` on, [..., R, L] tokens, as answers to the puzzles themselves."""
        if self._copies == 1:
            return cells
        *times, rows, length = cells.shape
        puzzles, places = (np.tile(at, math.prod(times)) for at in self._places_at(start, start + rows))
        return self._variants.undo(cells.reshape(-1, length), puzzles, places // self._repeats).reshape(cells.shape)

    def _places_at(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each of these rows of the pass, the puzzle and which of its rows it is."""
        rows = np.arange(min(start, self.num_rows), min(stop, self.num_rows))
        puzzles, places = np.divmod(rows, self._copies * self._repeats)
        return puzzles + self._first, places

    @property
    def task(self) -> Task | None:
        """What the puzzles are; None where they are not what the settings say."""
        return self.dataset.task

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores that the task of the puzzles has of its own; none where that is not known."""
        return () if self.task is None else self.task.score_names

    def scores(self, answers: NDArray[np.integer], puzzles: Batch) -> Scores:
        """These scores of answers [N, L] to puzzles of the pass. One without a label has none of them, as it counts nowhere."""
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
