"""What happens to several ranks that train together when one of them is stopped, killed, or told something else: real processes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import TINY, command, environment, free_port, run, summary

from trm.errors import EXIT_PREEMPTED
from trm.ground.folder import exclusive, steps_in

pytestmark = [pytest.mark.long, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[1]
ARGUMENTS = [
    *TINY, "hardware=cpu_ranks", "hardware.backend=eager", "hardware.dtype=float64", "train.eval_every_steps=null", "run_name=r",
    "model.hidden_size=32", "model.num_heads=2", "recursion={T:1,n:1}",
]  # fmt: skip
ENDLESS = "train.max_steps=100000"
LIMIT_S = 200


def start(folder, argv, **extra):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = environment(PYTHONPATH=path, OMP_NUM_THREADS="1", **extra)
    return subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def torchrun(ranks, *options):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options, "-m"]


def wait_for(condition, process):
    end = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def rank_of(agent, rank):
    """The process of a rank that the agent started."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in variables:
                return int(child)
    return None


def trains(folder, agent, rank):
    """Wait until the run has saved a state; the process of that rank."""
    wait_for(lambda: steps_in(folder / "outputs/r/checkpoints"), agent)
    return wait_for(lambda: rank_of(agent, rank), agent)


def weights(folder, step):
    return (folder / f"outputs/r/checkpoints/step_{step}/state.safetensors").read_bytes()


@pytest.mark.parametrize(("ranks", "told"), [(2, "one"), (4, "all")])
def test_a_signal_to_one_rank_or_to_all_saves_one_step_which_any_number_of_ranks_goes_on_from(tmp_path, ranks, told):
    agent = start(tmp_path, command("trm.train", *ARGUMENTS, ENDLESS, f"hardware.num_devices={ranks}"))
    rank = trains(tmp_path, agent, 1)
    os.kill(rank if told == "one" else agent.pid, signal.SIGTERM)
    _, errors = agent.communicate(timeout=LIMIT_S)
    assert agent.returncode == EXIT_PREEMPTED, errors[-3000:]
    stopped = summary(tmp_path / "outputs/r")
    assert stopped["status"] == "preempted"
    step = steps_in(tmp_path / "outputs/r/checkpoints")[-1]
    assert stopped["steps"] == step
    if told == "all":
        return
    losses = {}
    for count in (1, 2):
        folder = tmp_path / f"on_{count}"
        shutil.copytree(tmp_path / "outputs", folder / "outputs", symlinks=True)
        more = [f"train.max_steps={step + 4}", f"hardware.num_devices={count}", f"data.path={next(tmp_path.glob('data/*'))}"]
        run(folder, "trm.train", *ARGUMENTS, *more, process=True, OMP_NUM_THREADS="1")
        lines = map(json.loads, (folder / "outputs/r/metrics.jsonl").read_text().splitlines())
        losses[count] = [line["loss"] for line in lines if line["kind"] == "train" and line["global_step"] > step]
    assert len(losses[1]) == 4
    assert losses[2] == pytest.approx(losses[1], rel=1e-9)


def test_where_a_rank_is_killed_the_others_end_with_a_line_and_the_same_command_goes_on(tmp_path):
    agent = start(tmp_path, command("trm.train", *ARGUMENTS, "train.max_steps=3000"))
    os.kill(trains(tmp_path, agent, 1), signal.SIGKILL)
    began = time.monotonic()
    _, errors = agent.communicate(timeout=LIMIT_S)
    print(f"the command ended {time.monotonic() - began:.1f} s after one of its ranks was killed")
    assert agent.returncode == 1
    assert errors.count("error: another process of this run is gone") == 1, errors
    assert "Traceback" not in errors
    failed = summary(tmp_path / "outputs/r")
    assert (failed["status"], "another process" in failed["reason"]) == ("failed", True)
    step = steps_in(tmp_path / "outputs/r/checkpoints")[-1]
    run(tmp_path, "trm.train", *ARGUMENTS, f"train.max_steps={step + 3}", process=True, OMP_NUM_THREADS="1")
    assert summary(tmp_path / "outputs/r")["status"] == "completed"


def test_torchrun_starts_the_ranks_again_and_the_run_goes_on(tmp_path):
    agent = start(tmp_path, [*torchrun(2, "--max-restarts=2"), "trm.train", *ARGUMENTS, "train.max_steps=400"])
    os.kill(trains(tmp_path, agent, 1), signal.SIGKILL)
    _, errors = agent.communicate(timeout=LIMIT_S)
    assert agent.returncode == 0, errors[-3000:]
    done = summary(tmp_path / "outputs/r")
    assert (done["status"], done["steps"]) == ("completed", 400)
    assert "resuming from" in (tmp_path / "outputs/r/train.log").read_text()


@pytest.mark.parametrize(
    ("of_one", "words"),
    [
        ("optimizer.lr=0.0003", "differ in their optimizer.lr "),
        ("train.checkpoint_every_steps=7", "differ in their train.checkpoint_every_steps "),
        ("evaluate.batch_size=8", "differ in their evaluate.batch_size "),
        ("data.seed=3", "data.seed, training puzzles, test puzzles"),
    ],
)
def test_ranks_that_were_told_otherwise_refuse_with_the_difference(tmp_path, of_one, words):
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    for rank, own in enumerate(([], [of_one])):
        argv = command("trm.train", *ARGUMENTS, *own)
        ranks.append(start(tmp_path, argv, RANK=str(rank), LOCAL_RANK=str(rank), **meeting))
    for rank in ranks:
        _, errors = rank.communicate(timeout=LIMIT_S)
        assert rank.returncode == 2, ascii(errors[-1200:])
        assert words in errors
        assert errors.count("error: ") == 1
    assert not (tmp_path / "outputs/r/checkpoints").exists()


def test_a_folder_that_another_run_holds_is_left_alone(tmp_path):
    folder = tmp_path / "outputs/r"
    folder.mkdir(parents=True)
    with exclusive(folder):
        agent = start(tmp_path, command("trm.train", *ARGUMENTS))
        _, errors = agent.communicate(timeout=LIMIT_S)
    assert agent.returncode == 2, errors[-3000:]
    assert errors.count("error: ") == 1
    assert not (folder / "checkpoints").exists()


def test_the_jobs_of_a_sweep_are_several_ranks_each(tmp_path):
    run(tmp_path, "trm.train", "-m", *ARGUMENTS, "seed=0,1", "train.max_steps=4", "hardware.jobs=2", process=True)
    for seed in (0, 1):
        (folder,) = (tmp_path / "multirun").glob(f"*/*seed={seed}")
        done = summary(folder)
        assert (done["status"], done["steps"]) == ("completed", 4)


def test_an_evaluation_by_several_ranks_says_what_one_process_does(tmp_path):
    run(tmp_path, "trm.train", *ARGUMENTS, "hardware=cpu", "hardware.dtype=float64", "train.max_steps=3")
    said = {}
    for name, start_of, more in (
        ("alone", [sys.executable, "-m"], []),
        ("torchrun", torchrun(2), []),
        ("by itself", [sys.executable, "-m"], ["hardware.num_devices=2"]),
    ):
        process = start(tmp_path, [*start_of, "trm.evaluate", "checkpoint=outputs/r", *more])
        output, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, errors[-3000:]
        said[name] = json.loads(output.splitlines()[-1])
    assert said["torchrun"] == said["by itself"] == pytest.approx(said["alone"], rel=1e-9)
