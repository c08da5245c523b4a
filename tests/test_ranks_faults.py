"""Commands of several ranks of which one is stopped, killed, or told something else: the real launchers and their exit codes.

tests/test_ranks.py has what ranks must agree on, in processes that are started once.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import TINY, command, environment, free_port, metrics, run, summary

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

started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_goes_on():
    """What a failed test leaves is told to stop, and an agent tells its ranks."""
    yield
    left = [process for process in started if process.poll() is None]
    for process in left:
        process.terminate()
    for process in left:
        process.communicate(timeout=60)
    started.clear()


def start(folder, argv, **extra):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = environment(PYTHONPATH=path, OMP_NUM_THREADS="1", **extra)
    started.append(subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return started[-1]


def torchrun(ranks, *options):
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *(options or ["--standalone"]), "-m"]


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


def losses(folder, after):
    return [line["loss"] for line in metrics(folder / "outputs/r", "train") if line["global_step"] > after]


def preempted(folder):
    """The step at which the run stopped, which it has saved."""
    stopped, step = summary(folder / "outputs/r"), steps_in(folder / "outputs/r/checkpoints")[-1]
    assert (stopped["status"], stopped["steps"]) == ("preempted", step)
    return step


def test_ctrl_c_on_the_command_has_all_ranks_save_one_step(tmp_path):
    agent = start(tmp_path, command("trm.train", *ARGUMENTS, ENDLESS, "hardware.num_devices=4"))
    trains(tmp_path, agent, 1)
    agent.send_signal(signal.SIGINT)
    _, errors = agent.communicate(timeout=LIMIT_S)
    assert agent.returncode == EXIT_PREEMPTED, errors[-3000:]
    preempted(tmp_path)


def test_two_machines_stop_together_where_one_is_taken_away_and_go_on_when_both_are_there(tmp_path):
    """torchrun's agents of two machines are here two on this one."""

    def agents(*arguments):
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
        argv = [*torchrun(1, "--nnodes=2", "--rdzv-id=r", *meeting), "trm.train", *ARGUMENTS, *arguments]
        return [start(tmp_path, argv) for _ in range(2)]

    first, second = agents(ENDLESS)
    wait_for(lambda: steps_in(tmp_path / "outputs/r/checkpoints"), first)
    second.terminate()
    ended = [agent.communicate(timeout=LIMIT_S) for agent in (first, second)]
    assert first.returncode == second.returncode == 1, ended  # which torchrun makes of 143
    step = preempted(tmp_path)
    again = agents(f"train.max_steps={step + 4}")
    ended = [agent.communicate(timeout=LIMIT_S) for agent in again]
    assert [agent.returncode for agent in again] == [0, 0], ended
    done = summary(tmp_path / "outputs/r")
    assert (done["status"], done["steps"], len(losses(tmp_path, step))) == ("completed", step + 4, 4)


def test_where_a_rank_is_killed_the_others_end_with_a_line_and_the_same_command_goes_on(tmp_path):
    agent = start(tmp_path, command("trm.train", *ARGUMENTS, "train.max_steps=3000"))
    os.kill(trains(tmp_path, agent, 1), signal.SIGKILL)
    began = time.monotonic()
    _, errors = agent.communicate(timeout=LIMIT_S)
    print(f"the command ended {time.monotonic() - began:.1f} s after one of its ranks was killed")
    assert agent.returncode == 1
    assert errors.count("error: another process of this run ended or does not answer") == 1, errors
    assert "Traceback" not in errors
    failed = summary(tmp_path / "outputs/r")
    assert (failed["status"], "another process" in failed["reason"]) == ("failed", True)
    step = steps_in(tmp_path / "outputs/r/checkpoints")[-1]
    run(tmp_path, "trm.train", *ARGUMENTS, f"train.max_steps={step + 3}", process=True, OMP_NUM_THREADS="1")
    assert summary(tmp_path / "outputs/r")["status"] == "completed"


def test_torchrun_starts_the_ranks_again_and_the_run_goes_on(tmp_path):
    agent = start(tmp_path, [*torchrun(2, "--standalone", "--max-restarts=2"), "trm.train", *ARGUMENTS, "train.max_steps=400"])
    os.kill(trains(tmp_path, agent, 1), signal.SIGKILL)
    _, errors = agent.communicate(timeout=LIMIT_S)
    assert agent.returncode == 0, errors[-3000:]
    done = summary(tmp_path / "outputs/r")
    assert (done["status"], done["steps"]) == ("completed", 400)
    assert "resuming from" in (tmp_path / "outputs/r/train.log").read_text()


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
    said = {"alone": json.loads(run(tmp_path, "trm.evaluate", "checkpoint=outputs/r").stdout.splitlines()[-1])}
    for name, start_of, more in (
        ("torchrun", torchrun(2), []),
        ("by itself", [sys.executable, "-m"], ["hardware.num_devices=2"]),
    ):
        process = start(tmp_path, [*start_of, "trm.evaluate", "checkpoint=outputs/r", *more])
        output, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, errors[-3000:]
        said[name] = json.loads(output.splitlines()[-1])
    assert said["torchrun"] == said["by itself"] == pytest.approx(said["alone"], rel=1e-9)
