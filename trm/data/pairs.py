"""Batches of puzzles that have several rows each (`PairsTask`): the training stream by epochs over puzzles, and the evaluation.

The training stream is as the released code samples: an epoch takes every puzzle once in random order, in a random variant, and its
rows in random order follow each other in the batch; the rows of a puzzle that do not fit the batch are left out. So that any step
can be drawn without the steps before it, the stream starts anew every BLOCK_STEPS steps with new epochs: step s is a function of
(seed, s) alone.
Shapes: G puzzles, R base rows, B rows of the global batch, L tokens.
"""

import dataclasses
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trm.data.format import Dataset, load_catalogue
from trm.data.loader import ALONE, Batch, EvalLoader, Host, as_batch
from trm.ground.hashing import Stream, hash64, permutations
from trm.tasks.base import Split
from trm.tasks.pairs import Ballots, Catalogue

BLOCK_STEPS = 512


def spread(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of `counts` [G] things that each of G others has, one after the other: whose each is, and which of its own."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)


class PairRowMaker:
    """Rows of any variant of a dataset's puzzles: stored, or made here from `data_seed`; each is a function of its place alone.

    Attributes:
        num_variants: of each puzzle, with itself [G].
        num_pairs: rows of each variant [G].
    """

    def __init__(self, dataset: Dataset, *, data_seed: int, moved: bool) -> None:
        """`moved`: all rows of a variant but one are anywhere that they have room, as in training."""
        self.dataset, self._seed, self._moved = dataset, data_seed, moved
        groups = np.asarray(dataset.group_indices, np.int64)
        self._first_puzzle, self._first_row = groups[:-1], np.asarray(dataset.puzzle_indices, np.int64)
        self._stored = dataset.counts is None
        self.num_variants = np.diff(groups) if dataset.counts is None else np.asarray(dataset.counts, np.int64)
        self.num_pairs = np.diff(self._first_row)[self._first_puzzle]
        self._base = np.asarray(dataset.inputs, np.uint8), np.asarray(dataset.labels, np.uint8)

    def rows(self, groups: NDArray[np.int64], variants: NDArray[np.int64], pairs: NDArray[np.int64]) -> Batch:
        """The given pairs [N] of the given variants [N] of puzzles [N]."""
        identifiers = self.dataset.puzzle_identifiers
        if self._stored:
            puzzles = self._first_puzzle[groups] + variants
            rows = self._first_row[puzzles] + pairs
            return as_batch(self.dataset, self._base[0][rows], self._base[1][rows], identifiers[puzzles])
        return as_batch(self.dataset, *self.made(groups, variants, pairs), identifiers[groups] + variants)

    def made(self, groups: NDArray[np.int64], variants: NDArray[np.int64], pairs: NDArray[np.int64]) -> Split:
        """Questions and answers [N, L] made from base rows and draws."""
        task, draws = self.dataset.pairs_task, self.dataset.draws
        assert task is not None
        assert draws is not None
        places = None
        if self._moved:
            still = hash64(Stream.STILL, self._seed, groups, variants) % self.num_pairs[groups].astype(np.uint64)
            words = hash64(Stream.OFFSET, self._seed, groups[:, None], variants[:, None], pairs[:, None], np.arange(2))
            places = np.where((still == pairs)[:, None], 0.0, (words >> np.uint64(11)) / 2.0**53)
        identifiers = self.dataset.puzzle_identifiers[groups] + variants
        return task.vary(self._base, self._first_row[groups] + pairs, draws[identifiers], places)


class PairTrainLoader:
    """The training stream of one host; with the interface of `TrainLoader`."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        global_batch_size: int,
        data_seed: int,
        host: Host = ALONE,
    ):
        self._maker = PairRowMaker(dataset, data_seed=data_seed, moved=True)
        self._seed, self._size = seed, global_batch_size
        self._rows = host.rows(global_batch_size)
        self._number = -1
        self._visits = self._starts = np.empty(0, np.int64)

    def batch(self, step: int) -> Batch:
        """This host's rows of the batch of `step` (from 0): inputs, labels [B_local, L] and puzzle_identifiers [B_local]."""
        return self._maker.rows(*(places[self._rows] for places in self.places(step)))

    def places(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Puzzle, variant and pair of every row of the global batch [B]."""
        number, place = divmod(step, BLOCK_STEPS)
        if number != self._number:
            self._number, self._visits, self._starts = number, *self._block(number)
        start, stop = self._starts[place : place + 2].tolist()
        groups, visits = self._visits[start:stop], np.arange(start, stop)
        draws = hash64(Stream.VARIANT, self._seed, number, visits)
        variants = (draws % self._maker.num_variants[groups].astype(np.uint64)).astype(np.int64)
        counts = self._maker.num_pairs[groups]
        visit, pair = spread(counts)
        order = np.lexsort((hash64(Stream.PAIRS, self._seed, number, visits[visit], pair), visit))[: self._size]
        visit = visit[: self._size]  # the order is within visits
        return groups[visit], variants[visit], pair[order]

    def _block(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The puzzles that a block of steps visits, and the first visit of each step and of the one after the last."""
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
    """One pass over the test rows of puzzles in their variants, puzzle by puzzle, in the released order."""

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
        super().__init__(dataset, global_batch_size=global_batch_size, host=host)
        self.num_puzzles = min(max_puzzles or dataset.num_groups, dataset.num_groups)
        self._maker = PairRowMaker(dataset, data_seed=data_seed, moved=False)
        self._blank = blank
        there, self._counts = (counts[: self.num_puzzles] for counts in (self._maker.num_variants, self._maker.num_pairs))
        variants = np.minimum(there, max_variants or there.max())
        self._starts = np.concatenate([[0], np.cumsum(variants * self._counts)])

    def padded(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of the pass, with rows of padding after its end; without their identifiers where `blank`."""
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
        """Test inputs of the pass's puzzles, each in all variants one."""
        return int(self._counts.sum())

    def puzzles(self, start: int, stop: int) -> Batch:
        """Rows of the pass, of which the first are the puzzles themselves."""
        return self.rows(start, stop)

    def rest(self) -> None:
        """None: a pass takes all puzzles that it is told to, in as many variants as it is told to."""
        return

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of the pass (fewer where it ends before), the same on every host."""
        rows = np.arange(min(start, self.num_rows), min(stop, self.num_rows))
        at = np.searchsorted(self._starts, rows, side="right") - 1
        variants, pairs = np.divmod(rows - self._starts[at], self._counts[at])
        return self._maker.rows(at, variants, pairs)

    @property
    def score_names(self) -> tuple[str, ...]:
        """None: a row by itself is exact or not, and the task's scores are of puzzles."""
        return ()

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
