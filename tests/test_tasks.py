"""What holds for every task, and that a task of which the project knows nothing else goes through all of it."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_task import CODE, Sums

from trm.config import DataConfig
from trm.errors import ConfigError
from trm.solve import report
from trm.tasks.augment import augment, undo
from trm.tasks.base import task_of
from trm.tasks.maze.task import MazeTask
from trm.tasks.sudoku.task import SudokuTask

TASKS = [
    SudokuTask(2, 2),
    SudokuTask(2, 3),
    SudokuTask(3, 2),
    SudokuTask(3, 3),
    MazeTask(7, 1, None),
    MazeTask(30, 100, 140),
    Sums(4),
]
SYMMETRIC = [task for task in TASKS if task.symmetry is not None]


@functools.cache
def made(number, seed):
    """Four puzzles of a task of TASKS, by its number; those of 9x9 Sudoku take longest."""
    return TASKS[number].generate(4, seed)


@pytest.mark.parametrize("task", SYMMETRIC, ids=lambda task: task.title)
@given(seed=st.integers(0, 2**31 - 1), variants=st.lists(st.integers(0, 1000), min_size=1, max_size=9))
@settings(deadline=None, max_examples=10)
def test_symmetries_are_undone_keep_puzzles_sound_and_variant_0_is_the_puzzle(task, seed, variants):
    questions, answers = made(TASKS.index(task), seed % 2)
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
    question, answer = (grids[0] for grids in made(TASKS.index(task), 0))
    assert task.view.rows * task.view.columns == task.facts.seq_len == len(question)
    assert len(task.view.symbols) == task.facts.vocab_size
    assert len(task.view.grid(answer).splitlines()) == task.view.rows + len(task.view.heavy_rows)
    assert np.array_equal(task.parse(task.view.text(question)), question)
    assert (task.violations(question, answer), task.conflicts(answer).any(), task.blank(answer).any()) == ([], False, False)
    assert (answer[task.given(question)] == question[task.given(question)]).all()
    assert "valid solution" in report(task, question, answer)


def test_an_unknown_task_is_named():
    with pytest.raises(ConfigError, match=r"data\.task=chess is unknown: choose one of arc, maze, sudoku, or write MODULE:CLASS"):
        task_of(DataConfig(name="d", path="d", task="chess"))


def test_scores_are_of_the_names_that_the_task_says_and_a_known_answer_has_all():
    for number, task in enumerate(TASKS):
        questions, answers = made(number, 0)
        found = task.scores(questions, answers, answers)
        assert tuple(found) == task.score_names
        assert all(has.tolist() == [True] * 4 for has in found.values())
        if task.difficulty_words:
            assert task.difficulty(questions, answers).shape == (4,)


def test_the_page_shows_a_task_with_two_settings_in_less_than_70_lines():
    assert len(CODE.splitlines()) < 70


def test_a_task_without_symmetries_is_built_and_loaded_and_refuses_variants_alone():
    task, puzzles = Sums(4), np.arange(4)
    made = task.generate(4, 0)
    same = augment(task, *made, seed=0, puzzles=puzzles, variants=np.zeros(4, int))
    assert all(np.array_equal(*pair) for pair in zip(same, made, strict=True))
    with pytest.raises(ConfigError, match=r"data\.num_aug=0"):
        augment(task, *made, seed=0, puzzles=puzzles, variants=np.ones(4, int))
