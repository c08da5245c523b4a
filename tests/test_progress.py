"""How far a long piece of work is."""

import logging
import os
import time

import pytest

from trm.ground import progress
from trm.ground.progress import Progress, progress_bar, work


@pytest.fixture
def told(monkeypatch):
    lines = []
    monkeypatch.setattr(logging.getLogger("trm.ground.progress"), "info", lambda text, *args: lines.append(text % args))
    return lines


def test_without_a_terminal_the_log_says_how_far_and_how_long(told, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with progress_bar("off", 0, 80) as bar:
        work = Progress("evaluation, puzzles", 80, bar, words=True)
        assert not work.due()
        now = 31.0
        assert work.due()
        work.tell(20)
        assert not work.due()
    assert told == ["evaluation, puzzles: 20 of 80, 01:33 left"]


def test_with_a_bar_the_log_stays_quiet_and_without_either_nothing_is_due(told, monkeypatch):
    now = 0.0
    with progress_bar("on", 0, 80) as bar:
        monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
        work = Progress("x", 80, bar, words=True)
        now = 0.6
        assert work.due()
        work.tell(20)
        assert bar.n == 20
    with progress_bar("off", 0, 80) as bar:
        work = Progress("x", 80, bar, words=False)
        now = 1e6
        assert not work.due()
    assert told == []


def test_a_bar_whose_reader_goes_away_does_not_end_the_work(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as unread:
        monkeypatch.setattr("sys.stderr", unread)
        with progress_bar("on", 0, 3) as bar:
            for _ in range(3):
                bar.update()
                bar.refresh()
        assert bar.n == 3
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # what it holds back is written when it closes


def test_a_command_s_work_is_told_on_stderr_and_where_it_was_interrupted(monkeypatch, capsys):
    monkeypatch.setattr("trm.ground.progress.WORDS_EVERY_S", 0.01)

    def read():
        with work("rows read", 2000, "row") as done:
            time.sleep(0.02)
            done(500)
            done(1500)  # at once: not worth a line
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupted:
        read()
    assert interrupted.value.__notes__ == ["rows read: 1,500 of 2,000"]
    out, err = capsys.readouterr()
    assert (out, err) == ("", "rows read: 500 of 2000, 00:00 left\n")


def test_work_of_a_moment_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with work("rows read", 3, "row") as done:
        for count in range(4):
            done(count)
    assert capsys.readouterr() == ("", "")
