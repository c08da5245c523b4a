"""An untrained network, 4x4 Sudokus of which it solves some, and evaluations of them."""

import functools

import numpy as np
import torch

from trm.backends import start
from trm.config import HardwareConfig, ModelConfig, RecursionConfig
from trm.core.architecture import Architecture
from trm.core.candidates import row_keys
from trm.core.initial import init_buffers, init_weights
from trm.core.programs import ONE
from trm.data.format import Dataset, Metadata
from trm.data.loader import EvalLoader
from trm.inference.evaluator import Evaluator
from trm.inference.selection import over
from trm.tasks.sudoku.task import SudokuTask

C, V, N, S = 16, 6, 11, 5  # cells, vocabulary, puzzles, supervision steps
LABELLED = np.arange(N) != 4  # one puzzle has no label at all
ARCH = Architecture(
    model=ModelConfig(hidden_size=8, num_layers=1, puzzle_emb_ndim=0, puzzle_emb_len=0),
    recursion=RecursionConfig(T=1, n=1, n_sup=S),
    seq_len=C,
    vocab_size=V,
    num_puzzle_identifiers=1,
    dtype=torch.float64,
    loss_dtype=torch.float64,
)


@functools.cache
def network():
    """(weights, buffers) of a model whose wish to halt comes at different steps."""
    weights = init_weights(ARCH, 0)
    halting = torch.randn(weights["q_head.weight"].shape, generator=torch.Generator().manual_seed(1))
    weights |= {"q_head.weight": 0.7 * halting.double(), "q_head.bias": torch.tensor([-0.6, 0.0], dtype=torch.float64)}
    return weights, init_buffers(ARCH, 0)


@functools.cache
def dataset():
    """Permuted digits of one solution, of which one or two cells are labelled."""
    random, base = np.random.default_rng(0), np.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1])
    solutions = np.array([random.permutation(4)[base - 1] + 2 for _ in range(N)], np.uint8)
    inputs = np.where(random.random(solutions.shape) < 1 / 3, 1, solutions).astype(np.uint8)
    labels = np.where(random.random(solutions.shape) < 0.08, solutions, 0).astype(np.uint8)
    labels[:, 3] = solutions[:, 3]
    labels[~LABELLED] = 0
    facts = Metadata(
        seq_len=C, vocab_size=V, pad_id=0, ignore_label_id=0, blank_identifier_id=0, num_puzzle_identifiers=1,
        total_groups=N, mean_puzzle_examples=1.0, total_puzzles=N, sets=["all"],
    )  # fmt: skip
    count = np.arange(N + 1)
    return Dataset(inputs, labels, np.zeros(N, np.int32), count, count, facts, SudokuTask(2, 2))


def loader_of(way, batch, data=None, **keys):
    return EvalLoader(
        data or dataset(),
        global_batch_size=batch,
        copies=way.copies,
        repeats=way.particles,
        keys=lambda puzzles, places: row_keys(way, puzzles, places),
        data_seed=3,
        **keys,
    )


def evaluator_of(way=ONE, batch=8, arch=ARCH, data=None, **keys):
    """The evaluator with batches of at least so many rows."""
    runtime = start(HardwareConfig(name="native", backend="eager", dtype="float64"))
    loader = loader_of(way, -(batch // -way.rows_together) * way.rows_together, data, **keys)
    return Evaluator(runtime, arch, init_buffers(arch, 0), loader, S, "off", way)


def passed(way=ONE, batch=8, weights=None, **keys):
    """The result of a pass, and the predictions [S, N * K, ...] of all rows."""
    seen = []
    result = evaluator_of(way, batch, **keys).run(weights or network()[0], None, see=lambda found, _: seen.append(found))
    return result, over(lambda *parts: np.concatenate(parts, axis=1), *seen)


def halting_steps(rows):
    """Index of the step at which each row [N * K] halts, of predictions [S, N * K, ...]."""
    halts = rows.halting > 0
    first = np.where(halts.any(axis=0), halts.argmax(axis=0), S - 1)
    assert set(first) >= {0, S - 1}, "the cases that matter"
    return first
