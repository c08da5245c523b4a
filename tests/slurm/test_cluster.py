"""Jobs on a real Slurm with eight pretend hosts of four TPU chips and two GPUs, which scripts/dev/test_slurm.sh starts."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import running
from running import TINY, environment
from safetensors.torch import load_file
from sweeping import ROOT, start, summaries, sweep, wait_for

pytestmark = [
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="needs a Slurm: scripts/dev/test_slurm.sh starts one"),
    pytest.mark.timeout(300),
]
SLURM = ["hydra/launcher=submitit_slurm", "hardware=v4_64", "run_name=s"]
CHIP, HOST, POD = ([*SLURM, f"hardware.placement={placement}"] for placement in ("chip", "host", "pod"))


def slurm(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def placements(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("multirun/s/*/placement.json"))}


def job_ids(folder):
    return json.loads((folder / "multirun/s/slurm_jobs.json").read_text())


@pytest.fixture(autouse=True)
def _all_hosts_up_and_idle():
    yield
    subprocess.run(["scancel", "--me"], check=False)
    wait_for(lambda: not slurm("squeue", "-h", "--me").strip(), 60)
    for node in slurm("sinfo", "-h", "-N", "-t", "down", "-o", "%N").split():
        slurm("scontrol", "update", f"nodename={node}", "state=resume")


def test_the_recursion_grid_trains_with_one_chip_for_each_job(tmp_path):
    """Real runs of two steps, on the CPU, with the placement of a v4-64."""
    arguments = [
        "-m",
        "recursion=glob(*)",
        *CHIP,
        "hardware.platform=cpu",
        "hardware.backend=eager",
        "hardware.dtype=float32",
        "hardware.compile_cache=null",
    ]
    arguments += ["data=sudoku_4x4", "data.num_puzzles=20", "data.num_test_puzzles=8", "model=tiny", "train.max_steps=2"]
    arguments += ["train.global_batch_size=8", "recursion.n_sup=2", "tracking=none"]
    code, out, err = sweep(tmp_path, *arguments, command=("-m", "trm.train"))
    assert (code, err) == (0, ""), err
    found = summaries(tmp_path)
    assert sorted(found) == [f"recursion={grid}" for grid in ("t2_n2", "t2_n6", "t3_n4", "t3_n6", "t4_n6")]
    assert {(s["status"], s["steps"]) for s in found.values()} == {("completed", 2)}
    places = placements(tmp_path)
    assert len({(place["host"], *place["devices"]) for place in places.values()}) == 5
    assert {len(place["devices"]) for place in places.values()} == {1}
    assert all(place["host"].startswith("worker") for place in places.values())
    code, out, err = sweep(tmp_path, *arguments, command=("-m", "trm.train"))
    assert (code, err) == (0, "")
    assert "skipping 5 completed jobs" in out
    assert summaries(tmp_path) == found


def test_more_jobs_than_chips_of_a_host_spread_over_hosts(tmp_path):
    code, _, err = sweep(tmp_path, "-m", "seed=range(0,10)", *CHIP)
    assert (code, err) == (0, "")
    places = placements(tmp_path)
    assert len({(place["host"], *place["devices"]) for place in places.values()}) == 10
    for name, summary in summaries(tmp_path).items():
        (chip,) = places[name]["devices"]
        assert summary["tpu"] == places[name]["environment"]
        assert summary["tpu"]["TPU_VISIBLE_CHIPS"] == str(chip)


def test_one_host_for_each_job(tmp_path):
    code, _, err = sweep(tmp_path, "-m", "seed=0,1,2", *HOST)
    assert (code, err) == (0, "")
    places = placements(tmp_path).values()
    assert len({place["host"] for place in places}) == 3
    assert {place["environment"]["TPU_VISIBLE_CHIPS"] for place in places} == {"0,1,2,3"}


def test_in_a_whole_pod_job_rank_0_alone_writes(tmp_path):
    code, _, err = sweep(tmp_path, "-m", "seed=0,1", *POD)
    assert (code, err) == (0, "")
    for name, summary in summaries(tmp_path).items():
        run_dir = tmp_path / "multirun/s" / name
        assert summary["tpu"]["TPU_PROCESS_BOUNDS"] == "1,2,4"
        assert placements(tmp_path)[name]["ranks"] == 8
        files = {path.name for path in run_dir.iterdir()}
        assert files <= {"summary.json", "placement.json", "config", "config.yaml", "train.log"}
        job = job_ids(tmp_path)[name]
        logs = list((tmp_path / "multirun/s/.submitit").glob(f"{job}/*_log.out"))
        assert len(logs) == 8  # all ranks ran


def test_one_rank_raising_ends_the_whole_pod_job_at_once(tmp_path):
    began = time.monotonic()
    code, _, err = sweep(tmp_path, "-m", "seed=0", *POD, orders={"rank=3": "raise", "rank=": "wait"})
    assert code == 1
    assert time.monotonic() - began < 60
    assert "rank 3 of 8: RuntimeError: a bad day" in err
    assert summaries(tmp_path)["seed=0"]["status"] == "failed"
    assert not slurm("squeue", "-h", "--me").strip()


def test_one_gpu_for_each_job(tmp_path):
    """Four jobs that all run at the same time."""
    gpu = ["hydra/launcher=submitit_slurm", "hardware=gpu", "hardware.jobs=16", "run_name=s"]
    code, _, err = sweep(tmp_path, "-m", "seed=range(0,4)", *gpu, orders={"seed=": "meet 4"})
    assert (code, err) == (0, "")
    places = placements(tmp_path)
    assert len({(place["host"], *place["devices"]) for place in places.values()}) == 4
    for name, summary in summaries(tmp_path).items():
        assert places[name]["devices"] == [int(summary["gpus"])]  # CUDA_VISIBLE_DEVICES, which Slurm sets


def test_srun_says_which_rank_each_process_is_and_where_all_meet():
    code = "import json; from trm.ground.rank import rank_of_launcher; print(json.dumps(rank_of_launcher()))"
    command = ["srun", "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    ranks = sorted(map(json.loads, done.stdout.splitlines()))
    assert [rank[:3] for rank in ranks] == [[0, 4, 0], [1, 4, 1], [2, 4, 0], [3, 4, 1]]
    [(host, port)] = {tuple(rank[3:]) for rank in ranks}
    assert (host, port > 1024) == ("127.0.0.1", True)  # the first of the two hosts, whose name the network does not know


def test_two_ranks_on_two_hosts_train_as_one_process_does_and_go_on(tmp_path):
    whole = [*TINY, "model=tiny_attention", "hardware.dtype=float64", "train.eval_every_steps=null"]
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    command += [sys.executable, "-m", "trm.train", *whole, "hardware=cpu_ranks", "hardware.backend=eager", "run_name=two"]
    own = environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    for steps in (3, 5):
        argv = [*command, f"train.max_steps={steps}"]
        done = subprocess.run(argv, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert running.summary(tmp_path / "outputs/two")["steps"] == steps
    assert running.summary(tmp_path / "outputs/two")["resumed_from_step"] == 3
    assert "rank 1 of 2 (gloo)" in (tmp_path / "outputs/two/train.log").read_text()
    running.run(tmp_path, "trm.train", *whole, "run_name=one", "train.max_steps=5")
    two, one = ([line["loss"] for line in running.metrics(tmp_path / "outputs" / name, "train")] for name in ("two", "one"))
    assert two == pytest.approx(one, rel=1e-9)
    assert len(one) == 5
    states = [load_file(tmp_path / "outputs" / name / "checkpoints/step_5/state.safetensors") for name in ("two", "one")]
    assert states[0].keys() == states[1].keys()
    for name, alone in states[1].items():
        difference = (states[0][name].double() - alone.double()).abs().max()
        assert difference <= 1e-9 * alone.double().abs().max(), name


def test_a_cancelled_job_is_reported_and_only_it_runs_again(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1,2", *CHIP, orders={"seed=1": "hang"})
    wait_for((tmp_path / "multirun/s/seed=1/hung").exists)
    slurm("scancel", job_ids(tmp_path)["seed=1"])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "1 of 3 jobs did not complete" in err
    assert "seed=1: preempted at step 0 of 1" in err
    code, out, _ = sweep(tmp_path, "-m", "seed=0,1,2", *CHIP, orders={"seed=1": "hang"})
    assert code == 0
    assert "skipping 2 completed jobs: seed=0, seed=2" in out


def test_a_job_cancelled_before_it_started_is_reported(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", *POD, orders={"seed=0": "hang"})  # the second waits for the first one's hosts
    wait_for((tmp_path / "multirun/s/seed=0/hung").exists)
    ids = job_ids(tmp_path)
    slurm("scancel", ids["seed=1"])
    slurm("scancel", ids["seed=0"])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"seed=1: failed: Slurm job {ids['seed=1']} ended as CANCELLED" in err


def test_a_job_over_its_time_limit_saves_and_is_started_again(tmp_path):
    limits = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=30"]
    code, _, err = sweep(tmp_path, "-m", "seed=0,1", *CHIP, *limits, orders={"seed=0": "hang"})
    assert (code, err) == (0, "")
    assert {s["status"] for s in summaries(tmp_path).values()} == {"completed"}
    assert placements(tmp_path)["seed=0"]["restarts"] >= 1
    assert placements(tmp_path)["seed=1"]["restarts"] == 0


def test_a_job_on_a_host_that_goes_down_is_started_again(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", *HOST, orders={"seed=0": "hang"})
    wait_for((tmp_path / "multirun/s/seed=0/hung").exists)
    first = placements(tmp_path)["seed=0"]["host"]
    slurm("scontrol", "update", f"nodename={first}", "state=down", "reason=test")
    _, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    assert placements(tmp_path)["seed=0"]["restarts"] == 1
    assert placements(tmp_path)["seed=1"]["restarts"] == 0


def test_a_sweep_whose_terminal_died_finds_its_jobs_in_the_queue(tmp_path):
    arguments = ["-m", "seed=0,1", *CHIP]
    first = start(tmp_path, *arguments, orders={"seed=0": "hang"})
    wait_for((tmp_path / "multirun/s/seed=0/hung").exists)
    first.kill()
    first.communicate()
    ids = job_ids(tmp_path)
    second = start(tmp_path, *arguments)
    said = f"seed=0: already in the queue as Slurm job {ids['seed=0']}"
    assert any(said in line for line in second.stdout)  # which waits for it
    wait_for(lambda: "seed=1" in summaries(tmp_path))
    assert job_ids(tmp_path)["seed=0"] == ids["seed=0"]
    slurm("scancel", ids["seed=0"])
    _, err = second.communicate(timeout=120)
    assert second.returncode == 1
    assert "seed=0: preempted" in err


def test_an_interrupted_sweep_leaves_its_jobs_in_the_queue(tmp_path):
    process = start(tmp_path, "-m", "seed=0", *CHIP, orders={"seed=0": "hang"})
    wait_for((tmp_path / "multirun/s/seed=0/hung").exists)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "the jobs stay in the queue" in out
    assert job_ids(tmp_path)["seed=0"] in slurm("squeue", "-h", "-r", "--me", "-o", "%i").split()


def test_jobs_that_slurm_refuses_are_the_users_to_mend(tmp_path):
    code, _, err = sweep(tmp_path, "-m", "seed=0", *CHIP, "hydra.launcher.partition=nowhere")
    assert code == 2
    assert "error: Slurm refuses the jobs: " in err.splitlines()[-1]  # after what sbatch itself says
    assert "invalid partition" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_job_submitted_from_inside_another_sees_its_own_alone(tmp_path):
    outer = ["srun", "--ntasks=1", "--cpus-per-task=3", "--mem=500", "--cpu-bind=verbose,none"]
    said = {"SBATCH_PARTITION": "urgent", "SLURM_THREADS_PER_CORE": "1"}
    code, _, err = sweep(tmp_path, "-m", "seed=0", *CHIP, inside=outer, **said)
    assert code == 0, err
    seen = summaries(tmp_path)["seed=0"]["slurm"]
    own = (seen["SLURM_JOB_ID"], seen["SLURM_JOB_PARTITION"], seen["SLURM_NTASKS"], seen["SLURM_CPUS_ON_NODE"])
    assert own == (job_ids(tmp_path)["seed=0"], "tpu", "1", "1")
    told = {"SLURM_CPUS_PER_TASK": "3", "SLURM_MEM_PER_NODE": "500", "SLURM_THREADS_PER_CORE": "1", "SBATCH_PARTITION": "urgent"}
    assert not told.items() & seen.items()
    assert "verbose" not in seen.get("SLURM_CPU_BIND", "")
