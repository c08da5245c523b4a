"""hardware.token_multiple: the token mixer's products over more tokens than there are, with zeros, to the same numbers."""

import dataclasses

import pytest
import torch
from conftest import GOLDEN
from golden_cases import load_case

from trm.cli import compose
from trm.core.architecture import architecture
from trm.core.flops import network_flops
from trm.core.initial import init_buffers
from trm.core.step import StepConfig, init_state, loss_and_grads
from trm.plan.workload import architecture_of, step_config

TOLERANCE = 1e-12  # of each array's largest value, in float64


def first_step(name, token_multiple):
    """Loss, logits, halting logits, new latents and gradients of a golden case's first step, by name."""
    case = load_case(GOLDEN / name, token_multiple=token_multiple)
    batch = {key: torch.from_numpy(rows) for key, rows in case.batch(0).items()}
    (_, vector_grads), carry, out = loss_and_grads(case.step_config, case.state(), case.buffers(), batch)
    vectors = {} if vector_grads is None else {"puzzle vectors": vector_grads[0]}
    return {"loss": out.loss, "logits": out.logits, "q_halt": out.q_halt, **carry.latents, **out.grads, **vectors}


def largest_difference(ours, plain):
    assert ours.keys() == plain.keys()
    assert all(ours[name].shape == plain[name].shape for name in plain)
    return max(((ours[name] - plain[name]).abs().max() / plain[name].abs().max().clamp_min(1e-30)).item() for name in plain)


@pytest.mark.parametrize("token_multiple", [8, 7])
def test_zeros_that_fill_up_the_tokens_change_no_number(token_multiple):
    """20 tokens, of which 4 are the puzzle's: 24 and 21 in the products."""
    worst = largest_difference(first_step("mlp_prefix", token_multiple), first_step("mlp_prefix", 1))
    assert worst <= TOLERANCE


@pytest.mark.parametrize(("name", "token_multiple"), [("mlp_prefix", 4), ("attention_rope", 8)])
def test_nothing_to_fill_up_is_nothing_done(name, token_multiple):
    """Tokens that are a multiple already, and attention, which has no product that sums over them as an inner size."""
    assert largest_difference(first_step(name, token_multiple), first_step(name, 1)) == 0


@pytest.mark.parametrize("overrides", [["experiment=fast_sudoku"], ["experiment=paper_t3_n6", "model.mlp=conv_swiglu"]])
def test_other_mlps_too(overrides):
    """The fast recipe's gated norm runs over the inner width, and URM's convolution never sees the token mixer."""
    tiny = ["model.hidden_size=16", "recursion.T=1", "recursion.n=1", "model.puzzle_emb_ndim=0", "model.puzzle_emb_len=0"]
    cfg = compose([*overrides, *tiny, "hardware.dtype=float64", "train.global_batch_size=2", "run_name=r"])
    found = []
    for token_multiple in (8, 1):
        arch = dataclasses.replace(architecture_of(cfg), token_multiple=token_multiple)
        found.append(_random_step(cfg, arch))
    assert arch.num_tokens % 8
    assert largest_difference(*found) <= TOLERANCE


def _random_step(cfg, arch):
    buffers = init_buffers(arch, cfg.seed)
    random = torch.Generator().manual_seed(0)
    cells = torch.randint(0, arch.vocab_size, (2, arch.seq_len), generator=random, dtype=torch.int32)
    batch = {"inputs": cells, "labels": cells, "puzzle_identifiers": torch.zeros(2, dtype=torch.int32)}
    batch["min_steps"] = torch.zeros(2, dtype=torch.int32)
    _, carry, out = loss_and_grads(StepConfig(arch, cfg.optimizer, 0.9, 10), init_state(cfg, arch, buffers), buffers, batch)
    return {"loss": out.loss, "logits": out.logits, **carry.latents, **out.grads}


def test_chosen_by_what_the_backend_says():
    def chosen(*overrides):
        cfg = compose(["run_name=r", *overrides])
        return architecture(cfg, seq_len=81, vocab_size=11, num_puzzle_identifiers=1).token_multiple

    assert [chosen(f"hardware={name}") for name in ("cpu", "cpu_xla", "gpu", "v4_8")] == [1, 1, 8, 1]
    assert chosen("hardware=gpu", "hardware.token_multiple=1") == 1
    assert chosen("hardware.token_multiple=16") == 16


def test_zeros_are_no_work_that_is_counted():
    counted = []
    for token_multiple in (1, 8):
        tiny = ["train.global_batch_size=2", "model.hidden_size=16", "model.puzzle_emb_ndim=16", "model.puzzle_emb_len=1"]
        cfg = compose(["run_name=r", f"hardware.token_multiple={token_multiple}", *tiny])
        counted.append(network_flops(cfg, step_config(cfg)))
    assert counted[0] == counted[1]
