"""Every task's border cases in every view, and an evaluation that cannot be drawn."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from running import TINY, metrics, run, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracking_fixtures import evaluation

from trm.config import IGNORE_LABEL, Config, TrackingConfig
from trm.inference.samples import Samples
from trm.show import pictures
from trm.show.page import page, pairs_page, thinking_data
from trm.show.pictures import animation
from trm.show.terminal import Watcher
from trm.tasks import TASKS
from trm.tasks.arc.task import ArcTask
from trm.tasks.maze.task import MazeTask
from trm.tasks.sudoku.task import SudokuTask
from trm.tracking import evaluation as shown_evaluation
from trm.tracking.evaluation import Evaluation, held_out
from trm.tracking.trackers import open_trackers
from trm.tracking.wandb_view import WandbTracker

OF_EACH = {"sudoku": SudokuTask(2, 3), "maze": MazeTask(5, 1, None), "arc": ArcTask(5, 4, 3)}
# of a case: the labels of random tokens, the answers
CASES = {
    "known": (lambda labels: labels, lambda answers: answers),
    "a border is unknown": (lambda labels: np.where(np.arange(labels.shape[-1]) % 5 > 2, IGNORE_LABEL, labels), lambda a: a),
    "nothing is known": (lambda labels: np.full_like(labels, IGNORE_LABEL), lambda answers: answers),
    "padding answers": (lambda labels: labels, np.zeros_like),
    "the last token answers": (lambda labels: labels, lambda answers: np.full_like(answers, answers.max())),
}


def test_every_task_is_here():
    assert OF_EACH.keys() == TASKS.keys()


def samples_of(task, case, steps):
    random, (cells, tokens) = np.random.default_rng(0), (task.facts.seq_len, task.facts.vocab_size)
    labels_of, answers_of = CASES[case]
    inputs, labels = random.integers(0, tokens, (2, 2, cells)).astype(np.int32)
    answers = np.append(random.integers(0, tokens, (steps, 2, cells)), np.full((1, 2, cells), tokens - 1), axis=0)[:steps]
    q_halt = np.array([[-800.0, 800.0]] * steps, np.float32)
    confidence = random.random((steps, 2, cells)).astype(np.float32)
    return Samples(inputs, labels_of(labels), answers_of(answers).astype(np.int32), confidence, q_halt)


def fake_wandb():
    """A tracker on a client that keeps what it is given."""
    tracker, rows = object.__new__(WandbTracker), []
    table = lambda columns, data: SimpleNamespace(data=data, bind_to_run=lambda *_: None)  # noqa: E731
    client = SimpleNamespace(Table=table, Image=lambda path, caption: path, plot=SimpleNamespace(line=lambda *_, **__: "line"))
    tracker._wandb, tracker._run = client, SimpleNamespace(log=rows.append, summary={}, step=0)
    tracker._labels, tracker.errors, tracker.label = SimpleNamespace(paper_exact_accuracy=None), (OSError,), "W&B"
    return tracker, rows


@pytest.mark.parametrize(("case", "steps"), [*((case, 2) for case in CASES), ("known", 1)])
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_every_task_is_drawn_in_every_view(tmp_path, name, case, steps):
    task, samples = OF_EACH[name], samples_of(OF_EACH[name], case, steps)
    made = Evaluation([{"exact_accuracy": 0.5, "accuracy": 0.5}] * steps, held_out(samples, task))
    for puzzle in made.puzzles:
        question, prediction, answer = puzzle.texts
        rows = answer.splitlines()
        assert len(rows) == task.view.rows
        unknown = puzzle.puzzle.solution < 0
        assert (np.array(list("".join(rows)))[1::3][unknown] == task.view.symbols[task.facts.pad]).all()
        assert len(prediction.splitlines()) == len(question.splitlines()) == task.view.rows
        assert puzzle.png.startswith(b"\x89PNG")
        thought = puzzle.puzzle, puzzle.frames
        assert animation(*thought).startswith(b"GIF89a")
        assert "<html" in page(*thought, "title")
        out = io.StringIO()
        watcher = Watcher(puzzle.puzzle, steps, out)
        for frame in puzzle.frames:
            watcher.show(frame)
        assert f"step {steps}/{steps}" in out.getvalue()
    assert thinking_data([(each.puzzle, each.frames) for each in made.puzzles])["puzzles"]
    if name == "arc":
        shown = {"name": "t", "colours": ["#000000"], "train": [], "tests": [{"input": [[0]], "output": None, "answers": []}]}
        assert "one variant votes" in pairs_page(*thought, "title", shown, "one variant votes")
    cfg = Config(run_name="r", tracking=TrackingConfig(wandb="disabled"))
    trackers = open_trackers(cfg, tmp_path, is_main=True, resume_step=None, wandb_run_id=None)
    wandb, rows = fake_wandb()
    trackers._views.append(wandb)
    trackers.show(1, lambda: made)
    trackers._views.remove(wandb)
    trackers.finish("completed", 0, {})
    assert trackers.warnings == []
    assert len(rows[0]["held_out/puzzles"].data) == 2


def fails(*_):
    raise IndexError("index -100 is out of bounds\nfor axis 0")


def test_what_cannot_be_drawn_costs_neither_the_run_nor_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(shown_evaluation, "contact_sheet", fails)
    short = ["train.max_steps=4", "train.eval_every_steps=2"]
    run(tmp_path, "trm.train", *TINY, *short, "tracking=tensorboard", "run_name=r", process=False)
    folder = tmp_path / "outputs" / "r"
    found = [warning for warning in summary(folder)["warnings"] if "cannot draw" in warning]
    assert found == [
        "TensorBoard cannot draw the evaluation at step 2 (IndexError: index -100 is out of bounds for axis 0): the run still "
        "logs its numbers"
    ]
    assert (folder / "train.log").read_text().count("cannot draw") == 1
    assert summary(folder)["status"] == "completed"
    assert len(metrics(folder, "eval")) == 2
    events = EventAccumulator(str(folder / "tensorboard"))
    assert [event.step for event in events.Reload().Scalars("eval/exact_accuracy")] == [2, 4]


def test_wandb_keeps_the_numbers_of_what_it_cannot_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_panel", fails)
    cfg = Config(run_name="r", tracking=TrackingConfig(wandb="disabled", tensorboard=False))
    trackers = open_trackers(cfg, tmp_path, is_main=True, resume_step=None, wandb_run_id=None)
    wandb, rows = fake_wandb()
    trackers._views.append(wandb)
    for step in (1, 2):
        trackers.show(step, evaluation)
    assert rows == [{"global_step": step} for step in (1, 2)]
    assert len(trackers.warnings) == 1
    trackers.show(3, fails)  # not even the evaluation can be made
    assert trackers._views == [wandb]
