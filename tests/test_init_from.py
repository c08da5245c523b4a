"""train.init_from and number formats: what is taken over has the new run's types, and what is saved can be read back."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from running import SMALLEST, run

from trm.cli import compose
from trm.core import programs
from trm.core.architecture import architecture
from trm.core.initial import init_buffers
from trm.core.step import init_state
from trm.run import resume
from trm.run.checkpoint import flatten, load_checkpoint, save_checkpoint
from trm.run.experiment import Experiment
from trm.run.saved import open_run

SHORT = [*SMALLEST, "train.eval_every_steps=null"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the run `outputs/float32`, of latents that the other runs do not have."""
    folder = tmp_path_factory.mktemp("work")
    run(folder, "trm.train", *SHORT, "run_name=float32", "recursion.variant=multi_scale_z")
    return folder


def types_in(tensors, *kinds):
    return {tensor.dtype for name, tensor in tensors.items() if name.startswith(kinds)}


def test_weights_of_any_number_format_start_a_run_in_any(folder):
    """Each run starts from the one before it, and goes on from its own checkpoint."""
    there = "float32"
    for here, name in (("bfloat16", "bfloat16"), ("float64", "float64"), ("float32", "again")):
        narrow, master = getattr(torch, here), torch.float64 if here == "float64" else torch.float32
        arguments = [*SHORT, f"run_name={name}", f"hardware.dtype={here}", f"train.init_from=outputs/{there}"]
        steps = (1, 2) if here == "bfloat16" else (2,)
        for last in steps:
            run(folder, "trm.train", *arguments, f"train.max_steps={last}")
        tensors, _ = load_checkpoint(folder / "outputs" / name / "checkpoints" / "step_2")
        assert types_in(tensors, "fixed/", "carry/latents") == {narrow}
        assert types_in(tensors, "weights/", "ema/", "optimizer/", "metrics/") == {master}
        assert {key for key in tensors if key.startswith("fixed/")} == {"fixed/init.z_H", "fixed/init.z_L"}
        opened = open_run(folder / "outputs" / there, [f"hardware.dtype={here}"])
        assert types_in(opened.weights | opened.ema, "") == {master}
        assert types_in(opened.buffers, "init.") == {narrow}
        there = name


@pytest.mark.parametrize(
    ("rows_there", "rows_here", "same_puzzles", "taken"),
    [
        (3, 3, True, "rows"),
        (3, 3, False, "mean"),
        (5, 3, True, "mean"),
        (1, 1, False, "rows"),
        (3, None, True, None),
        (None, 3, True, "fresh"),
    ],
)
def test_an_embedding_is_taken_over_where_its_identifiers_are_the_same(folder, rows_there, rows_here, same_puzzles, taken):
    """Else every row starts from the mean of the other run's, and of a run without one there is none to take."""
    cfg = compose([*SHORT, "run_name=r", "model=tiny_attention"])  # whose weights do not depend on the tokens of the prefix
    models, arches = [], []
    for rows in (rows_there, rows_here):
        models.append(replace(cfg, model=replace(cfg.model, puzzle_emb_ndim=8 if rows else 0, puzzle_emb_len=0)))
        arches.append(architecture(models[-1], seq_len=16, vocab_size=6, num_puzzle_identifiers=rows or 1))
    there, here = (init_state(model, arch, init_buffers(arch, 0)) for model, arch in zip(models, arches, strict=True))
    if rows_there:
        there = there._replace(puzzle_embedding=torch.arange(8.0 * rows_there).reshape(rows_there, 8))
    _, meta = load_checkpoint(folder / "outputs" / "float32" / "checkpoints" / "step_1")
    saved = folder / f"outputs_{rows_there}_{rows_here}_{same_puzzles}"
    tensors = flatten(there) | {f"fixed/{name}": start for name, start in init_buffers(arches[0], 0).items()}
    save_checkpoint(saved, tensors, replace(meta, data_digest="there"), keep=1)
    content = SimpleNamespace(train_digest="there" if same_puzzles else "other")
    given = replace(models[1], train=replace(models[1].train, init_from=str(saved)))
    exp = Experiment(given, None, None, None, arches[1], init_buffers(arches[1], 0), 1, content)
    _, state = resume._from_other_run(exp, here)
    assert torch.equal(state.weights["lm_head"], there.weights["lm_head"])
    table = state.puzzle_embedding
    expected = {
        "rows": there.puzzle_embedding,
        "fresh": here.puzzle_embedding,
        "mean": None if not rows_there else there.puzzle_embedding.mean(0).expand(rows_here or 1, 8),
    }
    assert table is None if taken is None else torch.equal(table, expected[taken])


def test_weights_that_do_not_fit_are_refused_in_one_line(folder):
    wrong = [*SHORT, "run_name=wrong", "train.init_from=outputs/float32", "model.hidden_size=32"]
    done = run(folder, "trm.train", *wrong, check=2)
    assert "train.init_from=outputs/float32" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_state_that_could_not_be_read_back_is_not_written(folder, monkeypatch):
    def wider(*args, **options):
        state, outputs = step(*args, **options)
        return state._replace(step=state.step.long()), outputs

    step = programs.train_step
    monkeypatch.setattr(programs, "train_step", wider)
    done = run(folder, "trm.train", *SHORT, "run_name=wider", check=2)
    assert "tensor step is torch.int64" in done.stderr
    assert not list((folder / "outputs" / "wider").glob("checkpoints/step_*"))
