"""Runs with a curriculum, supervision decay and Muon through the real command: resumed to the byte."""

import re
import shutil

import pytest
from running import TINY, XLA, metrics, run, summary

ALL = ["experiment=cgar", "optimizer=muon"]
# Stages end at steps 6 and 12.
OPTIONS = [
    *TINY,
    *XLA,
    *ALL,
    "train.log_every_steps=3",
    "optimizer.warmup_steps=5",
    "model={hidden_size:16,num_layers:1}",
    "optimizer.clip_grad_norm=1",
]
OPTIONS += ["train.keep_checkpoints=4"]  # step 5 too

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with a run that was never stopped."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "stdout").write_text(run(folder, "trm.train", *OPTIONS, "run_name=whole").stdout)
    return folder


def state_of(folder, name):
    return (folder / "outputs" / name / "checkpoints" / "step_20" / "state.safetensors").read_bytes()


def test_each_stage_is_told_and_compiled_once(folder):
    told = re.findall(r"stage (\d) of 3, to step (\d+): T=(\d), n=(\d)", (folder / "stdout").read_text())
    assert told == [("1", "6", "1", "2"), ("2", "12", "2", "4"), ("3", "20", "2", "2")]
    compiles = {line["global_step"]: line["compiles"] for line in metrics(folder / "outputs" / "whole", "train")}
    assert [compiles[step] - compiles[3] for step in (3, 6, 9, 12, 15, 18, 20)] == [0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("step", [5])  # two stages before the end
def test_a_run_that_goes_on_from_any_checkpoint_ends_with_the_same_bytes(folder, step):
    name = f"from_{step}"
    copy = folder / "outputs" / name
    shutil.copytree(folder / "outputs" / "whole", copy, symlinks=True)
    for later in range(step + 5, 25, 5):  # as if it had been killed before they were written
        shutil.rmtree(copy / "checkpoints" / f"step_{later}", ignore_errors=True)
    run(folder, "trm.train", *OPTIONS, f"run_name={name}")
    assert summary(copy)["resumed_from_step"] == step
    assert state_of(folder, name) == state_of(folder, "whole")
