"""Build a dataset folder from csv files or from generated puzzles.

What is written is a function of the settings and of the csv files' content alone: no clock, no path, no library version.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.config import DataConfig
from trm.config.overrides import override
from trm.data import csv_source
from trm.data.build_pairs import write_pairs
from trm.data.content import COPIES, GENERATED_TEST_PUZZLES, SELECTION_PUZZLES, content_of
from trm.data.format import (
    ARRAYS,
    BLANK,
    IDENTIFIERS,
    SELECTION,
    SPLITS,
    Dataset,
    array_path,
    load_dataset,
    read_build_record,
    write_metadata,
    write_rows,
)
from trm.data.hub import download
from trm.errors import DataError
from trm.ground.files import sha256_of
from trm.ground.folder import locked
from trm.ground.hashing import Stream, hash64, permutations
from trm.tasks.augment import augment
from trm.tasks.base import Split, Task, task_of
from trm.tasks.pairs import PairsTask

# Of each source, changes whenever the same settings give other bytes. Until version 2 generated training puzzles were those that
# followed the test puzzles, so that a larger test set held puzzles of a smaller one's training set.
FORMAT_VERSIONS = {"csv": 1, "json": 1, "generated": 2}
# The settings that decide the content, beside the task's own; csv files enter by their sha256.
_SETTINGS = ("source", "num_puzzles", "num_test_puzzles", "min_rating", "num_aug", "seed")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildReport:
    """What `build_dataset` found or made; `built` is False where the folder was there already with the same settings."""

    path: Path
    built: bool
    rows: dict[str, int]
    puzzles: dict[str, int]
    num_bytes: int
    seconds: float
    disjointness: str
    caveats: list[str]  # beside that: what changes how an accuracy on these puzzles may be read
    remarks: list[str]  # the task's, of each split

    def __str__(self) -> str:
        """Several lines for the terminal."""
        counts = [f"{split}: {puzzles:,} puzzles, {self.rows[split]:,} rows" for split, puzzles in self.puzzles.items()]
        state = f"built in {self.seconds:.1f} s" if self.built else "already built with the same settings"
        lines = [self.disjointness, *self.caveats, *self.remarks]
        return "\n".join([f"{self.path}: {state}, {self.num_bytes / 1e6:.1f} MB", *counts, *lines])


def ensure_dataset(data: DataConfig) -> Path:
    """The dataset folder `data.path`, built first where it is missing, from downloaded files where none are named.

    Raises DataError where the folder was built with other settings or cannot be built.
    """
    path = Path(data.path)
    if not is_absent(path):
        _check_settings(path, data)
        return path
    build_dataset(data)
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
    started = time.monotonic()
    path = Path(data.path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")):  # others that build the same folder wait
            if not is_absent(path):
                record = _check_settings(path, data)
                if record is None:
                    raise DataError(f"data.path={path} exists and was not built here: choose another data.path or remove it")
                return _report(path, record, seconds=0.0, built=False)
            _log.info("%s does not exist: building it, once", path)
            try:
                record = _build(path, data)
            except KeyboardInterrupt as stopped:
                stopped.add_note(f"{path} is not built, and nothing of it is left")
                raise
            finally:
                shutil.rmtree(_unnamed(path), ignore_errors=True)
    except OSError as error:
        raise DataError(f"data.path={path} cannot be written ({error}): choose another data.path") from error
    return _report(path, record, seconds=time.monotonic() - started, built=True)


def _build(path: Path, data: DataConfig) -> dict[str, Any]:
    task = task_of(data)
    if isinstance(task, PairsTask):
        return _build_pairs(path, data, task)
    csv_sha256: dict[str, str] = {}
    if data.source == "generated":
        num_test = GENERATED_TEST_PUZZLES if data.num_test_puzzles is None else data.num_test_puzzles
        counts = {"train": data.num_puzzles, "test": num_test, SELECTION: min(num_test, SELECTION_PUZZLES)}
        splits = task.generate_splits(counts, data.seed)
    else:
        splits, csv_sha256 = _from_csv(task, data)
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSIONS[data.source],
        "settings": _settings(data),
        "csv_sha256": csv_sha256,
        "puzzles": {split: len(rows[0]) for split, rows in splits.items()},
        "rows": {},
        "sha256": {},
    }
    if remarks := [f"{split}: {remark}" for split, rows in splits.items() for remark in task.remarks(*rows)]:
        record["remarks"] = remarks
    folder = _empty_folder(path, splits)
    for split in splits:
        num_aug = data.num_aug if split == "train" else 0
        record["rows"][split] = _write_split(folder, split, task, splits[split], num_aug=num_aug, seed=data.seed)
    _write_json(folder / IDENTIFIERS, [BLANK])
    _finish(folder, path, data, record, functools.partial(_disjointness, task))
    return record


def _unnamed(path: Path) -> Path:
    """Where a dataset folder is written before it has its name."""
    return path.with_name(f".{path.name}.building")


def _empty_folder(path: Path, splits: Iterable[str] = SPLITS) -> Path:
    """The same, with nothing in it."""
    folder = _unnamed(path)
    shutil.rmtree(folder, ignore_errors=True)
    for split in splits:
        (folder / split).mkdir(parents=True)
    return folder


def _finish(folder: Path, path: Path, data: DataConfig, record: dict[str, Any], disjointness: Callable[[list[str]], str]) -> None:
    """Complete the record by what the written folder holds, write it, and give the folder its name."""
    for split in record["puzzles"]:
        for name in ARRAYS:
            with array_path(folder, split, name).open("rb") as file:
                record["sha256"][f"{split}/{name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    content = content_of(dataclasses.replace(data, path=str(folder)))
    record["digests"] = {"train": content.train_digest, "test": content.test_digest}
    record["caveats"] = content.caveats
    record["disjointness"] = disjointness(content.caveats)
    _write_json(folder / "build.json", record)
    folder.replace(path)


def _build_pairs(path: Path, data: DataConfig, task: PairsTask) -> dict[str, Any]:
    """Puzzles of several rows, whose variants are draws or, with data.num_aug, rows too."""
    found, folder = task.collect(data), _empty_folder(path)
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSIONS[data.source],
        "settings": _settings(data),
        "csv_sha256": found.sha256,
        "puzzles": {split: len(found.splits[split].puzzles) for split in SPLITS},
        "rows": write_pairs(folder, task, found, data),
        "sha256": {},
        "remarks": found.remarks,
    }
    _finish(folder, path, data, record, lambda caveats: caveats[0] if caveats else "train and test share no pair")
    return record


def _from_csv(task: Task, data: DataConfig) -> tuple[dict[str, Split], dict[str, str]]:
    given = {"train": data.train_csv, "test": data.test_csv}
    counts = {"train": data.num_puzzles, "test": data.num_test_puzzles}
    streams = {"train": Stream.TRAIN_ROWS, "test": Stream.TEST_ROWS}
    files, chosen, rows, lines = {}, {}, {}, {}
    for split in SPLITS:
        named = given[split]
        source = Path(named) if named else _downloaded(task, data, f"{split}.csv")
        file = csv_source.scan(source, f"data.{split}_csv", rated=data.min_rating is not None)
        rows_there = np.arange(file.num_rows)
        if data.min_rating is not None:
            assert file.ratings is not None
            rows_there = np.flatnonzero(file.ratings >= data.min_rating)
        count = len(rows_there) if counts[split] is None else counts[split]
        key = "data.num_puzzles" if split == "train" else "data.num_test_puzzles"
        assert count is not None
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
    if task.symmetry is None:
        return "train and test share no puzzle"
    copies = next((caveat for caveat in found if COPIES in caveat), None)
    if copies is None:
        return f"train and test share no puzzle, nor any symmetric copy of one ({task.symmetry.words})"
    return f"train and test share no puzzle, but {copies}"


def _write_split(folder: Path, split: str, task: Task, base: Split, *, num_aug: int, seed: int) -> int:
    """Write one split's arrays and dataset.json; returns its number of rows N."""
    num_groups = len(base[0])
    num_rows = num_groups * (num_aug + 1)

    def make(rows: NDArray[np.int64]) -> Split:
        puzzles, variants = np.divmod(rows, num_aug + 1)
        return augment(task, *base, seed=seed, puzzles=puzzles, variants=variants)

    write_rows(folder, split, num_rows, task.facts.seq_len, make)
    for name, array in {
        "puzzle_identifiers": np.zeros(num_rows, np.int32),
        "puzzle_indices": np.arange(num_rows + 1, dtype=np.int32),
        "group_indices": np.arange(0, num_rows + 1, num_aug + 1, dtype=np.int32),
    }.items():
        np.save(array_path(folder, split, name), array)
    write_metadata(folder, split, task, task.facts.num_identifiers, num_groups, num_rows, num_rows)
    return num_rows


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


def _report(path: Path, record: dict[str, Any], *, seconds: float, built: bool) -> BuildReport:
    num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    caveats = [caveat for caveat in record.get("caveats") or [] if caveat not in record["disjointness"]]
    told = record["disjointness"], caveats, [str(remark) for remark in record.get("remarks") or []]
    return BuildReport(path, built, record["rows"], record["puzzles"], num_bytes, seconds, *told)


def is_absent(path: Path) -> bool:
    """Whether a dataset folder is still to be built: missing or empty."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
