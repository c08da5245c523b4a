"""What holds for every task, and that a task of which the project knows nothing else goes through all of it."""

import json

import numpy as np
import pytest
import toy_task
from hypothesis import given, settings
from hypothesis import strategies as st
from running import TINY
from toy_task import CODE, SETTINGS, Lamps

from trm.cli import compose
from trm.config import DataConfig
from trm.data.build import build_dataset
from trm.data.format import load_dataset
from trm.data.loader import EvalLoader, TrainLoader
from trm.errors import ConfigError
from trm.ground.signals import StopSignal
from trm.report.output import terminal
from trm.report.runs import collect
from trm.report.variants import compare
from trm.run.experiment import build
from trm.solve import report
from trm.tasks import base
from trm.tasks.base import augment, task_of, undo
from trm.tasks.maze.task import MazeTask
from trm.tasks.sudoku.task import SudokuTask
from trm.train import execute

TASKS = [
    SudokuTask(2, 2),
    SudokuTask(2, 3),
    SudokuTask(3, 2),
    SudokuTask(3, 3),
    MazeTask(7, 1, None),
    MazeTask(30, 100, 140),
    Lamps(4),
]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The task of docs/adding.md under its name, as its folder would make it known."""
    monkeypatch.setitem(base.TASKS, SETTINGS["task"], toy_task.__name__)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.title)
@given(seed=st.integers(0, 2**31 - 1), variants=st.lists(st.integers(0, 1000), min_size=1, max_size=9))
@settings(deadline=None, max_examples=10)
def test_symmetries_are_undone_keep_puzzles_sound_and_variant_0_is_the_puzzle(task, seed, variants):
    questions, answers = task.generate(4, seed % 7)
    variants = np.array(variants)
    puzzles = np.arange(len(variants)) % 4
    seen = augment(task, questions, answers, seed=seed, puzzles=puzzles, variants=variants)
    assert task.check_rows(*seen).all()
    assert np.array_equal(undo(task, seen[1], seed=seed, puzzles=puzzles, variants=variants), answers[puzzles])
    same = variants == 0
    assert np.array_equal(seen[0][same], questions[puzzles][same])
    assert np.array_equal(task.symmetry.signature(*seen), task.symmetry.signature(questions[puzzles], answers[puzzles]))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.title)
def test_facts_view_and_rules_go_together(task):
    (question,), (answer,) = task.generate(1, 0)
    assert task.view.rows * task.view.columns == task.facts.seq_len == len(question)
    assert len(task.view.symbols) == task.facts.vocab_size
    assert len(task.view.grid(answer).splitlines()) == task.view.rows + len(task.view.heavy_rows)
    assert np.array_equal(task.parse(task.view.text(question)), question)
    assert (task.violations(question, answer), task.conflicts(answer).any(), task.blank(answer).any()) == ([], False, False)
    assert (answer[task.given(question)] == question[task.given(question)]).all()
    assert "valid solution" in report(task, question, answer)


def test_an_unknown_task_is_named():
    with pytest.raises(ConfigError, match=r"data\.task=chess is unknown: choose one of arc, lamps, maze, sudoku"):
        task_of(DataConfig(name="d", path="d", task="chess"))


def test_scores_are_of_the_names_that_the_task_says_and_a_known_answer_has_all():
    for task in TASKS:
        questions, answers = task.generate(5, 0)
        found = task.scores(questions, answers, answers)
        assert tuple(found) == task.score_names
        assert all(has.tolist() == [True] * 5 for has in found.values())
        if task.difficulty_words:
            assert task.difficulty(questions, answers).shape == (5,)


def test_the_page_shows_a_task_in_less_than_60_lines():
    assert len(CODE.splitlines()) < 60


def test_a_new_task_is_built_loaded_trained_and_evaluated_as_the_page_says(tmp_path):
    keys = {key: value for key, value in SETTINGS.items() if key != "defaults"}
    data = [f"data={SETTINGS['defaults'][0]}", *(f"data.{key}={value}" for key, value in keys.items())]
    data += ["data.num_puzzles=40", "data.num_test_puzzles=20", f"data.path={tmp_path}/data"]
    cfg = compose(
        [*TINY, *data, "train.max_steps=4", "train.eval_every_steps=2", "evaluate.best_by=lit", "tracking.tensorboard=true"]
    )
    report = build_dataset(cfg.data)
    assert "share no puzzle" in report.disjointness
    task = task_of(cfg.data)
    train, test = (load_dataset(report.path, split, task) for split in ("train", "test"))
    assert (train.task, train.num_rows, test.num_rows) == (task, 40, 20)
    batch = TrainLoader(train, seed=0, global_batch_size=8, on_the_fly_aug=7, data_seed=0).batch(0)
    assert task.check_rows(batch["inputs"].astype(np.uint8), batch["labels"].astype(np.uint8)).all()
    loader = EvalLoader(test, global_batch_size=8, copies=8)
    rows = loader.rows(0, loader.num_rows)
    assert np.array_equal(loader.undo(rows["labels"])[3::8], test.labels)
    execute(build(cfg), tmp_path, StopSignal())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["last_eval"]["count"]) == ("completed", 20)
    assert summary["best_scores"].keys() == {"lit"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    chosen, evaluated = ([line for line in lines if line["kind"] == kind] for kind in ("selection", "eval"))
    assert (max(line["lit"] for line in chosen), "lit") == (summary["selection_score"], summary["selected_by"])
    assert {"lit": evaluated[summary["best_step"] // 2 - 1]["lit"]} == summary["best_scores"]
    (run,) = collect([tmp_path])
    assert run.scores == {"lit": evaluated[-1]["lit"]}
    assert "lit % (decides)" in terminal(compare([run]))


def test_a_task_without_symmetries_is_built_and_loaded_and_refuses_variants_alone():
    class Plain(Lamps):
        symmetry = None

    task, puzzles = Plain(4), np.arange(4)
    made = task.generate(4, 0)
    same = augment(task, *made, seed=0, puzzles=puzzles, variants=np.zeros(4, int))
    assert all(np.array_equal(*pair) for pair in zip(same, made, strict=True))
    with pytest.raises(ConfigError, match=r"data\.num_aug=0"):
        augment(task, *made, seed=0, puzzles=puzzles, variants=np.ones(4, int))
