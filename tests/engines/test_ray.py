"""Sweeps on a local Ray cluster of two nodes, each with four pretend TPU chips and two GPUs: make test-engines.

All processes are on loopback.
"""

import json
import os
import signal
from importlib.util import find_spec

import pytest
from sweeping import start, summaries, sweep, wait_for

from trm.ground.cores import allowed, visible_gpus

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: make test-engines installs it"),
    pytest.mark.timeout(300),
]
SLICE = {"ray.io/tpu-slice-name": "pretend", "ray.io/tpu-topology": "2x2x2", "ray.io/tpu-pod-type": "v4-16"}
CORES = len(allowed())  # of each pretend GPU too
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # the first means 127.0.0.1, on Linux too


@pytest.fixture(scope="module")
def ray_sweep():
    """Arguments of a sweep on the cluster."""
    os.environ |= LOOPBACK | {"TPU_NAME": "pretend"}
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for host in ("0", "1"):
        chips = {"TPU": 4, **({"TPU-v4-16-head": 1} if host == "0" else {})}
        labels = SLICE | {"ray.io/tpu-worker-id": host}
        cluster.add_node(num_cpus=2 * CORES, num_gpus=2, resources=chips, labels=labels, include_dashboard=False)
    yield [
        "-m",
        "run_name=s",
        "hydra/launcher=ray",
        f"hydra.launcher.address={cluster.address}",
        "hydra.launcher.num_cpus=1",
        "hydra.launcher.pass_on=[FAKE_JOB]",
    ]
    cluster.shutdown()


def placements(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("multirun/s/*/placement.json"))}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_a_cluster_that_is_not_there_is_one_line(tmp_path, address):
    """The first test, before there is a cluster on this machine."""
    arguments = ["-m", "seed=0,1", "run_name=s", "hydra/launcher=ray", f"hydra.launcher.address={address}"]
    code, _, err = sweep(tmp_path, *arguments, RAY_TMPDIR=str(tmp_path))
    assert code == 2
    assert err.startswith(f"error: hydra.launcher.address={address}: no Ray cluster")
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "multirun/s/seed=0").exists()


def test_real_runs_keep_to_their_cores_and_are_not_repeated(tmp_path, ray_sweep):
    arguments = [*ray_sweep, "recursion=t2_n2,t2_n6", "hardware.backend=eager", "data=sudoku_4x4", "data.num_puzzles=20"]
    arguments += ["data.num_test_puzzles=8", "model=tiny", "train.max_steps=2", "train.global_batch_size=8", "recursion.n_sup=2"]
    arguments += ["tracking=none"]
    code, out, err = sweep(tmp_path, *arguments, command=("-m", "trm.train"))
    assert (code, err) == (0, ""), err
    found = summaries(tmp_path)
    assert {name: (s["status"], s["steps"]) for name, s in found.items()} == {
        "recursion=t2_n2": ("completed", 2),
        "recursion=t2_n6": ("completed", 2),
    }
    assert {len(place["cores"]) for place in placements(tmp_path).values()} == {1}
    code, out, err = sweep(tmp_path, *arguments, command=("-m", "trm.train"))
    assert (code, err) == (0, "")
    assert "skipping 2 completed jobs" in out


def test_jobs_at_once_have_chips_of_their_own(tmp_path, ray_sweep):
    code, _, err = sweep(tmp_path, *ray_sweep, "hardware=v4_8", "seed=range(0,6)")
    assert (code, err) == (0, "")
    places, found = placements(tmp_path), summaries(tmp_path)
    assert len({(place["ray_node"], *place["devices"]) for place in places.values()}) > 2
    for name, summary in found.items():
        (chip,) = places[name]["devices"]
        assert summary["tpu"]["TPU_VISIBLE_CHIPS"] == str(chip)
        assert summary["tpu"].items() >= places[name]["environment"].items()
        assert summary["cores"] == 1
        for other in found:  # at the same time on the same host: another chip
            apart = found[other]["began"] >= summary["ended"] or summary["began"] >= found[other]["ended"]
            same = (places[other]["ray_node"], places[other]["devices"]) == (places[name]["ray_node"], places[name]["devices"])
            assert other == name or apart or not same


def test_jobs_at_once_have_gpus_of_their_own(tmp_path, ray_sweep):
    """Four jobs that all run at the same time, each with half of the cores of its node, which has two GPUs."""
    code, _, err = sweep(
        tmp_path, *ray_sweep, "hardware=gpu", "hydra.launcher.num_cpus=null", "seed=range(0,4)", orders={"seed=": "meet 4"}
    )
    assert (code, err) == (0, ""), err
    places, found = placements(tmp_path), summaries(tmp_path)
    assert len({(place["ray_node"], *place["devices"]) for place in places.values()}) == 4
    for name, place in places.items():
        gpu = found[name]["gpus"]  # CUDA_VISIBLE_DEVICES, as the job finds it
        assert (place["devices"], place["environment"]) == ([int(gpu)], {"CUDA_VISIBLE_DEVICES": gpu})


@pytest.mark.skipif(bool(visible_gpus()), reason="the job would find real GPUs under the numbers of the pretend ones")
def test_a_job_of_two_ranks_has_two_gpus(tmp_path, ray_sweep):
    """Its ranks are real ones of trm.train, which find the GPUs that they are told of not to be there."""
    code, _, err = sweep(tmp_path, *ray_sweep, "hardware=gpus", "hardware.num_devices=2", "seed=0")
    assert (code, "1 of 1 jobs did not complete" in err) == (1, True)
    assert placements(tmp_path)["seed=0"]["devices"] == [0, 1]
    assert placements(tmp_path)["seed=0"]["environment"] == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert "torch finds no CUDA device" in (tmp_path / "multirun/s/.ray/seed=0.log").read_text()


def test_a_killed_worker_is_reported_the_others_go_on_and_the_command_again_does_the_rest(tmp_path, ray_sweep):
    arguments = [*ray_sweep, "hardware=cpu", "seed=0,1,2"]
    code, _, err = sweep(tmp_path, *arguments, orders={"seed=0": "kill", "seed=1": "user_error"})
    assert code == 1
    assert "2 of 3 jobs did not complete" in err
    found = summaries(tmp_path)
    assert [found[f"seed={i}"]["status"] for i in range(3)] == ["failed", "failed", "completed"]
    assert "its Ray worker died: killed, or out of memory (log: " in found["seed=0"]["reason"]
    assert found["seed=1"]["reason"] == "DataError: data.path=x is not there"
    code, out, err = sweep(tmp_path, *arguments)
    assert (code, err) == (0, "")
    assert "skipping 1 completed jobs" in out
    assert {s["status"] for s in summaries(tmp_path).values()} == {"completed"}


def test_ctrl_c_saves_what_runs_and_starts_no_more(tmp_path, ray_sweep):
    arguments = [*ray_sweep, "hardware=cpu", f"hydra.launcher.num_cpus={2 * CORES}", "seed=0,1,2,3"]  # one on each node
    process = start(tmp_path, *arguments, orders={"seed=": "hang"})
    wait_for(lambda: len(list(tmp_path.glob("multirun/s/*/hung"))) == 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert sorted(s["status"] for s in summaries(tmp_path).values()) == ["failed", "failed", "preempted", "preempted"]
    code, _, err = sweep(tmp_path, *arguments)
    assert (code, err) == (0, "")


def test_a_job_on_a_slice_has_a_process_on_each_host(tmp_path, ray_sweep):
    pod = ["hardware=v4_64", "hardware.num_hosts=2", "hardware.placement=pod", "hydra.launcher.num_cpus=1"]
    code, _, err = sweep(tmp_path, *ray_sweep, *pod, "seed=0,1")
    assert (code, err) == (0, ""), err
    for place in placements(tmp_path).values():
        assert (place["ranks"], place["devices"]) == (2, [0, 1, 2, 3])
        assert place["environment"]["TPU_PROCESS_BOUNDS"] == "1,1,2"
    assert sorted(path.name for path in (tmp_path / "multirun/s/.ray").iterdir()) == [
        f"seed={seed}.{rank}.log" for seed in (0, 1) for rank in (0, 1)
    ]
