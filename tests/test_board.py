"""How far a sweep's jobs are, as its board shows it."""

import json
from types import SimpleNamespace

import pytest

from trm.cli import compose
from trm.study import board as boards
from trm.study.board import Board
from trm.study.sweep import Job

JOBS = ("recursion=t2_n2", "recursion=t3_n6")


@pytest.fixture
def board(tmp_path, monkeypatch):
    """Of two jobs of 300 steps, with a clock that a test sets."""
    clock = [100.0]
    monkeypatch.setattr(boards, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    jobs = [
        Job(name, (name,), compose(["data=sudoku_4x4", "recipe=tiny", "train.max_steps=300", name, "run_name=r"])) for name in JOBS
    ]
    made = Board(tmp_path, jobs)
    made.clock = clock
    return made


def logged(folder, job, *rows):
    (folder / job).mkdir(exist_ok=True)
    with (folder / job / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_line_says_steps_time_left_and_the_last_evaluation_of_what_runs(board, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(boards.log, "info", lambda form, words: lines.append(form % words))
    board.started(JOBS[0])
    logged(tmp_path, JOBS[0], {"kind": "train", "global_step": 50, "exact_accuracy": 0.9})
    board.clock[0] += 16
    board.poll()
    assert lines == ["recursion=t2_n2 50 / 300"]
    logged(tmp_path, JOBS[0], {"kind": "train", "global_step": 100}, {"kind": "eval", "global_step": 100, "exact_accuracy": 0.25})
    with (tmp_path / JOBS[0] / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "glob')  # just being written
    board.clock[0] += 5
    board.poll()
    assert len(lines) == 1
    board.clock[0] += 15
    board.poll()
    assert lines[-1] == "recursion=t2_n2 100 / 300, 80 s left, 25.0 %"


def test_the_table_shows_all_jobs_and_how_they_ended(board, tmp_path):
    board.started(JOBS[0])
    logged(tmp_path, JOBS[0], {"kind": "eval", "global_step": 300, "exact_accuracy": 0.97})
    (tmp_path / JOBS[0] / "summary.json").write_text('{"status": "completed"}')
    board.ended(JOBS[0])
    cells = [row.cells(board.clock[0]) for row in board.rows.values()]
    assert cells == [(JOBS[0], "completed", "300 / 300", "", "97.0 %"), (JOBS[1], "waiting", "0 / 300", "", "")]
    assert [column.header for column in board._table().columns] == ["job", "", "step", "left", "exact"]


def test_a_job_in_a_queue_runs_when_it_logs(board, tmp_path):
    board.started(JOBS[0], "in the queue")
    board.clock[0] += 16
    board.poll()
    assert board.rows[JOBS[0]].state == "in the queue"
    logged(tmp_path, JOBS[0], {"kind": "train", "global_step": 20})
    board.clock[0] += 16
    board.poll()
    assert board.rows[JOBS[0]].state == "running"
