"""Whole runs through torch_xla and inductor: they learn the same, resume to the byte, and compile once."""

import pytest
import torch
from running import INDUCTOR, TINY, XLA, metrics, numbers, run, summary, warnings

from trm.run.checkpoint import load_checkpoint

pytestmark = pytest.mark.long
ENGINES = {"xla": XLA, "inductor": INDUCTOR}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with one uninterrupted run on each engine."""
    folder = tmp_path_factory.mktemp("work")
    for name, engine in ENGINES.items():
        run(folder, "trm.train", *TINY, *engine, f"run_name={name}")
    return folder


def outputs(folder, name):
    return folder / "outputs" / name


def state(run_dir):
    return (run_dir / "checkpoints" / "step_20" / "state.safetensors").read_bytes()


def test_all_engines_learn_the_same(folder):
    run(folder, "trm.train", *TINY, "run_name=eager")
    eager, xla, inductor = (metrics(outputs(folder, name), "train")[:3] for name in ("eager", "xla", "inductor"))
    for other in (xla, inductor):
        assert [line["loss"] for line in other] == pytest.approx([line["loss"] for line in eager], rel=1e-4)


@pytest.mark.parametrize("name", ENGINES)
def test_a_resumed_run_ends_with_the_same_bytes_and_nothing_compiles_again(folder, name):
    whole, parts = outputs(folder, name), outputs(folder, f"{name}_parts")
    run(folder, "trm.train", *TINY, *ENGINES[name], f"run_name={name}_parts", "train.max_steps=7")
    run(folder, "trm.train", *TINY, *ENGINES[name], f"run_name={name}_parts")
    assert summary(parts)["resumed_from_step"] == 7
    assert state(parts) == state(whole)
    assert numbers(parts) == numbers(whole)
    # after the first step, which compiles the training graphs, and the evaluation's, nothing compiles any more
    assert {line["compiles"] for line in metrics(whole, "train")[1:]} == {summary(whole)["compiles"]}
    assert warnings(whole) == []


@pytest.mark.parametrize("name", ENGINES)
def test_evaluate_reproduces_the_last_evaluation_exactly(folder, name):
    done = run(folder, "trm.evaluate", f"checkpoint=outputs/{name}")
    assert f"exact_accuracy   {summary(outputs(folder, name))['exact_accuracy']:.6g}" in done.stdout


def test_bfloat16_trains_float32_weights_and_starts_like_float32(folder):
    """Compiled, as on a TPU; the learning curves are compared in docs/results/bfloat16.md."""
    run(folder, "trm.train", *TINY, *XLA, "run_name=narrow", "hardware.dtype=bfloat16")
    losses = [[line["loss"] for line in metrics(outputs(folder, name), "train")] for name in ("narrow", "xla")]
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=0.01)  # then rounding parts them: see README, "Faithful"
    assert losses[0] != losses[1]
    tensors = load_checkpoint(outputs(folder, "narrow") / "checkpoints" / "step_20")[0]
    wide = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert {name for name in tensors if name.startswith(("weights/", "m/", "v/", "ema/"))} <= wide
    assert any(tensor.dtype == torch.bfloat16 for name, tensor in tensors.items() if name.startswith("carry/"))


@pytest.mark.parametrize("engine", [[], XLA], ids=["torch", "xla"])
def test_a_trace_of_some_steps_is_written(tmp_path, engine):
    run(tmp_path, "trm.train", *TINY, *engine, "run_name=traced", "train.profile_steps=[10,13]")
    files = [path for path in (tmp_path / "outputs" / "traced" / "profile").rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) > 10_000
