"""The variants of docs/explanation/variants.md against a trainer that takes one row at a time, and laws of each axis."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest
import torch
import torch.utils._pytree as pytree
import yaml
from row_by_row import RowTrainer
from running import SMALLEST, TINY, refused, run, summary
from test_step import make, make_batch

from trm.backends import start
from trm.cli import compose
from trm.config import HardwareConfig
from trm.core.initial import STD_OF_CUT_NORMAL, init_buffers, init_weights, with_latents
from trm.core.step import empty_carry, eval_step, train_step
from trm.core.variants import VARIANTS

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = {
    "mlp": "gated_norm_swiglu", "registers": 1, "loss": "softmax", "label_smoothing": 0.2, "halt_weight": 0.05, "name": "muon",
    "others": "adamw", "matrix_lr": 0.02, "matrix_weight_decay": 0.005, "matrix_scale": "aspect", "clip_grad_norm": 1.0,
    "schedule": "cosine", "lr_min_ratio": 0.0, "warmup_steps": 0, "total_steps": 6, "ema_start": 3,
}  # fmt: skip
EQR = {"damping": 0.95, "noise": 0.01, "init": "random", "n": 2}
WTA = {"num_hypotheses": 3, "loss": "softmax", "label_smoothing": 0.2, "halt_weight": 0.05}
URM = {"variant": "single_state", "mixer": "attention", "positions": "rope", "mlp": "conv_swiglu", "n": 2, "num_heads": 2}
CASES = {
    "eqr": EQR,
    "eqr, rope2d": EQR | {"mixer": "attention", "positions": "rope2d", "num_heads": 2},
    "urm": URM,
    "urm, damped and noisy, with a register": URM | {"damping": 0.9, "noise": 0.1, "registers": 1},
    "urm with a convolution over the grid": URM | {"mlp": "conv2d_swiglu", "registers": 1},
    "trm with a convolution over the grid": {"mlp": "conv2d_swiglu", "n": 2},
    "winner takes all": WTA,
    "winner takes all, one latent recursion": WTA | {"T": 1, "n": 2},
    "winner takes all of random starts": WTA | EQR | {"num_hypotheses": 2},
    "winner takes all, multi-scale": WTA | {"variant": "multi_scale_z", "n": 2, "num_hypotheses": 2, "loss": "stablemax"},
    "winner takes all, one-step gradient": WTA | {"variant": "one_step_gradient", "n": 2},
    "fast recipe": FAST,
    "fast recipe, winner takes all": FAST | {"num_hypotheses": 2},
    "fast recipe, attention, rope2d, a convolution": FAST
    | {"mixer": "attention", "positions": "rope2d", "num_heads": 2, "mlp": "conv_swiglu", "others": "adam_atan2"},
}


def made(seed=0, ema_start=0, **settings):
    cfg, state, buffers = make(seed=seed, puzzle_emb_ndim=0, **settings)
    return dataclasses.replace(cfg, ema_start=ema_start), state, buffers


@pytest.mark.parametrize("case", CASES)
def test_training_equals_the_row_by_row_trainer(case):
    cfg, state, buffers = made(**CASES[case])
    second, kept, winners = RowTrainer(cfg, state, buffers, seed=0), 0, set()
    for t in range(6):
        batch = make_batch(seed=t, min_steps=[0, 2, 3, 0])
        loss = second.step(batch)
        state, out = train_step(cfg, state, buffers, batch)
        assert out.loss.item() == pytest.approx(loss, rel=1e-7)
        assert out.q_halt.tolist() == pytest.approx([row["q"] for row in second.rows], rel=1e-6, abs=1e-8)
        assert state.carry.halted.tolist() == [row["halted"] for row in second.rows]
        kept, winners = kept + (~state.carry.halted).sum(), winners | {row["winner"] for row in second.rows}
        for z, ours in state.carry.latents.items():
            theirs = [row["y"] if z == "z_H" else torch.stack([copy[z] for copy in row["z"]]) for row in second.rows]
            torch.testing.assert_close(ours, torch.stack(theirs).view(ours.shape), rtol=1e-6, atol=1e-8)
    assert kept
    assert len(winners) > 1 or cfg.arch.latents.num_hypotheses == 1
    for name in state.weights:
        torch.testing.assert_close(state.weights[name], second.weights[name].detach(), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(state.ema[name], second.ema[name], rtol=1e-6, atol=1e-8)
    assert state.step.item() == 6


def test_the_average_is_the_weights_until_it_begins():
    cfg, state, buffers = made(ema_start=2)
    for t in range(3):
        state, _ = train_step(cfg, state, buffers, make_batch(seed=t))
        same = all(torch.equal(state.ema[name], weight) for name, weight in state.weights.items())
        assert same == (t < 2)


def test_a_run_that_ends_before_averaging_begins_says_so(tmp_path):
    run(tmp_path, "trm.train", *SMALLEST, "ema.start_step=1", "run_name=r")
    (warning,) = [words for words in summary(tmp_path / "outputs" / "r")["warnings"] if "ema." in words]
    assert "ema.start_step=1: the run ends at step 1" in warning


def test_random_starts_have_the_std_and_the_cut_that_were_asked_for_and_are_those_of_their_rows():
    cfg, _, buffers = made(init="random", hidden_size=64)
    starts = with_latents(cfg.arch, buffers, 400)
    values = torch.cat([z.flatten() for z in starts.values()])
    assert abs(values.mean().item()) < 0.01
    assert values.std().item() == pytest.approx(1, abs=0.01)
    assert values.abs().max().item() <= 2 / STD_OF_CUT_NORMAL
    assert abs(torch.corrcoef(torch.stack([z.flatten() for z in starts.values()]))[0, 1].item()) < 0.02
    part = with_latents(cfg.arch, buffers, 3, torch.tensor([7, 0, 399]))
    assert all(torch.equal(part[z], starts[z][[7, 0, 399]]) for z in starts)
    later, other = with_latents(cfg.arch, buffers, 400, step=1), with_latents(cfg.arch, init_buffers(cfg.arch, 1), 400)
    assert max((part["z_H"] == starts["z_H"]).double().mean().item() for part in (later, other)) < 1e-4  # 23 random bits


def test_evaluation_runs_the_first_copy_and_its_noise_is_of_the_puzzle():
    cfg, state, buffers = made(**EQR, num_hypotheses=3)
    batch = make_batch(4)
    one = dataclasses.replace(cfg.arch, latents=dataclasses.replace(cfg.arch.latents, num_hypotheses=1))

    def logits(arch, rows):
        carry = empty_carry(arch, buffers, len(rows))
        part = {name: values[rows] for name, values in batch.items()} | {"rows": torch.tensor(rows)}
        for _ in range(2):
            carry, out, _ = eval_step(arch, state.weights, buffers, None, carry, part)
        return out.logits

    whole = logits(cfg.arch, [0, 1, 2, 3])
    assert torch.equal(whole, logits(one, [0, 1, 2, 3]))
    torch.testing.assert_close(logits(cfg.arch, [2, 1]), whole[[2, 1]], rtol=1e-12, atol=1e-12)
    assert torch.equal(whole, logits(cfg.arch, [0, 1, 2, 3]))


@pytest.mark.parametrize(("mlp", "seen"), [("conv_swiglu", 2), ("conv2d_swiglu", 9)])
def test_convolutions_start_as_torchs(mlp, seen):
    cfg, _, _ = made(mlp=mlp, hidden_size=64)
    weights = init_weights(cfg.arch, 0)
    for name in ("net.0.mlp.conv.weight", "net.0.mlp.conv.bias"):
        values = weights[name]
        assert values.abs().max() <= seen**-0.5
        assert values.std().item() == pytest.approx((seen * 3) ** -0.5, rel=0.1)


COMPILED = (
    "eqr, rope2d",
    "urm with a convolution over the grid",
    "urm, damped and noisy, with a register",
    "winner takes all of random starts",
    "fast recipe",
)


@pytest.fixture(scope="module", params=["inductor", "xla"])
def runtime(request):  # by this name torch_xla starts before the first backward pass (conftest.py)
    return start(HardwareConfig(name="cpu", backend=request.param))


@pytest.mark.long
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_it_computes_the_same(case, runtime):
    cfg, state, buffers = made(**CASES[case])
    step = runtime.compile(functools.partial(train_step, cfg))
    ours = runtime.replicate(state._replace(carry=None))._replace(carry=runtime.shard(state.carry))
    for t in range(2):
        batch = make_batch(seed=t, min_steps=[0, 2, 3, 0])
        ours, _ = step(ours, runtime.replicate(buffers), runtime.shard_batch({name: b.numpy() for name, b in batch.items()}))
        state = train_step(cfg, state, buffers, batch)[0]
    for found, wanted in zip(pytree.tree_leaves(runtime.fetch(ours)), pytree.tree_leaves(state), strict=True):
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.long
def test_an_evaluation_with_noise_does_not_depend_on_the_batch(tmp_path):
    eqr = ["recursion.damping=0.95", "recursion.noise=0.3", "latents.init=random", "model.hidden_size=16", "hardware.dtype=float64"]
    run(tmp_path, "trm.train", *TINY, *eqr, "train.max_steps=3", "run_name=r")
    evaluate = ["trm.evaluate", "checkpoint=outputs/r", "evaluate.max_puzzles=40"]
    ways = ([], ["evaluate.batch_size=7"], ["evaluate.batch_size=7"], ["evaluate.batch_size=7", "inference.early_exit=true"])
    losses = [json.loads(run(tmp_path, *evaluate, *way).stdout.splitlines()[-1])["lm_loss"] for way in ways]
    assert losses[1] == losses[2]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-9)  # no row of this young model halts


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recursion.damping=0"], "recursion.damping=0"),
        (["recursion.damping=1.5"], "recursion.damping=1.5"),
        (["recursion.noise=-1"], "recursion.noise=-1"),
        (["latents.init=zero"], "latents.init=zero"),
        (["latents.num_hypotheses=0"], "latents.num_hypotheses=0"),
        (["latents.num_hypotheses=2", "recursion.variant=single_z"], "recursion.variant=single_z has none"),
        (["latents.num_hypotheses=2", "recursion.variant=single_state"], "recursion.variant=single_state has none"),
        (["latents.num_hypotheses=2", "recursion.act_continue=true"], "set recursion.act_continue=false"),
        (["recursion.variant=single_state", "model.separate_networks=true"], "set model.separate_networks=false"),
        (["model.mlp=conv"], "model.mlp=conv"),
        (["model.positions=rope2d"], "set model.mixer=attention"),
        (["model=tiny_attention", "model.positions=rope2d", "model.num_heads=32"], "a head size that 4 divides"),
        (["objective.label_smoothing=1"], "objective.label_smoothing=1"),
        (["optimizer.matrix_lr=0.1"], "set optimizer=muon"),
        (["optimizer.others=adamw"], "set optimizer=muon"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(overrides, words):
    refused(compose, ["data=sudoku_4x4", "recipe=tiny", "run_name=r", *overrides], words)


def test_the_tutorial_says_how_to_add_a_variant(monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "tutorials" / "your_own_variant.md").read_text()
    yaml_lines, code = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("yaml", "python"))
    assert len(yaml_lines.splitlines()) + len(code.splitlines()) < 40
    monkeypatch.setitem(VARIANTS, "echo", None)  # is removed after the test
    exec(compile(code, "docs/tutorials/your_own_variant.md", "exec", dont_inherit=True), {"__name__": "echo"})
    settings = yaml.safe_load(yaml_lines)["recursion"]
    assert compose(
        ["data=sudoku_4x4", "recipe=tiny", "run_name=r", f"recursion.variant={settings['variant']}", "latents.num_hypotheses=2"]
    )
    for more in ({}, EQR, {"num_hypotheses": 2}):
        cfg, state, buffers = made(**settings | more)
        assert set(state.carry.latents) == {"z_H", "z_L", "z_E"}
        losses = []
        for _ in range(10):
            state, out = train_step(cfg, state, buffers, make_batch(seed=1, unlabelled=0))
            losses.append(out.loss.item())
        assert losses[-1] < losses[0]
    gate, own = (re.search(rf"`({word}.*?)`", page)[1] for word in ("gate = ", "weights="))
    for old, new in (
        ("import Variant", "import OwnWeight, Variant\nimport torch"),
        ("    for _", f"    {gate}\n    for _"),
        ("z_L + z_E + z_H", "z_L + gate * z_E + z_H"),
        ("latent_recursion)\n", f"latent_recursion, {own})\n"),
    ):
        assert old in code
        code = code.replace(old, new)
    exec(compile(code, "docs/tutorials/your_own_variant.md", "exec", dont_inherit=True), {"__name__": "echo"})
    cfg, state, buffers = made(**settings)
    state, _ = train_step(cfg, state, buffers, make_batch(seed=1, unlabelled=0))
    assert state.weights["variant.gate"].any()
