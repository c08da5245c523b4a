"""Every named experiment and sweep of the study: it composes, validates, builds its model, and changes what its name says."""

import re
from dataclasses import replace

import pytest
import torch
from composing import composed, corners, jobs_composed_once  # noqa: F401 - the last is a fixture
from test_pages import TEXTS, pages

from trm.cli import compose_jobs
from trm.config import digest, flatten, from_plain, numerics, to_plain, total_steps
from trm.config.groups import CONF_DIR, describe_groups
from trm.core.architecture import architecture
from trm.core.flops import training_flops
from trm.core.initial import init_buffers, num_parameters, weight_shapes, with_latents
from trm.core.model import forward
from trm.core.recursion import stages
from trm.plan.workload import architecture_of

NAMES = sorted(path.stem for path in (CONF_DIR / "experiment").glob("[!_]*.yaml"))
SWEEPS = sorted(path.stem for path in (CONF_DIR / "sweep").glob("*.yaml"))
STUDY = {
    "e1_1_baseline", "e1_3_batch_512", "e1_3_batch_1024", "e2_1_ema_off", "e2_2_t2_n2", "e2_2_t2_n6", "e2_2_t3_n4", "e2_2_t3_n6",
    "e2_2_t4_n6", "e2_3_attention", "e2_4_nsup_8", "e3_1_large_model", "e3_2_more_data", "e4_1_lr_search", "e4_2_longer_training",
    "e4_3_deeper_model", "e4_4_no_warmup", "e4_5_larger_batch",
}  # fmt: skip
# of other tasks: experiments of their own, not changes of another
OTHER_TASKS = {name for name in NAMES if "maze" in name or "arc_" in name}
PAPER = {name for name in NAMES if name.startswith("paper_")} - OTHER_TASKS
FIELD = {"cgar", "curriculum", "muon", "eqr_sudoku", "fast_sudoku", "urm_sudoku", "wta_sudoku"}
PARENTS = {
    "eqr_sudoku": "paper_t3_n6",
    "urm_sudoku": "paper_t3_n6",
    "wta_sudoku": "fast_sudoku",
    "eqr_maze_unique": "maze_unique",
    "urm_arc_1": "paper_arc_1",
}  # of those whose parent is not the study's baseline
# What a recipe of one's own sets beside the experiment; the header names it in one line.
RECIPES = {
    "fast_sudoku": {"train.global_batch_size", "train.samples", "optimizer.warmup_steps", "ema.rate", "ema.start_step"},
}
SIZES = {"full": [], "tiny": ["recipe=tiny", "data=sudoku_6x6"]}
# At full size what the study's table and the paper say, to the number.
VALUES = {
    "e1_1_baseline": {"train.global_batch_size": 256, "optimizer.lr": 1e-4, "recursion.T": 3, "recursion.n": 6},
    "e1_3_batch_512": {"train.global_batch_size": 512},
    "e1_3_batch_1024": {"train.global_batch_size": 1024},
    "e3_1_large_model": {"model.hidden_size": 1024, "model.num_layers": 4, "model.num_heads": 16},
    "e3_2_more_data": {"data.num_puzzles": 5000},
    "e4_1_lr_search": {"optimizer.lr": 3e-4},
    "e4_2_longer_training": {"train.epochs": 100000},
    "e4_5_larger_batch": {"train.global_batch_size": 2048},
    "paper_maze_hard": {
        "model.mixer": "attention", "model.positions": "rope", "recursion.T": 3, "recursion.n": 4, "train.global_batch_size": 768,
        "optimizer.lr": 1e-4, "optimizer.weight_decay": 1.0, "train.epochs": 50000, "data.name": "maze_hard", "data.num_aug": 0,
        "data.on_the_fly_aug": 0, "ema.enabled": True,
    },
    "maze_unique": {
        "model.hidden_size": 128, "model.num_heads": 2, "model.num_layers": 1, "recursion.n": 4, "train.epochs": 100000,
        "model.mixer": "attention", "data.path_min": 100, "data.path_max": 140, "data.canvas": 30,
    },
    "paper_t3_n6": {"train.global_batch_size": 768, "train.epochs": 50000},
    "paper_arc_1": {
        "model.mixer": "attention", "model.positions": "rope", "recursion.T": 3, "recursion.n": 4, "train.global_batch_size": 768,
        "train.epochs": 100000, "optimizer.lr": 1e-4, "optimizer.weight_decay": 0.1, "optimizer.puzzle_emb_lr": 1e-2,
        "optimizer.puzzle_emb_weight_decay": 0.1, "data.num_puzzles": 960, "ema.enabled": True,
    },
    "paper_arc_2": {"data.num_puzzles": 1280, "data.test_subsets": ["evaluation2"], "optimizer.puzzle_emb_lr": 1e-2},
    "fast_sudoku": {
        "recursion.T": 6, "recursion.n": 9, "train.global_batch_size": 384, "train.max_steps": 8000, "optimizer.lr": 1e-4,
        "optimizer.weight_decay": 1.0, "optimizer.matrix_lr": 0.02, "optimizer.warmup_steps": 0, "ema.rate": 0.9,
        "ema.start_step": 5000,
    },
    "wta_sudoku": {"latents.num_hypotheses": 4, "train.max_steps": 36000, "train.global_batch_size": 384},
    "urm_sudoku": {"train.global_batch_size": 1024, "model.num_layers": 4, "recursion.n": 6, "recursion.n_sup": 16},
}  # fmt: skip
MILLION_PARAMETERS = {
    "paper_t3_n6": 5.03,
    "paper_separate_networks": 10.0,
    "paper_4_layers_n3": 10.0,
    "paper_attention": 6.83,
    "paper_hrm_like": 27.3,
    "urm_sudoku": 13.7,
}


def build(name):
    cfg = composed(f"experiment={name}")
    return cfg, architecture(cfg, seq_len=81, vocab_size=11, num_puzzle_identifiers=1)


def settings_of(name, size):
    """What decides the numbers of an experiment; the length as samples, which is what a header speaks of."""
    cfg = composed(f"experiment={name}", *SIZES[size])
    found = flatten(numerics(to_plain(cfg)))
    del found["train.max_steps"], found["train.epochs"]
    return found | {"train.samples": total_steps(cfg, cfg.data.num_puzzles) * cfg.train.global_batch_size}


def header(name):
    """The lines of an experiment's header by their first word: Changes as {key: direction}, Alias, Expected."""
    text = (CONF_DIR / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]
    words = re.sub(r"\n#   (?=\S+ (?:up|down|=))", " ", text)
    changes = re.search(r"^# Changes: (.*)$", words, re.MULTILINE)
    alias = re.search(r"^# Alias of: (\S+)$", words, re.MULTILINE)
    named = dict(change.split(" ", 1) for change in changes[1].split(", ")) if changes else {}
    return named, alias and alias[1], text


def parent(name):
    if name in ("e1_1_baseline", "paper_t3_n6"):
        return None
    return PARENTS.get(name) or ("paper_t3_n6" if name in PAPER else "e1_1_baseline")


def goes(direction, before, after):
    if direction in ("up", "down"):
        return after > before if direction == "up" else after < before
    wanted = direction.removeprefix("= ")
    return after != before and (wanted == "set" or str(after).lower() == wanted)


def test_the_named_experiments_are_those_of_the_study_of_the_paper_and_of_the_field():
    assert {*STUDY, *PAPER, *FIELD, *OTHER_TASKS} == {
        name for name in NAMES if not name.startswith(("quick_", "demo_", "field_", "record_"))
    }
    assert len(STUDY) == 18  # the study's 17 with the two batch sizes of e1_3 counted as one
    assert len(PAPER) == 15


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted({*STUDY, *PAPER, *FIELD, "eqr_maze_unique", "urm_arc_1"}))
def test_an_experiment_changes_what_its_header_names_in_that_direction_and_nothing_else(name, size):
    changes, alias, _ = header(name)
    if parent(name) is None:
        assert (changes, alias) == ({}, None)
        return
    before, after = settings_of(parent(name), size), settings_of(name, size)
    differ = {key for key in after if key != "train.samples" and after[key] != before[key]}
    if abs(after["train.samples"] / before["train.samples"] - 1) > 0.01:  # whole steps of another batch
        differ.add("train.samples")
    if size == "full":
        assert differ >= RECIPES.get(name, set())
        differ -= RECIPES.get(name, set())
    expected = {key for key in changes if size == "full" or not key.startswith("model.puzzle_emb")}  # the tiny model has none
    assert differ == expected
    for key in expected:
        assert goes(changes[key], before[key], after[key]), (key, before[key], after[key])


@pytest.mark.parametrize("size", SIZES)
def test_all_experiments_differ_from_one_another_but_for_aliases(size):
    digests = {}
    for name in NAMES if size == "full" else [name for name in NAMES if name != "paper_arc_2"]:  # which differs in its data alone
        digests.setdefault(digest(composed(f"experiment={name}", *SIZES[size])), []).append(name)
    same = sorted(names for names in digests.values() if len(names) > 1)
    assert same == sorted([[header(name)[1], name] for name in NAMES if header(name)[1]])


def test_the_page_of_the_experiments_has_their_changes_and_digests(monkeypatch):
    monkeypatch.setattr(pages, "compose", lambda overrides: composed(*(given for given in overrides if given != "run_name=r")))
    assert pages.experiments("[!_]*") in TEXTS["experiments"], "run python scripts/dev/pages.py"


@pytest.mark.parametrize("name", sorted(VALUES))
def test_at_full_size_the_values_are_those_of_the_papers_and_the_study(name):
    found = flatten(to_plain(composed(f"experiment={name}")))
    assert {key: found[key] for key in VALUES[name]} == VALUES[name]


PASSED = set()  # the architectures of which a forward pass had the right shapes


@pytest.mark.parametrize("name", NAMES)
def test_composes_validates_and_builds_its_model(name):
    cfg, arch = build(name)
    assert total_steps(cfg, cfg.data.num_puzzles) > 0
    arch = replace(arch, num_devices=1)
    if repr(arch) in PASSED:
        return
    weights = {key: torch.empty(shape, device="meta") for key, shape in weight_shapes(arch).items()}
    buffers = {key: value.to("meta") for key, value in init_buffers(arch, cfg.seed).items()}
    rows = torch.zeros(2, arch.seq_len, dtype=torch.int32, device="meta")
    vectors = torch.empty(2, arch.model.puzzle_emb_ndim, device="meta") if arch.model.puzzle_emb_ndim else None
    out = forward(arch, weights, buffers, vectors, with_latents(arch, buffers, 2), rows)
    assert out.logits.shape == (2, arch.seq_len, arch.vocab_size)
    assert set(out.latents) == set(arch.latent_names)
    PASSED.add(repr(arch))


@pytest.mark.parametrize(("name", "millions"), sorted(MILLION_PARAMETERS.items()))
def test_sizes_are_those_of_the_paper(name, millions):
    assert num_parameters(build(name)[1]) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_papers_recipe_takes_the_papers_steps():
    for name in ("paper_t3_n6", "paper_maze_hard"):
        assert total_steps(build(name)[0], 1000) == 65104


def test_a_header_says_what_is_expected_and_the_command_and_the_machine_are_told_once():
    for name in NAMES:
        _, _, text = header(name)
        assert "Expected" in text, name
        assert all(line.startswith("#") for line in text.splitlines() if line), name
    bases = [(CONF_DIR / "experiment" / f"{base}.yaml").read_text() for base in ("_study", "_paper")]
    assert all("python -m trm.train experiment=NAME" in text and "Hardware: " in text for text in bases)
    own = set(RECIPES) | {"wta_sudoku"}
    assert not any("Hardware: " in header(name)[2] for name in {*STUDY, *PAPER, *FIELD} - own)


def test_a_small_recipe_is_asked_for_by_name_and_takes_the_tiny_model_unless_another_is_named():
    tiny, plain = composed("recipe=tiny"), composed("model=tiny")
    assert (tiny.model, tiny.train.max_steps, tiny.train.global_batch_size) == (plain.model, 1000, 64)
    assert (plain.train.global_batch_size, plain.optimizer.lr) == (768, 1e-4)  # nothing is changed behind the user's back
    assert composed("recipe=tiny", "model=tiny_attention").model.mixer == "attention"


def test_ratios_are_applied_once():
    cfg = composed("experiment=e4_1_lr_search", "recipe=tiny")
    assert cfg.optimizer.lr == pytest.approx(3e-3)
    assert from_plain(to_plain(cfg), "config.yaml") == cfg


def test_keys_on_the_command_line_win():
    cfg = composed("experiment=e4_5_larger_batch", "train.global_batch_size=96", "recursion.n=3", "recipe=tiny")
    assert (cfg.train.global_batch_size, cfg.recursion.n) == (96, 3)


def test_the_rows_of_the_fields_table_have_the_same_training_flops():
    found = {}
    for name in [name for name in NAMES if name.startswith("field_")]:
        cfg = composed(f"experiment={name}")
        found[name] = training_flops(cfg, architecture_of(cfg), stages(cfg.recursion, cfg.train.max_steps), cfg.train.max_steps)
    assert found == pytest.approx(dict.fromkeys(found, found["field_trm"]), rel=0.005)


def test_the_recursion_grid_stays_the_grid_of_five():
    """`recursion=glob(*)` runs these; variants of the recursion are experiments."""
    assert sorted(p.stem for p in (CONF_DIR / "recursion").glob("*.yaml")) == ["t2_n2", "t2_n6", "t3_n4", "t3_n6", "t4_n6"]


def test_help_lists_every_experiment_and_sweep():
    text = describe_groups()
    for name in [*NAMES, *SWEEPS]:
        assert re.search(rf"\b{name}\b", text)


# Of sweeps over nothing else, the experiments that they name
OF_SWEEPS = {
    "tn_sweep": {n for n in STUDY if n.startswith("e2_2")},
    "batch_sweep": {"e1_1_baseline", "e1_3_batch_512", "e1_3_batch_1024", "e4_5_larger_batch"},
    "all_ablations": {n for n in STUDY if n.startswith("e2")},
    "paper_table": PAPER,
    "all": {*STUDY, *PAPER},
    "field_table": {"paper_t3_n6", "eqr_sudoku", "fast_sudoku", "wta_sudoku", "urm_sudoku", "cgar"},
}


@pytest.mark.usefixtures("jobs_composed_once")
@pytest.mark.parametrize("sweep", ["scaling_data", "scaling_inference", "scaling_isoflop", "scaling_recursion"])
def test_a_sweep_composes_as_its_header_says_for_a_pod(sweep):
    text = (CONF_DIR / "sweep" / f"{sweep}.yaml").read_text()
    words = re.sub(r"\n# ", " ", re.search(r"On a pod: (.*?)\nhydra:", text, re.DOTALL)[1]).split()
    for cfg in compose_jobs([f"+sweep={sweep}", *corners(sweep), *words]).values():
        assert (cfg.hardware.placement, cfg.recursion.n_sup, cfg.data.name) == ("chip", 16, "sudoku_extreme")
        assert cfg.train.max_flops >= 1e17


@pytest.mark.usefixtures("jobs_composed_once")
@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_sweep_composes_its_jobs(sweep):
    """Of a grid those at its corners; an alias beside its target is no job."""
    jobs = compose_jobs([f"+sweep={sweep}", *corners(sweep)])
    assert len(jobs) > 1
    assert (corners(sweep) == []) == (sweep in OF_SWEEPS)
    if sweep in OF_SWEEPS:
        expected = OF_SWEEPS[sweep]
        assert set(jobs) == expected - {name for name in expected if header(name)[1] in expected}
