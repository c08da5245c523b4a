"""mup: equal to standard at the base width, flat coordinates over widths and depths, factors by name, refusals."""

import math
from dataclasses import replace

import pytest
import torch
from running import refused

from trm.cli import compose
from trm.core import parametrization
from trm.core.architecture import architecture
from trm.core.initial import init_buffers, init_weights, with_latents
from trm.core.model import embed, forward
from trm.core.optimizers import OPTIMIZERS
from trm.core.step import StepConfig, init_state, train_step

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, CELLS, VOCAB = 8, 16, 5  # a puzzle of 4x4
AFTER = (1, 2, 4)  # training steps
BASE = 64
MUP = ("optimizer.parametrization=mup", f"optimizer.base_hidden_size={BASE}")
# What is inside the network, in its first pass and at its end. The logits are not among them: see the test of their growth.
INSIDE = ("question", "prefix", "net.0.mlp.gate_up first", "net.0.mlp.down first", "net.1.token_mlp.down first",
          "net.1.mlp.down first", "latent z_H", "latent z_L", "q")  # fmt: skip


def settings(width, *overrides):
    """A tiny network of this width, with heads of 16 channels and a puzzle embedding as wide as a token."""
    return compose(
        [
            "data=sudoku_4x4", "recipe=tiny", "recursion=t2_n2", "run_name=x", f"model.hidden_size={width}", "recursion.n_sup=4",
            f"model.num_heads={width // 16}", f"model.puzzle_emb_ndim={width}", "model.puzzle_emb_len=1", "ema=off",
            f"train.global_batch_size={ROWS}", "optimizer.warmup_steps=0", "optimizer.lr=2e-4", "optimizer.puzzle_emb_lr=2e-4",
            *overrides,
        ]
    )  # fmt: skip


def arch_of(cfg):
    return architecture(cfg, seq_len=CELLS, vocab_size=VOCAB, num_puzzle_identifiers=1)


def batch():
    """Random grids, whose answer is the next symbol of each cell: something that a few steps learn about."""
    grids = torch.randint(1, VOCAB, (ROWS, CELLS), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    zero = torch.zeros(ROWS, dtype=torch.int32)
    return {"inputs": grids, "labels": grids % (VOCAB - 1) + 1, "puzzle_identifiers": zero, "min_steps": zero}


def activations(arch, weights, buffers, table, inputs):
    """What each matrix makes in the first and in the last pass of a supervision step, and what comes out, by name."""
    found, names = {}, {id(weight): name for name, weight in weights.items()}

    def linear(x, weight):
        y = torch.nn.functional.linear(x, weight)
        found.setdefault(f"{names[id(weight)]} first", y)
        found[f"{names[id(weight)]} last"] = y
        return y

    vectors = table[torch.zeros(len(inputs), dtype=torch.int64)]
    watched = replace(arch, linear=linear, swiglu=None)
    out = forward(watched, weights, buffers, vectors, with_latents(arch, buffers, len(inputs)), inputs)
    x = embed(arch, weights, vectors, inputs)
    whole = {"question": x[:, arch.model.prefix_len :], "prefix": x[:, : arch.model.prefix_len], "logits": out.logits}
    return whole | found | {f"latent {name}": value for name, value in out.latents.items()} | {"q": out.q_halt}


def check(width, *overrides):
    """The coordinate check of Tensor Programs V: root mean squares by activation, {name: [size, change after 1, 2, 4 steps]}."""
    cfg = settings(width, *overrides)
    arch, data = arch_of(cfg), batch()
    buffers = init_buffers(arch, 0)
    state, step = init_state(cfg, arch, buffers), StepConfig(arch, cfg.optimizer, cfg.ema.rate, 100)
    found = first = None
    for done in range(max(AFTER) + 1):
        with torch.no_grad():
            now = activations(arch, state.weights, buffers, state.puzzle_embedding, data["inputs"])
        if first is None:
            first, found = now, {name: [value.square().mean().sqrt().item()] for name, value in now.items()}
        elif done in AFTER:
            for name, value in now.items():
                found[name].append((value - first[name]).square().mean().sqrt().item())
        state = train_step(step, state, buffers, data)[0]
    return found


def growth(found, name, column):
    """The exponent of a measure in the width (or the depth), by least squares in logarithms."""
    x = torch.tensor([math.log(size) for size in found])
    y = torch.tensor([math.log(rows[name][column]) for rows in found.values()])
    return ((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum()).item()


def check_flat(widths, optimizer, most):
    mup, standard = ({width: check(width, f"optimizer={optimizer}", *how) for width in widths} for how in (MUP, ()))
    for name in INSIDE:
        size = growth(mup, name, 0) if name != "prefix" else 0.0  # which starts from zero
        changes = [growth(mup, name, 1 + i) for i in range(len(AFTER))]
        assert max(abs(each) for each in (size, *changes)) < most, (name, size, changes)
    # the readout starts smaller, so that logits may shrink towards their limit; they do not grow
    assert all(growth(mup, "logits", column) < 0.05 for column in range(1 + len(AFTER)))
    least_of = {"question": 0.4, "net.0.mlp.down first": 0.2, "net.1.mlp.down first": 0.15, "logits": 0.3, "q": 0.3}
    for name, least in least_of.items():
        changes = [growth(standard, name, 1 + i) for i in range(len(AFTER))]
        assert min(changes) > least, (name, changes)


@pytest.mark.parametrize("optimizer", ["adam_atan2", "muon"])
def test_coordinates_are_flat_under_mup_and_not_under_standard(optimizer):
    check_flat((32, 128), optimizer, 0.25)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adam_atan2", "adamw", "muon"])
def test_coordinates_are_flat_over_all_widths(optimizer):
    check_flat((32, 64, 128, 256, 512), optimizer, 0.25)


def test_a_deeper_block_changes_as_much_with_its_rule_and_far_more_without():
    with_rule, without = (
        {layers: check(BASE, *MUP, f"model.num_layers={layers}", *rule) for layers in (2, 4)}
        for rule in (("optimizer.base_num_layers=2",), ())
    )
    for column in range(1, 1 + len(AFTER)):
        assert growth(with_rule, "latent z_H", column) < 1
    assert growth(without, "latent z_H", 1) > 2


@pytest.mark.parametrize("optimizer", ["adam_atan2", "adamw", "muon"])
def test_the_base_width_is_standard_bit_for_bit(optimizer):
    states = []
    for how in ((), (*MUP, "optimizer.base_num_layers=2")):
        cfg = settings(BASE, f"optimizer={optimizer}", "optimizer.weight_decay=0.5", *how)
        arch = arch_of(cfg)
        fixed, state = init_buffers(arch, 0), init_state(cfg, arch, init_buffers(arch, 0))
        for _ in range(3):
            state = train_step(StepConfig(arch, cfg.optimizer, cfg.ema.rate, 10), state, fixed, batch())[0]
        states.append(state)
    for name, weight in states[0].weights.items():
        assert torch.equal(weight, states[1].weights[name]), name
    assert torch.equal(states[0].puzzle_embedding, states[1].puzzle_embedding)


def test_factors_are_those_of_the_derivation():
    cfg = settings(4 * BASE, *MUP, "model.mixer=attention", "model.num_layers=4", "optimizer.base_num_layers=1")
    arch = arch_of(cfg)
    rates, starts = (rule(cfg.optimizer, arch) for rule in (parametrization.rate_factors, parametrization.init_factors))
    inner = 256 / 768  # the inner width of the channel MLP, which comes in multiples of 256
    assert rates["embed_tokens"] == pytest.approx(1 / 2)
    assert rates["net.0.attention.qkv"] == pytest.approx(1 / 4 / 2)
    assert rates["net.0.attention.out"] == pytest.approx(1 / 4 / 4)
    assert rates["net.0.mlp.gate_up"] == pytest.approx(1 / 4 / 2)
    assert rates["net.0.mlp.down"] == pytest.approx(inner / 4)
    assert rates["lm_head"] == rates["q_head.weight"] == pytest.approx(1 / 4)
    assert rates["q_head.bias"] == 1
    assert starts["lm_head"] == pytest.approx(1 / 2)
    assert starts["net.0.mlp.down"] == starts["net.3.attention.out"] == pytest.approx(1 / 2)
    assert starts["net.0.mlp.gate_up"] == starts["embed_tokens"] == 1
    weights = init_weights(arch, 0)
    scaled = parametrization.scaled(cfg.optimizer, arch, weights)
    assert torch.equal(scaled["lm_head"], weights["lm_head"] * starts["lm_head"])
    puzzles = parametrization.puzzle_settings(cfg.optimizer, arch)
    assert puzzles.puzzle_emb_lr == pytest.approx(cfg.optimizer.puzzle_emb_lr / 2)


def test_the_token_mixer_has_one_rate_at_all_widths():
    cfg = settings(4 * BASE, *MUP)
    rates = parametrization.rate_factors(cfg.optimizer, arch_of(cfg))
    assert {factor for name, factor in rates.items() if ".token_mlp." in name} == {1.0}


@pytest.mark.parametrize("scale", ["adam", "aspect"])
def test_muons_factors_give_updates_of_the_same_effect(scale):
    cfg = settings(4 * BASE, *MUP, "optimizer=muon", f"optimizer.matrix_scale={scale}")
    rates = parametrization.rate_factors(cfg.optimizer, arch_of(cfg))
    assert rates["net.0.mlp.gate_up"] == pytest.approx(
        {"adam": math.sqrt(768 / 256) / math.sqrt(768) * math.sqrt(256) / math.sqrt(256 / 64), "aspect": 1.0}[scale]
    )
    assert rates["lm_head"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("optimizer", ["adam_atan2", "adamw", "muon"])
@pytest.mark.parametrize("with_rate", [False, True])
def test_decay_is_that_of_the_settings_or_follows_the_rate(optimizer, with_rate):
    cfg = settings(4 * BASE, *MUP, f"optimizer={optimizer}", "optimizer.weight_decay=0.5", f"optimizer.decay_with_rate={with_rate}")
    arch = arch_of(cfg)
    weights = init_weights(arch, 0)
    zero = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    buffers = OPTIMIZERS[optimizer].init(cfg.optimizer, weights)
    moved, kept = parametrization.update(cfg.optimizer, arch, weights, buffers, zero, torch.tensor(1.0), torch.tensor(0.1))
    rates = parametrization.rate_factors(cfg.optimizer, arch)
    for name, weight in weights.items():
        torch.testing.assert_close(moved[name], weight * (1 - 0.1 * 0.5 * (rates[name] if with_rate else 1)))
    assert list(moved) == list(weights)
    assert {key: list(values) for key, values in kept.items()} == {key: list(values) for key, values in buffers.items()}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.parametrization=mup"], "needs optimizer.base_hidden_size"),
        (["optimizer.base_hidden_size=64"], "optimizer.base_hidden_size=64 is a setting of mup"),
        (["optimizer.decay_with_rate=true"], "optimizer.decay_with_rate=True is a setting of mup"),
        ([*MUP[:1], "optimizer.base_hidden_size=24", "model.mixer=attention"], "has no heads of 16 channels"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, words):
    refused(lambda given: settings(BASE, *given), overrides, words)


def test_the_base_is_the_width_of_the_models_option_whatever_the_scale_rounds():
    for scale, width in (("1.5", 96), ("0.3", 19), ("0.2", 13)):  # 19 / 0.3 is 63 when rounded, and 13 / 0.2 is 65
        cfg = compose(["experiment=_scaling", "run_name=r", f"recipe.width_scale={scale}"])
        assert (cfg.model.hidden_size, cfg.optimizer.base_hidden_size) == (width, 64)
    cfg = compose(["experiment=_scaling", "run_name=r", "recipe.width_scale=0.5", "model=mlp"])
    assert (cfg.model.hidden_size, cfg.optimizer.base_hidden_size) == (256, 512)


def test_a_prefix_keeps_its_tokens_at_the_base():
    cfg = settings(4 * BASE, *MUP)
    arch = arch_of(cfg)
    arch = replace(arch, model=replace(arch.model, puzzle_emb_len=0))  # as many as the vector needs
    assert parametrization.base_of(cfg.optimizer, arch).num_tokens == arch.num_tokens
