"""What a dataset folder holds: what a run's numbers depend on, and what changes how they may be read.

The settings say what was asked for. This module says what was read, whoever built the folder.
"""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trm.config import DataConfig
from trm.data.format import CHUNK_ROWS, Dataset, load_dataset, read_build_record
from trm.tasks.base import Split, Task, task_of

GENERATED_TEST_PUZZLES = 1000  # where data.num_test_puzzles is null
# Generated puzzles apart from training and test, which choose the best checkpoint: so many, or as many as there are test puzzles.
SELECTION_PUZZLES = 500
COPIES = "may be symmetric copies of a training puzzle"
MOST_SOLVED = 1024  # puzzles of a split that are searched for other solutions, evenly spaced: some seconds at most

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """The puzzles of a dataset folder; `Dataset.digest` tells them apart."""

    train_digest: str
    test_digest: str
    train_puzzles: int
    test_puzzles: int
    caveats: list[str]  # in words; empty where nothing changes how an accuracy on these puzzles may be read
    training_range: dict[str, int] | None = None  # which generated puzzles the training puzzles are; None where not generated


def content_of(data: DataConfig) -> Content:
    """The content of the folder `data.path`. Raises DataError where it cannot be read."""
    task, path = task_of(data), Path(data.path)
    return examine(path, load_dataset(path, "train", task), load_dataset(path, "test", task), task)


def examine(path: Path, train: Dataset, test: Dataset, task: Task) -> Content:
    """The content of a folder from its two splits. `task` is the settings' task.

    The caveats are those of build.json where it belongs to these rows. Otherwise they are searched for, which takes some seconds.
    """
    digests = {"train": train.digest(), "test": test.digest()}
    record = read_build_record(path) or {}
    same = record.get("digests") == digests
    known, settings, trained = record.get("caveats"), record.get("settings", {}), None
    if not same or not isinstance(known, list):
        known = caveats(task, train, test)
    if same and settings.get("source") == "generated":
        trained = {"format_version": record["format_version"], "seed": settings["seed"], "first": 0, "puzzles": train.num_groups}
    counts, words = (train.num_groups, test.num_groups), [str(caveat) for caveat in known]
    return Content(digests["train"], digests["test"], *counts, words, trained)


def as_read(data: DataConfig, train: Dataset, test: Dataset) -> DataConfig:
    """The settings with the folder's own counts, which differ from the settings' where the folder was built elsewhere."""
    found = {"num_puzzles": train.num_groups, "num_aug": train.num_rows // train.num_groups - 1}
    if train.pairs_task is not None:
        found["num_aug"] = data.num_aug if train.counts is not None else int(np.diff(train.group_indices).max()) - 1
    if data.num_test_puzzles is not None:
        found["num_test_puzzles"] = test.num_groups
    wrong = {key: value for key, value in found.items() if getattr(data, key) != value}
    for key, value in wrong.items():
        _log.warning("data.%s=%s, but %s holds %s, which is what is recorded", key, getattr(data, key), data.path, value)
    return dataclasses.replace(data, **wrong)  # type: ignore[arg-type]


def caveats(task: Task, train: Dataset | None, test: Dataset) -> list[str]:
    """What changes how an accuracy on the test puzzles may be read; about the training puzzles too where they are given."""
    splits = {name: dataset for name, dataset in (("test", test), ("training", train)) if dataset is not None}
    facts = task.facts
    for dataset in splits.values():
        found = dataset.metadata
        if dataset.task is None:
            return [
                f"the puzzles have {found.seq_len} cells and {found.vocab_size} tokens, but the settings say {task.title} "
                f"({facts.seq_len} cells, {facts.vocab_size} tokens)"
            ]
    if test.pairs_task is not None:
        return _caveats_of_pairs(train, test)
    bases, told = dict[str, Split](), list[str]()
    for name, dataset in splits.items():
        first = np.asarray(dataset.group_indices[:-1], np.int64)  # the row of each base puzzle, before its stored variants
        bases[name] = dataset.inputs[first].astype(np.uint8), dataset.labels[first].astype(np.uint8)
    if train is not None:
        told += _shared(task, train, bases["training"], bases["test"])
    for name, (questions, answers) in bases.items():
        count = len(questions)
        if repeated := count - len({row.tobytes() for row in questions}):
            told.append(f"{repeated} of {count} {name} puzzles repeat an earlier one")
        if unsound := count - int(task.check_rows(questions, answers).sum()):
            told.append(f"{unsound} of {count} {name} puzzles are not a {task.title} with its solution")
            continue
        looked_at = np.unique(np.linspace(0, count - 1, min(count, MOST_SOLVED)).astype(np.int64))
        solved = task.solved(questions[looked_at], quick=True)
        if solved is not None and (several := int((solved[1] > 1).sum())):
            of = f"{count} {name} puzzles" if len(looked_at) == count else f"{len(looked_at)} {name} puzzles looked at"
            also = f", but all of them count for the score {task.score_names[0]}" if task.score_names else ""
            told.append(f"{several} of {of} have several solutions, and only one of them counts as right{also}")
    return told


def _caveats_of_pairs(train: Dataset | None, test: Dataset) -> list[str]:
    """For puzzles with several rows: test pairs that are also trained on, and test inputs without a known answer."""
    told = []
    first = np.asarray(test.puzzle_indices)[np.asarray(test.group_indices)]  # rows of the first puzzle of each group
    last = np.asarray(test.puzzle_indices)[np.asarray(test.group_indices[:-1]) + 1]
    rows = np.concatenate([np.arange(*span) for span in zip(first[:-1].tolist(), last.tolist(), strict=True)])
    questions, answers = (array[rows].astype(np.uint8) for array in (test.inputs, test.labels))
    unknown = (answers == (test.metadata.ignore_label_id or 0)).all(axis=1)
    if train is not None:
        words = zip(train.inputs.astype(np.uint8), train.labels.astype(np.uint8), strict=True)
        trained_on = {hash((question.tobytes(), answer.tobytes())) for question, answer in words}
        pairs = zip(questions[~unknown], answers[~unknown], strict=True)
        if shared := sum(hash((question.tobytes(), answer.tobytes())) in trained_on for question, answer in pairs):
            told.append(f"{shared} of {len(rows)} test pairs are also trained on")
    if unknown.any():
        told.append(f"the answers to {unknown.sum()} of {len(rows)} test inputs are not known: they are answered but not scored")
    return told


def _shared(task: Task, train: Dataset, trained: Split, tested: Split) -> list[str]:
    """Test puzzles that are training puzzles or may be copies of one, in words."""
    # stored variants count too; where the symmetries are known the signatures find those
    stored = trained[0] if task.symmetry is not None else train.inputs.astype(np.uint8)
    trained_on = {row.tobytes() for row in stored}
    same = np.array([row.tobytes() in trained_on for row in tested[0]])
    count, told = len(same), []
    if same.any():
        told.append(f"{same.sum()} of {count} test puzzles are also training puzzles")
    if task.symmetry is not None:
        there, here = _signatures(task, *trained), _signatures(task, *tested)
        if copies := int((np.isin(here, there) & ~same).sum()):
            why = f": {task.title} has too few puzzles that are not copies of one another to keep the two sets apart"
            told.append(f"{copies} of {count} test puzzles {COPIES}{'' if task.has_classes else why}")
    return told


def _signatures(task: Task, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> NDArray[np.uint64]:
    assert task.symmetry is not None
    blocks = range(0, len(questions), CHUNK_ROWS)
    return np.concatenate([task.symmetry.signature(questions[i : i + CHUNK_ROWS], answers[i : i + CHUNK_ROWS]) for i in blocks])
