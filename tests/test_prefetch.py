import threading

import pytest

from trm.data.loader import Prefetcher


def test_results_come_in_order_and_are_made_ahead_but_not_too_far():
    made, may_go_on = [], threading.Semaphore(0)

    def make(step):
        may_go_on.acquire()
        made.append(step)
        return step * 10

    with Prefetcher(make, range(3, 7), depth=2) as batches:
        for _ in range(4):
            may_go_on.release()
        assert batches.next() == 30
        assert batches.next() == 40
        assert [batches.next(), batches.next()] == [50, 60]
        with pytest.raises(IndexError):
            batches.next()
    assert made == [3, 4, 5, 6]


def test_nothing_is_made_beyond_the_depth():
    made = []
    with Prefetcher(lambda step: made.append(step), range(100), depth=2) as batches:
        batches.next()
    assert len(made) <= 3


def test_an_error_reaches_the_caller_at_its_step():
    def make(step):
        if step == 1:
            raise ValueError("broken row")
        return step

    with Prefetcher(make, range(3)) as batches:
        assert batches.next() == 0
        with pytest.raises(ValueError, match="broken row"):
            batches.next()
        assert batches.next() == 2


def test_time_of_making_and_of_waiting():
    release = threading.Event()
    with Prefetcher(lambda step: release.wait(10), range(1)) as batches:
        threading.Timer(0.2, release.set).start()
        batches.next()
        made, waited = batches.lap()
    assert made > 0.1
    assert waited > 0.1
    assert batches.lap() == (0.0, 0.0)
