"""Several processes that train together (torch.distributed, gloo on loopback) compute what one does, and agree in all they do.

The processes are tests/ranks_worker.py, which computes the figures; tests/ranks_runs.py has the runs that they train.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks_runs import DISK, RUNS, SETTINGS, SMALL
from ranks_worker import FEW_WAYS, GOLDEN, WAYS, at_once
from ranks_worker import SETTINGS as CASES
from running import TINY, environment, free_port, run, small_disk, summary, values_of

from trm.backends.ranks import gpu_of
from trm.cli import compose, starts_ranks
from trm.errors import EXIT_PREEMPTED, ConfigError
from trm.ground.rank import Rank, process_rank, rank_of_launcher, refuse_other_starters, require_ranks
from trm.run import experiment

WORKER = Path(__file__).with_name("ranks_worker.py")
ONE = ["hardware=cpu", "hardware.backend=eager", "hardware.dtype=float64"]  # process
FEW = ["mlp_prefix", "random", "large_table"]  # the others are computed by `make test-long`


def found_by(folder, count, asked):
    """What so many ranks found: each one's own, and the figures of all."""
    meeting = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
    ranks = []
    try:
        for rank in range(count):
            env = environment(RANK=str(rank), LOCAL_RANK=str(rank), PYTHONPATH=path, **meeting)
            command = [sys.executable, str(WORKER), str(folder), *asked]
            ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        errors = [rank.communicate(timeout=280)[1] for rank in ranks]
        assert not any(rank.returncode for rank in ranks), "\n".join(text[-3000:] for text in errors)
    finally:
        for rank in ranks:
            rank.kill()
    parts = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
    training = {name: values for part in parts for name, values in part.get("training", {}).items()}
    print(
        count, {name: " ".join(f"{values[key]:.0e}" for key in ("said", "state", "rounding")) for name, values in training.items()}
    )
    print({name: values["bytes"] // values["exchanges"] for name, values in training.items()})
    return parts, training


def begun(folder):
    """Train a run by one process in `outputs/r`, and put it without its last checkpoint into `resumed`, where ranks go on."""
    run(folder, "trm.train", *SMALL, *ONE)
    shutil.copytree(folder / "outputs/r", folder / "resumed", symlinks=True)
    shutil.rmtree(folder / "resumed/checkpoints/step_12")


def check_values(run_dir, alone, kind="train"):
    """The metrics of a run are those of another one."""
    found, expected = values_of(run_dir, kind), values_of(alone, kind)
    assert len(found) == len(expected) > 1
    for ours, one in zip(found, expected, strict=True):
        assert ours == pytest.approx(one, rel=1e-9, abs=1e-12)


def check(count, parts, training):
    """Nothing but rounding, which some networks amplify tenfold a step, tells several ranks from one process."""
    for name, values in training.items():
        eps = torch.finfo(torch.float32 if name.endswith("float32") else torch.float64).eps
        assert values["first_step"] < 100 * eps, name
        # the weights' last bits, moved in one process alone, drive it farther from itself
        assert values["state"] < max(10 * values["rounding"], 1e-12), name
        assert values["said"] < max(10 * values["rounding"], 1e-12), name
        assert values["exchanges"] == 10  # one a step
        assert values["halted"] > 10  # halting, too, is of all rows
        if count == 2:  # rounding differs by the order of a sum alone: one process that adds up the same halves has the same bits
            assert values["in_halves"] == 0, name
    for part in parts:
        assert part["spoiled"] == 1  # every rank knows
        assert part["evaluation"].keys() == set(WAYS if len(training) > len(FEW) else FEW_WAYS)
        for way, values in part["evaluation"].items():
            assert values["difference"] < 1e-12, way
            assert values["samples"], way
            assert values["count"] == 12, way
            assert values["stopped"], way  # where one rank alone was asked to


# two ranks, which are started once for all of these ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two ranks found: figures of some cases, and what came of runs in `folder`."""
    folder = tmp_path_factory.mktemp("two")
    begun(folder)
    with small_disk(folder / DISK) as mount:
        mount("-o", "size=64m")
        parts, training = found_by(folder, 2, [*(f"{name}-float64" for name in FEW), "runs"])
    runs = {
        run.__name__: SimpleNamespace(first=parts[0]["runs"][run.__name__], second=parts[1]["runs"][run.__name__]) for run in RUNS
    }
    return SimpleNamespace(folder=folder, parts=parts, training=training, **runs)


def test_two_ranks_compute_what_one_process_does(two):
    training = two.training
    assert len(training) == len(FEW)
    check(2, two.parts, training)
    tight = [name for name, values in training.items() if values["rounding"] < 1e-12]
    assert len(tight) == len(FEW) - 1  # all but the MLP mixer, to 1e-12 over ten steps
    assert max(training[name]["state"] for name in tight) < 1e-12


def test_a_run_of_two_ranks_is_that_of_one_process_and_one_rank_writes(two):
    assert (two.whole.first["end"], two.whole.second) == (0, {"end": 0, "files": []})
    for kind in ("train", "eval"):
        check_values(two.folder / "whole/0", two.folder / "outputs/r", kind)


def test_two_ranks_go_on_from_a_checkpoint_of_one_process(two):
    assert two.resumed.first["end"] == two.resumed.second["end"] == 0
    check_values(two.folder / "resumed", two.folder / "outputs/r")


def test_one_process_goes_on_from_a_checkpoint_of_two_ranks(two):
    folder = two.folder / "outputs/one"
    shutil.copytree(two.folder / "whole/0", folder, symlinks=True)
    shutil.rmtree(folder / "checkpoints/step_12")
    run(two.folder, "trm.train", *SMALL, *ONE, "run_name=one")
    assert summary(folder)["resumed_from_step"] == 8
    check_values(folder, two.folder / "outputs/r")


def test_ctrl_c_on_one_rank_has_both_save_the_same_step_and_they_go_on_together(two):
    for rank in (two.interrupted.first, two.interrupted.second):
        assert (rank["end"], rank["again"]) == (EXIT_PREEMPTED, 0)
        assert 3 <= rank["step"] < 12
    assert two.interrupted.first["step"] == two.interrupted.second["step"]
    last = "checkpoints/step_12/state.safetensors"
    assert (two.folder / "interrupted" / last).read_bytes() == (two.folder / "whole/0" / last).read_bytes()


def test_a_loss_that_is_not_finite_ends_both_with_the_same_diagnosis(two):
    assert two.not_finite.first == two.not_finite.second
    assert "the loss is not finite" in two.not_finite.first["end"]
    assert summary(two.folder / "not_finite")["status"] == "failed"


def test_ranks_that_differ_refuse_and_name_the_difference(two):
    for number, word in enumerate(SETTINGS):
        for rank in (two.other_settings.first, two.other_settings.second):
            assert f"the hosts differ in their {word.partition('=')[0]}" in rank["ends"][number]
    for rank in (two.other_revision.first, two.other_revision.second):
        assert "the hosts differ in their revision of the code (" in rank["end"]
    for rank in (two.other_data.first, two.other_data.second):
        assert "the hosts differ in their training puzzles (" in rank["end"]
    for rank in (two.other_checkpoint.first, two.other_checkpoint.second):  # which read on one rank alone would go on by itself
        assert "the hosts differ in their step, state (" in rank["end"]
        assert rank["unchanged"]
    for folder in ("other_settings", "other_revision", "other_data"):
        assert list((two.folder / folder).rglob("checkpoints")) == []


def test_a_rank_that_cannot_start_does_not_leave_the_other_waiting(two):
    assert "every checkpoint is damaged" in two.no_checkpoint.second["end"]
    assert "the hosts differ in their step, state (" in two.no_checkpoint.first["end"]


def test_ranks_agree_on_what_came_of_another_runs_weights(two):
    first, second = two.other_weights.first, two.other_weights.second
    assert first["changed"] == second["changed"]
    assert "the hosts differ in their state (" in first["changed"]
    assert "init_from" in second["missing"]
    assert "lm_head is missing" in second["missing"]
    assert "the hosts differ in their step, state (" in first["missing"]
    assert first["checkpoints"] == []


def test_a_full_disk_on_the_writing_rank_stops_both_and_room_lets_them_go_on(two):
    first, second = two.full_disk.first, two.full_disk.second
    if first is None:
        pytest.skip("a tmpfs cannot be mounted here")
    assert "No space left on device" in first["end"]
    assert "another host of this run cannot continue" in second["end"]
    assert first["left"] == [4]
    assert (first["again"], second["again"]) == (0, 0)


# other counts and engines --------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 4])
def test_any_ranks_compute_what_one_process_does(tmp_path, count):
    begun(tmp_path)
    parts, training = found_by(tmp_path, count, ["all", "resumed"])
    assert len(training) == len(GOLDEN) * 2 + len(CASES)
    check(count, parts, training)
    check_values(tmp_path / "resumed", tmp_path / "outputs/r")  # which go on from a checkpoint of one process


@pytest.mark.long
def test_ranks_compiled_by_inductor_train_as_eager_ones_do(tmp_path):
    parts, _ = found_by(tmp_path, 2, ["compiled"])
    for part in parts:
        found = part["compiled"]
        print(found)
        assert found["difference"] < max(10 * found["rounding"], 1e-5)
        assert found["graphs"] > 0


# the launcher's words ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """No launcher, and a function that sets what one says."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_", "TRM_RANK", "SUBMITIT_"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def say(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return say


def test_ranks_are_those_of_torchrun(launched):
    assert process_rank() == (0, 1)
    launched(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", MASTER_ADDR="a", MASTER_PORT="5")
    assert process_rank() == (3, 4)
    assert rank_of_launcher() == (3, 4, 1, "a", 5)
    refuse_other_starters(of_torch=True)
    with pytest.raises(ConfigError, match="WORLD_SIZE=4"):
        refuse_other_starters()
    require_ranks("gpus", 4, of_torch=True)
    with pytest.raises(ConfigError, match=r"hardware=gpu needs 1 process\(es\), one for each device, and WORLD_SIZE=4"):
        require_ranks("gpu", 1, of_torch=True)


def test_torchrun_of_one_process_is_believed(launched):
    two = compose(["hardware=cpu_ranks", "hardware.num_devices=2"])
    assert starts_ranks(two)
    assert compose(["hardware=cpu_ranks"]).hardware.num_devices == 2
    launched(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", TORCHELASTIC_RUN_ID="x")
    assert compose(["hardware=cpu_ranks"]).hardware.num_devices == 1
    assert not starts_ranks(two)
    with pytest.raises(ConfigError, match="WORLD_SIZE=1 processes were started"):
        require_ranks("cpu_ranks", 2, of_torch=True)


def test_ranks_are_those_of_srun(launched):
    launched(
        SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2", SLURM_LOCALID="1", SLURM_STEP_NUM_NODES="1", SLURM_JOB_ID="6", SLURM_STEP_ID="0"
    )
    assert process_rank() == (1, 2)
    assert rank_of_launcher() == (1, 2, 1, "127.0.0.1", 20042)
    launched(MASTER_ADDR="host", MASTER_PORT="9")
    assert rank_of_launcher() == (1, 2, 1, "host", 9)


SAID_BY_SCONTROL = """#!/bin/sh
case "$2" in hostnames) echo no.such.host.invalid;; node) echo "NodeName=no Arch=x NodeAddr=10.0.0.7 Comment=a b";; esac
"""


def test_ranks_on_several_hosts_of_slurm_meet_where_the_first_host_is(launched, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    scontrol = tmp_path / "scontrol"
    launched(SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2", SLURM_STEP_NUM_NODES="2", SLURM_STEP_NODELIST="no[0-1]", SLURM_JOB_ID="6")
    for script, address in (("#!/bin/sh\necho localhost other", "localhost"), (SAID_BY_SCONTROL, "10.0.0.7")):
        scontrol.write_text(script)
        scontrol.chmod(0o755)
        assert rank_of_launcher() == (1, 2, 1, address, 20042)
    scontrol.write_text("#!/bin/sh\nexit 1")
    with pytest.raises(ConfigError, match="set MASTER_ADDR"):
        rank_of_launcher()


@pytest.mark.parametrize(("local", "gpus", "started", "number"), [(3, 8, 8, 3), (3, 1, 1, 0), (3, 2, 4, None), (1, 1, 2, None)])
def test_a_rank_has_a_gpu_of_its_own_or_is_refused(launched, local, gpus, started, number):
    """Where srun shows each process one GPU, that is the process's own whatever its number on the host is."""
    launched(LOCAL_WORLD_SIZE=str(started))
    rank = Rank(local, 8, local, "host", 1)
    if number is not None:
        assert gpu_of(rank, gpus) == torch.device("cuda", number)
    else:
        with pytest.raises(ConfigError, match=f"process {local} of this host has no GPU of its own"):
            gpu_of(rank, gpus)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 WORLD_SIZE=4: not the number of a process"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR= MASTER_PORT= LOCAL_RANK=0: the environment does not say where"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "b"}, "MASTER_PORT=b"),
    ],
)
def test_contradictions_of_a_launcher_are_named(launched, variables, words):
    launched(**variables)
    with pytest.raises(ConfigError, match=words):
        rank_of_launcher()


def test_a_process_that_the_environment_counts_otherwise_than_the_devices_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, "process_rank", lambda: (1, 2))
    with pytest.raises(ConfigError, match=r"process 1 of 2, the devices say 0 of 1"):
        experiment.build(compose([*TINY, "run_name=r", f"data.path={tmp_path}/data"]))


def test_what_is_exchanged_comes_back_as_it_was():
    """Whole numbers of 32 bits, absent leaves, types and shapes."""

    def work(share):
        i = share.index
        rows = {"a": torch.tensor([[2**31 - 1], [-(2**31)]], dtype=torch.int32), "b": torch.tensor([i == 1]), "c": None}
        return share.exchange((torch.tensor(3 + i), torch.ones(2, 2) * i), rows)

    for (count, ones), whole in at_once(2, work):
        assert (count.item(), count.dtype, ones.tolist()) == (7, torch.int64, [[1, 1], [1, 1]])
        assert whole["a"].flatten().tolist() == [2**31 - 1, -(2**31)] * 2
        assert (whole["b"].tolist(), whole["c"]) == ([False, True], None)
