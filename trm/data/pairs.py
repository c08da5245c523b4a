"""Batches of puzzles that have several rows each (`PairsTask`): the training stream by epochs over puzzles, and the evaluation.

The training stream samples as the released code does: an epoch takes every puzzle once in random order, in a random variant, and
its rows follow each other in random order in the batch; rows of a puzzle that do not fit the batch are left out. So that any step
can be drawn without the steps before it, the stream starts anew every BLOCK_STEPS steps with new epochs: step s is a function of
only (seed, s).
Shapes: G puzzles, B rows of the global batch, L tokens.
"""

import dataclasses
from functools import cached_property

import numpy as np

from trm.data.format import Dataset, load_catalogue
from trm.data.loader import ALONE, Batch, EvalLoader, Host, Numbers, RowMaker
from trm.ground.hashing import Stream, hash64, permutations
from trm.tasks.pairs import Ballots, Catalogue

BLOCK_STEPS = 512


def spread(counts: Numbers) -> tuple[Numbers, Numbers]:
    """For `counts` [G] parts of each of G things, one after the other: the thing of each part, and its number in that thing."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)


class PairTrainLoader:
    """The training stream of one host; with the interface of `TrainLoader`."""

    def __init__(self, dataset: Dataset, *, seed: int, global_batch_size: int, data_seed: int, host: Host = ALONE):
        self._maker = RowMaker(dataset, data_seed, moved=True)
        self._seed, self._size = seed, global_batch_size
        self._rows = host.rows(global_batch_size)
        self._number = -1
        self._visits = self._starts = np.empty(0, np.int64)

    def batch(self, step: int) -> Batch:
        """This host's rows of the batch of `step` (from 0): inputs, labels [B_local, L] and puzzle_identifiers [B_local]."""
        return self._maker.batch(*(places[self._rows] for places in self.places(step)))

    def places(self, step: int) -> tuple[Numbers, Numbers, Numbers]:
        """Puzzle, variant and pair of every row of the global batch [B]."""
        number, place = divmod(step, BLOCK_STEPS)
        if number != self._number:
            self._number, self._visits, self._starts = number, *self._block(number)
        start, stop = self._starts[place : place + 2].tolist()
        groups, visits = self._visits[start:stop], np.arange(start, stop)
        draws = hash64(Stream.VARIANT, self._seed, number, visits)
        variants = (draws % self._maker.num_variants[groups].astype(np.uint64)).astype(np.int64)
        visit, pair = spread(self._maker.num_pairs[groups])
        order = np.lexsort((hash64(Stream.PAIRS, self._seed, number, visits[visit], pair), visit))[: self._size]
        visit = visit[: self._size]  # the order changes places within a visit only
        return groups[visit], variants[visit], pair[order]

    def _block(self, number: int) -> tuple[Numbers, Numbers]:
        """The puzzles that a block of steps visits, and the first visit of each step and of the step after the block."""
        counts = self._maker.num_pairs
        epochs = BLOCK_STEPS * (self._size + int(counts.max())) // int(counts.sum()) + 1
        keys = hash64(Stream.EPOCH, self._seed, number, np.arange(epochs)[:, None], np.arange(len(counts)))
        visits = permutations(keys).reshape(-1)
        before = np.concatenate([[0], np.cumsum(counts[visits])])  # rows before each visit
        starts = [0]
        for _ in range(BLOCK_STEPS):
            starts.append(int(np.searchsorted(before, before[starts[-1]] + self._size)))
        return visits, np.array(starts)


class PairEvalLoader(EvalLoader):
    """One pass over the test rows of puzzles in their variants, puzzle by puzzle, in the released order.

    A row alone is right or wrong; the task's scores belong to puzzles. A pass takes all puzzles and variants that it is told to.
    """

    score_names = ()

    def __init__(
        self,
        dataset: Dataset,
        *,
        global_batch_size: int,
        max_puzzles: int | None = None,
        max_variants: int | None = None,
        blank: bool = False,
        data_seed: int = 0,
        host: Host = ALONE,
    ):
        super().__init__(dataset, global_batch_size=global_batch_size, data_seed=data_seed, host=host)
        self.num_puzzles = min(max_puzzles or dataset.num_groups, dataset.num_groups)
        self._blank = blank
        there, self._counts = (counts[: self.num_puzzles] for counts in (self._maker.num_variants, self._maker.num_pairs))
        variants = np.minimum(there, max_variants or there.max())
        self._starts = np.concatenate([[0], np.cumsum(variants * self._counts)])

    def padded(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of the pass, with rows of padding after its end; without identifiers where `blank` is set."""
        batch = super().padded(start, stop)
        if self._blank:
            batch["puzzle_identifiers"] = np.full_like(batch["puzzle_identifiers"], self.dataset.metadata.blank_identifier_id)
        return batch

    @property
    def num_rows(self) -> int:
        """Rows of the pass."""
        return int(self._starts[-1])

    @property
    def num_inputs(self) -> int:
        """Test inputs of the pass's puzzles, each counted once for all variants."""
        return int(self._counts.sum())

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of the pass (fewer where it ends before), the same on every host."""
        rows = np.arange(min(start, self.num_rows), min(stop, self.num_rows))
        at = np.searchsorted(self._starts, rows, side="right") - 1
        variants, pairs = np.divmod(rows - self._starts[at], self._counts[at])
        return self._maker.batch(at, variants, pairs)

    puzzles = rows

    def rest(self) -> None:
        """None: the pass takes everything."""

    @cached_property
    def catalogue(self) -> Catalogue:
        """What the identifiers stand for."""
        return load_catalogue(self.dataset)

    def ballots(self) -> Ballots:
        """Where the answers to the puzzles of the pass are counted."""
        task, catalogue = self.dataset.pairs_task, self.catalogue
        assert task is not None
        identifiers = self.dataset.puzzle_identifiers[np.asarray(self.dataset.group_indices[: self.num_puzzles])]
        names = {catalogue.names[catalogue.puzzles[identifier]] for identifier in identifiers.tolist()}
        tests = {name: plain for name, plain in catalogue.tests.items() if name in names}
        return task.ballots(dataclasses.replace(catalogue, tests=tests, left_out=len(catalogue.tests) - len(tests)))
