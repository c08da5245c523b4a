"""A dataset folder in the reference's layout, read and checked here.

    identifiers.json            names of the puzzle identifiers (only "<blank>" where puzzles have no identifiers)
    test_puzzles.json           the test puzzles as in their files, where a puzzle has several rows (`PairsTask`)
    build.json                  how it was built; the reference's builder does not write it
    train/ test/ and, for generated puzzles, selection/ (puzzles that choose the best checkpoint)
      dataset.json              `Metadata`
      all__inputs.npy           tokens [N, L]
      all__labels.npy           tokens [N, L]; `ignore_label_id` marks cells without a label
      all__puzzle_identifiers.npy   [N]
      all__puzzle_indices.npy       [P + 1], first row of each puzzle (0..N where a puzzle is one row)
      all__group_indices.npy        [G + 1], first puzzle of each group: a base puzzle and its stored variants
      all__variant_counts.npy       [G], variants of each group, itself included, where they are made while loading

Where the variants of a `PairsTask` are made while loading, P = G, and variant k of a group has the identifier of its puzzle plus k;
identifiers.json is replaced by variants.npy [I, D], their draws, and variants.json, the names of the base puzzles.

Written here as uint8 (tokens) and int32; the reference's int64 arrays are read too.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trm.config.overrides import override
from trm.errors import DataError
from trm.ground.progress import work
from trm.tasks.base import Split, Task, TaskFacts
from trm.tasks.pairs import Catalogue, PairsTask

SPLITS = ("train", "test")
SELECTION = "selection"  # a split that only generated puzzles have
ARRAYS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
COUNTS = "variant_counts"
IDENTIFIERS, TESTS, DRAWS, NAMES = "identifiers.json", "test_puzzles.json", "variants.npy", "variants.json"
BLANK = "<blank>"
CHUNK_ROWS = 1024  # made at a time: the work then stays in the processor's cache


@dataclass(frozen=True)
class Metadata:
    """dataset.json: the reference's fields."""

    seq_len: int
    vocab_size: int
    pad_id: int
    ignore_label_id: int | None
    blank_identifier_id: int
    num_puzzle_identifiers: int
    total_groups: int
    mean_puzzle_examples: float
    total_puzzles: int
    sets: list[str]

    @classmethod
    def of(cls, facts: TaskFacts, groups: int, puzzles: int, rows: int) -> "Metadata":
        """The metadata of so many groups, puzzles and rows that are made here."""
        return cls(
            **facts.sizes,
            pad_id=facts.pad,
            ignore_label_id=facts.ignored_label,
            blank_identifier_id=0,
            total_groups=groups,
            mean_puzzle_examples=rows / puzzles,
            total_puzzles=puzzles,
            sets=["all"],
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments of `trm.core.architecture.architecture`."""
        return {name: getattr(self, name) for name in ("seq_len", "vocab_size", "num_puzzle_identifiers")}


@dataclass(frozen=True)
class Dataset:
    """One split: N rows of L tokens in G groups. `task` is None where the rows are not what the settings say."""

    inputs: NDArray[np.integer]
    labels: NDArray[np.integer]
    puzzle_identifiers: NDArray[np.integer]
    puzzle_indices: NDArray[np.integer]
    group_indices: NDArray[np.integer]
    metadata: Metadata
    task: Task | None
    path: Path = Path()
    counts: NDArray[np.integer] | None = None  # [G] variants of each group, made while loading; None = stored
    draws: NDArray[np.uint8] | None = None  # [I, D] of these variants
    catalogue: Catalogue | None = None  # for puzzles that are in no folder

    @property
    def pairs_task(self) -> PairsTask | None:
        """The task where its puzzles have several rows, else None."""
        return self.task if isinstance(self.task, PairsTask) else None

    @property
    def rows_of_epoch(self) -> float:
        """Rows of an epoch, which takes one variant of every base puzzle; a whole number where a puzzle is one row."""
        metadata = self.metadata
        return self.num_groups if self.pairs_task is None else metadata.total_groups * metadata.mean_puzzle_examples

    @property
    def num_rows(self) -> int:
        """Rows N, stored variants included."""
        return len(self.inputs)

    @property
    def num_groups(self) -> int:
        """Base puzzles G."""
        return len(self.group_indices) - 1

    def digest(self) -> str:
        """A hash (16 hexadecimal digits) of the rows and their groups, the same for every integer type of the files."""
        found = hashlib.sha256()
        for array in (self.inputs, self.labels, self.puzzle_identifiers, self.group_indices):
            found.update(np.ascontiguousarray(array, dtype=np.int32).data)
        if self.pairs_task is not None:
            found.update(np.ascontiguousarray(self.puzzle_indices, dtype=np.int32).data)
        if self.draws is not None:
            found.update(np.ascontiguousarray(self.draws).data)
        return found.hexdigest()[:16]


def array_path(folder: Path, split: str, name: str) -> Path:
    """The file of the array `name` (one of ARRAYS) of a split."""
    return folder / split / f"all__{name}.npy"


def load_dataset(path: Path, split: str, task: Task | None = None) -> Dataset:
    """Read one split ("train", "test" or "selection") of a dataset folder into memory.

    `task` is the settings' task; the dataset has it where its sizes fit the rows.
    Raises DataError that names the file which is missing, unreadable, or does not fit the others.
    """
    read_build_record(path)  # raises DataError for a damaged record
    metadata = read_metadata(path, split)
    arrays: dict[str, Any] = {name: _load_array(path, array_path(path, split, name)) for name in ARRAYS}
    inputs = arrays["inputs"]
    fits = task is not None and (task.facts.seq_len, task.facts.vocab_size) == (metadata.seq_len, metadata.vocab_size)
    several = fits and isinstance(task, PairsTask)
    num_rows, num_puzzles = len(inputs), len(arrays["puzzle_identifiers"] if several else inputs)
    shapes = {
        "inputs": (num_rows, metadata.seq_len),
        "labels": (num_rows, metadata.seq_len),
        "puzzle_identifiers": (num_puzzles,),
        "puzzle_indices": (num_puzzles + 1,),
        "group_indices": (metadata.total_groups + 1,),
    }
    for name, array in arrays.items():
        file = array_path(path, split, name)
        if array.shape != shapes[name] or not np.issubdtype(array.dtype, np.integer):
            found = f"{array.dtype}{list(array.shape)}"
            raise _broken(path, file, f"holds {found}, but dataset.json and inputs need integers {list(shapes[name])}")
    if num_rows == 0:
        raise _broken(path, array_path(path, split, "inputs"), "has no rows")
    limits = {
        "inputs": metadata.vocab_size,
        "labels": metadata.vocab_size,
        "puzzle_identifiers": metadata.num_puzzle_identifiers,
    }
    for name, limit in limits.items():
        lowest, highest = int(arrays[name].min()), int(arrays[name].max())
        if lowest < 0 or highest >= limit:
            wrong = lowest if lowest < 0 else highest
            raise _broken(path, array_path(path, split, name), f"holds {wrong}, outside 0..{limit - 1} of dataset.json")
    if not several and not np.array_equal(arrays["puzzle_indices"], np.arange(num_rows + 1)):
        raise _broken(path, array_path(path, split, "puzzle_indices"), "must count one row a puzzle: 0..number of rows")
    for name, last in (("puzzle_indices", num_rows), ("group_indices", num_puzzles)):
        starts = arrays[name]
        if starts[0] != 0 or starts[-1] != last or (np.diff(starts.astype(np.int64)) < 1).any():
            raise _broken(path, array_path(path, split, name), f"must rise from 0 to {last}")
    dataset = Dataset(**arrays, metadata=metadata, task=task if fits else None, path=path)
    if not (several and (path / DRAWS).exists()):
        return dataset
    file = array_path(path, split, COUNTS)
    counts, draws = _load_array(path, file), _load_array(path, path / DRAWS)
    last = int((dataset.puzzle_identifiers.astype(np.int64) + counts).max()) if counts.shape == (dataset.num_groups,) else -1
    if counts.min() < 1 or not 0 <= last <= len(draws) == metadata.num_puzzle_identifiers:
        raise _broken(path, file, f"does not go together with {DRAWS} and dataset.json")
    return dataclasses.replace(dataset, counts=counts, draws=draws)


def load_catalogue(dataset: Dataset) -> Catalogue:
    """What the identifiers stand for, where a puzzle has several rows. Raises DataError that names the wrong file."""
    task, path = dataset.pairs_task, dataset.path
    assert task is not None
    if dataset.catalogue is not None:
        return dataset.catalogue
    tests = _read_json(path, path / TESTS)
    if dataset.draws is not None:
        plain = _read_json(path, path / NAMES)
        names, first = plain["names"], np.array([*plain["first_identifiers"], len(dataset.draws)])
        puzzles = np.full(len(dataset.draws), -1, np.int32)
        puzzles[1:] = np.repeat(np.arange(len(names)), np.diff(first))
        return Catalogue(names, puzzles, dataset.draws, tests, dataset.metadata.blank_identifier_id)
    file = path / IDENTIFIERS
    try:
        texts = json.loads(file.read_text(encoding="utf-8"))
        blank = dataset.metadata.blank_identifier_id
        found = [task.read_identifier(text) for i, text in enumerate(texts) if i != blank]
    except (OSError, ValueError, TypeError) as error:
        raise _broken(path, file, f"does not name the identifiers ({error})") from error
    places = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in found))}
    puzzles = np.insert(np.array([places[name] for name, _ in found], np.int32), blank, -1)
    draws = np.insert(np.array([draw for _, draw in found], np.uint8), blank, 0, axis=0)
    return Catalogue(list(places), puzzles, draws, tests, blank)


def write_rows(folder: Path, split: str, num_rows: int, cells: int, make: Callable[[NDArray[np.int64]], Split]) -> None:
    """Write the questions and answers [num_rows, cells] of a split; `make` gets row numbers and makes these rows."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (num_rows, cells)}
    with (
        work(f"{split} rows written", num_rows, "row") as done,
        array_path(folder, split, "inputs").open("wb") as inputs,
        array_path(folder, split, "labels").open("wb") as labels,
    ):
        for file in (inputs, labels):
            np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, num_rows, CHUNK_ROWS):
            rows = np.arange(start, min(start + CHUNK_ROWS, num_rows))
            questions, answers = make(rows)
            inputs.write(questions.data)
            labels.write(answers.data)
            done(start + len(rows))


def read_build_record(path: Path) -> dict[str, Any] | None:
    """build.json of a dataset folder; None in a folder of the reference's builder. Raises DataError for a damaged one."""
    file = path / "build.json"
    if not file.exists():
        return None
    record = _read_json(path, file)
    for key in ("settings", "csv_sha256", "puzzles", "rows"):
        if not isinstance(record.get(key), dict):
            raise _broken(path, file, f"has no {key}")
    if not all(type(record[key].get(split)) is int for key in ("puzzles", "rows") for split in ("train", "test")):
        raise _broken(path, file, "does not count puzzles and rows")
    if not isinstance(record.get("disjointness"), str):
        raise _broken(path, file, "does not say whether train and test share puzzles")
    return record


def read_metadata(path: Path, split: str) -> Metadata:
    """dataset.json of one split of a dataset folder. Raises DataError."""
    file = path / split / "dataset.json"
    plain = _read_json(path, file)
    # The first releases of the reference's builder did not write total_puzzles.
    plain.setdefault("total_puzzles", plain.get("total_groups"))
    try:
        metadata = Metadata(**{item.name: plain[item.name] for item in dataclasses.fields(Metadata)})
    except KeyError as error:
        raise _broken(path, file, f"has no {error.args[0]}") from error
    for item in ("seq_len", "vocab_size", "total_groups", "num_puzzle_identifiers", "pad_id", "blank_identifier_id"):
        value = getattr(metadata, item)
        if type(value) is not int or not 0 <= value < 2**31:
            raise _broken(path, file, f"has {item}={value!r}, not a count")
    if metadata.ignore_label_id is not None and type(metadata.ignore_label_id) is not int:
        raise _broken(path, file, f"has ignore_label_id={metadata.ignore_label_id!r}, not a token or null")
    if metadata.pad_id >= metadata.vocab_size or metadata.blank_identifier_id >= metadata.num_puzzle_identifiers:
        raise _broken(path, file, "has a pad_id or blank_identifier_id outside its vocab_size and num_puzzle_identifiers")
    return metadata


def _load_array(path: Path, file: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(file, allow_pickle=False))
    except FileNotFoundError as error:
        raise _broken(path, file, "is missing") from error
    except Exception as error:  # NumPy raises many kinds for a file that is no array, from TokenError to MemoryError
        raise _broken(path, file, f"is not a readable npy file ({(str(error) or type(error).__name__).splitlines()[0]})") from error


def _read_json(path: Path, file: Path) -> dict[str, Any]:
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _broken(path, file, "is missing") from error
    except NotADirectoryError as error:
        raise DataError(f"data.path={path} is not a dataset folder, but a file: name another folder") from error
    except (ValueError, OSError, RecursionError) as error:
        raise _broken(path, file, f"is not readable JSON ({error})") from error
    if not isinstance(plain, dict):
        raise _broken(path, file, "is not a JSON object")
    return plain


def _broken(path: Path, file: Path, what: str) -> DataError:
    again = shlex.join(["python", "-m", "trm.build_data", override("data.path", str(path))])
    return DataError(f"{file} {what}: remove {path} and build it again with {again}")
