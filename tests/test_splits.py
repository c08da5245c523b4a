"""Generated puzzles: training, test and selection puzzles only grow at their ends and never meet, nor what a checkpoint learned."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from running import TINY, run

from trm.cli import compose
from trm.data.build import build_dataset
from trm.data.format import load_dataset
from trm.errors import DataError
from trm.run.checkpoint import find_checkpoints, load_checkpoint, write_checkpoint
from trm.tasks.augment import augment
from trm.tasks.base import SIXTEENTHS, split_of
from trm.tasks.maze.task import MazeTask
from trm.tasks.sudoku.generate import _random_solutions, solution_classes
from trm.tasks.sudoku.rules import BLANK
from trm.tasks.sudoku.task import SudokuTask

TASKS = [SudokuTask(2, 2), SudokuTask(2, 3), SudokuTask(3, 3), MazeTask(9, 1, None), MazeTask(10, 9, 20)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.title)
def test_splits_grow_at_their_ends_and_never_meet(task):
    many = 2 if task.facts.seq_len >= 64 and isinstance(task, SudokuTask) else 30  # whose clues take milliseconds a puzzle
    small = task.generate_splits({"train": many, "test": many, "selection": many}, 5)
    large = task.generate_splits({"train": 3 * many, "test": many + 1, "selection": many // 2}, 5)
    other = task.generate_splits({"train": many, "test": many, "selection": many}, 6)
    for split in small:
        count = min(len(small[split][0]), len(large[split][0]))
        assert count >= many // 2
        assert all(np.array_equal(a[:count], b[:count]) for a, b in zip(small[split], large[split], strict=True))
        assert task.check_rows(*large[split]).all()
    assert not np.array_equal(small["test"][0], other["test"][0])
    words = {split: {word for made in (small, large, other) for word in task.classes(*made[split]).tolist()} for split in small}
    assert not any(words[a] & words[b] for a in words for b in words if a != b)
    assert len(set(task.classes(*large["train"]).tolist())) == 3 * many
    if task.title != "4x4 Sudoku":  # of which nearly all are copies of one another
        rows = np.arange(3 * many)
        copies = augment(task, *large["train"], seed=3, puzzles=rows, variants=1 + rows % 7)
        assert np.array_equal(task.classes(*copies), task.classes(*large["train"]))


def test_each_split_owns_its_share_of_the_classes():
    owners = split_of(np.arange(16_000, dtype=np.uint64))
    for split, sixteenths in SIXTEENTHS.items():
        assert abs((owners == split).sum() / 1000 - sixteenths) < 0.4


@pytest.mark.parametrize("sudoku", [SudokuTask(3, 3), SudokuTask(2, 4)], ids=lambda task: task.title)
def test_copies_of_a_solution_have_one_class_and_others_mostly_another(sudoku):
    grids = _random_solutions(sudoku, 5, np.arange(200))
    answers = (np.bitwise_count(grids - np.uint16(1)).T + BLANK + 1).astype(np.uint8)
    copies, _ = augment(sudoku, answers, answers, seed=3, puzzles=np.arange(200), variants=np.arange(200) + 1)
    words = solution_classes(sudoku, grids)
    assert np.array_equal(words, solution_classes(sudoku, np.uint16(1) << (copies.T - np.uint16(BLANK + 1)).astype(np.uint16)))
    assert len(set(words.tolist())) > 190


@pytest.mark.parametrize("name", ["sudoku_4x4", "maze_small"])
def test_a_folder_of_more_puzzles_begins_with_those_of_fewer(tmp_path, name):
    def built(folder, train, test):
        sizes = [f"data.num_puzzles={train}", f"data.num_test_puzzles={test}", f"data.path={tmp_path / folder}"]
        report = build_dataset(compose(["run_name=r", f"data={name}", *sizes]).data)
        return {split: load_dataset(report.path, split) for split in ("train", "test", "selection")}

    few, more = built("few", 20, 10), built("more", 60, 30)
    assert [dataset.num_groups for dataset in few.values()] == [20, 10, 10]
    for split, dataset in few.items():
        assert np.array_equal(dataset.inputs, more[split].inputs[: dataset.num_groups])
    trained = {row.tobytes() for row in more["train"].inputs}
    assert not trained & {row.tobytes() for split in ("test", "selection") for row in more[split].inputs}


def test_a_folder_of_before_is_not_taken_for_one_of_now(tmp_path):
    data = compose(
        ["run_name=r", "data=sudoku_4x4", "data.num_puzzles=9", "data.num_test_puzzles=4", f"data.path={tmp_path}/d"]
    ).data
    build_dataset(data)
    file = tmp_path / "d/build.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 1}))
    with pytest.raises(DataError, match=r"format version 1, not 2: generated sets hold other puzzles since: remove it and build"):
        build_dataset(data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and its checkpoint as if it were of other training puzzles."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, "trm.train", *TINY, "train.max_steps=2", "run_name=r")
    tensors, meta = load_checkpoint(find_checkpoints(folder / "outputs/r")[0])

    def other(name, **changes):
        write_checkpoint(folder / name, tensors, replace(meta, **changes))
        return f"checkpoint={name}"

    return folder, meta, other


def test_a_checkpoint_records_what_it_was_trained_on(trained):
    _, meta, _ = trained
    assert asdict(meta)["training_range"] == {"format_version": 2, "seed": 0, "first": 0, "puzzles": 64}


def test_test_puzzles_that_are_not_the_runs_own_are_refused(trained):
    folder, _, other = trained
    assert "holds other test puzzles" in run(folder, "trm.evaluate", other("new", test_digest="0" * 16), check=2).stderr
