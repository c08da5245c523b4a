"""The training and evaluation steps against a trainer written the ordinary way (ordinary.py), and laws of each part."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given, settings
from hypothesis import strategies as st
from ordinary import Trainer, cell_losses

from trm.cli import compose
from trm.config import (
    Config,
    EmaConfig,
    LatentsConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RecursionConfig,
    TrainConfig,
)
from trm.core.architecture import Architecture, architecture
from trm.core.initial import init_buffers, with_latents
from trm.core.metrics import training_names
from trm.core.model import forward
from trm.core.programs import train_program
from trm.core.step import (
    Carry,
    StepConfig,
    draw_min_steps,
    empty_carry,
    eval_step,
    init_state,
    loss_and_grads,
    reset_carry,
    train_step,
)
from trm.run.checkpoint import flatten

C, V, NUM_IDENTIFIERS = 4, 5, 3  # C cells, V vocabulary
IGNORED = -100


pytestmark = pytest.mark.usefixtures("one_thread")


def make(rows=4, *, dtype=torch.float64, ema=True, q_bias=None, seed=0, total_steps=100, **settings):
    """(step config, state, buffers) of a small model; `settings` go to the group that has the name."""
    recursion = {"T": 2, "n": 1, "n_sup": 3, "halt_exploration_prob": 0.0}
    model = {"hidden_size": 8, "num_layers": 1, "puzzle_emb_ndim": 8, "puzzle_emb_len": 0}
    optimizer = {"lr": 0.01, "weight_decay": 0.1, "puzzle_emb_lr": 0.01, "puzzle_emb_weight_decay": 0.1, "warmup_steps": 3}
    latents, objective = {}, {}
    for name, value in settings.items():
        places = ((recursion, RecursionConfig), (model, ModelConfig), (optimizer, OptimizerConfig), (latents, LatentsConfig))
        places += ((objective, ObjectiveConfig),)
        next(place for place, kind in places if hasattr(kind, name))[name] = value
    arch = Architecture(
        model=ModelConfig(**model),
        recursion=RecursionConfig(**recursion),
        seq_len=C,
        vocab_size=V,
        num_puzzle_identifiers=NUM_IDENTIFIERS,
        dtype=dtype,
        loss_dtype=torch.float64,
        latents=LatentsConfig(**latents),
        objective=ObjectiveConfig(**objective),
    )
    cfg = Config(
        model=arch.model,
        recursion=arch.recursion,
        latents=arch.latents,
        objective=arch.objective,
        ema=EmaConfig(enabled=ema),
        optimizer=OptimizerConfig(**optimizer),
        train=TrainConfig(global_batch_size=rows),
        seed=seed,
    )
    buffers = init_buffers(arch, seed)
    state = init_state(cfg, arch, buffers)
    random = np.random.default_rng(seed)
    weights, table = dict(state.weights), state.puzzle_embedding
    if q_bias is None:  # halting depends on the row
        weights["q_head.weight"] = torch.from_numpy(random.normal(size=(2, 8))).to(arch.master_dtype)
        weights["q_head.bias"] = torch.zeros(2, dtype=arch.master_dtype)
    else:
        weights["q_head.bias"] = torch.tensor(q_bias, dtype=arch.master_dtype)
    if table is not None:
        table = torch.from_numpy(random.normal(size=table.shape)).to(arch.master_dtype)
    state = state._replace(weights=weights, ema=dict(weights) if ema else {}, puzzle_embedding=table)
    return StepConfig(arch, cfg.optimizer, 0.9, total_steps), state, buffers


def make_batch(rows=4, seed=0, min_steps=None, unlabelled=0.2):
    random = np.random.default_rng((7, seed))
    labels = random.integers(0, V, (rows, C))
    labels[random.random((rows, C)) < unlabelled] = IGNORED
    arrays = {
        "inputs": random.integers(0, V, (rows, C)),
        "labels": labels,
        "puzzle_identifiers": random.integers(0, NUM_IDENTIFIERS, rows),
        "min_steps": np.zeros(rows) if min_steps is None else np.array(min_steps),
    }
    return {name: torch.from_numpy(a.astype(np.int32)) for name, a in arrays.items()}


def tensors_of(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if leaf is not None]


def vector_norm(tensors):
    return torch.linalg.vector_norm(torch.cat([t.detach().flatten() for t in tensors.values()])).item()


def named(sums):
    return dict(zip(training_names(), sums.tolist(), strict=True))


CASES = {
    "plain": {},
    "act": {"act_continue": True},
    "act, one supervision step": {"act_continue": True, "n_sup": 1},
    "one supervision step": {"n_sup": 1},
    "softmax, no prefix, no ema": {"loss": "softmax", "puzzle_emb_ndim": 0, "ema": False},
    "act, multi-scale": {"act_continue": True, "variant": "multi_scale_z", "n": 2},
    "single z, attention": {"variant": "single_z", "mixer": "attention", "positions": "rope", "num_heads": 2},
    "one-step gradient, two networks": {"variant": "one_step_gradient", "n": 2, "separate_networks": True},
    "learned positions, adamw": {"positions": "learned", "name": "adamw"},
    "prefix with padding": {"puzzle_emb_ndim": 12, "separate_networks": True},
}


@pytest.mark.parametrize("case", CASES)
def test_training_equals_the_ordinary_trainer(case):
    cfg, state, buffers = make(**CASES[case])
    second = Trainer(cfg, state, buffers)
    halts, kept, sums = 0, 0, 0
    for t in range(7):
        batch = make_batch(seed=t, min_steps=[0, 2, 3, 0] if t % 2 else None, unlabelled=1.0 if t == 3 else 0.2)
        weight_norm = vector_norm(second.model.weights())
        loss = second.step(batch)
        state, out = train_step(cfg, state, buffers, batch)
        sums = sums + out.sums
        np.testing.assert_allclose(out.loss, loss, rtol=1e-8)
        np.testing.assert_allclose(out.q_halt, second.q_halt, rtol=1e-6, atol=1e-9)
        gradients = {name: p.grad for name, p in second.model.weights().items()}
        for name, gradient in gradients.items():
            torch.testing.assert_close(out.grads[name], gradient, rtol=1e-6, atol=1e-10)
        norms = {"grad_norm": vector_norm(gradients), "weight_norm": weight_norm, "rows": 4}
        for name, value in (second.metrics | norms).items():
            assert named(out.sums)[name] == pytest.approx(float(value), rel=1e-8, abs=1e-12), name
        for name in ("halted", "steps", "labels"):
            assert getattr(state.carry, name).tolist() == second.carry[name].tolist()
        halts, kept = halts + state.carry.halted.sum(), kept + (~state.carry.halted).sum()
    assert halts
    assert kept or cfg.arch.recursion.n_sup == 1  # both kinds of rows occurred
    averages = second.ema.weights() if second.ema else {}
    for ours, theirs in ((state.weights, second.model.weights()), (state.ema, averages)):
        assert ours.keys() == theirs.keys()
        for name, w in theirs.items():
            torch.testing.assert_close(ours[name], w.detach(), rtol=1e-6, atol=1e-9)
    if second.puzzle_embedding is not None:
        torch.testing.assert_close(state.puzzle_embedding, second.puzzle_embedding, rtol=1e-9, atol=1e-12)
    for name, value in second.sums.items():  # accumulated since the start
        assert named(sums)[name] == pytest.approx(float(value), rel=1e-8, abs=1e-12), name
    assert state.step.item() == 7


# carry -------------------------------------------------------------------------------------------------------------------------


def test_refill_takes_the_batch_where_rows_halted_and_nowhere_else():
    cfg, _, buffers = make(rows=3)
    old = make_batch(3, seed=1)
    latents = {z: torch.full((3, 5, 8), 9.0, dtype=torch.float64) for z in ("z_H", "z_L")}
    halted = torch.tensor([True, False, True])
    carry = Carry(
        latents, torch.tensor([3, 2, 1], dtype=torch.int32), halted, old["inputs"], old["labels"], old["puzzle_identifiers"]
    )
    batch = make_batch(3, seed=2)
    new = reset_carry(cfg.arch, buffers, carry, batch)
    assert new.steps.tolist() == [0, 2, 0]
    assert new.steps.dtype == new.inputs.dtype == new.labels.dtype == new.puzzle_identifiers.dtype == torch.int32
    for row, source in enumerate((batch, old, batch)):
        for name in ("inputs", "labels", "puzzle_identifiers"):
            assert torch.equal(getattr(new, name)[row], source[name][row])
    for z in ("z_H", "z_L"):
        assert torch.equal(new.latents[z][1], latents[z][1])
        for row in (0, 2):
            assert (new.latents[z][row] == buffers[f"init.{z}"]).all()


def test_first_batch_is_taken_whole():
    cfg, state, buffers = make()
    carry = empty_carry(cfg.arch, buffers, 4)
    assert carry.halted.all()
    batch = make_batch()
    after = train_step(cfg, state, buffers, batch)[0].carry
    for name in ("inputs", "labels", "puzzle_identifiers"):
        assert torch.equal(getattr(after, name), batch[name])
    assert after.steps.tolist() == [1] * 4


# halting -----------------------------------------------------------------------------------------------------------------------


def halting_steps(q_bias, min_steps=(0, 0, 0, 0), num_steps=3, **settings):
    """At which steps each of four rows halts, with q = `q_bias` whatever the input and no learning."""
    cfg, state, buffers = make(q_bias=q_bias, lr=0.0, puzzle_emb_lr=0.0, **settings)
    state = state._replace(weights=state.weights | {"q_head.weight": torch.zeros(2, 8, dtype=torch.float64)})
    found = []
    for t in range(num_steps):
        state = train_step(cfg, state, buffers, make_batch(seed=t, min_steps=min_steps))[0]
        found.append(state.carry.halted.tolist())
    return np.array(found)


def test_q_halt_above_zero_halts_at_once():
    assert halting_steps([1e-3, -9.0]).all()


@pytest.mark.parametrize("q_halt", [-5.0, 0.0])
def test_rows_halt_at_n_sup_at_the_latest(q_halt):
    halted = halting_steps([q_halt, 5.0], num_steps=7)
    assert halted.all(1).tolist() == [False, False, True, False, False, True, False]
    assert halted.any(1).tolist() == halted.all(1).tolist()


def test_min_steps_postpones_halting():
    halted = halting_steps([5.0, 0.0], min_steps=(0, 2, 3, 2))
    assert halted.tolist() == [[True, False, False, False], [True, True, False, True], [True, False, True, False]]


def test_act_halts_where_halting_is_worth_more_than_going_on():
    assert halting_steps([-3.0, -4.0], act_continue=True).all()
    assert halting_steps([3.0, 4.0], act_continue=True).all(1).tolist() == [False, False, True]


@pytest.mark.parametrize("act", [False, True])
def test_one_supervision_step_always_halts(act):
    assert halting_steps([-5.0, 5.0], n_sup=1, act_continue=act, min_steps=(3, 3, 3, 3)).all()


def test_drawn_minimum_steps():
    cfg = RecursionConfig(n_sup=6, halt_exploration_prob=0.1)
    draws = np.stack([draw_min_steps(cfg, 3, step, 500) for step in range(100)])
    assert draws.dtype == np.int32
    assert set(np.unique(draws)) == {0, 2, 3, 4, 5, 6}
    assert abs((draws > 0).mean() - 0.1) < 0.006  # 4 sigma of 50,000 draws
    for value in range(2, 7):
        assert abs((draws == value).sum() / (draws > 0).sum() - 0.2) < 0.025
    per_row = (draws > 0).mean(0)
    assert per_row.min() < 0.1 < per_row.max()  # drawn per row, not per step
    assert np.array_equal(draws[7], draw_min_steps(cfg, 3, 7, 500))
    assert not np.array_equal(draws[7], draw_min_steps(cfg, 4, 7, 500))
    assert not np.array_equal(draws[7], draws[8])
    assert np.array_equal(draws[7][:100], draw_min_steps(cfg, 3, 7, 100))  # a row's own, in a batch of any size
    recorded = draw_min_steps(RecursionConfig(n_sup=16, halt_exploration_prob=0.5), 2**31 - 1, 10**6, 12)
    assert recorded.tolist() == [14, 0, 11, 5, 0, 0, 15, 0, 0, 0, 14, 0]  # whatever the versions of NumPy and torch


@given(n_sup=st.integers(1, 40), chance=st.floats(0, 1), seed=st.integers(0, 2**31 - 1), step=st.integers(0, 10**7))
@settings(deadline=None, max_examples=50)
def test_drawn_minimum_is_within_reach(n_sup, chance, seed, step):
    draws = draw_min_steps(RecursionConfig(n_sup=n_sup, halt_exploration_prob=chance), seed, step, 20)
    assert draws.shape == (20,)
    assert ((draws == 0) | ((draws >= 2) & (draws <= n_sup))).all()


def test_exploration_off_and_always():
    assert not draw_min_steps(RecursionConfig(halt_exploration_prob=0.0), 0, 0, 1000).any()
    assert (draw_min_steps(RecursionConfig(halt_exploration_prob=1.0), 0, 0, 1000) >= 2).all()


# losses and metrics ------------------------------------------------------------------------------------------------------------


def test_no_gradient_through_the_continue_target():
    """The continue loss must pull q_continue towards a target that itself gets no gradient (by finite differences)."""
    cfg, state, buffers = make(rows=2, act_continue=True, puzzle_emb_ndim=0)
    batch = make_batch(2)
    _, _, out = loss_and_grads(cfg, state, buffers, batch)

    def loss_at(bias_continue, target_bias):
        """The continue loss written out, with the target computed at another bias."""
        total = 0.0
        for row in range(2):
            latents = with_latents(cfg.arch, buffers, 1)
            weights = state.weights | {"q_head.bias": torch.tensor([0.0, bias_continue], dtype=torch.float64)}
            first = forward(cfg.arch, weights, buffers, None, latents, batch["inputs"][row : row + 1])
            weights = state.weights | {"q_head.bias": torch.tensor([0.0, target_bias], dtype=torch.float64)}
            after = forward(cfg.arch, weights, buffers, None, first.latents, batch["inputs"][row : row + 1])
            target = 1 / (1 + math.exp(-max(after.q_halt.item(), after.q_continue.item())))
            x = first.q_continue.item()
            total += target * math.log1p(math.exp(-x)) + (1 - target) * math.log1p(math.exp(x))
        return 0.5 * total / 2

    step = 1e-5
    slope = (loss_at(step, 0.0) - loss_at(-step, 0.0)) / (2 * step)
    through_target = (loss_at(step, step) - loss_at(-step, -step)) / (2 * step)
    ours = out.grads["q_head.bias"][1].item()
    assert ours == pytest.approx(slope, rel=1e-6)
    assert abs(slope - through_target) > 1e-3 * abs(slope)  # the two differ, so this test tells them apart


def test_metrics_cover_halted_rows_and_losses_cover_all():
    cfg, state, buffers = make(rows=4, q_bias=[5.0, 0.0])
    batch = make_batch(4, min_steps=[0, 2, 0, 2], unlabelled=0.0)
    _, out = train_step(cfg, state, buffers, batch)
    right = out.logits.argmax(-1) == batch["labels"]
    metrics = named(out.sums)
    assert metrics["count"] == 2
    assert metrics["accuracy"] == pytest.approx(right[[0, 2]].double().mean(-1).sum().item())
    assert metrics["steps"] == 2
    assert metrics["rows"] == 4
    exact = right.all(-1)
    assert metrics["q_halt_loss"] == pytest.approx(sum(math.log1p(math.exp(-5 if e else 5)) for e in exact))
    # loss = (cells + halting / 2) / global batch
    assert out.loss.item() == pytest.approx((metrics["lm_loss"] + 0.5 * metrics["q_halt_loss"]) / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_keeps_its_dtypes(dtype):
    cfg, state, buffers = make(dtype=dtype, act_continue=True)
    after = train_step(cfg, state, buffers, make_batch())[0]
    assert pytree.tree_structure(state) == pytree.tree_structure(after)
    assert [(t.dtype, t.shape) for t in tensors_of(state)] == [(t.dtype, t.shape) for t in tensors_of(after)]
    assert {w.dtype for w in (*after.weights.values(), *after.ema.values(), *after.optimizer["v"].values())} == {torch.float32}
    assert {z.dtype for z in after.carry.latents.values()} == {dtype}


@pytest.mark.parametrize("act", [False, True])
def test_steps_are_pure(act):
    cfg, state, buffers = make(act_continue=act)
    state, batch = train_step(cfg, state, buffers, make_batch(seed=9))[0], make_batch()
    arguments = (state, buffers, batch)
    copies = [t.clone() for t in tensors_of(arguments)]
    first = train_step(cfg, state, buffers, batch)
    second = train_step(cfg, state, buffers, batch)
    eval_step(cfg.arch, state.weights, buffers, state.puzzle_embedding, state.carry, batch)
    for ours, copy in zip(tensors_of(arguments), copies, strict=True):
        assert torch.equal(ours, copy)
    for a, b in zip(tensors_of(first), tensors_of(second), strict=True):
        assert torch.equal(a, b)
    assert not any(leaf.requires_grad for leaf in tensors_of(first))


def test_ema_off_stays_empty():
    cfg, state, buffers = make(ema=False)
    assert state.ema == {}
    assert train_step(cfg, state, buffers, make_batch())[0].ema == {}


# evaluation --------------------------------------------------------------------------------------------------------------------


def evaluate(cfg, state, buffers, batch, num_steps):
    carry = empty_carry(cfg.arch, buffers, len(batch["inputs"]))
    results, counted = [], (batch["labels"] != IGNORED).any(-1)
    for _ in range(num_steps):
        carry, out, values = eval_step(cfg.arch, state.weights, buffers, state.puzzle_embedding, carry, batch)
        sums = {"count": int(counted.sum())} | {name: value[counted].sum().item() for name, value in values.items()}
        results.append((carry, sums, out.logits, out.q_halt))
    return results


def test_evaluation_equals_the_training_forward():
    cfg, state, buffers = make(q_bias=[-50.0, 0.0], n_sup=4, lr=0.0, puzzle_emb_lr=0.0)
    batch = make_batch(unlabelled=0.0)
    for _, metrics, logits, q_halt in evaluate(cfg, state, buffers, batch, 4):
        state, out = train_step(cfg, state, buffers, make_batch(seed=5) if state.step else batch)
        torch.testing.assert_close(logits, out.logits, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(q_halt, out.q_halt, rtol=1e-11, atol=1e-13)
        for name in ("lm_loss", "q_halt_loss"):
            assert metrics[name] == pytest.approx(named(out.sums)[name], rel=1e-10, abs=1e-12)
    assert named(out.sums)["count"] == 4  # the last training step halts every row, so all metrics agree
    for name, value in metrics.items():
        assert value == pytest.approx(named(out.sums)[name], rel=1e-10, abs=1e-12), name


@pytest.mark.parametrize("act", [False, True])
def test_evaluation_never_halts(act):
    cfg, state, buffers = make(q_bias=[50.0, 0.0], act_continue=act)
    results = evaluate(cfg, state, buffers, make_batch(), 8)  # longer than N_sup = 3
    for step, (carry, metrics, _, _) in enumerate(results, 1):
        assert not carry.halted.any()
        assert carry.steps.tolist() == [step] * 4
        assert metrics["steps"] == 4 * step
    assert not torch.equal(results[2][2], results[7][2])


def test_evaluation_metrics_by_hand():
    cfg, state, buffers = make(rows=5)
    batch = make_batch(5, unlabelled=0.3)
    batch["labels"][2] = IGNORED
    _, _, logits, q_halt = evaluate(cfg, state, buffers, batch, 2)[-1]
    # make row 0 fully right, so that exact_accuracy counts something
    batch["labels"][0] = logits[0].argmax(-1)
    _, metrics, logits, q_halt = evaluate(cfg, state, buffers, batch, 2)[-1]
    expected = dict.fromkeys(metrics, 0.0)
    for row in (0, 1, 3, 4):
        cells = [c for c in range(C) if batch["labels"][row, c] != IGNORED]
        right = [logits[row, c].argmax() == batch["labels"][row, c] for c in cells]
        q = q_halt[row].item()
        expected["count"] += 1
        expected["steps"] += 2
        expected["accuracy"] += sum(right) / len(cells)
        expected["exact_accuracy"] += all(right)
        expected["q_halt_accuracy"] += (q >= 0) == all(right)
        own = slice(row, row + 1)
        expected["lm_loss"] += cell_losses(logits[own], batch["labels"][own], "stablemax", torch.float64).item()
        expected["q_halt_loss"] += math.log1p(math.exp(-q if all(right) else q))
    assert expected["exact_accuracy"] >= 1
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-9), name


@settings(deadline=None, max_examples=25)
@given(padded=st.lists(st.booleans(), min_size=2, max_size=7), seed=st.integers(0, 50))
def test_padded_rows_count_nowhere_and_disturb_nobody(padded, seed):
    cfg, state, buffers = make()
    rows = len(padded)
    full = make_batch(rows, seed=seed, unlabelled=0.1)
    full["labels"][:, 0] = 1  # no row of the full batch is without labels
    keep = [row for row in range(rows) if not padded[row]]
    garbage = make_batch(rows, seed=seed + 100)
    mask = torch.tensor(padded)
    mixed = {k: torch.where(mask.view(-1, *[1] * (full[k].ndim - 1)), garbage[k], full[k]) for k in full}
    mixed["labels"][mask] = IGNORED
    _, metrics, logits, q_halt = evaluate(cfg, state, buffers, mixed, 2)[-1]
    assert metrics["count"] == len(keep)
    if not keep:
        assert not any(metrics.values())
        return
    alone = {k: full[k][keep] for k in full}
    _, alone_metrics, alone_logits, alone_q_halt = evaluate(cfg, state, buffers, alone, 2)[-1]
    torch.testing.assert_close(logits[keep], alone_logits, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(q_halt[keep], alone_q_halt, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(metrics, alone_metrics, rtol=1e-10, atol=1e-12)


def test_the_step_reads_the_schedule_at_a_counter_that_starts_at_one():
    """With no gradient but decay, the first update shrinks weights by lr/warmup * decay exactly."""
    cfg, state, buffers = make(q_bias=[-5.0, 0.0], weight_decay=2.0, warmup_steps=10)
    cfg = replace(cfg, optimizer=replace(cfg.optimizer, lr=0.1))
    batch = make_batch()
    state = state._replace(weights=state.weights | {"f_unused": torch.ones(2, dtype=torch.float64)})
    zeros = {"f_unused": torch.zeros(2, dtype=torch.float64)}
    state = state._replace(optimizer={name: buffer | zeros for name, buffer in state.optimizer.items()})
    after = train_step(cfg, state, buffers, batch)[0]
    np.testing.assert_allclose(after.weights["f_unused"], 1 - 0.1 / 10 * 2.0, rtol=1e-12)
    after = train_step(cfg, after, buffers, batch)[0]
    np.testing.assert_allclose(after.weights["f_unused"], (1 - 0.02) * (1 - 0.04), rtol=1e-12)


def test_votes_to_stop_are_summed_over_all_rows_and_steps():
    """Two hosts with two rows each: the second one wants to stop from the second step on; both read the same sum."""
    cfg, state, buffers = make()
    step_function = train_program(cfg).function
    current = state, torch.zeros(len(training_names()), dtype=torch.float64)
    for step, votes in enumerate(([0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1])):
        current = step_function(current, buffers, make_batch(seed=step) | {"stop": torch.tensor(votes, dtype=torch.int32)})
    assert named(current[1])["stop_votes"] == 4
    assert named(train_step(cfg, make()[1], buffers, make_batch())[1].sums)["stop_votes"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_with_a_loss_that_is_not_finite_are_counted(value):
    cfg, state, buffers = make(ema=False)
    state, outputs = train_step(cfg, state, buffers, make_batch())
    assert named(outputs.sums)["nonfinite_steps"] == 0
    state = state._replace(weights=state.weights | {"lm_head": torch.full_like(state.weights["lm_head"], value)})
    state, outputs = train_step(cfg, state, buffers, make_batch())
    assert named(outputs.sums)["nonfinite_steps"] == 1


@pytest.mark.parametrize("model", ["tiny", "tiny_attention"])
def test_the_state_stays_laid_out_in_rows(model):
    """A checkpoint does not keep the order of axes in memory: a product of other strides is rounded in another way."""
    settings = ["data=sudoku_4x4", "recursion=t2_n2", "train.global_batch_size=8", "hardware=cpu", "hardware.backend=eager"]
    cfg = compose([f"model={model}", *settings])
    arch = architecture(cfg, seq_len=16, vocab_size=6, num_puzzle_identifiers=1)
    buffers = init_buffers(arch, 0)
    state = init_state(cfg, arch, buffers)
    rows = cfg.train.global_batch_size
    cells = torch.ones(rows, 16, dtype=torch.int32)
    batch = {"inputs": cells, "labels": cells, **dict.fromkeys(("puzzle_identifiers", "min_steps"), cells[:, 0].clone())}
    after = train_step(StepConfig(arch, cfg.optimizer, cfg.ema.rate, 10), state, buffers, batch)[0]
    for name, tensor in flatten(after).items():
        assert tensor.is_contiguous(), name
