"""Two hosts in one run: the loop of trm/train.py twice, in two threads, each with its own rows of every batch.

What torch_xla does between hosts is stood in for: rows that the hosts put on the devices meet in the global batch, which each of
the two then computes whole. Everything else is the product's: which rows a host makes, who writes, how a stop on one is agreed.
"""

import threading
from collections import Counter

import pytest
import torch
import torch.utils._pytree as pytree
from running import TINY, numbers, summary

import trm.train
from trm.backends.xla import NativeRuntime
from trm.cli import EXIT_PREEMPTED, compose
from trm.errors import RunFailure
from trm.train import Run

CONFIG = [*TINY, "hardware=cpu", "hardware.backend=eager", "train.max_steps=8", "train.eval_every_steps=4"]


class Meeting:
    """Where two hosts give their rows and take those of both."""

    def __init__(self):
        self.given, self.changed, self.over = {}, threading.Condition(), False

    def exchange(self, key, host, rows):
        with self.changed:
            self.given.setdefault(key, {})[host] = rows
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: len(self.given[key]) == 2 or self.over, timeout=60)
            if len(self.given[key]) < 2:
                raise ConnectionError("the other host is gone")
            return [self.given[key][each] for each in (0, 1)]

    def leave(self):
        with self.changed:
            self.over = True
            self.changed.notify_all()


class Host(NativeRuntime):
    process_count = 2

    def __init__(self, hardware, index, meeting):
        super().__init__(hardware)
        self.process_index, self.meeting, self.times = index, meeting, Counter()

    @property
    def is_main(self):
        return self.process_index == 0

    def put_rows(self, tree):
        # the loop's thread and the prefetch thread of a host are each in step with their like on the other
        channel = threading.current_thread().name.split("_")[0]
        self.times[channel] += 1
        both = self.meeting.exchange((channel, self.times[channel]), self.process_index, tree)
        return pytree.tree_map(lambda *rows: torch.cat(rows), *both)

    def put_batch(self, batch):
        return self.put_rows({name: torch.from_numpy(rows) for name, rows in batch.items()})


class StopAt:
    """A stop that is asked for while the run does a certain step."""

    def __init__(self, run, step=10**9):
        self.run, self.step = run, step

    @property
    def requested(self):
        return getattr(self.run, "step", 0) >= self.step


def train_on_two(cfg, folders, monkeypatch, stop_second_at=10**9):
    """The exit code of each host, 0 where it got to the end, or why it failed."""
    meeting, codes = Meeting(), {}

    def execute(run, stop):
        try:
            run.execute(stop)
            codes[run.runtime.process_index] = 0
        except (SystemExit, RunFailure) as end:
            codes[run.runtime.process_index] = end.code if isinstance(end, SystemExit) else str(end)
        finally:
            meeting.leave()

    runs = []
    for index in (0, 1):
        monkeypatch.setattr(trm.train, "start", lambda hardware, index=index: Host(hardware, index, meeting))
        runs.append(Run(cfg, folders[index]))
    stops = [StopAt(runs[0]), StopAt(runs[1], stop_second_at)]
    threads = [threading.Thread(target=execute, args=pair, name="loop") for pair in zip(runs, stops, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert {run.step for run in runs} == {runs[0].step}
    return codes


def train_alone(cfg, folder, monkeypatch):
    """The same run on one host."""
    monkeypatch.setattr(trm.train, "start", NativeRuntime)
    run = Run(cfg, folder)
    run.execute(StopAt(run))


@pytest.fixture
def cfg(tmp_path):
    return compose([*CONFIG, f"data.path={tmp_path}/data"])


@pytest.fixture
def folders(tmp_path):
    found = [tmp_path / name for name in ("first", "second", "alone")]
    for folder in found:
        folder.mkdir()
    return found


def weights(folder, step):
    return (folder / "checkpoints" / f"step_{step}" / "state.safetensors").read_bytes()


def test_two_hosts_compute_what_one_does_and_one_writes(cfg, folders, monkeypatch):
    train_alone(cfg, folders[2], monkeypatch)
    assert train_on_two(cfg, folders, monkeypatch) == {0: 0, 1: 0}
    assert weights(folders[0], 8) == weights(folders[2], 8)
    for kind in ("train", "eval"):
        assert numbers(folders[0], kind) == numbers(folders[2], kind)
    assert list(folders[1].iterdir()) == []


def test_a_stop_on_one_host_stops_both_at_a_step_and_they_resume_together(cfg, folders, monkeypatch):
    codes = train_on_two(cfg, folders, monkeypatch, stop_second_at=2)
    assert codes == {0: EXIT_PREEMPTED, 1: EXIT_PREEMPTED}
    stopped = summary(folders[0])
    assert stopped["status"] == "preempted"
    assert 2 <= stopped["steps"] < 8
    # both open the folder of the first, as hosts with a shared disk do
    assert train_on_two(cfg, [folders[0], folders[0]], monkeypatch) == {0: 0, 1: 0}
    train_alone(cfg, folders[2], monkeypatch)
    assert weights(folders[0], 8) == weights(folders[2], 8)
    assert numbers(folders[0]) == numbers(folders[2])


def test_a_loss_that_is_not_finite_ends_both_with_the_same_diagnosis(tmp_path, folders, monkeypatch):
    wild = ["optimizer.lr=1", "optimizer.weight_decay=1000", "optimizer.warmup_steps=0", "train.max_steps=20"]  # factor -999 a step
    cfg = compose([*CONFIG, f"data.path={tmp_path}/data", *wild])
    reasons = train_on_two(cfg, folders, monkeypatch)
    assert reasons[0].replace(str(folders[0]), "") == reasons[1].replace(str(folders[1]), "")
    assert "not finite" in reasons[0]
    assert summary(folders[0])["status"] == "failed"
    assert list(folders[1].iterdir()) == []
