"""Every named experiment and sweep of SPEC.md: it composes, validates, builds its model, and changes what its name says."""

import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from trm.cli import CONF_DIR, compose, describe_groups
from trm.config import differences, digest, numerics, to_plain, total_steps
from trm.core.model import architecture, forward, init_fixed, num_parameters, weight_shapes, with_latents

NAMES = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))
SWEEPS = sorted(path.stem for path in (CONF_DIR / "sweep").glob("*.yaml"))
# What the experiment changes in its baseline: SPEC.md "The study's named experiments" and "The paper's numbers".
STUDY = {
    "e1_1_baseline": {},
    "e1_3_batch_512": {"train.global_batch_size": 512},
    "e1_3_batch_1024": {"train.global_batch_size": 1024},
    "e2_1_ema_off": {"ema.enabled": False},
    "e2_2_t2_n2": {"recursion.T": 2, "recursion.n": 2},
    "e2_2_t2_n6": {"recursion.T": 2},
    "e2_2_t3_n4": {"recursion.n": 4},
    "e2_2_t3_n6": {},
    "e2_2_t4_n6": {"recursion.T": 4},
    "e2_3_attention": {"model.mixer": "attention", "model.positions": "rope"},
    "e2_4_nsup_8": {"recursion.n_sup": 8},
    "e3_1_large_model": {
        "model.hidden_size": 1024,
        "model.num_layers": 4,
        "model.num_heads": 16,
        "model.puzzle_emb_ndim": 1024,
    },
    "e3_2_more_data": {"data.num_puzzles": 5000},
    "e4_1_lr_search": {"optimizer.lr": 3e-4},
    "e4_2_longer_training": {"train.epochs": 100000},
    "e4_3_deeper_model": {"model.num_layers": 4},
    "e4_4_no_warmup": {"optimizer.warmup_steps": 0},
    "e4_5_larger_batch": {"train.global_batch_size": 2048},
}
PAPER = {
    "paper_t3_n6": {},
    "paper_act": {"recursion.act_continue": True},
    "paper_separate_networks": {"model.separate_networks": True},
    "paper_no_ema": {"ema.enabled": False},
    "paper_4_layers_n3": {"model.num_layers": 4, "recursion.n": 3},
    "paper_attention": {"model.mixer": "attention", "model.positions": "rope"},
    "paper_t2_n2": {"recursion.T": 2, "recursion.n": 2},
    "paper_one_step_gradient": {"recursion.variant": "one_step_gradient"},
    "paper_multi_scale_z": {"recursion.variant": "multi_scale_z"},
    "paper_single_z": {"recursion.variant": "single_z"},
    "paper_hrm_like": {
        "model.mixer": "attention",
        "model.positions": "rope",
        "model.num_layers": 4,
        "model.separate_networks": True,
        "recursion.variant": "one_step_gradient",
        "recursion.act_continue": True,
        "recursion.T": 2,
        "recursion.n": 2,
        "ema.enabled": False,
    },
    "paper_t1_n2": {"recursion.T": 1, "recursion.n": 2},
    "paper_t2_n4": {"recursion.T": 2, "recursion.n": 4},
    "paper_t4_n8": {"recursion.T": 4, "recursion.n": 8},
    "paper_t6_n6": {"recursion.T": 6},
}
MILLION_PARAMETERS = {
    "paper_t3_n6": 5.03,
    "paper_separate_networks": 10.0,
    "paper_4_layers_n3": 10.0,
    "paper_attention": 6.83,
    "paper_hrm_like": 27.3,
}


@functools.cache
def composed(*overrides):
    return compose([*overrides, "run_name=r"])


def build(name):
    cfg = composed(f"experiment={name}")
    return cfg, architecture(cfg, seq_len=81, vocab_size=11, num_puzzle_identifiers=1)


def flat(plain, prefix=""):
    return {
        key: value
        for name, item in plain.items()
        for key, value in (flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item}).items()
    }


def changes(cfg, baseline):
    here, there = flat(numerics(to_plain(cfg))), flat(numerics(to_plain(baseline)))
    return {key: value for key, value in here.items() if there[key] != value}


def test_the_named_experiments_are_those_of_the_study_and_of_the_paper():
    assert {*STUDY, *PAPER} == {name for name in NAMES if not name.startswith(("quick_", "demo_", "options_", "study_"))}
    assert len(STUDY) == 18  # SPEC.md's 17 with the two batch sizes of e1_3 counted as one


@pytest.mark.parametrize("name", NAMES)
def test_composes_validates_and_builds_its_model(name):
    cfg, arch = build(name)
    weights = {key: torch.empty(shape, device="meta") for key, shape in weight_shapes(arch).items()}
    fixed = {key: value.to("meta") for key, value in init_fixed(arch, cfg.seed).items()}
    rows = torch.zeros(2, arch.seq_len, dtype=torch.int32, device="meta")
    vectors = torch.empty(2, arch.model.puzzle_emb_ndim, device="meta") if arch.model.puzzle_emb_ndim else None
    arch = replace(arch, backend="eager", num_devices=1)
    out = forward(arch, weights, fixed, vectors, with_latents(arch, fixed, 2), rows)
    assert out.logits.shape == (2, arch.seq_len, arch.vocab_size)
    assert set(out.latents) == set(arch.latent_names)
    assert total_steps(cfg, cfg.data.num_puzzles) > 0


@pytest.mark.parametrize("name", sorted(STUDY))
def test_a_study_experiment_changes_only_what_its_name_says(name):
    baseline = composed("train.global_batch_size=256")
    assert changes(build(name)[0], baseline) == STUDY[name]


@pytest.mark.parametrize("name", sorted(PAPER))
def test_a_row_of_the_paper_changes_only_what_its_name_says(name):
    assert changes(build(name)[0], composed()) == PAPER[name]


@pytest.mark.parametrize(("name", "millions"), sorted(MILLION_PARAMETERS.items()))
def test_sizes_are_those_of_the_paper(name, millions):
    assert num_parameters(build(name)[1]) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_papers_recipe_takes_the_papers_steps():
    cfg, _ = build("paper_t3_n6")
    assert total_steps(cfg, 1000) == 65104


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("demo_")])
def test_the_header_gives_command_hardware_and_expectation(name):
    text = (CONF_DIR / "experiment" / f"{name}.yaml").read_text()
    header = text.split("defaults:")[0]
    assert f"python -m trm.train experiment={name}" in header
    assert "Hardware: " in header
    assert "Expected" in header
    assert all(line.startswith("#") for line in header.splitlines() if line)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("e", "paper"))])
def test_at_cpu_size_the_command_line_chooses_model_and_data(name):
    """`experiment=NAME data=sudoku_6x6 model=tiny`: small, quick, and still the ablation that the name says."""
    cfg = composed(f"experiment={name}", "data=sudoku_6x6", "model=tiny")
    full, _ = build(name)
    assert (cfg.model.hidden_size, cfg.model.prefix_len, cfg.data.name) == (64, 0, "sudoku_6x6")
    assert cfg.train.max_steps == 1000
    assert (cfg.model.mixer, cfg.model.num_layers, cfg.recursion) == (full.model.mixer, full.model.num_layers, full.recursion)
    if "train.global_batch_size" not in STUDY.get(name, {}):
        assert cfg.train.global_batch_size == 64
    if not name.startswith("e4_1"):
        assert cfg.optimizer.lr == 1e-3


def test_keys_on_the_command_line_win():
    cfg = composed("experiment=e4_5_larger_batch", "train.global_batch_size=96", "recursion.n=3", "model=tiny")
    assert (cfg.train.global_batch_size, cfg.recursion.n) == (96, 3)


def jobs_of(sweep):
    """The experiments that a sweep file names, its globs resolved by file name."""
    text = yaml.safe_load((CONF_DIR / "sweep" / f"{sweep}.yaml").read_text())["hydra"]["sweeper"]["params"]["experiment"]
    match = re.fullmatch(r"glob\(\[?(.*?)\]?\)", text)
    if match is None:
        return set(text.split(","))
    return {name for name in NAMES if any(Path(name).match(pattern) for pattern in match[1].split(","))}


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("tn_sweep", {n for n in STUDY if n.startswith("e2_2")}),
        ("batch_sweep", {"e1_1_baseline", "e1_3_batch_512", "e1_3_batch_1024", "e4_5_larger_batch"}),
        ("all_ablations", {n for n in STUDY if n.startswith("e2")}),
        ("paper_table", set(PAPER)),
        ("all", {*STUDY, *PAPER}),
    ],
)
def test_a_sweep_names_its_experiments(sweep, expected):
    assert jobs_of(sweep) == expected
    assert sweep in SWEEPS


def test_the_recursion_grid_stays_the_grid_of_five():
    """`recursion=glob(*)` runs these; variants of the recursion are experiments."""
    assert sorted(p.stem for p in (CONF_DIR / "recursion").glob("*.yaml")) == ["t2_n2", "t2_n6", "t3_n4", "t3_n6", "t4_n6"]


def test_help_lists_every_experiment_and_sweep():
    text = describe_groups()
    for name in [*NAMES, *SWEEPS]:
        assert re.search(rf"\b{name}\b", text)


def test_the_grid_point_of_the_baseline_computes_what_the_baseline_computes():
    a, b = build("e1_1_baseline")[0], build("e2_2_t3_n6")[0]
    assert digest(a) == digest(b), differences(to_plain(a), to_plain(b))
