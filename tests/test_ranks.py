"""Several processes that train together (torch.distributed, gloo on loopback) compute what one does: tests/ranks_worker.py."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks_worker import GOLDEN, SETTINGS, WAYS
from running import environment

from trm.backends.ranks import RankShare
from trm.errors import ConfigError
from trm.ground.rank import process_rank, rank_of_launcher, refuse_other_starters, require_ranks

WORKER = Path(__file__).with_name("ranks_worker.py")
FEW = ["mlp_prefix", "attention_rope", "act", "random", "winner_takes_all", "large_table", "muon"]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def found_by(folder, count, cases):
    """What so many ranks found, joined."""
    meeting = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
    ranks = []
    for rank in range(count):
        env = environment(RANK=str(rank), LOCAL_RANK=str(rank), PYTHONPATH=path, **meeting)
        command = [sys.executable, str(WORKER), str(folder), *cases]
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for rank in ranks:
        _, errors = rank.communicate(timeout=280)
        assert rank.returncode == 0, errors[-3000:]
    parts = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
    training = {name: values for part in parts for name, values in part["training"].items()}
    print(
        count, {name: " ".join(f"{values[key]:.0e}" for key in ("said", "state", "rounding")) for name, values in training.items()}
    )
    print({name: values["bytes"] // values["exchanges"] for name, values in training.items()})
    return parts, training


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
    for part in parts:
        assert part["spoiled"] == 1  # every rank knows
        assert part["evaluation"].keys() == WAYS.keys()
        for way, values in part["evaluation"].items():
            assert values["difference"] < 1e-12, way
            assert values["samples"], way
            assert values["count"] == 12, way


def test_two_ranks_compute_what_one_process_does(tmp_path):
    parts, training = found_by(tmp_path, 2, [f"{name}-float64" for name in FEW])
    assert len(training) == len(FEW)
    check(2, parts, training)
    tight = [name for name, values in training.items() if values["rounding"] < 1e-12]
    assert len(tight) == len(FEW) - 1  # all but the MLP mixer, to 1e-12 over ten steps
    assert max(training[name]["state"] for name in tight) < 1e-12


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 4])
def test_any_ranks_compute_what_one_process_does(tmp_path, count):
    parts, training = found_by(tmp_path, count, [])
    assert len(training) == len(GOLDEN) * 2 + len(SETTINGS)
    check(count, parts, training)


# the launcher's words ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """No launcher, and a function that sets what one says."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_", "TRM_RANK", "SUBMITIT_"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
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
    with pytest.raises(ConfigError, match=r"hardware=gpu is 1 device\(s\), a process for each, and WORLD_SIZE=4 processes were"):
        require_ranks("gpu", 1, of_torch=True)


def test_ranks_are_those_of_srun(launched):
    launched(
        SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2", SLURM_LOCALID="1", SLURM_STEP_NUM_NODES="1", SLURM_JOB_ID="6", SLURM_STEP_ID="0"
    )
    assert process_rank() == (1, 2)
    assert rank_of_launcher() == (1, 2, 1, "127.0.0.1", 20042)
    launched(MASTER_ADDR="host", MASTER_PORT="9")
    assert rank_of_launcher() == (1, 2, 1, "host", 9)


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


def test_what_is_exchanged_comes_back_as_it_was(monkeypatch):
    """Whole numbers of 32 bits, absent leaves, types and shapes; the sum over two ranks is made here."""
    shares = [RankShare(index, 2) for index in (0, 1)]
    rows = [
        {"a": torch.tensor([[2**31 - 1], [-(2**31)]], dtype=torch.int32) + 0 * i, "b": torch.tensor([i == 1]), "c": None}
        for i in (0, 1)
    ]
    sums = [(torch.tensor(3 + i), torch.ones(2, 2) * i) for i in (0, 1)]
    sent = []
    monkeypatch.setattr("trm.backends.ranks._wait", lambda flat: flat)
    monkeypatch.setattr("trm.backends.ranks.collectives.all_reduce", lambda flat, *_: sent.append(flat) or flat)
    monkeypatch.setattr("trm.backends.ranks.dist.group", type("group", (), {"WORLD": None}))
    for share, own, part in zip(shares, sums, rows, strict=True):
        share.exchange(own, part)
    monkeypatch.setattr("trm.backends.ranks.collectives.all_reduce", lambda flat, *_: sent[0] + sent[1])
    for share, own, part in zip(shares, sums, rows, strict=True):
        (count, ones), whole = share.exchange(own, part)
        assert (count.item(), count.dtype, ones.tolist()) == (7, torch.int64, [[1, 1], [1, 1]])
        assert whole["a"].flatten().tolist() == [2**31 - 1, -(2**31)] * 2
        assert (whole["b"].tolist(), whole["c"]) == ([False, True], None)
