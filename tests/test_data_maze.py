"""Mazes: text, rules, symmetries, generation, and the csv files of Maze-Hard."""

import collections
import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import TINY, metrics, run, summary

from trm.cli import compose
from trm.data.build import build_dataset
from trm.data.format import load_dataset
from trm.errors import ConfigError, DataError
from trm.tasks.augment import ORDER, Dihedral, augment
from trm.tasks.maze import rules
from trm.tasks.maze.rules import FREE, GOAL, PATH, START, WALL
from trm.tasks.maze.settings import Settings
from trm.tasks.maze.task import MazeTask

SMALL = MazeTask(5, 1, None)


def tokens(text, task=SMALL):
    """A grid of lines as tokens."""
    return task.parse("\n".join(line.strip("|") for line in text.split()).replace("_", " "))


def walked(question, avoid=()):
    """Steps from the start to every cell that can be reached, by plain breadth-first search: shares nothing with the rules."""
    side = round(len(question) ** 0.5)
    (start,) = np.flatnonzero(question == START).tolist()
    found, rim = {start: 0}, collections.deque([start])
    while rim:
        cell = rim.popleft()
        row, column = divmod(cell, side)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            other = r * side + c
            if 0 <= r < side and 0 <= c < side and other not in found and question[other] != WALL and other not in avoid:
                found[other] = found[cell] + 1
                rim.append(other)
    return found


def a_path(question, seed):
    """Some shortest path, chosen by the seed, as an answer; None where there is none."""
    side, rng = round(len(question) ** 0.5), np.random.default_rng(seed)
    steps, (cell,) = walked(question), np.flatnonzero(question == GOAL).tolist()
    if cell not in steps:
        return None
    answer = question.copy()
    while steps[cell] > 1:
        row, column = divmod(cell, side)
        beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        back = [r * side + c for r, c in beside if 0 <= r < side and 0 <= c < side and steps.get(r * side + c) == steps[cell] - 1]
        cell = back[rng.integers(len(back))]
        answer[cell] = PATH
    return answer


@st.composite
def mazes(draw, side=6):
    """Any mazes: walls at random, one start, one goal."""
    cells = draw(st.lists(st.sampled_from([WALL, FREE, FREE]), min_size=side**2, max_size=side**2))
    start, goal = draw(st.lists(st.integers(0, side**2 - 1), min_size=2, max_size=2, unique=True))
    question = np.array(cells, np.uint8)
    question[[start, goal]] = START, GOAL
    return question


# ----------------------------------------------------------------------------------------------------------------------- text


def test_tokens_are_the_places_in_the_released_characters_plus_one():
    assert MazeTask(2, 1, None).parse("# SG").tolist() == [1, 2, 3, 4]
    assert (SMALL.facts.vocab_size, SMALL.facts.pad, SMALL.facts.num_identifiers) == (6, 0, 1)
    assert SMALL.view.text(np.arange(6)) == "?# SGo"


@given(question=mazes(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_text_parses_back_in_a_line_and_in_lines_whatever_an_editor_cut(question, seed):
    task = MazeTask(6, 1, None)
    for grid in (question, a_path(question, seed)):
        if grid is not None:
            assert np.array_equal(task.parse(task.view.text(grid)), grid)
            lines = task.view.grid(grid)
            assert np.array_equal(task.parse(lines), grid)
            cut = "\n".join(line.rstrip() for line in lines.split("\n"))
            assert np.array_equal(task.parse(cut + "\n"), grid)
            if cut[0] != "\n" != cut[-1]:
                assert np.array_equal(task.parse("\n" + cut.replace("\n", "\r\n") + "\r\n\r\n"), grid)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("S" + " " * 22 + "G", "24 cells, but 5x5 maze has 25"),
        ("S" + " " * 23 + "x", r"line 1 column 25: 'x' is not one of the cells '#' ' ' 'S' 'G' 'o'"),
        ("S" + " " * 24, r"0 goals \(G\), but a maze has one"),
        ("SS" + " " * 22 + "G", r"2 starts \(S\), but a maze has one"),
        ("S\n\n\nG", "4 lines, but 5x5 maze has 5 lines of 5"),
        ("S\n\n######\n\nG", "line 3 has 6 characters"),
        ("\N{GREEK SMALL LETTER ALPHA}" * 25, "line 1 column 1"),
    ],
)
def test_text_that_is_no_maze_is_refused(text, words):
    with pytest.raises(DataError, match=words):
        SMALL.parse(text)


# ---------------------------------------------------------------------------------------------------------------------- rules


QUESTION = """|S___#|
|#_#__|
|__#_#|
|_####|
|____G|"""
OPTIMAL = """|So__#|
|#o#__|
|oo#_#|
|o####|
|ooooG|"""


def test_an_optimal_path_solves_the_maze():
    question, answer = tokens(QUESTION), tokens(OPTIMAL)
    assert SMALL.violations(question, answer) == []
    assert SMALL.verdict(question, answer) == "valid solution, optimal: a shortest path of 10 steps"
    assert SMALL.difficulty(question[None], answer[None]).tolist() == [10]
    assert not SMALL.conflicts(answer).any()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (OPTIMAL.replace("|o####|", "|_####|"), ["in 2 pieces", "2 dead ends, the first in row 3 column 1"]),
        (OPTIMAL.replace("So__#", "Soo_#"), ["a dead end in row 1 column 3"]),
        (OPTIMAL.replace("So__#", "So_o#"), ["in 2 pieces", "a dead end in row 1 column 4"]),
        (OPTIMAL.replace("#o#", "oo#"), ["a wall in the maze, but not in the answer: 1 cell in row 2 column 1 (path there)"]),
        (OPTIMAL.replace("S", "o"), ["the start in the maze, but not in the answer"]),
        (OPTIMAL.replace("G", "_"), ["the goal in the maze, but not in the answer", "a dead end"]),
        (OPTIMAL.replace("__#", "_#_", 1), ["free in the maze, but not in the answer: 1 cell in row 1 column 4 (a wall there)"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_words(answer, words):
    question = tokens(QUESTION)
    grid = np.array([" #_SGo".index(c) if c != "_" else FREE for c in answer.replace("|", "").replace("\n", "")], np.uint8)
    grid[grid == 0] = FREE
    text = SMALL.verdict(question, grid)
    assert text.startswith("NOT a solution: ")
    for word in words:
        assert word in text
    assert not rules.one_path(question[None], grid[None])[0]
    assert not SMALL.check_rows(question[None], grid[None])[0]
    assert SMALL.score_names == ("optimal", "one_path")


def test_branches_and_detours():
    question = tokens("|S___G| |_#_#_| |_____| |_____| |_____|")
    both = tokens("|SoooG| |o#_#o| |ooooo| |_____| |_____|")  # two ways around
    assert "branches or touches itself in 2 cells, the first in row 1 column 1" in SMALL.verdict(question, both)
    assert np.flatnonzero(SMALL.conflicts(both)).tolist() == [0, 4]
    branch = tokens("|SoooG| |o#o#_| |ooo__| |_____| |_____|")
    assert np.flatnonzero(SMALL.conflicts(branch)).tolist() == [0, 2]
    detour = tokens("|S___G| |o#_#o| |oo_oo| |_ooo_| |_____|")
    assert SMALL.verdict(question, detour) == "valid path, but NOT optimal: the path has 10 steps, 6 more than the shortest"
    assert not SMALL.check_rows(question[None], detour[None])[0]
    ring = tokens("|SoooG| |_#_#_| |ooo__| |o_o__| |ooo__|")
    assert "in 2 pieces" in SMALL.verdict(question, ring)
    assert not rules.one_path(question[None], ring[None])[0]


def simple_paths(answer, cell, goal, before=frozenset()):
    """All simple paths through the marked cells, as sets of cells, by plain depth-first search."""
    side, before = round(len(answer) ** 0.5), before | {cell}
    if cell == goal:
        return [before]
    row, column = divmod(cell, side)
    beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    cells = [r * side + c for r, c in beside if 0 <= r < side and 0 <= c < side]
    return [
        path
        for other in cells
        if answer[other] >= START and other not in before
        for path in simple_paths(answer, other, goal, before)
    ]


@given(
    question=mazes(),
    seed=st.integers(0, 99),
    others=st.lists(st.integers(0, 35), max_size=4),
    more=st.lists(st.integers(0, 35), max_size=3),
)
@settings(deadline=None, max_examples=80)
def test_one_path_is_exactly_one_simple_path_on_which_all_marked_cells_are(question, seed, others, more):
    """Detours are shortest paths around free cells that were walled up; some have further cells marked."""
    blocked = question.copy()
    blocked[[cell for cell in others if question[cell] == FREE]] = WALL
    answer = a_path(blocked, seed)
    if answer is None:
        return
    answer = np.where(answer == PATH, PATH, question)
    answer[[cell for cell in more if question[cell] == FREE]] = PATH
    start, goal = (np.flatnonzero(question == token).item() for token in (START, GOAL))
    wanted = simple_paths(answer, start, goal) == [set(np.flatnonzero(answer >= START).tolist())]
    task = MazeTask(6, 1, None)
    scores = task.scores(question[None], a_path(question, seed)[None], answer[None])
    assert scores["one_path"][0] == wanted
    assert wanted == ("NOT a solution" not in task.verdict(question, answer))
    assert scores["optimal"][0] == (wanted and (answer == PATH).sum() + 1 == walked(question)[goal])
    assert task.conflicts(answer).any() or wanted


def test_a_maze_without_a_way_is_said_to_have_none():
    question = tokens("|S_#_G| |__#__| |__#__| |__#__| |__#__|")
    assert SMALL.verdict(question, question) == "NOT a solution: no path leads from the start to the goal of this maze"
    assert not SMALL.check_rows(question[None], question[None])[0]


@given(question=mazes(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_shortest_paths_are_those_of_a_plain_search(question, seed):
    task = MazeTask(6, 1, None)
    (steps,), on_one = rules.shortest(question[None])
    (goal,) = np.flatnonzero(question == GOAL).tolist()
    assert steps == walked(question).get(goal, -1)
    answer = a_path(question, seed)
    if answer is None:
        return
    assert on_one.ravel()[answer >= START].all()
    assert task.violations(question, answer) == []
    assert task.check_rows(question[None], answer[None]).all()
    # one cell less or another cell: no longer one of the shortest, and the words and the scores agree
    rng = np.random.default_rng(seed)
    changed = answer.copy()
    cell = rng.integers(len(question))
    changed[cell] = rng.choice([WALL, FREE, START, GOAL, PATH])
    problems = task.violations(question, changed)
    assert bool(problems) != task.check_rows(question[None], changed[None])[0]
    scores = task.scores(question[None], answer[None], changed[None])
    assert scores["optimal"][0] == (not problems)
    assert scores["one_path"][0] == (not problems or "NOT optimal" in task.verdict(question, changed))


# ----------------------------------------------------------------------------------------------------------------- symmetries


def test_symmetries_are_numbered_as_in_the_released_code():
    grid = np.arange(9).reshape(3, 3)
    released = [grid, *(np.rot90(grid, k=k) for k in (1, 2, 3)), np.fliplr(grid), np.flipud(grid), grid.T]
    released.append(np.fliplr(np.rot90(grid, k=1)))
    symmetry = Dihedral(3, 6)
    assert [source.tolist() for source in symmetry.sources] == [g.ravel().tolist() for g in released]
    assert len({tuple(source) for source in symmetry.sources.tolist()}) == ORDER


@given(question=mazes(), other=mazes())
@settings(deadline=None, max_examples=30)
def test_signatures_are_those_of_the_class(question, other):
    """Equal for all copies; and different exactly where no copy of one is the other."""
    symmetry = MazeTask(6, 1, None).symmetry
    copies = np.stack([question[source] for source in symmetry.sources])
    words = symmetry.signature(np.concatenate([copies, other[None]]), np.empty((9, 36), np.uint8))
    assert len(set(words[:8].tolist())) == 1
    assert (words[8] == words[0]) == any(np.array_equal(copy, other) for copy in copies)


# ------------------------------------------------------------------------------------------------------------------ generation


@pytest.mark.parametrize(("side", "lengths"), [(7, (1, None)), (10, (9, 20)), (11, (11, None)), (15, (30, 40))])
def test_generated_mazes_are_perfect_have_paths_of_the_lengths_and_are_no_copies(side, lengths):
    task = MazeTask(side, *lengths)
    questions, answers = task.generate(60, 0)
    assert task.check_rows(questions, answers).all()
    steps, on_one = rules.shortest(questions)
    assert (on_one.sum(axis=(1, 2)) == steps + 1).all()
    assert (steps >= lengths[0]).all()
    assert lengths[1] is None or (steps <= lengths[1]).all()
    free = rules.grids(questions) != WALL
    assert all(len(walked(question)) == (question != WALL).sum() for question in questions)
    assert free.sum(axis=(1, 2)).tolist() == [2 * ((side + 1) // 2) ** 2 - 1] * 60
    classes = {min(question[source].tobytes() for source in task.symmetry.sources) for question in questions}
    assert len(classes) == 60
    assert "60 of 60 mazes have exactly one shortest path" in task.remarks(questions, answers)[0]


def test_generation_is_seeded_and_a_larger_count_begins_with_the_same_mazes():
    small, large, other = (MazeTask(9, 1, None).generate(count, seed) for count, seed in ((10, 3), (70, 3), (10, 4)))
    assert np.array_equal(small[0], large[0][:10])
    assert np.array_equal(small[1], large[1][:10])
    assert not np.array_equal(small[0], other[0])


def test_more_mazes_than_there_are_are_refused():
    with pytest.raises(DataError, match=r"only \d+ different mazes of side 7 with data\.path_min=30 data\.path_max=null"):
        MazeTask(7, 30, None).generate(300, 0)
    with pytest.raises(DataError, match=r"only 0 different mazes .*data\.path_min=100"):
        MazeTask(7, 100, None).generate(1, 0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.canvas=5"], r"data\.canvas=5: mazes are generated from side 7 on"),
        (["data.path_max=3"], r"data\.path_min=11 data\.path_max=3 leave no length"),
        (["data.num_aug=8"], r"data\.num_aug=8: a maze has 7 symmetric copies"),
        (["data.on_the_fly_aug=1000"], r"data\.on_the_fly_aug=1000: a maze has 7"),
        (
            ["evaluate.best_by=fastest"],
            r"evaluate\.best_by=fastest is not a score of 11x11 maze: choose exact, optimal, one_path",
        ),
        (
            ["data=sudoku_4x4", "evaluate.best_by=optimal"],
            r"evaluate\.best_by=optimal is not a score of 4x4 Sudoku: choose exact",
        ),
    ],
)
def test_wrong_settings_are_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        compose(["run_name=r", "data=maze_small", *overrides])


def test_generated_sets_are_disjoint_and_equal_to_the_byte(tmp_path):
    def built(folder):
        sizes = ["data.num_puzzles=12", "data.num_test_puzzles=8", f"data.path={folder}"]
        return build_dataset(compose(["run_name=r", "data=maze_small", *sizes]).data)

    one, two = built(tmp_path / "one"), built(tmp_path / "two")
    assert "nor any symmetric copy of one (turned and mirrored)" in one.record["disjointness"]
    assert "train: 12 of 12 mazes have exactly one shortest path" in str(one)
    assert "test: 8 of 8 mazes have exactly one shortest path" in str(built(tmp_path / "one"))  # found built
    for file in sorted(p for p in one.path.rglob("*") if p.is_file()):
        assert file.read_bytes() == (two.path / file.relative_to(one.path)).read_bytes(), file


def test_stored_variants_are_different_copies(tmp_path):
    overrides = ["data.num_puzzles=20", "data.num_test_puzzles=5", "data.num_aug=7", f"data.path={tmp_path}/set"]
    report = build_dataset(compose(["run_name=r", "data=maze_small", *overrides]).data)
    train = load_dataset(report.path, "train")
    assert (train.num_rows, train.num_groups) == (160, 20)
    assert len(np.unique(train.inputs, axis=0)) == 160
    assert MazeTask(11, 1, None).check_rows(train.inputs, train.labels).all()


# ------------------------------------------------------------------------------------------------------------------- Maze-Hard


@pytest.fixture
def rows(shared_data):
    """The first rows of Maze-Hard's test file."""
    with (shared_data / "maze_30x30_hard_test.csv").open(newline="") as file:
        return list(csv.DictReader(file))[:8]


@pytest.fixture(scope="module")
def hard(shared_data, tmp_path_factory):
    """The overrides of Maze-Hard from its own files, and the report of its dataset."""
    files = [f"data.{split}_csv={shared_data}/maze_30x30_hard_{split}.csv" for split in ("train", "test")]
    overrides = ["data=maze_hard", f"data.path={tmp_path_factory.mktemp('hard')}/set", *files]
    return overrides, build_dataset(compose(["run_name=r", *overrides]).data)


def test_none_of_maze_hards_test_mazes_has_one_shortest_path(hard):
    report = hard[1]
    assert report.record["puzzles"] == {"train": 1000, "test": 1000}
    assert "test: 0 of 1,000 mazes have exactly one shortest path; paths of 109 to 153 steps" in str(report)
    test = load_dataset(report.path, "test", MazeTask(30, 1, None))
    assert test.task is not None
    assert test.metadata.sizes == {"seq_len": 900, "vocab_size": 6, "num_puzzle_identifiers": 1}
    scores = test.task.scores(test.inputs, test.labels, test.labels)
    assert scores["optimal"].all()
    assert scores["one_path"].all()
    # a path on which the other corner of one bend is marked too is two answers at once
    line = rules.grids(test.labels) >= START
    corner = np.zeros_like(line)
    for down, across in itertools.product((1, -1), repeat=2):
        a, b = (np.roll(line, step, axis) for step, axis in ((down, 1), (across, 2)))
        corner |= a & b & (rules.grids(test.inputs) == FREE) & ~line
    corners = corner.reshape(test.inputs.shape)
    filled = np.array(test.labels)
    filled[np.arange(1000), corners.argmax(axis=1)] = PATH
    assert corners.any(axis=1).all()
    assert not test.task.scores(test.inputs, test.labels, filled)["one_path"].any()
    # another shortest path than the given one is as good
    other = a_path(test.inputs[0], 1)
    assert not np.array_equal(other, test.labels[0])
    assert test.task.scores(test.inputs[:1], test.labels[:1], other[None]) == {"optimal": [True], "one_path": [True]}
    moved = augment(test.task, test.inputs, test.labels, seed=0, puzzles=np.arange(8), variants=np.arange(8))
    assert test.task.check_rows(*moved).all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda q, a: (q[:-1], a), "the question: 899 cells, but 30x30 maze has 900"),
        (lambda q, a: (q, a + " "), "the answer: 901 cells, but 30x30 maze has 900"),
        (lambda q, a: (q.replace(" ", "G", 1), a), r"the question: 2 goals \(G\), but a maze has one"),
        (lambda q, a: (q, a.replace("G", "o")), r"the answer: 0 goals \(G\), but a maze has one"),
        (lambda q, a: (q, a.replace("#", "o", 1)), "the answer is wrong: a wall in the maze, but not in the answer"),
        (lambda q, a: (q, a.replace("S", " ").replace("#", "S", 1)), "the answer is wrong: a wall in the maze"),
        (lambda q, a: (q, a.replace("o", " ", 1)), "the answer is wrong: the path has"),
        (lambda q, a: (a, a), "the answer is wrong: the maze itself needs one start"),
        (lambda q, a: (q, q), "the answer is wrong: the path has gaps"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_with_file_and_line(rows, tmp_path, spoil, words):
    lines = [[row["question"], row["answer"]] for row in rows]
    lines[2] = list(spoil(*lines[2]))
    for split, chosen in (("train", lines[:4]), ("test", lines[4:])):
        text = "\n".join(["source,question,answer,rating", *(f"x,{q},{a},1" for q, a in chosen), ""])
        (tmp_path / f"{split}.csv").write_text(text)
    data = Settings(name="m", task="maze", path=str(tmp_path / "set"), num_puzzles=4, on_the_fly_aug=0)
    data = dataclasses.replace(data, train_csv=str(tmp_path / "train.csv"), test_csv=str(tmp_path / "test.csv"))
    with pytest.raises(DataError, match=words) as error:
        build_dataset(data)
    assert str(error.value).startswith(f"{tmp_path}/train.csv:4: ")
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------------- commands


def test_maze_hard_trains_on_the_real_files(hard, tmp_path):
    sizes = ["data.num_puzzles=1000", "data.num_test_puzzles=null", "evaluate.max_puzzles=4", "evaluate.best_by=optimal"]
    narrow = ["model=tiny_attention", "model.hidden_size=16", "model.num_heads=2", "model.num_layers=1", "recursion.T=1"]
    short = ["train.max_steps=4", "train.eval_every_steps=2", "train.global_batch_size=2", "recursion.n=1", "recursion.n_sup=2"]
    run(tmp_path, "trm.train", *TINY, *hard[0], *sizes, *narrow, *short, "run_name=hard")
    found = summary(tmp_path / "outputs/hard")
    assert (found["status"], found["steps"], found["last_eval"]["count"]) == ("completed", 4, 4)
    assert {"exact_accuracy", "accuracy", "optimal", "one_path"} <= metrics(tmp_path / "outputs/hard", "eval")[-1].keys()
    assert found["best_step"] == 2  # no maze is solved yet, and the first evaluation stays the best


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A working directory with `outputs/maze`, a model that has just begun to learn mazes of side 7."""
    folder = tmp_path_factory.mktemp("work")
    small = ["data=maze_small", "data.canvas=7", "data.num_puzzles=16", "data.num_test_puzzles=16", "recursion.n_sup=1"]
    run(folder, "trm.train", *TINY, *small, "train.max_steps=4", "evaluate.max_puzzles=null", "run_name=maze")
    return folder


@pytest.mark.parametrize("how", ["evaluate.batch_size=24", "inference.early_exit=true"])
def test_scores_are_evaluated_again_alike(trained, how):
    last = metrics(trained / "outputs/maze", "eval")[-1]
    again = json.loads(run(trained, "trm.evaluate", "checkpoint=outputs/maze", how).stdout.splitlines()[-1])
    names = ("exact_accuracy", "optimal", "one_path", "count")
    assert [again[name] for name in names] == [last[name] for name in names]


def test_scores_stand_beside_the_exact_accuracy_in_a_table(trained):
    arguments = ["checkpoint=outputs/maze", "--multirun", "inference.supervision_steps=1,2", "evaluate.max_puzzles=8"]
    out = run(trained, "trm.evaluate", *arguments).stdout
    assert "optimal %  one_path %" in out
    rows = json.loads((trained / "outputs/maze/evaluation/frontier.json").read_text())["rows"]
    assert all(0 <= row["optimal"] <= row["one_path"] <= 1 for row in rows)


def test_scores_by_path_length(trained):
    out = run(trained, "trm.evaluate", "checkpoint=outputs/maze", "evaluate.by_difficulty=true").stdout
    assert "path length, steps: from, to and mean" in out
    record = json.loads((trained / "outputs/maze/evaluation/by_difficulty.json").read_text())
    assert sum(row["count"] for row in record["rows"]) == record["puzzles"] == 16
    assert record["difficulty"] == "path length, steps"
    assert {"exact_accuracy", "optimal", "one_path"} <= record["rows"][0].keys()
    assert all(a["to"] < b["from"] for a, b in zip(record["rows"], record["rows"][1:], strict=False))
    assert (trained / "outputs/maze/evaluation/by_difficulty.png").read_bytes().startswith(b"\x89PNG")


def test_a_maze_is_solved_from_text_and_from_a_file_and_shown(trained):
    question = MazeTask(7, 7, None).generate(1, 5)[0][0]
    view = MazeTask(7, 7, None).view
    (trained / "maze.txt").write_text("\n".join(line.rstrip() for line in view.grid(question).split("\n")) + "\n")
    shown = [
        run(trained, "trm.solve", "checkpoint=outputs/maze", puzzle).stdout
        for puzzle in (view.text(question), view.grid(question), "maze.txt")
    ]
    assert shown[0] == shown[1] == shown[2]
    for line, cells in zip(shown[0].splitlines()[1:8], view.grid(question).splitlines(), strict=True):
        assert line.startswith(cells)
    assert "answer: NOT a solution: " in shown[0] or "answer: valid" in shown[0]
    watched = run(trained, "trm.solve", "checkpoint=outputs/maze", "test:0", "--watch", "--html", "a.html", "--gif", "a.gif").stdout
    assert "!x wrong" in watched
    assert (trained / "a.gif").read_bytes().startswith(b"GIF89a")
    refused = run(trained, "trm.solve", "checkpoint=outputs/maze", view.grid(question).replace("S", " "), check=2)
    assert "0 starts (S), but a maze has one" in refused.stderr
