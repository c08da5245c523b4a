"""End-to-end runs of the real entry points on tiny sizes, with plain torch; tests/test_engines.py has the others."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import yaml
from running import INDUCTOR, SMALLEST, TINY, command, environment, metrics, numbers, run, summary, warnings

from trm.backends.native import NativeRuntime
from trm.cli import compose
from trm.config import to_plain, without_others
from trm.core import step
from trm.ground.cores import cores
from trm.ground.folder import exclusive
from trm.ground.signals import StopSignal
from trm.inference.selection import Metrics
from trm.run import resume
from trm.run.checkpoint import load_checkpoint
from trm.run.experiment import build
from trm.train import execute


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory in which the run `outputs/whole` was trained without interruption."""
    folder = tmp_path_factory.mktemp("work")
    done = run(folder, "trm.train", *TINY, "run_name=whole", "tracking=tensorboard")
    for text in (done.stdout, (folder / "outputs" / "whole" / "train.log").read_text()):
        assert re.search(r"Step 20: loss=\d+\.\d{4}, lr=\d\.\d{6}, time=\d+\.\d\ds", text)
        assert re.search(r"Evaluation at step 10: exact_accuracy=\d\.\d{4}, accuracy=\d\.\d{4}, loss=\d+\.\d{4}", text)
    return folder


@pytest.fixture
def whole(folder):
    return folder / "outputs" / "whole"


def test_run_folder(whole):
    names = {p.name for p in whole.iterdir()}
    assert {"train.log", "metrics.jsonl", "summary.json", "config.yaml", "checkpoints", "tensorboard"} <= names
    result = summary(whole)
    assert result["status"] == "completed"
    assert result["steps"] == result["total_steps"] == 20
    assert result["exact_accuracy"] == metrics(whole, "eval")[-1]["exact_accuracy"]
    chosen = {line["global_step"]: line["exact_accuracy"] for line in metrics(whole, "selection")}
    tested = {line["global_step"]: line["exact_accuracy"] for line in metrics(whole, "eval")}
    assert chosen.keys() == tested.keys()
    assert (result["selection_score"], result["selected_on"]) == (max(chosen.values()), "selection")
    assert result["selection_score"] == chosen[result["best_step"]]
    assert result["best_exact_accuracy"] == tested[result["best_step"]]
    assert result["samples_per_s"] > 0
    assert result["training_flops"] > 0
    assert result["threads"] == result["surroundings"]["threads"] >= 1
    assert result["cores"] == cores()
    assert warnings(whole) == []
    assert {p.name for p in (whole / "checkpoints").iterdir()} >= {"step_20", "latest", "best"}
    assert (whole / "checkpoints" / "latest").resolve().name == "step_20"
    assert (whole / "checkpoints" / "best" / "meta.json").exists()
    tensors, meta = load_checkpoint(whole / "checkpoints" / "latest")
    carry = {
        f"carry/{name}" for name in ("steps", "halted", "inputs", "labels", "puzzle_identifiers", "latents/z_H", "latents/z_L")
    }
    assert (
        carry | {"step", "metrics/count", "weights/lm_head", "ema/lm_head", "optimizer/m/lm_head", "optimizer/v/lm_head"}
        <= tensors.keys()
    )
    assert (meta.step, meta.scores.last_eval_step, meta.config["seed"]) == (20, 20, 0)


def test_metrics_have_every_step_once(whole):
    train = metrics(whole, "train")
    assert [line["global_step"] for line in train] == list(range(1, 21))
    assert [line["global_step"] for line in metrics(whole, "eval")] == [10, 20]
    assert all(line["count"] == 40 for line in metrics(whole, "eval"))  # 40 puzzles in batches of 16: padding does not count
    assert train[0]["loss"] == pytest.approx(train[0]["lm_loss"] + 0.5 * train[0]["q_halt_loss"])
    # warm-up: 1/2000 of lr a step
    assert train[9]["lr"] == pytest.approx(1e-4 * 10 / 2000)


def test_evaluate_reproduces_the_last_evaluation_exactly(folder, whole):
    done = run(folder, "trm.evaluate", "checkpoint=outputs/whole")
    result = json.loads(done.stdout.splitlines()[-1])
    last = metrics(whole, "eval")[-1]
    assert result.pop("checkpoint_step") == 20
    assert result == {name: last[name] for name in result}
    assert {"exact_accuracy", "accuracy", "lm_loss", "q_halt_accuracy"} <= result.keys()


def test_exchange_with_the_released_code(folder, whole):
    """Export to the reference's names and back: the evaluation is the run's own."""
    run(folder, "trm.interop", "export", "checkpoint=outputs/whole", "exported.pt")
    run(folder, "trm.interop", "import", "exported.pt", "outputs/imported", *TINY)
    done = run(folder, "trm.evaluate", "checkpoint=outputs/imported")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["lm_loss"] == metrics(whole, "eval")[-1]["lm_loss"]
    refused = run(folder, "trm.interop", "import", "exported.pt", "outputs/wrong", *TINY, "model.num_layers=3", check=2)
    assert "inner.L_level.layers.2" in refused.stderr


def checkpoint_bytes(run_dir, step):
    return {p.name: p.read_bytes() for p in sorted((run_dir / "checkpoints" / f"step_{step}").iterdir())}


def copied(whole, name):
    return shutil.copytree(whole, whole.parent / name, symlinks=True)


def test_a_run_that_goes_on_with_other_threads_or_variables_says_so(folder, whole, monkeypatch):
    threads = load_checkpoint(whole / "checkpoints" / "latest")[1].surroundings["threads"]
    assert threads == summary(whole)["threads"]
    copy = copied(whole, "elsewhere")
    monkeypatch.setattr(resume, "surroundings", lambda hardware: {"threads": 99, "XLA_FLAGS": "--x"})
    run(folder, "trm.train", *TINY, "run_name=elsewhere", "train.max_steps=21")
    (warning,) = warnings(copy)
    assert f"step_20: XLA_FLAGS=None there, --x here; threads={threads} there, 99 here: numbers may differ in their last" in warning


def test_resumed_run_ends_with_the_same_bytes(folder, whole):
    run(folder, "trm.train", *TINY, "run_name=parts", "train.max_steps=7")
    before = summary(folder / "outputs" / "parts")["seconds"]
    done = run(folder, "trm.train", *TINY, "run_name=parts")
    parts = folder / "outputs" / "parts"
    assert "resuming from" in done.stdout
    assert summary(parts)["resumed_from_step"] == 7
    assert summary(parts)["seconds"] > before  # of both starts
    ours, theirs = checkpoint_bytes(parts, 20), checkpoint_bytes(whole, 20)
    assert ours["state.safetensors"] == theirs["state.safetensors"]
    assert metrics(parts, "eval")[-1] == metrics(whole, "eval")[-1]
    assert numbers(parts) == numbers(whole)
    assert warnings(parts) == []


def test_ema_off_trains_the_same_weights(folder, whole):
    """So that a run with an EMA, evaluated with ema=off, is also the run without."""
    run(folder, "trm.train", *TINY, "run_name=plain", "ema=off", "train.max_steps=10")
    plain = folder / "outputs" / "plain"
    assert [line["loss"] for line in metrics(plain, "train")] == [line["loss"] for line in metrics(whole, "train")][:10]
    done = run(folder, "trm.evaluate", "checkpoint=outputs/whole/checkpoints/step_10", "ema=off")
    assert "training weights" in done.stdout
    evaluated = json.loads(done.stdout.splitlines()[-1])
    assert evaluated["exact_accuracy"] == summary(plain)["exact_accuracy"]
    assert evaluated["lm_loss"] == metrics(plain, "eval")[-1]["lm_loss"]


def test_a_machine_without_a_compiler_is_told_what_to_do(folder):
    done = run(
        folder, "trm.train", *TINY, *INDUCTOR, "run_name=no", "data.path=unbuilt", check=2, process=False, CXX="no-such-compiler"
    )
    assert "a C++ compiler (no-such-compiler)" in done.stderr
    assert "hardware=cpu_xla" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "unbuilt").exists()  # told before a dataset is built


def test_a_machine_without_a_gpu_is_told_before_a_dataset_is_built(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    there_is_none = ["hardware.platform=cuda", "run_name=no", "data.path=unbuilt"]
    done = run(folder, "trm.train", *TINY, *there_is_none, check=2, process=False)
    assert "torch finds no CUDA device: use hardware=cpu" in done.stderr
    assert not (folder / "unbuilt").exists()


def test_damaged_newest_checkpoint_falls_back(folder, whole):
    copy = copied(whole, "damaged")
    newest = copy / "checkpoints" / "step_20" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    done = run(folder, "trm.train", *TINY, "run_name=damaged")
    assert "checkpoints/step_15" in next(line for line in done.stdout.splitlines() if "resuming from" in line)
    assert "step_20" in summary(copy)["warnings"][0]
    assert checkpoint_bytes(copy, 20) == checkpoint_bytes(whole, 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_saves_and_exits_143(folder, number):
    run_dir = folder / "outputs" / f"stopped_{number.name}"
    arguments = [*TINY, f"run_name={run_dir.name}", "train.max_steps=100000", "train.eval_every_steps=null"]

    def stop():
        while not ((run_dir / "train.log").exists() and "Step 3:" in (run_dir / "train.log").read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    done = run(folder, "trm.train", *arguments, check=143)
    result = summary(run_dir)
    assert result["status"] == "preempted"
    assert (run_dir / "checkpoints" / f"step_{result['steps']}" / "meta.json").exists()
    assert "Traceback" not in done.stdout + done.stderr
    with exclusive(run_dir):
        second = run(folder, "trm.train", *arguments, check=2)
    assert "another process is training in this folder" in second.stderr


@pytest.mark.long
def test_a_stop_inside_an_evaluation_does_not_wait_for_its_end(tmp_path):
    """The state is saved at once; the resumed run evaluates first and ends with the bytes of one that was never stopped."""
    arguments = [*TINY, "train.max_steps=3", "data.num_test_puzzles=120", "evaluate.max_puzzles=null", "evaluate.batch_size=1"]
    process = subprocess.Popen(
        command("trm.train", *arguments, "run_name=stopped"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    stopped, whole = tmp_path / "outputs" / "stopped", tmp_path / "outputs" / "whole"
    try:
        deadline = time.monotonic() + 200
        while not ((stopped / "train.log").exists() and "Step 3:" in (stopped / "train.log").read_text()):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143, output
    assert (summary(stopped)["status"], summary(stopped)["steps"], summary(stopped)["last_eval_step"]) == ("preempted", 3, None)
    run(tmp_path, "trm.train", *arguments, "run_name=stopped")
    run(tmp_path, "trm.train", *arguments, "run_name=whole")
    assert summary(stopped)["status"] == "completed"
    assert metrics(stopped, "eval") == metrics(whole, "eval")
    assert checkpoint_bytes(stopped, 3) == checkpoint_bytes(whole, 3)


def test_an_evaluation_that_is_not_finite_is_not_recorded(folder, tmp_path, monkeypatch):
    means = Metrics.means
    monkeypatch.setattr(Metrics, "means", lambda self: [values | {"lm_loss": float("nan")} for values in means(self)])
    done = run(tmp_path, "trm.train", *SMALLEST, "run_name=r", process=False, check=1)
    assert "step 1: the evaluation is not finite (lm_loss is nan), though its weights are" in done.stderr
    assert (summary(tmp_path / "outputs/r")["status"], metrics(tmp_path / "outputs/r", "eval")) == ("failed", [])
    done = run(folder, "trm.evaluate", "checkpoint=outputs/whole", check=1)
    assert "the evaluation is not finite (lm_loss is nan)" in done.stderr
    assert "exact_accuracy" not in done.stdout


def test_an_average_that_is_not_finite_becomes_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "update_ema", lambda ema, *_: {name: weight * float("nan") for name, weight in ema.items()})
    settings = ["train.max_steps=2", "train.eval_every_steps=null", "train.checkpoint_every_steps=1", "run_name=r"]
    done = run(tmp_path, "trm.train", *TINY, *settings, process=False, check=1)
    assert re.search(r"step 1: the weights \S+ and \d+ more are not finite", done.stderr)
    assert not list((tmp_path / "outputs" / "r").glob("checkpoints/step_*"))


def refusal(folder, *arguments):
    """The one line that training with these arguments is refused with."""
    done = run(folder, "trm.train", *TINY, *arguments, check=2, process=False)
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_other_training_puzzles_and_fewer_steps_than_were_done_are_refused(folder, whole):
    os.remove(copied(whole, "other") / "summary.json")  # as after kill -9
    path = yaml.safe_load((whole / "config.yaml").read_text())["data"]["path"]
    puzzles = shutil.copytree(folder / path, folder / "puzzles")
    for name in ("inputs", "labels"):
        file = puzzles / "train" / f"all__{name}.npy"
        np.save(file, np.load(file)[::-1])
    assert "data.path=puzzles holds other training puzzles" in refusal(folder, "run_name=other", "data.path=puzzles")
    told = refusal(folder, "run_name=other", "train.max_steps=7")
    assert "train.max_steps=7: " in told
    assert "is at step 20 already" in told
    told = refusal(folder, "run_name=other", "train.max_steps=null", "train.max_flops=1e6")
    assert re.search(r"train.max_flops=1000000.0: ends at step 1, and \S*outputs/other is at step 20 already", told)
    told = refusal(folder, "run_name=other", "seed=5", "optimizer.lr=0.5")
    assert "optimizer.lr=0.0001 there, 0.5 here" in told
    assert "seed=0 there, 5 here" in told


@pytest.mark.parametrize(
    ("argument", "words"), [("+foo=1", "foo is not a config key"), ("recursion=t9", "t2_n2"), ("recursion.T=0", "recursion.T=0")]
)
def test_settings_that_there_are_not_are_refused(tmp_path, argument, words):
    assert words in refusal(tmp_path, argument)


@pytest.mark.long
def test_a_machine_without_a_tpu_is_told_what_to_do(tmp_path):
    done = run(tmp_path, "trm.train", "tracking=none", "data=sudoku_4x4", "hardware=v4_64", "run_name=pod", check=2, process=True)
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "hardware=cpu" in error
    assert "Traceback" not in done.stderr


def test_help_lists_every_group(tmp_path):
    from trm.config.groups import CONF_DIR, GROUPS

    done = run(tmp_path, "trm.train", "--help", process=False)
    folders = {p.name for p in CONF_DIR.iterdir() if p.is_dir()} - {"hydra"}
    assert folders == GROUPS.keys()
    for group in folders:
        assert re.search(rf"^ +{group} +\w", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("module", ["trm.train", "trm.build_data"])
def test_cfg_prints_the_values_that_the_run_will_have_and_info_their_ratios(tmp_path, module):
    given = ["recursion=t4_n6", "recipe.width_scale=0.5", "run_name=1e3"]
    printed = yaml.safe_load(run(tmp_path, module, "--cfg", "job", *given, process=False).stdout)
    assert (printed["recursion"]["T"], printed["model"]["hidden_size"], printed["run_name"]) == (4, 256, "1e3")
    assert printed | {"data": without_others(printed["data"])} == to_plain(compose(given))  # keys of other tasks are null
    info = run(tmp_path, module, "--info", "config", *given, process=False).stdout
    assert "hidden_size: ${trm_times:512,${recipe.width_scale}}" in info
    assert "width_scale: 0.5" in info


def test_a_completed_run_says_what_its_evaluation_had_otherwise_and_names_the_command_for_another(folder, whole):
    command = r"python -m trm\.evaluate checkpoint=\S*outputs/whole KEY=VALUE"
    done = run(folder, "trm.train", *TINY, "run_name=whole", "inference=votes8", "evaluate.max_puzzles=30")
    [told] = re.findall(rf"nothing to train: .* 20 steps, evaluated with other settings \((.*)\); {command}", done.stdout)
    keys = {words.partition("=")[0] for words in told.split("; ")}
    assert {"inference.name", "inference.copies", "evaluate.max_puzzles"} <= keys
    assert "evaluate.max_puzzles=40 there, 30 here" in told
    assert re.search(
        rf"nothing to train: \S+ already holds all 20 steps; {command}", run(folder, "trm.train", *TINY, "run_name=whole").stdout
    )


def test_a_graph_that_is_compiled_again_is_a_warning(tmp_path):
    class Recompiling(NativeRuntime):
        def compile_count(self):
            self.asked = getattr(self, "asked", 0) + 1
            return self.asked

    cfg = compose([*TINY, f"data.path={tmp_path}/data", "train.max_steps=3"])
    execute(build(cfg, Recompiling(cfg.hardware)), tmp_path, StopSignal())
    [warning] = warnings(tmp_path)
    assert "compiled again after the first step" in warning
