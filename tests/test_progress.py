"""How far a long piece of work is."""

import logging
import os

import pytest

from trm.inference.progress import Progress, progress_bar
from trm.run import clock as progress


@pytest.fixture
def told(monkeypatch):
    lines = []
    monkeypatch.setattr(logging.getLogger("trm.inference.progress"), "info", lambda text, *args: lines.append(text % args))
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
