"""Parity with the released code on ARC: `pytest tests/test_arc_parity.py --golden-dir DIR` (default tests/golden_arc).

A case is a folder with `tasks.json` (tasks by subset), `reference/` (what the released builder makes of them), `predictions.npz`
(answers of the variants) and `expected.json` (what the released evaluator makes of those).
"""

import functools
import json

import numpy as np
import pytest
import torch

from trm.data.build import build_dataset
from trm.data.format import load_catalogue, load_dataset
from trm.data.loader import RowMaker
from trm.data.pairs import PairEvalLoader, PairTrainLoader
from trm.tasks.arc.grids import COLOUR_0, END, ITSELF, cropped, draw_variants, moved, placed, unvaried
from trm.tasks.arc.settings import Settings
from trm.tasks.arc.task import ArcTask
from trm.tasks.arc.votes import SUBMISSION

SIDE = 30
# chi-square values that a uniform draw exceeds once in a million, by degrees of freedom
ONE_IN_A_MILLION = {7: 40.5, 8: 42.7}


@functools.cache
def read(file):
    return json.loads(file.read_text())


@functools.cache
def predictions(case):
    with np.load(case / "predictions.npz") as arrays:
        return dict(arrays)


def test_votes_and_submission(arc_case):
    expected, given, task = read(arc_case / "expected.json"), predictions(arc_case), ArcTask(SIDE, 1, 0)
    ballots = task.ballots(load_catalogue(load_dataset(arc_case / "reference", "test", task)))
    confidence = torch.from_numpy(given["q_halt_logits"]).to(torch.float64).sigmoid().numpy()
    ballots.add(given["puzzle_identifiers"], given["inputs"], given["preds"], confidence)
    scores = ballots.scores()
    errors = [abs(scores[f"pass@{k}"] - value) for k, value in expected["pass"].items()]
    assert max(errors) <= 1e-12
    assert json.loads(ballots.documents()[SUBMISSION]) == expected["submission"]
    print(f"{arc_case.name}: {ballots.rows} votes, largest error of pass@K {max(errors):.1e}")


def test_memory_is_of_the_first_answers_alone(arc_case):
    given, task = predictions(arc_case), ArcTask(SIDE, 1, 0)
    ballots = task.ballots(load_catalogue(load_dataset(arc_case / "reference", "test", task)))
    ballots.add(given["puzzle_identifiers"], given["inputs"], given["preds"], np.zeros(len(given["preds"])))
    assert all(len(tally.best) <= 2 for tallies in ballots.tallies.values() for tally in tallies.values())


def test_the_released_folder_is_read(arc_case):
    task, folder = ArcTask(SIDE, 1, 0), arc_case / "reference"
    train, test = (load_dataset(folder, split, task) for split in ("train", "test"))
    loader = PairEvalLoader(test, global_batch_size=16)
    rows = loader.rows(0, loader.num_rows)
    assert np.array_equal(rows["inputs"], test.inputs)
    assert np.array_equal(rows["puzzle_identifiers"], np.repeat(test.puzzle_identifiers, np.diff(test.puzzle_indices)))
    batch = PairTrainLoader(train, seed=0, global_batch_size=8, data_seed=0).batch(3)
    stored = {(i, row.tobytes()) for i, row in zip(owners(train), train.inputs.astype(np.int32), strict=True)}
    assert {(i, row.tobytes()) for i, row in zip(batch["puzzle_identifiers"].tolist(), batch["inputs"], strict=True)} <= stored


def owners(dataset):
    """The identifier of every stored row."""
    return np.repeat(dataset.puzzle_identifiers, np.diff(dataset.puzzle_indices)).tolist()


# ------------------------------------------------------------------------------------------------------------- our own builder


@pytest.fixture(scope="module")
def built(request, tmp_path_factory):
    """The folder that the builder makes of a case's tasks, by (case, whether variants are stored)."""

    @functools.cache
    def build(case, stored):
        folder, tasks, count = tmp_path_factory.mktemp("arc"), read(case / "tasks.json"), read(case / "expected.json")["num_aug"]
        for subset, plain in tasks.items():
            (folder / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(plain))
        names = read(case / "reference" / "test_puzzles.json").keys()
        data = Settings(
            name="case",
            task="arc",
            source="json",
            source_dir=str(folder),
            subsets=list(tasks),
            test_subsets=[subset for subset, plain in tasks.items() if plain.keys() & names],
            num_puzzles=sum(map(len, tasks.values())),
            num_aug=count if stored else 0,
            on_the_fly_aug=count,
            path=str(folder / f"dataset_{stored}"),
        )
        build_dataset(data)
        task = ArcTask(SIDE, data.num_puzzles, count)
        return *(load_dataset(folder / f"dataset_{stored}", split, task) for split in ("train", "test")), tasks, set(names)

    return build


def grids(pair):
    return tuple(None if pair.get(side) is None else np.array(pair[side], np.uint8) for side in ("input", "output"))


def in_variant(pair, draw):
    colours = np.concatenate([ITSELF[:1], draw[1:]])
    return tuple(grid if grid is None else moved(colours[grid], int(draw[0])) for grid in pair)


def all_tasks(tasks):
    return {name: plain for subset in tasks.values() for name, plain in subset.items()}


def content(pairs):
    """What a task's pairs are, whatever their order."""
    return sorted((a.shape, a.tobytes(), b"" if b is None else bytes(b.shape) + b.tobytes()) for a, b in pairs)


def groups_of(maker):
    """Puzzle, variant and pair of every row of a split."""
    for group in range(len(maker.num_variants)):
        for variant in range(maker.num_variants[group]):
            pairs = np.arange(maker.num_pairs[group])
            yield group, variant, maker.batch(np.full(len(pairs), group), np.full(len(pairs), variant), pairs)


@pytest.mark.parametrize("stored", [False, True], ids=["made", "stored"])
def test_rows_of_our_own_builder(arc_case, built, stored):
    train, test, tasks, tested = built(arc_case, stored)
    catalogue, plain = load_catalogue(test), all_tasks(tasks)
    assert len(catalogue.names) == len(plain)
    assert catalogue.puzzles[0] == -1
    offsets, contents = [], {}
    for dataset, in_motion in ((train, True), (test, False)):
        seen = set()
        for _, _, rows in groups_of(RowMaker(dataset, 0, moved=in_motion)):
            (identifier,) = set(rows["puzzle_identifiers"].tolist())
            name, draw = catalogue.variant(identifier)
            task = plain[name]
            seen.add(name)
            kinds = ["test"] if not in_motion else ["train"] if name in tested else ["train", "test"]
            wanted = [in_variant(grids(pair), draw) for kind in kinds for pair in task[kind]]
            wanted = [pair for pair in wanted if not in_motion or pair[1] is not None]  # what is not known is not trained on
            assert len(wanted) == len(rows["inputs"])
            at, room = [], []
            for (question, answer), inputs, labels in zip(wanted, rows["inputs"], np.maximum(rows["labels"], 0), strict=True):
                cells = np.argwhere(inputs.reshape(SIDE, SIDE) >= COLOUR_0)
                place = cells.min(axis=0)
                at.append(tuple(place.tolist()))
                for grid, row in ((question, inputs), (answer, labels)):
                    drawn = np.zeros((SIDE + 1, SIDE + 1), int)  # end marks outside of the canvas are cut
                    if grid is not None:
                        height, width = grid.shape
                        drawn[place[0] : place[0] + height, place[1] : place[1] + width] = grid + COLOUR_0
                        drawn[place[0] + height, place[1] : place[1] + width] = END
                        drawn[place[0] : place[0] + height, place[1] + width] = END
                    assert np.array_equal(drawn[:SIDE, :SIDE], row.reshape(SIDE, SIDE))
                if in_motion:
                    room.append([SIDE - max(grid.shape[axis] for grid in (question, answer)) for axis in (0, 1)])
                    back = unvaried(question, draw)
                    assert any(np.array_equal(back, grids(pair)[0]) for kind in kinds for pair in task[kind])
            assert (0, 0) in at  # one pair of each variant stays in the corner, all do in a test
            assert in_motion or set(at) == {(0, 0)}
            if in_motion:
                still = at.index((0, 0))
                offsets += [(*place, *free) for i, (place, free) in enumerate(zip(at, room, strict=True)) if i != still]
                everything = [pair for kind in ("train", "test") for pair in task[kind]]
                key = (name, str(content([in_variant(grids(pair), draw) for pair in everything])))
                assert key not in contents, "two variants of a task are the same"
                contents[key] = identifier
        assert seen == (set(plain) if in_motion else tested)
    assert sorted(contents.values()) == list(range(1, len(catalogue.puzzles)))
    if offsets:  # uniform over what has room
        places = np.array(offsets)
        shares = ((places[:, :2] + 0.5) / (places[:, 2:] + 1))[places[:, 2:] > 0]
        assert abs(shares.mean() - 0.5) < 6 * 0.29 / len(shares) ** 0.5


def test_stored_rows_are_those_made(arc_case, built):
    made, stored = built(arc_case, False), built(arc_case, True)
    for one, other in zip(made[:2], stored[:2], strict=True):
        loaders = [PairTrainLoader(dataset, seed=5, global_batch_size=24, data_seed=0) for dataset in (one, other)]
        if one is made[0]:
            for step in (0, 7):
                first, second = (loader.batch(step) for loader in loaders)
                assert all(np.array_equal(first[name], second[name]) for name in first)
        passes = [PairEvalLoader(dataset, global_batch_size=16) for dataset in (one, other)]
        first, second = (loader.rows(0, loader.num_rows) for loader in passes)
        assert passes[0].num_rows == passes[1].num_rows
        if one is made[1]:
            assert all(np.array_equal(first[name], second[name]) for name in first)
    catalogues = [load_catalogue(split[1]) for split in (made, stored)]
    assert all(np.array_equal(getattr(catalogues[0], name), getattr(catalogues[1], name)) for name in ("puzzles", "draws"))


def test_the_tasks_themselves_are_the_references_rows(arc_case, built):
    _, test, _, _ = built(arc_case, False)
    task = ArcTask(SIDE, 1, 0)
    reference = load_dataset(arc_case / "reference", "test", task)
    first = [slice(*reference.puzzle_indices[[p, p + 1]]) for p in reference.group_indices[:-1]]
    known = test.labels.any(axis=1)
    for name in ("inputs", "labels"):
        theirs = {row.tobytes() for rows in first for row in getattr(reference, name)[rows].astype(np.uint8)}
        assert {row.tobytes() for row in getattr(test, name)[known]} <= theirs
    assert reference.metadata.total_groups == test.metadata.total_groups
    assert load_catalogue(reference).tests.keys() == load_catalogue(test).tests.keys()


def test_draws_are_uniform(arc_case):
    draws = []
    for name, plain in all_tasks(read(arc_case / "tasks.json")).items():
        pairs = [grids(pair) for kind in ("train", "test") for pair in plain[kind]]
        draws.append(draw_variants(name, pairs, 300, seed=1)[1:])
        assert len(np.unique(draws[-1], axis=0)) == len(draws[-1])
    found = np.concatenate(draws)
    tables = [np.bincount(found[:, 0], minlength=8), *(np.bincount(found[:, i], minlength=10)[1:] for i in range(1, 10))]
    for counts in tables:
        wanted = len(found) / len(counts)
        assert ((counts - wanted) ** 2 / wanted).sum() < ONE_IN_A_MILLION[len(counts) - 1], counts
    assert (found[:, 1:].sum(axis=1) == ITSELF.sum()).all()


def test_a_crop_is_the_largest_rectangle_of_colours():
    rows = np.random.default_rng(0).choice([0, 1, 2, 5, 11], (200, 36), p=[0.05, 0.05, 0.3, 0.3, 0.3])
    for row, grid in zip(rows, cropped(rows, 6), strict=True):
        square, best, size = row.reshape(6, 6), 0, (0, 0)
        for height in range(1, 7):
            for width in range(1, 7):
                if (square[:height, :width] >= 2).all() and height * width > best:
                    best, size = height * width, (height, width)
        assert grid.shape == size
    assert np.array_equal(cropped(placed([np.array([[1, 2]], np.uint8)], 6), 6)[0], [[1, 2]])
