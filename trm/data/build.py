"""Build a dataset folder from csv files, from generated puzzles, or from ARC tasks.

The files written depend only on the settings and on the content of the source files: not on clock, path or library version.
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
from trm.data import puzzle_text
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
    Metadata,
    array_path,
    load_dataset,
    read_build_record,
    write_rows,
)
from trm.data.hub import download
from trm.data.loader import RowMaker
from trm.data.pairs import spread
from trm.errors import DataError
from trm.ground.cores import folder_bytes
from trm.ground.files import sha256_of
from trm.ground.folder import locked
from trm.ground.hashing import Stream, hash64, permutations
from trm.tasks.base import Split, Task, task_of
from trm.tasks.pairs import Collection, PairRows, PairsTask

# The version of a source changes whenever the same settings give other bytes. Version 1 of generated sets had other splits.
FORMAT_VERSIONS = {"csv": 1, "json": 1, "generated": 2}
# The settings that decide the content, besides the task's own; the sha256 of csv files decides too.
_SETTINGS = ("source", "num_puzzles", "num_test_puzzles", "min_rating", "num_aug", "seed")

_log = logging.getLogger(__name__)


class BuildReport(NamedTuple):
    """The dataset that `build_dataset` found or made."""

    path: Path
    record: dict[str, Any]  # build.json
    seconds: float | None  # of building; None where the folder was already built with the same settings

    def __str__(self) -> str:
        """Several lines for the terminal."""
        record, size = self.record, folder_bytes(self.path)
        counts = [f"{split}: {puzzles:,} puzzles, {record['rows'][split]:,} rows" for split, puzzles in record["puzzles"].items()]
        state = "already built with the same settings" if self.seconds is None else f"built in {self.seconds:.1f} s"
        caveats = [caveat for caveat in record.get("caveats") or [] if caveat not in record["disjointness"]]
        lines = [record["disjointness"], *caveats, *map(str, record.get("remarks") or [])]
        return "\n".join([f"{self.path}: {state}, {size / 1e6:.1f} MB", *counts, *lines])


def ensure_dataset(data: DataConfig) -> Path:
    """The dataset folder `data.path`, built first where it is missing (from downloaded files where the settings name none).

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
    """The command that builds this dataset; it downloads the source where the settings name no csv files."""
    keys = ["path", "num_puzzles", "num_test_puzzles", "min_rating", "num_aug", "seed", "train_csv", "test_csv", "source_dir"]
    overrides = [override(f"data.{key}", getattr(data, key)) for key in keys if getattr(data, key, None) is not None]
    return shlex.join(["python", "-m", "trm.build_data", f"data={data.name}", *overrides])


def build_dataset(data: DataConfig) -> BuildReport:
    """Write the dataset folder `data.path` as a whole or not at all; several processes that want the same folder build it once.

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
    task, sources, found = task_of(data), dict[str, str](), None
    if isinstance(task, PairsTask):
        found = task.collect(data)
        splits, sources, remarks = found.splits, found.sha256, found.remarks
    else:
        if data.source == "generated":
            num_test = GENERATED_TEST_PUZZLES if data.num_test_puzzles is None else data.num_test_puzzles
            counts = {"train": data.num_puzzles, "test": num_test, SELECTION: min(num_test, SELECTION_PUZZLES)}
            made = task.generate_splits(counts, data.seed)
        else:
            made, sources = _from_csv(task, data)
        remarks = [f"{split}: {remark}" for split, rows in made.items() for remark in task.remarks(*rows)]
        splits = {split: PairRows([0] * len(rows[0]), *rows, np.arange(len(rows[0]) + 1)) for split, rows in made.items()}
    num_rows = {split: _write_split(folder, split, task, rows, found, data) for split, rows in splits.items()}
    _write_identifiers(folder, task, found, stored=data.num_aug > 0)
    content = content_of(dataclasses.replace(data, path=str(folder)))
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSIONS[data.source],
        "settings": _settings(data),
        "csv_sha256": sources,
        "puzzles": {split: len(rows.puzzles) for split, rows in splits.items()},
        "rows": num_rows,
        "sha256": {f"{split}/{name}": sha256_of(array_path(folder, split, name)) for split in splits for name in ARRAYS},
        **({"remarks": remarks} if remarks else {}),
        "digests": {"train": content.train_digest, "test": content.test_digest},
        "caveats": content.caveats,
        "disjointness": _disjointness(task, content.caveats),
    }
    _write_json(folder / "build.json", record, indent=2)
    return record


def _from_csv(task: Task, data: DataConfig) -> tuple[dict[str, Split], dict[str, str]]:
    given = {"train": data.train_csv, "test": data.test_csv}
    counts = {"train": data.num_puzzles, "test": data.num_test_puzzles}
    streams = {"train": Stream.TRAIN_ROWS, "test": Stream.TEST_ROWS}
    files, chosen, rows, lines = {}, {}, {}, {}
    for split in SPLITS:
        source = Path(named) if (named := given[split]) else _downloaded(task, data, f"{split}.csv")
        file = puzzle_text.scan(source, f"data.{split}_csv", rated=data.min_rating is not None)
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
        *grids, lines[split] = puzzle_text.read_rows(files[split], task, chosen[split])
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
    """In one line: whether test puzzles equal training puzzles."""
    if isinstance(task, PairsTask):
        return found[0] if found else "train and test share no pair"
    if task.symmetry is None:
        return "train and test share no puzzle"
    copies = next((caveat for caveat in found if COPIES in caveat), None)
    if copies is None:
        return f"train and test share no puzzle, nor any symmetric copy of one ({task.symmetry.words})"
    return f"train and test share no puzzle, but {copies}"


def _write_split(folder: Path, split: str, task: Task, rows: PairRows, found: Collection | None, data: DataConfig) -> int:
    """Write a split's arrays and dataset.json, with the variants that data.num_aug stores; returns its number of rows N."""
    pairs, facts, counts, draws = np.diff(rows.first_row), task.facts, None, None
    if found is None:
        stored, identifiers = data.num_aug > 0 and split == "train", np.zeros(len(pairs), np.int64)
        variants = np.full(len(pairs), 1 + data.num_aug if stored else 1)
    else:
        draws, each = found.catalogue.draws, np.bincount(found.catalogue.puzzles[1:])
        stored, identifiers = data.num_aug > 0, (1 + np.cumsum(each) - each)[rows.puzzles]
        variants = counts = each[rows.puzzles]
    starts = np.concatenate([[0], np.cumsum(variants * pairs)])  # of each group, where all rows of its variants are written
    facts = facts if draws is None else dataclasses.replace(facts, num_identifiers=len(draws))
    metadata = Metadata.of(facts, len(pairs), int(variants.sum()), int(starts[-1]))
    (folder / split).mkdir(parents=True)
    _write_json(folder / split / "dataset.json", dataclasses.asdict(metadata), indent=2)
    own = identifiers, rows.first_row, np.arange(len(pairs) + 1)
    arrays = dict(zip(ARRAYS[2:], own, strict=True))
    if stored:
        base = Dataset(rows.questions, rows.answers, *own, metadata, task, counts=counts, draws=draws)
        maker = RowMaker(base, data.seed, symmetric=draws is None, moved=split == "train")

        def make(numbers: NDArray[np.int64]) -> Split:
            of = np.searchsorted(starts, numbers, side="right") - 1
            return maker.made(of, *np.divmod(numbers - starts[of], pairs[of]))

        write_rows(folder, split, int(starts[-1]), facts.seq_len, make)
        of_puzzle, number = spread(variants)
        arrays = {
            "puzzle_identifiers": identifiers[of_puzzle] + (0 if draws is None else number),
            "puzzle_indices": np.concatenate([[0], np.cumsum(pairs[of_puzzle])]),
            "group_indices": np.concatenate([[0], np.cumsum(variants)]),
        }
    else:
        for name, tokens in (("inputs", rows.questions), ("labels", rows.answers)):
            np.save(array_path(folder, split, name), np.ascontiguousarray(tokens))
        arrays |= {} if counts is None else {COUNTS: counts}
    for name, array in arrays.items():
        np.save(array_path(folder, split, name), array.astype(np.int32))
    return int(starts[-1]) if stored else len(rows.questions)


def _write_identifiers(folder: Path, task: Task, found: Collection | None, *, stored: bool) -> None:
    """Write what the puzzle identifiers stand for: their names, or the draws where variants are made while loading."""
    if found is None or not isinstance(task, PairsTask):
        _write_json(folder / IDENTIFIERS, [BLANK], indent=2)
        return
    known = found.catalogue
    _write_json(folder / TESTS, known.tests)
    if stored:
        names = [task.identifier_name(*known.variant(i)) for i in range(1, len(known.draws))]
        _write_json(folder / IDENTIFIERS, [BLANK, *names])
    else:
        first = 1 + np.searchsorted(known.puzzles[1:], np.arange(len(known.names)))
        _write_json(folder / NAMES, {"names": known.names, "first_identifiers": first.tolist()})
        np.save(folder / DRAWS, known.draws)


def _settings(data: DataConfig) -> dict[str, Any]:
    return {key: getattr(data, key) for key in (*_SETTINGS, *task_of(data).keys)}


def _check_settings(path: Path, data: DataConfig) -> dict[str, Any] | None:
    """The build record of a folder; None for a folder of the reference's builder, which does not record its settings.

    Raises DataError where it was built with other settings or from other csv files than the named ones.
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
            _warn_once(f"data.{split}_csv={csv} is not used: {path} exists and does not say what it was built from")
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
    folder: str | None = getattr(data, "source_dir", None)  # only some tasks have this key
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
    """Whether a dataset folder must still be built: it is missing or empty."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _write_json(file: Path, content: Any, indent: int | None = None) -> None:
    file.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
