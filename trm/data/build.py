"""Build a dataset folder from csv files or from generated puzzles.

What is written is a function of the settings and of the csv files' content alone: no clock, no path, no library version.
"""

import dataclasses
import functools
import json
import logging
import shlex
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trm.config import DataConfig
from trm.config.overrides import override
from trm.data import csv_source
from trm.data.content import COPIES, GENERATED_TEST_PUZZLES, SELECTION_PUZZLES, content_of
from trm.data.format import (
    ARRAYS,
    BLANK,
    COUNTS,
    DRAWS,
    IDENTIFIERS,
    NAMES,
    SELECTION,
    SPLITS,
    TESTS,
    Dataset,
    array_path,
    load_dataset,
    read_build_record,
    write_metadata,
    write_rows,
)
from trm.data.hub import download
from trm.data.pairs import PairRowMaker, spread
from trm.errors import DataError
from trm.ground.files import sha256_of
from trm.ground.folder import locked
from trm.ground.hashing import Stream, hash64, permutations
from trm.tasks.augment import augment
from trm.tasks.base import Split, Task, task_of
from trm.tasks.pairs import Collection, PairsTask

# Of each source, changes whenever the same settings give other bytes. Until version 2 generated training puzzles were those that
# followed the test puzzles, so that a larger test set held puzzles of a smaller one's training set.
FORMAT_VERSIONS = {"csv": 1, "json": 1, "generated": 2}
# The settings that decide the content, beside the task's own; csv files enter by their sha256.
_SETTINGS = ("source", "num_puzzles", "num_test_puzzles", "min_rating", "num_aug", "seed")

_log = logging.getLogger(__name__)


class BuildReport(NamedTuple):
    """What `build_dataset` found or made."""

    path: Path
    record: dict[str, Any]  # build.json
    seconds: float | None  # that it took; None where the folder was there already with the same settings

    def __str__(self) -> str:
        """Several lines for the terminal."""
        record, size = self.record, sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        counts = [f"{split}: {puzzles:,} puzzles, {record['rows'][split]:,} rows" for split, puzzles in record["puzzles"].items()]
        state = "already built with the same settings" if self.seconds is None else f"built in {self.seconds:.1f} s"
        caveats = [caveat for caveat in record.get("caveats") or [] if caveat not in record["disjointness"]]
        lines = [record["disjointness"], *caveats, *map(str, record.get("remarks") or [])]
        return "\n".join([f"{self.path}: {state}, {size / 1e6:.1f} MB", *counts, *lines])


def ensure_dataset(data: DataConfig) -> Path:
    """The dataset folder `data.path`, built first where it is missing, from downloaded files where none are named.

    Raises DataError where the folder was built with other settings or cannot be built.
    """
    path = Path(data.path)
    if is_absent(path):
        build_dataset(data)
    else:
        _check_settings(path, data)
    return path


def held_out_puzzles(data: DataConfig) -> Dataset:
    """The test puzzles of the settings, built first where they are missing. Raises DataError as `ensure_dataset` does."""
    return load_dataset(ensure_dataset(data), "test", task_of(data))


def build_command(data: DataConfig) -> str:
    """The command that builds this dataset; downloads its source where no csv files are named."""
    keys = ["path", "num_puzzles", "num_test_puzzles", "min_rating", "num_aug", "seed", "train_csv", "test_csv", "source_dir"]
    overrides = [override(f"data.{key}", getattr(data, key)) for key in keys if getattr(data, key, None) is not None]
    return shlex.join(["python", "-m", "trm.build_data", f"data={data.name}", *overrides])


def build_dataset(data: DataConfig) -> BuildReport:
    """Write the dataset folder `data.path`, whole or not at all; processes that want the same folder build it once.

    Raises DataError for wrong input, for a folder built with other settings, and where the folder cannot be written.
    """
    started, path = time.monotonic(), Path(data.path)
    unnamed = path.with_name(f".{path.name}.building")  # until it is whole
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")):  # others that build the same folder wait
            if not is_absent(path):
                record = _check_settings(path, data)
                if record is None:
                    raise DataError(f"data.path={path} exists and was not built here: choose another data.path or remove it")
                return BuildReport(path, record, None)
            _log.info("%s does not exist: building it, once", path)
            shutil.rmtree(unnamed, ignore_errors=True)
            try:
                record = _build(unnamed, data)
                unnamed.replace(path)
            except KeyboardInterrupt as stopped:
                stopped.add_note(f"{path} is not built, and nothing of it is left")
                raise
            finally:
                shutil.rmtree(unnamed, ignore_errors=True)
    except OSError as error:
        raise DataError(f"data.path={path} cannot be written ({error}): choose another data.path") from error
    return BuildReport(path, record, time.monotonic() - started)


def _build(folder: Path, data: DataConfig) -> dict[str, Any]:
    """Write a dataset into a folder that is not there yet; returns its build.json."""
    task, sources = task_of(data), dict[str, str]()
    if isinstance(task, PairsTask):
        found = task.collect(data)
        puzzles, sources, remarks = {split: len(found.splits[split].puzzles) for split in SPLITS}, found.sha256, found.remarks
        num_rows = _write_pairs(folder, task, found, data)
    else:
        if data.source == "generated":
            num_test = GENERATED_TEST_PUZZLES if data.num_test_puzzles is None else data.num_test_puzzles
            counts = {"train": data.num_puzzles, "test": num_test, SELECTION: min(num_test, SELECTION_PUZZLES)}
            splits = task.generate_splits(counts, data.seed)
        else:
            splits, sources = _from_csv(task, data)
        puzzles = {split: len(rows[0]) for split, rows in splits.items()}
        remarks = [f"{split}: {remark}" for split, rows in splits.items() for remark in task.remarks(*rows)]
        num_rows = {split: _write_split(folder, split, task, rows, data) for split, rows in splits.items()}
        _write_json(folder / IDENTIFIERS, [BLANK])
    content = content_of(dataclasses.replace(data, path=str(folder)))
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSIONS[data.source],
        "settings": _settings(data),
        "csv_sha256": sources,
        "puzzles": puzzles,
        "rows": num_rows,
        "sha256": {f"{split}/{name}": sha256_of(array_path(folder, split, name)) for split in puzzles for name in ARRAYS},
        **({"remarks": remarks} if remarks else {}),
        "digests": {"train": content.train_digest, "test": content.test_digest},
        "caveats": content.caveats,
        "disjointness": _disjointness(task, content.caveats),
    }
    _write_json(folder / "build.json", record)
    return record


def _from_csv(task: Task, data: DataConfig) -> tuple[dict[str, Split], dict[str, str]]:
    given = {"train": data.train_csv, "test": data.test_csv}
    counts = {"train": data.num_puzzles, "test": data.num_test_puzzles}
    streams = {"train": Stream.TRAIN_ROWS, "test": Stream.TEST_ROWS}
    files, chosen, rows, lines = {}, {}, {}, {}
    for split in SPLITS:
        source = Path(named) if (named := given[split]) else _downloaded(task, data, f"{split}.csv")
        file = csv_source.scan(source, f"data.{split}_csv", rated=data.min_rating is not None)
        rows_there = np.arange(file.num_rows)
        if data.min_rating is not None:
            assert file.ratings is not None
            rows_there = np.flatnonzero(file.ratings >= data.min_rating)
        count = len(rows_there) if (asked := counts[split]) is None else asked
        key = "data.num_puzzles" if split == "train" else "data.num_test_puzzles"
        if count > len(rows_there) or not count:
            rated = "" if data.min_rating is None else f" rated {data.min_rating:g} or more"
            raise DataError(f"{key}={count}, but {file.path} has {len(rows_there)} puzzles{rated}: lower it")
        order = permutations(hash64(streams[split], data.seed, np.arange(len(rows_there))))
        files[split] = file
        chosen[split] = rows_there[order[:count]] if count < len(rows_there) else rows_there
    for split in SPLITS:
        *grids, lines[split] = csv_source.read_rows(files[split], task, chosen[split])
        rows[split] = grids[0], grids[1]
    line_of = {row.tobytes(): line for line, row in zip(lines["train"], rows["train"][0], strict=True)}
    for line, row in zip(lines["test"], rows["test"][0], strict=True):
        if row.tobytes() in line_of:
            in_train = f"{files['train'].path}:{line_of[row.tobytes()]}"
            raise DataError(f"{files['test'].path}:{line}: the puzzle is also in {in_train}: remove one")
    return rows, {split: files[split].sha256 for split in SPLITS}


def _downloaded(task: Task, data: DataConfig, name: str) -> Path:
    if task.hub is None:
        raise DataError(f"{task.title} cannot be downloaded: set data.train_csv and data.test_csv")
    try:
        return download(name, task.hub.repository, task.hub.revision, task.hub.sha256.get(name))
    except DataError as error:
        missing = [f"data.{split}_csv=PATH" for split in SPLITS if not getattr(data, f"{split}_csv")]
        raise DataError(
            f"data.path={data.path} does not exist, and {error}: get train.csv and test.csv of that dataset from elsewhere and run "
            f"`{' '.join([build_command(data), *missing])}`, or take data={task.hub.instead}, which is made here"
        ) from error


def _disjointness(task: Task, found: list[str]) -> str:
    """What is known about test puzzles that equal training puzzles, in one line."""
    if isinstance(task, PairsTask):
        return found[0] if found else "train and test share no pair"
    if task.symmetry is None:
        return "train and test share no puzzle"
    copies = next((caveat for caveat in found if COPIES in caveat), None)
    if copies is None:
        return f"train and test share no puzzle, nor any symmetric copy of one ({task.symmetry.words})"
    return f"train and test share no puzzle, but {copies}"


def _write_split(folder: Path, split: str, task: Task, base: Split, data: DataConfig) -> int:
    """Write one split's arrays and dataset.json, training puzzles with their variants; returns its number of rows N."""
    num_groups, num_aug = len(base[0]), data.num_aug if split == "train" else 0
    num_rows = num_groups * (num_aug + 1)

    def make(rows: NDArray[np.int64]) -> Split:
        puzzles, variants = np.divmod(rows, num_aug + 1)
        return augment(task, *base, seed=data.seed, puzzles=puzzles, variants=variants)

    (folder / split).mkdir(parents=True)
    write_rows(folder, split, num_rows, task.facts.seq_len, make)
    for name, array in {
        "puzzle_identifiers": np.zeros(num_rows, np.int32),
        "puzzle_indices": np.arange(num_rows + 1, dtype=np.int32),
        "group_indices": np.arange(0, num_rows + 1, num_aug + 1, dtype=np.int32),
    }.items():
        np.save(array_path(folder, split, name), array)
    write_metadata(folder, split, task, task.facts.num_identifiers, num_groups, num_rows, num_rows)
    return num_rows


def _write_pairs(folder: Path, task: PairsTask, found: Collection, data: DataConfig) -> dict[str, int]:
    """Write what was collected; with data.num_aug the rows of all variants instead of their draws. Returns each split's rows."""
    counts = np.array([len(draws) for draws in found.draws])
    first = np.concatenate([[1], 1 + np.cumsum(counts)])  # identifier of each puzzle; 0 is blank
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
    _write_json(folder / TESTS, found.tests, indent=None)
    _write_json(folder / NAMES, {"names": found.names, "first_identifiers": first[:-1].tolist()}, indent=None)
    np.save(folder / DRAWS, np.concatenate([np.zeros_like(found.draws[0][:1]), *found.draws]))
    rows = {split: _write_base_rows(folder, split, task, found, counts, first) for split in SPLITS}
    if data.num_aug:
        rows = {split: _store_variants(folder, split, task, data.seed) for split in SPLITS}
        for file in (DRAWS, NAMES):
            (folder / file).unlink()
        own = zip(found.names, found.draws, strict=True)
        names = [BLANK, *(task.identifier_name(name, draw) for name, draws in own for draw in draws)]
        _write_json(folder / IDENTIFIERS, names, indent=None)
    return rows


def _write_base_rows(
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
    groups, place = spread(variants * pairs)

    def make(rows: NDArray[np.int64]) -> Split:
        return maker.made(groups[rows], *np.divmod(place[rows], pairs[groups[rows]]))

    write_rows(folder, split, len(groups), task.facts.seq_len, make)
    identifiers = base.puzzle_identifiers.astype(np.int64)
    of_puzzle, number = spread(variants)
    for name, array in {
        "puzzle_identifiers": identifiers[of_puzzle] + number,
        "puzzle_indices": np.concatenate([[0], np.cumsum(pairs[of_puzzle])]),
        "group_indices": np.concatenate([[0], np.cumsum(variants)]),
    }.items():
        np.save(array_path(folder, split, name), array.astype(np.int32))
    array_path(folder, split, COUNTS).unlink()
    return len(groups)


def _settings(data: DataConfig) -> dict[str, Any]:
    return {key: getattr(data, key) for key in (*_SETTINGS, *task_of(data).keys)}


def _check_settings(path: Path, data: DataConfig) -> dict[str, Any] | None:
    """The build record of a folder; None for a folder of the reference's builder, which says nothing of its settings.

    Raises DataError where it was built with other settings, and where a csv file that is named is not what it was built from.
    """
    record = read_build_record(path)
    named = {split: csv for split, csv in (("train", data.train_csv), ("test", data.test_csv)) if csv}
    for split, csv in named.items():
        if not Path(csv).exists():
            raise DataError(
                f"data.{split}_csv={csv} does not exist, and the dataset {path} was built already: leave data.{split}_csv out to "
                "use this dataset, or name the file that it was built from"
            )
        if record is None:
            _warn_once(f"data.{split}_csv={csv} is not used: {path} is there, and does not say what it was built from")
    if record is None:
        return None
    if data.source == record["settings"].get("source") and record.get("format_version") != FORMAT_VERSIONS[data.source]:
        others = ": generated sets hold other puzzles since" if data.source == "generated" else ""
        raise DataError(
            f"data.path={path} has format version {record.get('format_version')}, not {FORMAT_VERSIONS[data.source]}{others}: "
            f"remove it and build it again with {build_command(data)}"
        )
    for key, wanted in _settings(data).items():
        built = record["settings"].get(key)
        if built != wanted:
            raise DataError(
                f"data.{key}={wanted}, but the dataset {path} was built with data.{key}={built}: "
                f"choose another data.path or set data.{key}={'null' if built is None else built}"
            )
    folder: str | None = getattr(data, "source_dir", None)  # of a task that has one
    for name, there in record["csv_sha256"].items() if folder else ():
        file = Path(folder or "") / name
        if file.is_file() and sha256_of(file) != there:
            raise DataError(f"{file} is not the file that the dataset {path} was built from: choose another data.path")
    for split, csv in named.items():
        there, here = record["csv_sha256"].get(split), sha256_of(Path(csv))
        if there != here:
            raise DataError(
                f"data.{split}_csv={csv} (sha256 {here}) is not the file that the dataset {path} was built from (sha256 {there}): "
                "choose another data.path"
            )
    return record


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning(text)


def is_absent(path: Path) -> bool:
    """Whether a dataset folder is still to be built: missing or empty."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _write_json(file: Path, content: Any, indent: int | None = 2) -> None:
    file.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
