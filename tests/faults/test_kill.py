"""kill -9 at any moment: the run goes on from its last checkpoint and ends with the bytes of one that was never hurt.

TRM_KILLS=N sets how often (default 10; `make nightly`: 50), TRM_FAULT_SEED the random moments.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from running import TINY, XLA, command, environment, numbers, run

from trm.run.checkpoint import load_checkpoint, saved_steps

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("TRM_KILLS", "10"))
SEED = int(os.environ.get("TRM_FAULT_SEED", "0"))
ENDLESS = [*TINY, *XLA, "train.eval_every_steps=null", "train.checkpoint_every_steps=1"]


def wait_for(process, condition, timeout_s=120):
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.returncode
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)


@pytest.mark.timeout(120 + 60 * KILLS)  # other tests run beside it
def test_killed_runs_lose_nothing_but_the_steps_since_the_last_checkpoint(tmp_path):
    moments = random.Random(SEED)
    run_dir = tmp_path / "outputs" / "killed"
    checkpoints = run_dir / "checkpoints"
    inside_a_write, resumed_after_s, cut = 0, [], set[int]()
    for kill in range(KILLS):
        before = saved_steps(run_dir)[-1:] or [0]
        began = time.monotonic()
        with (tmp_path / f"out_{kill}").open("w") as out:
            process = subprocess.Popen(
                command("trm.train", *ENDLESS, "run_name=killed", "train.max_steps=100000"),
                cwd=tmp_path, env=environment(), stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            if kill % 5 == 4:  # anywhere in the start-up
                time.sleep(moments.uniform(0, 8))
            else:
                wait_for(process, lambda seen=before[0]: (saved_steps(run_dir)[-1:] or [0])[0] > seen)
                resumed_after_s.append(time.monotonic() - began)
                time.sleep(moments.uniform(0, 1))
                if kill % 2 == 0:  # while a checkpoint is being written
                    wait_for(process, lambda: any(checkpoints.glob(".writing_*")))
                    time.sleep(moments.uniform(0, 0.002))
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
        after = saved_steps(run_dir)[-1:] or [0]
        assert after[0] >= before[0], "a checkpoint was lost"
        output = (tmp_path / f"out_{kill}").read_text()
        assert "Traceback" not in output
        resumed = re.search(r"resuming from \S*step_(\d+)", output)
        if resumed:
            # one that was whole on disk and had no name yet is completed at the next start
            assert int(resumed[1]) in {before[0], *cut}, "not the newest checkpoint"
        cut = {int(path.name.rpartition("_")[2]) for path in checkpoints.glob(".writing_*")}
        inside_a_write += bool(cut)
        if after[0]:
            load_checkpoint(checkpoints / f"step_{after[0]}")  # whole

    assert inside_a_write or KILLS < 10
    last = after[0] + 5
    run(tmp_path, "trm.train", *ENDLESS, "run_name=killed", f"train.max_steps={last}")
    run(tmp_path, "trm.train", *ENDLESS, "run_name=whole", f"train.max_steps={last}", "train.checkpoint_every_steps=null")
    whole = tmp_path / "outputs" / "whole"
    names = [folder / "checkpoints" / f"step_{last}" / "state.safetensors" for folder in (run_dir, whole)]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert numbers(run_dir) == numbers(whole)
    assert [line["global_step"] for line in numbers(run_dir)] == list(range(1, last + 1))
    mean = sum(resumed_after_s) / len(resumed_after_s)
    facts = {"kills": KILLS, "inside_a_write": inside_a_write, "steps": last, "start_to_first_saved_step_s": round(mean, 1)}
    print("\n" + json.dumps(facts))


KILLED_WHILE_RENAMING = """
import os, runpy, shutil, signal, sys
from pathlib import Path
rename, rmtree, moment = Path.rename, shutil.rmtree, sys.argv.pop(1)
def renamed(self, target):
    if self.name.endswith("step_3"):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
def removed(path, *more, **named):
    if Path(path).name == "step_3":
        (Path(path) / "state.safetensors").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return rmtree(path, *more, **named)
if moment == "renaming":
    Path.rename = renamed
else:
    shutil.rmtree = removed
runpy.run_module("trm.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("moment", ["removing", "renaming"])
def test_killed_while_the_same_step_is_saved_again(tmp_path, moment):
    """While the old folder is removed, and before the new one gets its name: the run goes on from that step all the same."""
    asked = [*TINY, "train.max_steps=4", "train.checkpoint_every_steps=3", "run_name=again"]
    checkpoints = tmp_path / "outputs" / "again" / "checkpoints"
    run(tmp_path, "trm.train", *asked, "train.eval_every_steps=null")
    before = (checkpoints / "step_4" / "state.safetensors").read_bytes()
    shutil.rmtree(checkpoints / "step_4")
    killed = [sys.executable, "-c", KILLED_WHILE_RENAMING, moment, *asked, "train.eval_every_steps=3"]  # evaluates and saves step 3
    done = subprocess.run(killed, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = run(tmp_path, "trm.train", *asked, "train.eval_every_steps=3")
    assert re.search(r"resuming from \S*step_3\b", done.stdout)
    assert (checkpoints / "step_4" / "state.safetensors").read_bytes() == before
    assert {path.name for path in checkpoints.iterdir()} == {"step_3", "step_4", "best", "latest"}
