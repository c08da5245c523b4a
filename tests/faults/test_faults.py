"""A run meets a fault: the right exit code, one clear line, and nothing lost beyond the last checkpoint."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from fake_wandb import KEY, FakeWandb
from running import TINY, XLA, command, environment, metrics, run, small_disk, summary

from trm.run.checkpoint import saved_steps

pytestmark = pytest.mark.long
# Long enough to be hurt on the way, with a checkpoint at every fifth step.
FAULTY = [*TINY, "train.max_steps=30", "train.eval_every_steps=10"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A working directory in which `outputs/whole` was trained by FAULTY without a fault."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, "trm.train", *FAULTY, "run_name=whole")
    return folder


def state(run_dir, step=30):
    return (run_dir / "checkpoints" / f"step_{step}" / "state.safetensors").read_bytes()


def errors(done):
    """The one line of a command that failed; there is nothing else on stderr."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def copied(trained):
    """The finished run under another name, to be hurt."""
    copy = trained / "outputs" / "copy"
    shutil.copytree(trained / "outputs" / "whole", copy, symlinks=True)
    yield copy
    shutil.rmtree(copy)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_without_a_whole_checkpoint_the_run_refuses_to_start_over_by_itself(trained, copied):
    for folder in (copied / "checkpoints").glob("step_*"):
        truncated(folder / "state.safetensors")
    refused = run(trained, "trm.train", *FAULTY, "run_name=copy", check=2)
    assert "train.resume=never" in next(line for line in refused.stderr.splitlines() if line.startswith("error: "))
    assert "Traceback" not in refused.stderr
    before = sorted(p.name for p in (copied / "checkpoints").glob("step_*"))
    run(trained, "trm.train", *FAULTY, "run_name=copy", "train.resume=never")
    assert sorted(p.name for p in (copied / "checkpoints.1").glob("step_*")) == before
    assert state(copied) == state(trained / "outputs" / "whole")


# --------------------------------------------------------------------------------------------------------------------- disk


@pytest.fixture
def mount(tmp_path):
    """A function that mounts a tmpfs with these options at the `outputs` of tmp_path."""
    with small_disk(tmp_path / "outputs") as mount:

        def mounted(*options):
            if not mount(*options):
                pytest.skip("a tmpfs cannot be mounted here")

        yield mounted


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(trained, tmp_path, mount):
    mount("-o", "size=8m")
    done = run(tmp_path, "trm.train", *FAULTY, "run_name=full", check=1)
    assert "No space left on device" in errors(done)
    left = saved_steps(tmp_path / "outputs" / "full")
    assert left
    assert left[-1] < 30
    subprocess.run(["mount", "-o", "remount,size=100m", str(tmp_path / "outputs")], check=True)
    again = run(tmp_path, "trm.train", *FAULTY, "run_name=full")
    assert f"step_{left[-1]}" in next(line for line in again.stdout.splitlines() if "resuming from" in line)
    assert state(tmp_path / "outputs" / "full") == state(trained / "outputs" / "whole")


# --------------------------------------------------------------------------------------------------------------------- data


def test_a_dataset_that_vanishes_while_training_does_not_matter(trained, tmp_path):
    built = next(trained.glob("data/*/train")).parent
    shutil.copytree(built, tmp_path / "dataset")
    process = subprocess.Popen(
        command("trm.train", *FAULTY, "run_name=vanish", f"data.path={tmp_path / 'dataset'}"),
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if "compiling the training step" in line:
                truncated(tmp_path / "dataset" / "train" / "all__inputs.npy")
                shutil.rmtree(tmp_path / "dataset")
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
    assert state(tmp_path / "outputs" / "vanish") == state(trained / "outputs" / "whole")


# --------------------------------------------------------------------------------------------------------------- divergence


def test_a_loss_that_is_not_finite_stops_the_run_with_a_diagnosis(tmp_path):
    # weight decay of factor 1 - 0.05 * 1000 = -49 a step: the weights overflow after some twenty steps
    wild = ["optimizer.lr=0.05", "optimizer.weight_decay=1000", "optimizer.warmup_steps=0", "train.log_every_steps=20"]
    done = run(tmp_path, "trm.train", *FAULTY, *wild, "run_name=wild", "train.checkpoint_every_steps=1", check=1)
    line = errors(done)
    assert re.search(r"(lm_loss|q_halt_loss) is -?(nan|inf)|the weights \S+", line)  # which term
    assert "not finite" in line
    run_dir = tmp_path / "outputs" / "wild"
    result = summary(run_dir)
    assert (result["status"], result["reason"]) == ("failed", line.removeprefix("error: "))
    newest = saved_steps(run_dir)[-1]
    assert f"step_{newest} is the last good checkpoint" in line
    assert f"step {newest + 1}: " in line
    assert "optimizer.lr=0.05" in line


# ------------------------------------------------------------------------------------------------------- machine and memory


def test_a_torch_xla_that_does_not_load_is_told_with_the_way_out(tmp_path):
    (tmp_path / "broken" / "torch_xla").mkdir(parents=True)
    (tmp_path / "broken" / "torch_xla" / "__init__.py").write_text("raise ImportError('_XLAC.so: undefined symbol: view')\n")
    done = subprocess.run(
        command("trm.train", *FAULTY, *XLA), cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path / "broken")),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    line = errors(done)
    assert "undefined symbol" in line
    assert "make setup" in line
    assert "hardware.backend=eager" in line


# ------------------------------------------------------------------------------------------------------------------- trackers


def test_wandb_dying_in_the_middle(tmp_path):
    with FakeWandb() as server:
        wandb = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_DIR": str(tmp_path)}
        process = subprocess.Popen(
            command("trm.train", *FAULTY, "tracking=auto", "run_name=dying"), cwd=tmp_path, text=True,
            env=environment(**wandb, WANDB_CONFIG_DIR=f"{tmp_path}/wandb"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            log = tmp_path / "outputs" / "dying" / "train.log"
            end = time.monotonic() + 120
            while not (log.exists() and "Step 3:" in log.read_text()):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < end
                time.sleep(0.05)
            server.stop()
            _, err = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 0, err
    result = summary(tmp_path / "outputs" / "dying")
    assert result["status"] == "completed"
    assert [w for w in result["warnings"] if "wandb sync" in w]
    assert len(metrics(tmp_path / "outputs" / "dying", "train")) == 30
    assert "Traceback" not in err
    written = [p for p in (tmp_path / "outputs").rglob("*") if p.is_file()]
    assert not [p for p in written if KEY.encode() in p.read_bytes()], "the key was written down"


# -------------------------------------------------------------------------------------------------------------------- signals


def test_a_second_signal_ends_the_run_at_once(tmp_path):
    """While the first one waits for a step that takes long (here: a run that is stopped from outside)."""
    process = subprocess.Popen(
        command("trm.train", *FAULTY, "run_name=twice", "train.max_steps=100000", "train.eval_every_steps=null"),
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if "Step 8:" in line:
                break
        os.kill(process.pid, signal.SIGSTOP)  # both signals are there before it can look at the first one
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(timeout=60) in (-signal.SIGTERM, -signal.SIGINT)
    finally:
        process.kill()
    assert saved_steps(tmp_path / "outputs" / "twice")[-1] >= 5
