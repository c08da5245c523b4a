"""A run's length in training FLOPs: the step at which it ends, what follows from it, and what excludes it."""

import math
from dataclasses import replace

import pytest
import torch
from running import refused

from trm.cli import compose
from trm.config import resume_conflicts, to_plain
from trm.core.flops import depth_flops, network_flops, total_steps, training_flops
from trm.core.optim import learning_rate
from trm.core.recursion import stages
from trm.errors import ConfigError
from trm.plan.workload import architecture_of, step_config, workload

TINY = ["data=sudoku_4x4", "recipe=tiny", "recursion=t2_n2", "run_name=x"]


def tiny(*overrides):
    return compose([*TINY, *overrides])


@pytest.fixture(scope="module")
def cost():
    """FLOPs of a step of the tiny run."""
    cfg = tiny()
    return network_flops(cfg, step_config(cfg))


@pytest.mark.parametrize("budget", [0.1, 1.0, 1.001])
def test_a_run_ends_at_the_step_that_reaches_its_budget(cost, budget):
    cfg = tiny(f"train.max_flops={budget * cost}")
    arch = architecture_of(cfg)
    steps = total_steps(cfg, arch, 1000)
    assert steps == math.ceil(budget)
    spent = [training_flops(cfg, arch, stages(cfg.recursion, steps), step) for step in (steps - 1, steps)]
    assert spent[0] < budget * cost <= spent[1]
    assert cfg.train.max_steps is None  # the recipe's own length gives way


def test_the_stages_of_a_curriculum_are_counted_each_at_its_depth(cost):
    cfg = tiny(f"train.max_flops={20 * cost}", "recursion.curriculum=[{until: 0.5, T: 1, n: 1}]")
    arch = architecture_of(cfg)
    steps = total_steps(cfg, arch, 1000)
    assert steps > 20
    before, after = (training_flops(cfg, arch, stages(cfg.recursion, count), count) for count in (steps - 1, steps))
    assert before < 20 * cost <= after


def test_weights_that_are_not_trained_cost_no_gradient():
    """Of the three parts of a pass with gradient, that of the weights is left out."""
    both = [tiny("model.puzzle_emb_ndim=64", f"train.trainable={which}") for which in ("all", "puzzle_embedding")]
    every, table = (depth_flops(cfg, architecture_of(cfg), cfg.recursion.T, cfg.recursion.n) for cfg in both)
    assert 0.5 * every < table < 0.9 * every
    assert table == network_flops(both[1], step_config(both[1]))


def test_the_warm_up_follows_the_number_of_steps():
    optimizer = replace(tiny().optimizer, warmup_share=0.1, schedule="cosine", lr_min_ratio=0.0)
    fixed = replace(optimizer, warmup_share=None, warmup_steps=20)
    for step in (1.0, 19.0, 20.0, 50.0, 200.0):
        t = torch.tensor(step, dtype=torch.float64)
        assert learning_rate(1e-3, t, optimizer, 200) == learning_rate(1e-3, t, fixed, 200)


def test_a_share_of_warm_up_ties_a_run_to_its_length():
    saved = to_plain(tiny("optimizer.warmup_share=0.1", "train.max_steps=10"))
    assert resume_conflicts(saved, tiny("optimizer.warmup_share=0.1", "train.max_steps=20")) != []
    assert resume_conflicts(to_plain(tiny("train.max_flops=1e9")), tiny("train.max_flops=2e9")) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.max_flops=1e12", "train.max_steps=5"], "train.max_steps=5 and train.max_flops=1e12 each set the length"),
        (["train.epochs=3", "train.max_flops=1e12"], "train.max_flops=1e12 and train.epochs=3 each set the length"),
        (["train.epochs=3", "train.max_steps=5"], "train.max_steps=5 and train.epochs=3 each set the length"),
        (["experiment=demo_4x4", "train.max_flops=1e12"], "train.max_flops=1e+12 and train.max_steps=600 both set the length"),
        (["train.max_flops=0"], "train.max_flops=0"),
    ],
)
def test_a_run_has_one_length(overrides, words):
    refused(compose, [*TINY, *overrides], words)


def test_null_gives_way():
    assert tiny("experiment=demo_4x4", "train.max_flops=1e12", "train.max_steps=null").train.max_flops == 1e12


def test_a_budget_of_too_many_steps_is_refused():
    cfg = tiny("train.max_flops=1e30")
    with pytest.raises(ConfigError, match="lower it"):
        total_steps(cfg, architecture_of(cfg), 1000)


def test_evaluations_are_counted_up_to_the_budget(cost):
    assert workload(tiny("hardware=v4_64", f"train.max_flops={7 * cost}", "train.eval_every_steps=3")).evaluations == 3
