"""train.init_from and number formats: what is taken over has the new run's types, and what is saved can be read back."""

import pytest
import torch
from running import TINY, run

from trm.core import programs
from trm.run.checkpoint import load_checkpoint
from trm.run.saved import open_run

DTYPES = ["float32", "bfloat16", "float64"]
SHORT = [*TINY, "train.max_steps=1", "train.eval_every_steps=null", "evaluate.max_puzzles=16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with a run in each number format, of latents that the other runs do not have."""
    folder = tmp_path_factory.mktemp("work")
    for dtype in DTYPES:
        run(folder, "trm.train", *SHORT, f"run_name={dtype}", f"hardware.dtype={dtype}", "recursion.variant=multi_scale_z")
    return folder


def types_in(tensors, *kinds):
    return {tensor.dtype for name, tensor in tensors.items() if name.startswith(kinds)}


@pytest.mark.parametrize("there", DTYPES)
@pytest.mark.parametrize("here", DTYPES)
def test_weights_of_any_number_format_start_a_run_in_any(folder, there, here):
    name, narrow, master = f"{there}_{here}", getattr(torch, here), torch.float64 if here == "float64" else torch.float32
    arguments = [*SHORT, f"run_name={name}", f"hardware.dtype={here}", f"train.init_from=outputs/{there}"]
    for steps in (1, 2):  # the second start goes on from the first one's checkpoint
        run(folder, "trm.train", *arguments, f"train.max_steps={steps}")
    tensors, _ = load_checkpoint(folder / "outputs" / name / "checkpoints" / "step_2")
    assert types_in(tensors, "fixed/", "carry/latents") == {narrow}
    assert types_in(tensors, "weights/", "ema/", "m/", "v/", "metrics") == {master}
    assert {key for key in tensors if key.startswith("fixed/")} == {"fixed/init.z_H", "fixed/init.z_L"}
    opened = open_run(folder / "outputs" / there, [f"hardware.dtype={here}"])
    assert types_in(opened.weights | opened.ema, "") == {master}
    assert types_in(opened.fixed, "init.") == {narrow}


def test_weights_that_do_not_fit_are_refused_in_one_line(folder):
    wrong = [*SHORT, "run_name=wrong", "train.init_from=outputs/float32", "model.hidden_size=32"]
    done = run(folder, "trm.train", *wrong, check=2)
    assert "train.init_from=outputs/float32" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_state_that_could_not_be_read_back_is_not_written(folder, monkeypatch):
    def wider(*args, **options):
        state = step(*args, **options)
        return state._replace(step=state.step.long())

    step = programs.train_step
    monkeypatch.setattr(programs, "train_step", wider)
    done = run(folder, "trm.train", *SHORT, "run_name=wider", check=2)
    assert "tensor step is torch.int64" in done.stderr
    assert not list((folder / "outputs" / "wider").glob("checkpoints/step_*"))
