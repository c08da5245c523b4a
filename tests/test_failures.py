"""What a run says when it cannot go on."""

import errno
import math
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from running import SMALLEST, run, summary

from trm.cli import compose, hydra_command
from trm.core.metrics import training_names
from trm.doctor import check_folder
from trm.errors import ConfigError, RunFailure
from trm.ground.folder import InUseError, exclusive, in_use, write_summary
from trm.ground.job import job
from trm.ground.progress import Lap
from trm.ground.rank import process_rank
from trm.ground.signals import StopSignal
from trm.run.failures import check_evaluation, check_losses, check_weights, explained, memory_words, slow_loader
from trm.study import sweep as study

# As the compiler for a v4 said it of a step that was too big.
TPU_MESSAGE = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 48.98G of 30.75G hbm. Exceeded hbm capacity by 18.23G."
)


@pytest.fixture(scope="module")
def cfg():
    return compose(["data=sudoku_4x4", "model=tiny", "train.global_batch_size=768"])


@pytest.fixture(scope="module")
def pod():
    return compose(["data=sudoku_4x4", "model=tiny", "hardware=v4_64", "train.global_batch_size=768"])


def test_out_of_memory_names_the_batch_that_fits(pod):
    line = memory_words(pod, TPU_MESSAGE)
    assert "48.98 GiB needed, 30.75 GiB there" in line
    assert "train.global_batch_size=480 should fit" in line  # 768 * 30.75 / 48.98 = 482, and 32 devices
    assert "\n" not in line


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.",
        "RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.",
    ],
)
def test_without_numbers_half_the_batch_is_worth_a_try(cfg, message):
    assert "train.global_batch_size=384 is worth a try" in memory_words(cfg, message)


def test_a_single_row_that_does_not_fit_needs_something_else():
    one = compose(["data=sudoku_4x4", "model=tiny", "train.global_batch_size=1"])
    assert "use more devices" in memory_words(one, TPU_MESSAGE.replace("48.98G", "98.98G"))


def test_other_errors_pass_as_they_are(cfg, tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), explained(cfg, tmp_path):
        raise RuntimeError("shapes do not match")
    with pytest.raises(ConnectionError), explained(cfg, tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_a_real_allocation_that_is_too_large_is_explained(cfg, tmp_path):
    with pytest.raises(RunFailure, match="out of memory"), explained(cfg, tmp_path):
        torch.empty(2**62, dtype=torch.uint8)


def test_a_full_disk_names_the_file_and_what_comes_next(cfg, tmp_path):
    (tmp_path / "checkpoints" / "step_40").mkdir(parents=True)
    with pytest.raises(RunFailure) as caught, explained(cfg, tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "metrics.jsonl"))
    assert str(caught.value).startswith(f"{tmp_path / 'metrics.jsonl'}: No space left on device")
    assert f"resumes from {tmp_path}/checkpoints/step_40" in str(caught.value)


SUMS, NAN = dict.fromkeys(training_names(), 1.0) | {"nonfinite_steps": 0.0}, {"lm_loss": math.nan}
INFINITE = SUMS | {"nonfinite_steps": 3.0, "q_halt_loss": math.inf}
GOOD, BAD = {"lm_head": torch.ones(2)}, {"lm_head": torch.ones(2), "net.0": torch.tensor([1.0, math.nan])}


@pytest.mark.parametrize(
    ("check", "bad", "words"),
    [
        (check_losses, [INFINITE], r"118: the loss is not finite \(q_halt_loss is inf\): no checkpoint"),
        (check_weights, [BAD], r"120: the weights net\.0 are not finite"),
        (check_evaluation, [NAN, GOOD], r"120: the evaluation is not finite \(lm_loss is nan\), though its weights are"),
        (check_evaluation, [NAN, BAD], r"120: the weights net\.0 are not finite"),
    ],
)
def test_what_is_not_finite_is_told_with_its_step_and_name(cfg, tmp_path, check, bad, words):
    """Else an accuracy of 0 would stand in the results as if it had been measured."""
    good = {check_losses: [SUMS], check_weights: [GOOD], check_evaluation: [{"lm_loss": 1.0}, BAD]}
    check(*good[check], 120)
    with pytest.raises(RunFailure, match=f"^step {words}"), explained(cfg, tmp_path):
        check(*bad, 120)


def test_a_loader_slower_than_the_step_is_told_with_both_times():
    assert slow_loader(Lap(10, 1.0, 0.0), made_s=0.02, waited_s=0.01) is None
    assert slow_loader(Lap(0, 0.0, 0.0), made_s=0.02, waited_s=0.01) is None  # the first step, which is not timed
    warning = slow_loader(Lap(10, 0.41, 0.0), made_s=0.4, waited_s=0.3)
    assert "40.0 ms for a batch and a step takes 11.0 ms" in warning
    assert "data.num_aug" in warning


@pytest.fixture
def at_once(monkeypatch):
    """Whoever finds a lock taken gives up sooner than after half a second."""
    monkeypatch.setattr("trm.ground.folder.LOOK_S", 0.02)


@pytest.fixture(params=["EAGAIN", "ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def flock(monkeypatch, request):
    """Locks as the system has them (EAGAIN is a lock that another holds), and what some network file systems answer instead."""
    if request.param != "EAGAIN":
        monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(getattr(errno, request.param), "")))
    return request.param


@pytest.mark.usefixtures("at_once")
def test_a_folder_is_held_by_one_process_whatever_locks_its_file_system_has(tmp_path, flock):
    for _ in range(2):  # it is free again afterwards
        assert not in_use(tmp_path)
        with exclusive(tmp_path):
            assert in_use(tmp_path)
            with pytest.raises(InUseError, match="another process is training in this folder"), exclusive(tmp_path):
                pass
    assert not in_use(tmp_path)
    assert check_folder(tmp_path / "run") == f"{tmp_path / 'run'} can be written and locked" + (
        "" if flock == "EAGAIN" else " (by a file: its file system has no locks)"
    )
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_a_run_and_its_dataset_where_there_are_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "")))
    run(tmp_path, "trm.train", *SMALLEST, "run_name=a")
    assert not list(tmp_path.rglob("*.held"))


@pytest.mark.usefixtures("at_once")
def test_a_lock_of_a_lost_host_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "")))
    (tmp_path / ".lock").touch()
    (tmp_path / ".lock.held").write_text("7\nworker3\n")
    with pytest.raises(InUseError, match=r"remove \S*\.lock\.held if its host was lost"), exclusive(tmp_path):
        pass


@pytest.mark.usefixtures("at_once")
def test_a_job_in_a_folder_that_another_process_trains_in_leaves_it_alone(tmp_path):
    """Neither the job itself nor the sweep that started it writes "failed" there, or takes the summary away."""
    write_summary(tmp_path, {"status": "preempted"})
    one = study.Job(tmp_path.name, (), compose(["run_name=a"]))
    with exclusive(tmp_path):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        with pytest.raises(InUseError), job(tmp_path):
            pass
        stamps = study.stamps(tmp_path.parent, [one])
        [(_, reason)] = study.failures(tmp_path.parent, [one], stamps, {one.dir: "the process ended without a summary"})
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert reason == "another process is training in its folder"


@pytest.mark.usefixtures("at_once")
def test_a_sweep_runs_once_whatever_host_it_is_started_on(tmp_path, monkeypatch):
    with study.only_once(tmp_path):
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        with pytest.raises(InUseError, match="already running"), study.only_once(tmp_path):
            pass


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP", "SIGUSR1", "SIGXCPU", "SIGQUIT", "SIGALRM"])
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_every_signal_that_ends_a_run_asks_it_to_save(name, before):
    """As under nohup, which ignores SIGHUP alone: what a queue sends counts though its script ignores it."""
    number = getattr(signal, name)
    own = signal.signal(number, before)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), number)
            assert stop.requested == (name != "SIGHUP" or before == signal.SIG_DFL)
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, own)


def test_an_alarm_of_somebody_else_stays_theirs():
    heard = []
    own = signal.signal(signal.SIGALRM, lambda *_: heard.append(True))
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGALRM)
        assert (heard, stop.requested) == ([True], False)
    finally:
        signal.signal(signal.SIGALRM, own)


def test_only_a_second_deliberate_signal_ends_a_run_at_once(monkeypatch):
    """A closed terminal may tell of it twice, a limit on CPU time each second, and a queue sends SIGTERM after its warning."""
    killed = []
    with StopSignal() as stop:
        monkeypatch.setattr(os, "kill", lambda _, number: killed.append(number))
        for name in ("SIGHUP", "SIGHUP", "SIGXCPU", "SIGXCPU", "SIGUSR1", "SIGTERM", "SIGHUP"):
            signal.raise_signal(getattr(signal, name))
        assert stop.requested
        assert killed == []
        signal.raise_signal(signal.SIGINT)
    assert killed == [signal.SIGINT]


def link(path):
    path.symlink_to("/nowhere")


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory):
    """The setting of a dataset that is there."""
    folder = tmp_path_factory.mktemp("puzzles")
    run(folder, "trm.build_data", *(word for word in SMALLEST if word.startswith("data")), "data.path=d")
    return f"data.path={folder / 'd'}"


@pytest.mark.parametrize(
    ("way", "make", "words"),
    [
        ("outputs", link, "outputs is a link to /nowhere, which is not there: make that folder, or remove the link"),
        ("outputs/a", link, "outputs/a is a link to /nowhere, which is not there"),
        ("outputs", Path.touch, "outputs is a file where outputs/a needs a folder: move it away"),
        ("outputs/a", Path.touch, "outputs/a is a file where outputs/a needs a folder: move it away"),
        ("outputs/a/train.log", Path.mkdir, "outputs/a/train.log is a folder where a file is to be written: move it away"),
        ("outputs/a/config", Path.touch, "outputs/a/config is a file where"),
        ("outputs/a/checkpoints", Path.touch, "outputs/a/checkpoints is a file where"),
        ("outputs/a/metrics.jsonl", Path.mkdir, "outputs/a/metrics.jsonl is a folder where a file is to be written: move it away"),
    ],
)
def test_what_is_in_the_way_of_a_run_folder_is_named(tmp_path, puzzles, way, make, words):
    (tmp_path / way).parent.mkdir(parents=True, exist_ok=True)
    make(tmp_path / way)
    done = run(tmp_path, "trm.train", *SMALLEST, puzzles, "run_name=a", check=2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_takes_no_files_is_named(tmp_path, puzzles, monkeypatch, number):
    fix = "make room" if number == errno.ENOSPC else "make it writable"
    monkeypatch.setattr("tempfile.TemporaryFile", Mock(side_effect=OSError(number, os.strerror(number))))
    done = run(tmp_path, "trm.train", *SMALLEST, puzzles, "run_name=a", check=2)
    assert done.stderr.startswith(f"error: outputs/a: {os.strerror(number)}: {fix}")
    assert done.stderr.count("\n") == 1


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path, puzzles, monkeypatch):
    """They differ though the first has ended by then: the second would go on with it, which nobody has asked for."""
    monkeypatch.setattr("hydra.core.utils.datetime", Mock(now=lambda: datetime(2026, 1, 1)))  # of the resolver `now`
    names = [f"run-2026-01-01_00-00-00{number}" for number in ("", "_2", "_3")]
    for name in names[:2]:  # of other runs
        (tmp_path / "outputs" / name).mkdir(parents=True)
    run(tmp_path, "trm.train", *SMALLEST, puzzles)
    assert summary(tmp_path / "outputs" / names[2])["run_name"] == names[2]


def test_a_command_leaves_its_process_as_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["trm.train", "model.hiden_size=3"])
        with pytest.raises(SystemExit):
            hydra_command("trm.train:train")
        assert capsys.readouterr().err.startswith("error: model.hiden_size is not a config key")
        assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_pod_without_ranks_is_refused_on_every_host(tmp_path, monkeypatch):
    """Before any of them takes the lock: it would wait for the others."""
    for told, words in (({}, "no launcher says which"), ({"TRM_RANK": "1", "TRM_RANKS": "4"}, "the environment names 4")):
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        done = run(tmp_path, "trm.train", "data=sudoku_4x4", "hardware=v4_64", "run_name=a", check=2, process=False)
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "outputs").exists()
    for rank, ranks in (("a", "2"), ("2", "2"), ("1", "")):
        monkeypatch.setenv("TRM_RANK", rank)
        monkeypatch.setenv("TRM_RANKS", ranks)
        with pytest.raises(ConfigError, match="TRM_RANK"):
            process_rank()
