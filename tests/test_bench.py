"""The benchmarks run and count; what they measure is nobody's business here."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from running import environment, run

from trm.bench import loader, logging, machine, ordinary, step
from trm.bench.__main__ import main
from trm.bench.compare import ratio_with_interval
from trm.bench.machine import facts, in_child, median_and_spread, table
from trm.cli import compose
from trm.errors import RunFailure, UserError
from trm.model import init_fixed
from trm.plan.workload import architecture_of, step_config
from trm.step import METRICS, draw_min_steps, init_state, train_step_with_outputs


def test_median_and_spread():
    assert median_and_spread([4.0, 1.0, 2.0, 3.0, 100.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "max": 100.0}


def test_table_lines_up_and_shows_what_is_missing():
    lines = table([{"name": "a", "ms": 1.23456}, {"name": "bb", "s": 12345.6}]).splitlines()
    assert [line.split() for line in lines] == [["name", "ms", "s"], ["a", "1.235", "-"], ["bb", "-", "1.235e+04"]]
    assert len({len(line) for line in lines}) == 1


def test_a_child_that_fails_is_an_error_with_its_last_words():
    with pytest.raises(RunFailure, match="AttributeError"):
        in_child("trm.bench.machine", "no_such_function", {})


def test_facts_name_machine_and_versions():
    assert {"cores", "processor", "memory_gb", "python", "torch", "torch_xla", "revision"} <= facts().keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["speed"], "choose one of step, host, loader"),
        (["host", "fast"], "KEY=VALUE"),
        (["host", "--json"], "--json"),
        (["host", "--fast", "1"], "--fast"),
        (["host", "--sizes", "demo"], "--sizes"),
        (["host", "--rounds", "2"], "--rounds"),
        (["step", "--sizes", "demo,huge"], "huge: choose from demo, 6x6"),
        (["step", "--ways", "magic"], "magic: choose from configured, xla"),
        (["step", "--rounds", "0"], "--rounds 0"),
        (["step", "--rounds", "many"], "--rounds"),
        (["step", "--sizes", "demo", "recursion.variant=single_z"], "recursion.variant=single_z"),
        (["step", "--sizes", "demo", "model.hidden_sise=8"], "model.hidden_size"),
        (["sweep", "--ways", "3"], "choose from 1, 2"),
        (["compare"], "choose one of step, "),
        (["compare", "step"], "--revisions --configs"),
        (["compare", "step", "--configs", "seed=1"], "--configs"),
        (["compare", "step", "--configs", "seed=1", "seed=1"], "two that differ"),
        (["compare", "step", "--configs", "seed=1", "fast"], "KEY=VALUE"),
        (["compare", "step", "--turns", "1", "--configs", "seed=1", "seed=2"], "at least 2"),
        (["compare", "step", "--revisions", "HEAD"], "give two"),
        (["compare", "step", "--revisions", "HEAD,no-such-revision"], "'no-such-revision' is no revision"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(UserError, match=words):
        main(arguments)


def test_bad_input_ends_in_one_line(tmp_path):
    done = run(tmp_path, "trm.bench", "speed", check=2)
    assert done.stderr.startswith("error: speed is not a benchmark")
    assert len(done.stderr.splitlines()) == 1


def test_checkpoint_writes_json(tmp_path):
    small = ["data=sudoku_4x4", "model=tiny", "train.global_batch_size=8", "data.num_puzzles=16", "data.num_test_puzzles=8"]
    done = run(tmp_path, "trm.bench", "checkpoint", "--rounds", "2", *small, "--json", "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["size"] for row in written["rows"]] == ["demo", "paper"]
    assert all(row["MB"] > 1 and row["held up s"] <= row["on disk after s"] for row in written["rows"])
    assert written["machine"]["torch_xla"] in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


# ----------------------------------------------------------------------------------------------------------------------- step

SMALL = [
    "data=sudoku_4x4",
    "model=tiny",
    "model.hidden_size=16",
    "train.global_batch_size=6",
    "tracking=none",
    "train.max_steps=100",
]


def random_batch(cfg, arch, number):
    random = np.random.default_rng((7, number))
    rows = cfg.train.global_batch_size
    labels = random.integers(2, arch.vocab_size, (rows, arch.seq_len))
    labels[random.random(labels.shape) < 0.2] = -100
    return {
        "inputs": torch.from_numpy(random.integers(0, arch.vocab_size, (rows, arch.seq_len)).astype(np.int32)),
        "labels": torch.from_numpy(labels.astype(np.int32)),
        "puzzle_identifiers": torch.zeros(rows, dtype=torch.int32),
        "min_steps": torch.from_numpy(draw_min_steps(cfg.recursion, cfg.seed, number, rows)),
    }


@pytest.mark.parametrize(
    "settings",
    [
        ["optimizer.warmup_steps=3", "optimizer.lr=1e-2"],
        ["model=attention", "model.hidden_size=16", "model.num_heads=2", "model.puzzle_emb_ndim=20", "model.puzzle_emb_len=0"],
        ["optimizer=adamw", "model.positions=learned", "model.loss=softmax", "ema=off", "recursion.n_sup=1"],
    ],
    ids=["mlp", "attention", "adamw"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-3)])
def test_the_ordinary_step_is_the_same_step(settings, dtype, tolerance):
    """In float64 over some steps, in float32 the first step's loss and gradients' effect on the weights."""
    cfg = compose([*SMALL, "recursion=t2_n2", *settings, f"hardware.dtype={dtype}", "hardware.backend=eager"])
    arch, cfg_of_step = architecture_of(cfg), step_config(cfg)
    fixed = init_fixed(arch, cfg.seed)
    state = init_state(cfg, arch, fixed)
    for weights in filter(None, (state.weights, state.ema)):  # a head that is not zero and rows that halt
        weights["q_head.weight"].copy_(torch.randn(2, cfg.model.hidden_size, generator=torch.Generator().manual_seed(1)) / 4)
        weights["q_head.bias"].zero_()
    trainer = ordinary.Trainer(cfg, arch, state, fixed, cfg_of_step.total_steps)
    first = {name: weight.clone() for name, weight in state.weights.items()}
    for number in range(4 if dtype == "float64" else 1):
        batch = random_batch(cfg, arch, number)
        state, outputs = train_step_with_outputs(cfg_of_step, state, fixed, batch)
        loss = trainer.step(batch)
        torch.testing.assert_close(loss.to(torch.float64), outputs.loss.to(torch.float64), rtol=tolerance, atol=0)
        torch.testing.assert_close(trainer.carry["halted"], state.carry.halted)
        torch.testing.assert_close(trainer.carry["z_H"], state.carry.latents["z_H"], rtol=tolerance, atol=tolerance)
    ours, theirs = state.weights, trainer.model.weights()
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        moved = (weight - first[name]).norm()
        assert moved > 0
        assert (theirs[name] - weight).norm() <= tolerance * moved, name
    if state.puzzle_embedding is not None:
        assert state.puzzle_embedding.abs().min() > 0
        torch.testing.assert_close(trainer.puzzle_embedding, state.puzzle_embedding)
    if state.ema:
        for name, average in trainer.ema.weights().items():
            torch.testing.assert_close(average, state.ema[name], rtol=tolerance, atol=tolerance * 1e-3)
    counted = {name: value.item() for name, value in trainer.sums.items()}
    sums = dict(zip(METRICS, state.metrics.tolist(), strict=True))
    assert counted == pytest.approx({name: sums[name] for name in counted}, rel=tolerance)


def rows_of(tmp_path, *arguments):
    main([*arguments, "--json", str(tmp_path / "rows.json")])
    return json.loads((tmp_path / "rows.json").read_text())["rows"]


def test_step_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "BLOCK_S", 0.05)
    monkeypatch.setattr(machine, "MATMUL_SIZES", (256,))
    small = ["model.hidden_size=8", "train.global_batch_size=4", "evaluate.batch_size=300", "recursion.n=1"]
    small += ["hardware.backend=eager", "--rounds", "2"]  # the compilers take seconds
    rows = rows_of(tmp_path, "step", "--sizes", "demo", *small)
    kinds = [("train", "configured", 4), ("train", "ordinary", 4), ("eval", "configured", 300), ("eval", "ordinary", 300)]
    assert [(row["step"], row["way"], row["batch"]) for row in rows] == kinds
    for row in rows:
        assert len(row["all ms"]) == 2
        assert row["low"] <= row["ms"] <= row["high"]
        assert row["GFLOP/s"] == pytest.approx(row["GFLOP a step"] * row["samples/s"] / row["batch"])
        assert row["share of matmul"] > 0
    assert [row["times ordinary"] == 1 for row in rows] == [False, True, False, True]


# ------------------------------------------------------------------------------------------------- loader, datasets, sweep, compare


def test_loader(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loader, "BLOCK_S", 0.02)
    small = ["data=sudoku_4x4", "data.num_puzzles=16", "model=tiny", "model.hidden_size=8", "recursion=t2_n2"]
    rows = rows_of(tmp_path, "loader", "--rounds", "2", *small, "hardware.backend=eager")
    assert [(row["machine"], row["hosts"], row["rows of a host"]) for row in rows] == [
        ("cpu", 1, 768),
        ("v4_8", 1, 768),
        ("v4_64", 8, 96),
    ]
    assert [row["consumed"].split()[0] for row in rows] == ["measured,", "the", "the"]
    assert all(row["times"] > 0 and row["bar"] == 20 and len(row["all batches/s"]) == 2 for row in rows)
    assert "batches/s" in capsys.readouterr().out


def test_build_data(tmp_path):
    few = ["data.num_puzzles=16", "data.num_test_puzzles=4", "data.num_aug=2"]
    rows = rows_of(tmp_path, "build_data", "--rounds", "2", "--sizes", "4x4,csv", *few)
    assert [(row["size"], row["puzzles"], row["rows"]) for row in rows] == [("4x4", 20, 52), ("csv", 20, 52)]
    for row in rows:
        assert row["MB"] > 0
        assert row["puzzles/s"] == pytest.approx(20 / row["s"])


def test_sweep(tmp_path):
    few = ["seed=0,1", "train.max_steps=2", "evaluate.max_puzzles=8", "data.num_puzzles=16", "data.num_test_puzzles=8"]
    [row] = rows_of(tmp_path, "sweep", "--ways", "2", "--rounds", "1", *few, "hardware.backend=eager", "model.hidden_size=8")
    assert (row["jobs"], row["at once"]) == (2, 2)
    assert row["s of a job"] == row["s"] > row["training s"]
    assert 0 < row["start-up share"] < 1
    with pytest.raises(UserError, match=r"train\.max_steps=0"):
        main(["sweep", "--rounds", "1", "train.max_steps=0"])


def test_compare_two_configs(tmp_path):
    sides = ["--configs", "data.num_puzzles=8", "data.num_puzzles=2000 data.num_aug=3"]
    given = ["--sizes", "4x4", "--rounds", "1", "data.num_test_puzzles=4", "--turns", "2", *sides]
    rows = {row["figure"]: row for row in rows_of(tmp_path, "compare", "build_data", *given)}
    assert rows.keys() == {"MB", "s", "puzzles/s", "rows/s"}
    assert all(row["size"] == "4x4" and row["low"] <= row["ratio"] <= row["high"] for row in rows.values())
    size = rows["MB"]
    assert size["ratio"] == pytest.approx(size[sides[2]] / size[sides[1]])
    assert len(size[f"all {sides[1]}"]) == 2
    with pytest.raises(UserError, match=r"data\.num_puzzles=0"):
        main(["compare", "build_data", "--sizes", "4x4", "--configs", "data.num_puzzles=0", "data.num_puzzles=1"])


def test_a_ratio_and_its_interval():
    ratio, low, high = ratio_with_interval([1.0, 10.0, 100.0], [2.0, 20.0, 200.0])
    assert (ratio, low, high) == pytest.approx((2, 2, 2))
    ratio, low, high = ratio_with_interval([1.0, 1.0, 1.0], [1.0, 2.0, 4.0])
    assert ratio == pytest.approx(2)
    assert math.log(high / 2) == pytest.approx(4.302653 * math.log(2) / math.sqrt(3), rel=1e-6)  # t of two degrees of freedom
    assert low * high == pytest.approx(4)


@pytest.mark.parametrize(("way", "hardware"), [("compiled", "hardware=cpu_mesh"), ("lazy", "hardware=cpu_xla")])
def test_host_time_of_the_real_step(tmp_path, way, hardware):
    code = (
        "import json; import trm.bench.host as h; h.STEPS = h.LAZY_STEPS = 4; "
        f"print(json.dumps(h.in_this_process({{'overrides': [*h.TINY, 'recursion=t2_n2', {hardware!r}], 'way': {way!r}}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True, timeout=200
    )
    [row] = json.loads(done.stdout.splitlines()[-1])
    assert row["way"] == way
    if way == "compiled":  # the lazy way, only measured against, now and then compiles once more on a busy machine
        assert row["recompiles"] == 0
    assert row["host ms"] >= row["call ms"] > 0


def test_the_cost_of_logging_is_measured_for_each_tracker(monkeypatch):
    monkeypatch.setattr(logging, "LOGS", 3)
    monkeypatch.setattr(logging, "EVALUATIONS", 1)
    rows = {row["trackers"]: row for row in logging.measure(["recursion.n_sup=2", "model=tiny"])}
    assert rows.keys() == logging.TRACKERS.keys()
    assert all(row["ms a log"] > 0 and row["share %"] > 0 for row in rows.values())
    assert rows["metrics.jsonl"]["MB in the end"] < rows["with TensorBoard"]["MB in the end"] < rows["all"]["MB in the end"]
