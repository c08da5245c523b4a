"""Puzzles per second of building datasets: generated ones, and csv files with stored augmentation."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.machine import Row, median_and_spread, turns
from trm.cli import compose
from trm.data.build import build_dataset
from trm.data.format import load_dataset
from trm.data.puzzle_text import HEADER
from trm.tasks.base import task_of

CSV = "csv"
SIZES = {
    "4x4": ["data=sudoku_4x4"],
    "6x6": ["data=sudoku_6x6"],
    "9x9": ["data=sudoku_9x9"],
    CSV: ["data=sudoku_extreme", "data.num_aug=1000"],
}
COMMON = ["data.num_puzzles=1000", "data.num_test_puzzles=1000"]
ROUNDS = 3


def measure(overrides: list[str], sizes: list[str], rounds: int) -> Iterator[Row]:
    """One row for each size; seconds include checking, hashing and writing, and puzzles are those of both splits."""
    for size in turns(sizes, "sizes"):
        seconds = []
        with tempfile.TemporaryDirectory() as folder:
            settings = [*SIZES[size], *COMMON, *overrides]
            if size == CSV:
                settings += _write_csv(Path(folder), [*SIZES["9x9"], *COMMON, *overrides])
            for number in turns(range(rounds), f"{size}: rounds"):
                report = build_dataset(compose([*settings, f"data.path={folder}/{number}"]).data)
                seconds.append(report.seconds or 0.0)
            num_bytes = sum(file.stat().st_size for file in report.path.rglob("*") if file.is_file())
        found, (puzzles, variants) = median_and_spread(seconds), (sum(report.record[key].values()) for key in ("puzzles", "rows"))
        row: Row = {"size": size, "puzzles": puzzles, "rows": variants, "MB": num_bytes / 1e6}
        row |= {"s": found["median"], "low": found["low"], "high": found["high"]}
        yield row | {"puzzles/s": puzzles / found["median"], "rows/s": variants / found["median"], "all s": seconds}


def _write_csv(folder: Path, settings: list[str]) -> list[str]:
    """Generated 9x9 puzzles as csv files in the folder; returns the overrides that name them."""
    cfg = compose([*settings, "data.num_aug=0", f"data.path={folder}/generated"]).data
    build_dataset(cfg)
    view, overrides = task_of(cfg).view, []
    for split in ("train", "test"):
        data, file = load_dataset(Path(cfg.path), split), folder / f"{split}.csv"
        lines = [
            f"generated,{view.text(question)},{view.text(answer)},0"
            for question, answer in zip(data.inputs, data.labels, strict=True)
        ]
        file.write_text("\n".join([HEADER, *lines]) + "\n")
        overrides.append(f"data.{split}_csv={file}")
    return overrides
