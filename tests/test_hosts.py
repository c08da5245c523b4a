"""Two hosts in one run: the loop of trm/train.py twice, in two threads, each with its own rows of every batch.

What torch_xla does between hosts is stood in for: rows that the hosts put on the devices meet in the global batch, which each of
the two then computes whole. Everything else is the product's: which rows a host makes, who writes, how a stop on one is agreed.
"""

import errno
import itertools
import os
import shutil
import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.utils._pytree as pytree
from running import TINY, numbers, summary

from trm.backends.native import NativeRuntime
from trm.cli import compose
from trm.core.architecture import architecture
from trm.core.initial import init_buffers, init_puzzle_embedding, init_weights
from trm.data.build import ensure_dataset
from trm.errors import EXIT_PREEMPTED, ConfigError, RunFailure, UserError
from trm.inference.evaluator import EvaluationStopped, make_evaluator
from trm.run import experiment
from trm.run.experiment import build
from trm.tasks.base import task_of
from trm.train import execute

CONFIG = [*TINY, "train.max_steps=8", "train.eval_every_steps=4"]


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
    process_count = num_devices = 2

    def __init__(self, hardware, index, meeting):
        super().__init__(hardware)
        self.process_index, self.meeting, self.times = index, meeting, Counter()

    @property
    def is_main(self):
        return self.process_index == 0

    def shard(self, tree):
        # the loop's thread and the prefetch thread of a host are each in step with their like on the other
        channel = threading.current_thread().name.split("_")[0]
        self.times[channel] += 1
        both = self.meeting.exchange((channel, self.times[channel]), self.process_index, tree)
        return pytree.tree_map(lambda *rows: torch.cat(rows), *both)

    def shard_batch(self, batch):
        return self.shard({name: torch.from_numpy(rows) for name, rows in batch.items()})


class StopAt:
    """A stop that is asked for once the run's devices have been given so many batches."""

    def __init__(self, host=None, batches=0):
        self.host, self.batches = host, batches

    @property
    def requested(self):
        return self.host is not None and self.host.times["prefetch"] >= self.batches


def on_both(one):
    """Run `one(index)` as two hosts at once."""
    threads = [threading.Thread(target=one, args=(index,), name="loop") for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()


def train_on_two(cfgs, folders, stop_second_at=10**9):
    """How each host ended: 0 where it got to the end, an exit code, or the words of an error."""
    meeting, ends = Meeting(), {}
    cfgs = cfgs if isinstance(cfgs, list) else [cfgs, cfgs]

    def one(index):
        try:
            host = Host(cfgs[index].hardware, index, meeting)
            stop = StopAt(host, stop_second_at) if index == 1 else StopAt()
            execute(build(cfgs[index], host), folders[index], stop)
            ends[index] = 0
        except SystemExit as end:
            ends[index] = end.code
        except (RunFailure, UserError, OSError) as error:
            ends[index] = f"{type(error).__name__}: {error}"
        finally:
            meeting.leave()

    on_both(one)
    return ends


def train_alone(cfg, folder):
    """The same run on one host."""
    execute(build(cfg), folder, StopAt())


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


def test_two_hosts_compute_what_one_does_and_one_writes(cfg, folders):
    train_alone(cfg, folders[2])
    assert train_on_two(cfg, folders) == {0: 0, 1: 0}
    assert weights(folders[0], 8) == weights(folders[2], 8)
    for kind in ("train", "eval"):
        assert numbers(folders[0], kind) == numbers(folders[2], kind)
    assert list(folders[1].iterdir()) == []


def test_a_stop_on_one_host_stops_both_at_a_step_and_they_resume_together(cfg, folders):
    codes = train_on_two(cfg, folders, stop_second_at=2)
    assert codes == {0: EXIT_PREEMPTED, 1: EXIT_PREEMPTED}
    stopped = summary(folders[0])
    assert stopped["status"] == "preempted"
    assert 2 <= stopped["steps"] < 8
    # both open the folder of the first, as hosts with a shared disk do
    assert train_on_two(cfg, [folders[0], folders[0]]) == {0: 0, 1: 0}
    train_alone(cfg, folders[2])
    assert weights(folders[0], 8) == weights(folders[2], 8)
    assert numbers(folders[0]) == numbers(folders[2])


def test_a_loss_that_is_not_finite_ends_both_with_the_same_diagnosis(tmp_path, folders):
    wild = ["optimizer.lr=1", "optimizer.weight_decay=1000", "optimizer.warmup_steps=0", "train.max_steps=20"]  # factor -999 a step
    cfg = compose([*CONFIG, f"data.path={tmp_path}/data", *wild])
    reasons = train_on_two(cfg, folders)
    assert reasons[0].replace(str(folders[0]), "") == reasons[1].replace(str(folders[1]), "")
    assert "not finite" in reasons[0]
    assert summary(folders[0])["status"] == "failed"
    assert list(folders[1].iterdir()) == []


def test_hosts_that_would_start_from_different_states_refuse(cfg, folders):
    """A read error on one host makes it fall back by itself; without the comparison both go on, with weights that differ."""
    assert train_on_two(cfg, [folders[0], folders[0]]) == {0: 0, 1: 0}
    shutil.copytree(folders[0] / "checkpoints", folders[1] / "checkpoints", symlinks=True)
    state = folders[1] / "checkpoints" / "step_8" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in folders[0].rglob("*") if path.is_file()}
    longer = replace(cfg, train=replace(cfg.train, max_steps=12))
    ends = train_on_two(longer, folders)
    assert all("the hosts differ in their step, state" in end for end in ends.values()), ends
    assert before == {path: path.read_bytes() for path in folders[0].rglob("*") if path.is_file()}


def test_hosts_with_different_settings_refuse(cfg, folders):
    ends = train_on_two([cfg, replace(cfg, seed=1)], folders)
    assert all("the hosts differ in their seed" in end for end in ends.values()), ends


@pytest.mark.parametrize(("harm", "words"), [("changed", ["state"] * 2), ("missing", ["lm_head is missing", "step, state"])])
def test_hosts_agree_on_what_came_of_another_run_s_weights(cfg, folders, monkeypatch, harm, words):
    """Whatever one host read otherwise, and where that does not fit."""
    train_alone(cfg, folders[2])
    calls = itertools.count()

    def cast(arch, tensors):
        head, call = tensors.pop("weights/lm_head"), next(calls)
        return tensors if call and harm == "missing" else tensors | {"weights/lm_head": head + call}

    monkeypatch.setattr("trm.run.resume.cast", cast)
    ends = train_on_two(replace(cfg, train=replace(cfg.train, init_from=str(folders[2]))), folders)
    for word in words:
        assert any(word in end for end in ends.values()), ends
    assert all("init_from" in end or f"the hosts differ in their {words[-1]}" in end for end in ends.values()), ends
    assert not (folders[0] / "checkpoints").exists()


def test_an_error_before_the_first_step_on_one_host_does_not_leave_the_other_waiting(cfg, folders):
    (folders[1] / "checkpoints" / "step_3").mkdir(parents=True)  # which holds nothing
    ends = train_on_two(cfg, folders)
    assert "every checkpoint is damaged" in ends[1]
    assert "the hosts differ" in ends[0]


def test_a_full_disk_on_the_writing_host_stops_both(cfg, folders, monkeypatch):
    def full(self, tensors, meta):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoints")

    monkeypatch.setattr("trm.run.checkpoint.CheckpointWriter.save", full)
    ends = train_on_two(replace(cfg, train=replace(cfg.train, max_steps=200, eval_every_steps=4)), folders)
    assert "No space left on device" in ends[0]
    assert "another host of this run cannot go on" in ends[1]
    failed = summary(folders[0])
    assert (failed["status"], "No space left" in failed["reason"]) == ("failed", True)
    assert failed["steps"] < 20
    assert list(folders[1].iterdir()) == []


def test_a_process_that_the_environment_counts_otherwise_than_the_devices_is_refused(cfg, monkeypatch):
    monkeypatch.setattr(experiment, "process_rank", lambda: (1, 2))
    with pytest.raises(ConfigError, match=r"process 1 of 2, the devices say 0 of 1"):
        build(cfg)


def evaluate_on_two(cfg, stop_second_at):
    """What the evaluation of untrained weights gives on each host: metrics, or None where it was left."""
    meeting, ends, task = Meeting(), {}, task_of(cfg.data)
    ensure_dataset(cfg.data)
    arch = architecture(cfg, **task.facts.sizes)

    def one(index):
        asked = Counter()

        def stop():
            asked[index] += 1
            return index == 1 and asked[index] > stop_second_at

        try:
            host, buffers = Host(cfg.hardware, index, meeting), init_buffers(arch, 0)
            evaluator = make_evaluator(cfg, host, arch, buffers)
            ends[index] = evaluator.run(init_weights(arch, 0), init_puzzle_embedding(arch), stop).final
        except EvaluationStopped:
            ends[index] = None
        finally:
            meeting.leave()

    on_both(one)
    return ends


@pytest.mark.parametrize(
    "way",
    [
        ["inference=standard"],
        ["inference.early_exit=true"],
        ["inference=guided", "inference.rollouts=3", "inference.supervision_steps=4"],
        ["inference=halt_first", "inference.copies=2"],
    ],
    ids=lambda way: way[0].partition("=")[2],
)
def test_a_stop_on_one_host_ends_an_evaluation_on_both_and_else_they_find_what_one_does(tmp_path, way):
    cfg = compose([*CONFIG, f"data.path={tmp_path}/data", "evaluate.batch_size=4", *way])
    assert evaluate_on_two(cfg, stop_second_at=1) == {0: None, 1: None}
    ends = evaluate_on_two(cfg, stop_second_at=10**9)
    arch = architecture(cfg, **task_of(cfg.data).facts.sizes)
    alone = make_evaluator(cfg, NativeRuntime(cfg.hardware), arch, init_buffers(arch, 0))
    assert ends[0] == ends[1] == pytest.approx(alone.run(init_weights(arch, 0), init_puzzle_embedding(arch)).final, rel=1e-5)
