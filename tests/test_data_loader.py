"""The training stream, the evaluation pass and the checks of dataset folders."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm.config import IGNORE_LABEL
from trm.data.build import build_dataset
from trm.data.format import load_dataset
from trm.data.loader import EvalLoader, Host, TrainLoader
from trm.errors import DataError
from trm.tasks.sudoku.settings import Settings
from trm.tasks.sudoku.task import SudokuTask as Sudoku

TASK = Sudoku(2, 2)
NUM_AUG, NUM_PUZZLES, NUM_TEST = 5, 13, 11


def config(path, **settings):
    return Settings(
        name="tiny",
        source="generated",
        box_rows=2,
        box_cols=2,
        path=str(path),
        **{"num_puzzles": NUM_PUZZLES, "num_test_puzzles": NUM_TEST, **settings},
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same puzzles twice: without and with stored variants."""
    root = tmp_path_factory.mktemp("data")
    build_dataset(config(root / "plain"))
    build_dataset(config(root / "stored", num_aug=NUM_AUG))
    return root


@pytest.fixture(scope="module")
def datasets(folders):
    return {name: load_dataset(folders / name, "train", TASK) for name in ("plain", "stored")}


@pytest.fixture(scope="module")
def test_split(folders):
    return load_dataset(folders / "plain", "test", TASK)


def loader(dataset, *, batch=8, seed=0, aug=NUM_AUG, **hosts):
    return TrainLoader(dataset, seed=seed, global_batch_size=batch, on_the_fly_aug=aug, data_seed=0, **hosts)


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


@given(batch=st.integers(1, 60), seed=st.integers(0, 2**31 - 1), step=st.integers(0, 10**9))
@settings(deadline=None)
def test_stored_and_on_the_fly_streams_are_identical(datasets, batch, seed, step):
    stored = loader(datasets["stored"], batch=batch, seed=seed).batch(step)
    made = loader(datasets["plain"], batch=batch, seed=seed).batch(step)
    assert stored["inputs"].shape == (batch, 16)
    assert same(stored, made)
    assert Sudoku(2, 2).check_rows(made["inputs"].astype(np.uint8), made["labels"].astype(np.uint8)).all()
    assert all(array.dtype == np.int32 for array in made.values())


@given(per_host=st.integers(1, 9), hosts=st.integers(1, 8), step=st.integers(0, 1000))
@settings(deadline=None)
def test_hosts_together_load_the_global_batch(datasets, per_host, hosts, step):
    whole = loader(datasets["plain"], batch=per_host * hosts).batch(step)
    parts = [loader(datasets["plain"], batch=per_host * hosts, host=Host(i, hosts)) for i in range(hosts)]
    shares = [part.batch(step) for part in parts]
    assert same(whole, {name: np.concatenate([share[name] for share in shares]) for name in whole})


def test_a_batch_does_not_depend_on_the_batches_before_it(datasets):
    going = loader(datasets["plain"])
    batches = [going.batch(step) for step in range(20)]
    for step in (19, 3, 0, 11):
        assert same(loader(datasets["plain"]).batch(step), batches[step])
    assert not same(loader(datasets["plain"], seed=1).batch(0), batches[0])


def test_every_epoch_has_every_puzzle_once_in_another_order(datasets):
    dataset = datasets["plain"]
    stream = loader(dataset, batch=NUM_PUZZLES, aug=0)
    number = {row.tobytes(): i for i, row in enumerate(dataset.inputs.astype(np.int32))}
    epochs = [[number[row.tobytes()] for row in stream.batch(epoch)["inputs"]] for epoch in range(50)]
    assert all(sorted(epoch) == list(range(NUM_PUZZLES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 50
    # An epoch that straddles batches is still whole.
    straddling = loader(dataset, batch=5, aug=0)
    rows = np.concatenate([straddling.batch(step)["inputs"] for step in range(NUM_PUZZLES)])
    assert [number[row.tobytes()] for row in rows] == [puzzle for epoch in epochs[:5] for puzzle in epoch]


def test_every_variant_is_drawn_evenly(datasets):
    dataset = datasets["stored"]
    stream = loader(dataset, batch=6000)
    rows = stream.batch(0)["inputs"]
    number = {row.tobytes(): i for i, row in enumerate(dataset.inputs.astype(np.int32))}
    assert len(number) == dataset.num_rows
    counts = np.bincount([number[row.tobytes()] % (NUM_AUG + 1) for row in rows], minlength=NUM_AUG + 1)
    assert (abs(counts - 1000) < 5 * 1000**0.5).all()


def test_without_augmentation_the_stream_has_only_the_puzzles_themselves(datasets):
    known = {row.tobytes() for row in datasets["plain"].inputs.astype(np.int32)}
    assert {row.tobytes() for row in loader(datasets["plain"], batch=200, aug=0).batch(0)["inputs"]} == known
    assert {row.tobytes() for row in loader(datasets["plain"], batch=200, aug=3).batch(0)["inputs"]} > known


@given(per_host=st.integers(1, 9), hosts=st.integers(1, 8), most=st.none() | st.integers(1, NUM_TEST + 3))
@settings(deadline=None)
def test_evaluation_counts_every_puzzle_once(test_split, per_host, hosts, most):
    loaders = [
        EvalLoader(test_split, global_batch_size=per_host * hosts, max_puzzles=most, host=Host(i, hosts)) for i in range(hosts)
    ]
    expected = test_split.inputs[:most].astype(np.int32)
    passes = [list(part) for part in loaders]
    assert {len(part) for part in loaders} == {len(batches) for batches in passes} == {-(-len(expected) // (per_host * hosts))}
    seen = []
    for batches in zip(*passes, strict=True):
        for batch in batches:
            assert batch["inputs"].shape == (per_host, 16)
            assert batch["puzzle_identifiers"].shape == (per_host,)
            counted = (batch["labels"] != IGNORE_LABEL).any(axis=1)
            assert (batch["inputs"][~counted] == 0).all()
            seen.append(batch["inputs"][counted])
    assert np.array_equal(np.concatenate(seen), expected)
    assert {part.num_puzzles for part in loaders} == {len(expected)}


def test_a_batch_that_does_not_divide_over_the_hosts_is_refused(datasets, test_split):
    with pytest.raises(DataError, match="does not divide over 3 hosts"):
        loader(datasets["plain"], batch=8, host=Host(0, 3))
    with pytest.raises(DataError, match="does not divide over 3 hosts"):
        EvalLoader(test_split, global_batch_size=8, host=Host(0, 3))


def test_a_folder_of_the_reference_is_read_like_ours(folders, tmp_path):
    """int64 arrays, no build.json, and the metadata of the reference's older releases."""
    for name in ("plain", "stored"):
        copy = tmp_path / name
        shutil.copytree(folders / name, copy)
        (copy / "build.json").unlink()
        for file in copy.glob("*/*.npy"):
            np.save(file, np.load(file).astype(np.int64))
        metadata = json.loads((copy / "train/dataset.json").read_text())
        del metadata["total_puzzles"]
        (copy / "train/dataset.json").write_text(json.dumps(metadata))
    ours = loader(load_dataset(folders / "stored", "train", TASK))
    for name in ("plain", "stored"):
        theirs = loader(load_dataset(tmp_path / name, "train", TASK))
        assert all(same(ours.batch(step), theirs.batch(step)) for step in range(5))


def test_on_the_fly_augmentation_of_no_sudoku_is_refused(folders, tmp_path):
    shutil.copytree(folders / "plain", tmp_path / "maze")
    (tmp_path / "maze/build.json").unlink()
    metadata = json.loads((tmp_path / "maze/train/dataset.json").read_text())
    (tmp_path / "maze/train/dataset.json").write_text(json.dumps({**metadata, "vocab_size": 7}))
    maze = load_dataset(tmp_path / "maze", "train", TASK)
    assert maze.task is None
    with pytest.raises(DataError, match=r"data\.on_the_fly_aug=0"):
        loader(maze)
    loader(maze, aug=0).batch(0)


def edit_array(name, change):
    def edit(folder):
        file = folder / f"train/all__{name}.npy"
        np.save(file, change(np.load(file)))

    return edit


def edit_metadata(**fields):
    def edit(folder):
        file = folder / "train/dataset.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return edit


def set_last(value):
    def change(array):
        array = array.astype(np.int64)
        array.flat[-1] = value
        return array

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train/all__labels.npy").unlink(), "all__labels.npy is missing"),
        (lambda f: (f / "train/dataset.json").unlink(), "dataset.json is missing"),
        (lambda f: (f / "train/dataset.json").write_text("{"), "dataset.json is not readable JSON"),
        (lambda f: (f / "train/dataset.json").write_text("[]"), "dataset.json is not a JSON object"),
        (lambda f: (f / "train/dataset.json").write_text("{}"), "dataset.json has no seq_len"),
        (lambda f: (f / "build.json").write_text("{}"), "build.json has no settings"),
        (lambda f: (f / "build.json").write_text('{"settings": {}}'), "build.json has no csv_sha256"),
        (lambda f: (f / "train/all__inputs.npy").write_bytes(b"no array"), "all__inputs.npy is not a readable npy"),
        (lambda f: (f / "train/all__inputs.npy").write_bytes(b""), "all__inputs.npy is not a readable npy"),
        (edit_metadata(seq_len="81"), "seq_len='81'"),
        (edit_metadata(seq_len=81), "all__inputs.npy holds"),
        (edit_metadata(vocab_size=4), r"all__inputs.npy holds 5, outside 0\.\.3"),
        (edit_metadata(total_groups=3), "all__group_indices.npy holds"),
        (edit_array("labels", lambda a: a[:-1]), "all__labels.npy holds"),
        (edit_array("labels", lambda a: a.astype(np.float32)), "all__labels.npy holds float32"),
        (edit_array("labels", set_last(-1)), "all__labels.npy holds -1"),
        (edit_array("inputs", set_last(6)), "all__inputs.npy holds 6"),
        (edit_array("puzzle_identifiers", set_last(1)), "all__puzzle_identifiers.npy holds 1"),
        (edit_array("puzzle_indices", set_last(2)), "all__puzzle_indices.npy must"),
        (edit_array("group_indices", set_last(2)), "all__group_indices.npy must"),
        (edit_array("group_indices", lambda a: a[::-1].copy()), "all__group_indices.npy must"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(folders, tmp_path, damage, message):
    folder = tmp_path / "broken"
    shutil.copytree(folders / "plain", folder)
    load_dataset(folder, "train")
    damage(folder)
    with pytest.raises(DataError, match=message) as error:
        load_dataset(folder, "train")
    assert "\n" not in str(error.value)
    assert f"remove {folder} and build it again" in str(error.value)


def test_a_file_is_no_dataset_folder_and_nobody_is_told_to_remove_it(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(DataError, match=r"is not a dataset folder, but a file: name another folder$"):
        load_dataset(tmp_path / "notes", "train")
