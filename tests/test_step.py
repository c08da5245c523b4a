"""The training and evaluation steps against a trainer written the ordinary way (ordinary.py), and laws of each part."""

import math

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given, settings
from hypothesis import strategies as st
from ordinary import Trainer

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
from trm.core.initial import init_buffers
from trm.core.metrics import training_names
from trm.core.programs import train_program
from trm.core.step import (
    StepConfig,
    draw_min_steps,
    empty_carry,
    eval_step,
    init_state,
    train_step,
)
from trm.run.checkpoint import flatten

C, V, NUM_IDENTIFIERS = 4, 5, 3  # C cells, V vocabulary
IGNORED = -100


pytestmark = pytest.mark.usefixtures("one_thread")


def make(rows=4, *, dtype=torch.float64, ema=True, q_bias=None, seed=0, total_steps=100, **settings):
    """(step config, state, buffers) of a small model; `settings` go to the group that has the name."""
    optimizer = {"lr": 0.01, "weight_decay": 0.1, "puzzle_emb_lr": 0.01, "puzzle_emb_weight_decay": 0.1, "warmup_steps": 3}
    groups = {
        RecursionConfig: {"T": 2, "n": 1, "n_sup": 3, "halt_exploration_prob": 0.0},
        ModelConfig: {"hidden_size": 8, "num_layers": 1, "puzzle_emb_ndim": 8, "puzzle_emb_len": 0},
        LatentsConfig: {},
        ObjectiveConfig: {},
        OptimizerConfig: optimizer,
    }
    for name, value in settings.items():
        next(values for kind, values in groups.items() if hasattr(kind, name))[name] = value
    *made, optimizer = (kind(**values) for kind, values in groups.items())
    own = dict(zip(("recursion", "model", "latents", "objective"), made, strict=True))
    arch = Architecture(
        **own, seq_len=C, vocab_size=V, num_puzzle_identifiers=NUM_IDENTIFIERS, dtype=dtype, loss_dtype=torch.float64
    )
    train = TrainConfig(global_batch_size=rows)
    cfg = Config(**own, ema=EmaConfig(enabled=ema), optimizer=optimizer, train=train, seed=seed)
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


@pytest.mark.parametrize(
    ("q", "min_steps", "given", "halted"),
    [
        ((1e-3, -9.0), 0, {}, [1, 1, 1]),
        ((-5.0, 5.0), 0, {}, [0, 0, 1]),  # at N_sup at the latest
        ((0.0, 5.0), 0, {}, [0, 0, 1]),
        ((5.0, 0.0), 2, {}, [0, 1, 0]),
        ((5.0, 0.0), 3, {}, [0, 0, 1]),
        ((-3.0, -4.0), 0, {"act_continue": True}, [1, 1, 1]),  # worth more than going on
        ((3.0, 4.0), 0, {"act_continue": True}, [0, 0, 1]),
        ((-5.0, 5.0), 3, {"act_continue": True, "n_sup": 1}, [1, 1, 1]),
        ((-5.0, 5.0), 3, {"n_sup": 1}, [1, 1, 1]),
    ],
)
def test_at_which_steps_rows_halt(q, min_steps, given, halted):
    """With these q whatever the input, and no learning."""
    cfg, state, buffers = make(q_bias=q, lr=0.0, puzzle_emb_lr=0.0, **given)
    state = state._replace(weights=state.weights | {"q_head.weight": torch.zeros(2, 8, dtype=torch.float64)})
    for t, expected in enumerate(halted):
        state = train_step(cfg, state, buffers, make_batch(seed=t, min_steps=[min_steps] * 4))[0]
        assert state.carry.halted.tolist() == [bool(expected)] * 4


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
    for chance, all_or_none in ((0.0, False), (1.0, True)):
        assert set(draw_min_steps(RecursionConfig(halt_exploration_prob=chance), 0, 0, 1000) >= 2) == {all_or_none}


@given(n_sup=st.integers(1, 40), chance=st.floats(0, 1), seed=st.integers(0, 2**31 - 1), step=st.integers(0, 10**7))
@settings(deadline=None, max_examples=50)
def test_drawn_minimum_is_within_reach(n_sup, chance, seed, step):
    draws = draw_min_steps(RecursionConfig(n_sup=n_sup, halt_exploration_prob=chance), seed, step, 20)
    assert draws.shape == (20,)
    assert ((draws == 0) | ((draws >= 2) & (draws <= n_sup))).all()


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
    batch = make_batch()
    batch["labels"][0] = evaluate(cfg, state, buffers, batch, 4)[-1][2][0].argmax(-1)  # one is right
    for _, metrics, logits, q_halt in evaluate(cfg, state, buffers, batch, 4):
        state, out = train_step(cfg, state, buffers, make_batch(seed=5) if state.step else batch)
        torch.testing.assert_close(logits, out.logits, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(q_halt, out.q_halt, rtol=1e-11, atol=1e-13)
        for name in ("lm_loss", "q_halt_loss"):
            assert metrics[name] == pytest.approx(named(out.sums)[name], rel=1e-10, abs=1e-12)
    assert named(out.sums)["count"] == 4  # the last training step halts every row, so all metrics agree
    assert metrics["exact_accuracy"] >= 1
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


@settings(deadline=None, max_examples=12)
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
