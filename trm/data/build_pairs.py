"""Writing a dataset folder of puzzles that have several rows each (`PairsTask`): their rows, and the draws of their variants."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.config import DataConfig
from trm.data.format import (
    BLANK,
    COUNTS,
    DRAWS,
    IDENTIFIERS,
    NAMES,
    SPLITS,
    TESTS,
    array_path,
    load_dataset,
    write_metadata,
    write_rows,
)
from trm.data.pairs import PairRowMaker
from trm.tasks.base import Split
from trm.tasks.pairs import Collection, PairsTask


def write_pairs(folder: Path, task: PairsTask, found: Collection, data: DataConfig) -> dict[str, int]:
    """Write what was collected; with data.num_aug the rows of all variants instead of their draws. Returns each split's rows."""
    counts = np.array([len(draws) for draws in found.draws])
    first = np.concatenate([[1], 1 + np.cumsum(counts)])  # identifier of each puzzle; 0 is blank
    _write(folder / TESTS, found.tests)
    _write(folder / NAMES, {"names": found.names, "first_identifiers": first[:-1].tolist()})
    np.save(folder / DRAWS, np.concatenate([np.zeros_like(found.draws[0][:1]), *found.draws]))
    rows = {split: _write_split(folder, split, task, found, counts, first) for split in SPLITS}
    if data.num_aug:
        rows = {split: _store_variants(folder, split, task, data.seed) for split in SPLITS}
        for file in (DRAWS, NAMES):
            (folder / file).unlink()
        own = zip(found.names, found.draws, strict=True)
        _write(folder / IDENTIFIERS, [BLANK, *(task.identifier_name(name, draw) for name, draws in own for draw in draws)])
    return rows


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _write_split(
    folder: Path, split: str, task: PairsTask, found: Collection, counts: NDArray[np.int64], first: NDArray[np.int64]
) -> int:
    """Write a split without its variants; returns its number of rows."""
    rows = found.splits[split]
    arrays: dict[str, NDArray[Any]] = {
        "inputs": rows.questions,
        "labels": rows.answers,
        "puzzle_identifiers": first[rows.puzzles].astype(np.int32),
        "puzzle_indices": rows.first_row.astype(np.int32),
        "group_indices": np.arange(len(rows.puzzles) + 1, dtype=np.int32),
        COUNTS: counts[rows.puzzles].astype(np.int32),
    }
    for name, array in arrays.items():
        np.save(array_path(folder, split, name), array)
    variants, pairs = counts[rows.puzzles], np.diff(rows.first_row)
    write_metadata(folder, split, task, int(first[-1]), len(variants), int(variants.sum()), int((variants * pairs).sum()))
    return len(rows.questions)


def _store_variants(folder: Path, split: str, task: PairsTask, seed: int) -> int:
    """Replace a written split by one that holds all its variants' rows, as they would be made; returns its number of rows."""
    base = load_dataset(folder, split, task)
    maker = PairRowMaker(base, data_seed=seed, moved=split == "train")
    variants, pairs = maker.num_variants, maker.num_pairs
    groups = np.repeat(np.arange(base.num_groups), variants * pairs)
    place = np.arange(len(groups)) - np.repeat(np.cumsum(variants * pairs) - variants * pairs, variants * pairs)

    def make(rows: NDArray[np.int64]) -> Split:
        return maker.made(groups[rows], *np.divmod(place[rows], pairs[groups[rows]]))

    write_rows(folder, split, len(groups), task.facts.seq_len, make)
    identifiers = base.puzzle_identifiers.astype(np.int64)
    of_puzzle = np.repeat(np.arange(base.num_groups), variants)
    number = np.arange(len(of_puzzle)) - np.repeat(np.cumsum(variants) - variants, variants)
    for name, array in {
        "puzzle_identifiers": identifiers[of_puzzle] + number,
        "puzzle_indices": np.concatenate([[0], np.cumsum(pairs[of_puzzle])]),
        "group_indices": np.concatenate([[0], np.cumsum(variants)]),
    }.items():
        np.save(array_path(folder, split, name), array.astype(np.int32))
    array_path(folder, split, COUNTS).unlink()
    return len(groups)
