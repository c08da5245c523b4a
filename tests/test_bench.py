"""The benchmarks run and count; what they measure is nobody's business here."""

import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from running import environment, run
from sweeping import wait_for

from bench import __main__ as bench
from bench import loader, logging, machine, scaling, step
from bench.__main__ import main
from bench.compare import ratio_with_interval
from bench.machine import facts, in_child, median_and_spread, table
from trm.errors import RunFailure, UserError
from trm.plan.workload import architecture_of

ROOT = Path(__file__).parents[1]


def test_median_and_spread():
    assert median_and_spread([4.0, 1.0, 2.0, 3.0, 100.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "max": 100.0}


def test_table_lines_up_and_shows_what_is_missing():
    lines = table([{"name": "a", "ms": 1.23456}, {"name": "bb", "s": 12345.6}]).splitlines()
    assert [line.split() for line in lines] == [["name", "ms", "s"], ["a", "1.235", "-"], ["bb", "-", "1.235e+04"]]
    assert len({len(line) for line in lines}) == 1


def test_a_child_that_fails_is_an_error_with_its_last_words():
    with pytest.raises(RunFailure, match="AttributeError"):
        in_child("bench.machine", "no_such_function", {})


def test_facts_name_machine_and_versions():
    assert {"cores", "processor", "memory_gb", "python", "torch", "torch_xla", "revision"} <= facts().keys()


def test_facts_of_a_machine_without_torch_xla_and_linux(monkeypatch):
    def version(package):
        if package == "torch_xla":
            raise importlib.metadata.PackageNotFoundError(package)
        return "2.9.1"

    def sysconf(_name):
        raise ValueError

    def no_file(*_args):
        raise FileNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(machine, "code", machine.code.__wrapped__)  # which is asked once a process
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(machine.os, "sysconf", sysconf)
    monkeypatch.setattr(machine, "open", no_file, raising=False)
    found = facts()
    assert (found["torch"], found["torch_xla"]) == ("2.9.1", "missing")
    assert (found["cores"], found["memory_gb"]) == (os.cpu_count(), None)
    assert found["processor"]


def test_facts_are_of_before_the_measurement(monkeypatch):
    order = []
    monkeypatch.setattr(bench, "facts", lambda: order.append("facts") or {})
    monkeypatch.setattr(loader, "measure", lambda overrides, rounds: order.append("measure") or [{"ms": 1.0}])
    main(["loader"])
    assert order == ["facts", "measure"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["speed"], "choose one of step, peers, kernels, host"),
        (["host", "fast"], "KEY=VALUE"),
        (["host", "--json"], "--json"),
        (["host", "--fast", "1"], "--fast"),
        (["host", "--sizes", "demo"], "--sizes"),
        (["host", "--nano", "."], "--nano is of peers"),
        (["peers"], "peers needs --reference DIR or --nano DIR"),
        (["peers", "--nano", "."], "--nano .: no such checkout, src/nn/models/trm.py is missing there"),
        (["host", "--rounds", "2"], "--rounds"),
        (["step", "--sizes", "demo,huge"], "huge: choose from demo, 6x6"),
        (["step", "--ways", "magic"], "magic: choose from configured, xla"),
        (["step", "--rounds", "0"], "--rounds 0"),
        (["step", "--rounds", "many"], "--rounds"),
        (["step", "--sizes", "demo", "optimizer=muon"], "optimizer.name=muon"),
        (["step", "--sizes", "demo", "model.hidden_sise=8"], "model.hidden_size"),
        (["sweep", "--ways", "3"], "choose from 1, 2"),
        (["compare"], "choose one of step, "),
        (["compare", "step"], "--revisions A,B and --configs"),
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


@pytest.mark.long
def test_checkpoint_writes_json(tmp_path):
    small = ["data=sudoku_4x4", "model=tiny", "train.global_batch_size=8", "data.num_puzzles=16", "data.num_test_puzzles=8"]
    done = run(tmp_path, "trm.bench", "checkpoint", "--rounds", "2", *small, "--json", "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["size"] for row in written["rows"]] == ["demo", "paper"]
    assert all(row["MB"] > 1 and row["held up s"] <= row["on disk after s"] for row in written["rows"])
    assert all(row["held up s low"] <= row["held up s"] <= row["held up s high"] for row in written["rows"])
    assert written["machine"]["torch_xla"] in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


# ----------------------------------------------------------------------------------------------------------------------- step


def rows_of(tmp_path, *arguments):
    main([*arguments, "--json", str(tmp_path / "rows.json")])
    return json.loads((tmp_path / "rows.json").read_text())["rows"]


@pytest.mark.long
def test_step_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "BLOCK_S", 0.05)
    monkeypatch.setattr(machine, "MATMUL_SIZES", {"cpu": (256,)})
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
        assert ("share of oneDNN" in row) == torch.backends.mkldnn.is_available()
    assert [row["times ordinary"] == 1 for row in rows] == [False, True, False, True]


# -------------------------------------------------------------------------------------------------------------------- scaling


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_scaling(tmp_path, monkeypatch):
    requests = []

    def in_this_one(_module, function, request):  # starting a process for each point takes seconds
        requests.append(json.loads(json.dumps(request)))
        return getattr(scaling, function)(requests[-1])

    monkeypatch.setattr(scaling, "in_child", in_this_one)
    monkeypatch.setattr(scaling, "BLOCK_S", 0.01)
    for name in ("batch", "depth"):
        monkeypatch.setitem(scaling.SERIES, name, scaling.SERIES[name][:3])
    small = ["model.hidden_size=8", "recursion.n=1", "hardware.backend=eager"]
    rows = rows_of(tmp_path, "scaling", "--sizes", "batch,depth", "--rounds", "2", *small)
    points = [row for row in rows if "value" in row]
    assert [(row["series"], row["value"]) for row in points] == [
        *(("batch", rows) for rows in (4, 16, 64)),
        *(("depth", depth) for depth in (2, 4, 8)),
    ]
    assert len(requests) == 5  # 16 rows and n=1 are measured once
    for row in points:
        assert len(row["all ms"]) == 2
        assert row["low"] <= row["ms"] <= row["high"]
        assert row["state MB"] > 0
    exponents = {(row["series"], row["exponent of"]): row for row in rows if "exponent" in row}
    assert exponents.keys() >= {(name, figure) for name in ("batch", "depth") for figure in ("ms", "GFLOP a step")}
    flops = exponents["batch", "GFLOP a step"]
    assert (flops["95 % from"], flops["exponent"], flops["95 % to"]) == pytest.approx((1, 1, 1))


@pytest.mark.long
def test_the_roofline_of_a_v4_chip(tmp_path):
    rows = rows_of(tmp_path, "scaling", "--sizes", "v4_roofline", "model.hidden_size=8")  # which is for the series
    assert [(row["size"], row["value"]) for row in rows] == [
        (size, batch) for size in scaling.V4_SIZES for batch in scaling.V4_ROWS
    ]
    for row in rows:
        assert row["roofline ms"] == pytest.approx(row["GFLOP a step"] / 275)
        assert row["roofline samples/s"] == pytest.approx(row["value"] / row["roofline ms"] * 1e3)
        assert row["bound by"] == "arithmetic"
    assert rows[0]["GFLOP a step"] == pytest.approx(32 * 42.72, rel=1e-3)  # of docs/results/plan_v4_64.md


def test_an_exponent_and_its_interval():
    measured = {1: 3.0, 2: 12 * 1.1, 4: 48 * 1.1, 8: 192.0}
    points = [{"series": "batch", "value": value, "ms": ms} for value, ms in measured.items()]
    [row] = scaling.exponents(points)  # no megabytes and no FLOPs
    assert (row["exponent of"], row["exponent"]) == ("ms", pytest.approx(2))
    half = 4.302653 * math.log(1.1) / math.sqrt(2) / math.sqrt(5) / math.log(2)  # t of two degrees of freedom
    assert (row["95 % from"], row["95 % to"]) == pytest.approx((2 - half, 2 + half))


def test_memory_that_was_freed_hides_no_peak():
    growths = [scaling.peak_growth_bytes(lambda: np.ones(64_000_000, np.int8)) for _ in range(2)]
    assert growths == pytest.approx([64e6, 64e6], rel=0.1)


def test_a_grid_has_the_tokens_of_a_maze():
    cfg = scaling.config_of([*scaling.COMMON, *scaling.BASE, *scaling.ATTENTION], 900)
    assert architecture_of(cfg).num_tokens == 900


# ------------------------------------------------------------------------------------------------- loader, datasets, sweep, compare


@pytest.mark.long
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
    assert [(row["size"], row["puzzles"], row["rows"]) for row in rows] == [
        ("4x4", 24, 56),
        ("csv", 20, 52),
    ]  # with selection puzzles where they are generated
    for row in rows:
        assert row["MB"] > 0
        assert row["puzzles/s"] == pytest.approx(row["puzzles"] / row["s"])


@pytest.mark.long
def test_sweep(tmp_path):
    few = ["seed=0,1", "train.max_steps=2", "evaluate.max_puzzles=8", "data.num_puzzles=16", "data.num_test_puzzles=8"]
    [row] = rows_of(tmp_path, "sweep", "--ways", "2", "--rounds", "1", *few, "hardware.backend=eager", "model.hidden_size=8")
    assert (row["jobs"], row["at once"]) == (2, 2)
    assert row["s of a job"] == row["s"] > row["training s"]
    assert 0 < row["start-up share"] < 1
    with pytest.raises(UserError, match=r"train\.max_steps=0"):
        main(["sweep", "--rounds", "1", "train.max_steps=0"])


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize(
    ("way", "hardware"),
    [("compiled", "hardware=cpu_mesh"), ("lazy", "hardware=cpu_xla"), ("loop", "hardware=cpu_mesh")],
)
def test_host_time_of_the_real_step(tmp_path, way, hardware):
    code = (
        "import json; import bench.host as h; overrides = [*h.TINY, *h.SHALLOWEST]; "
        f"request = {{'overrides': [*overrides, {hardware!r}], 'way': {way!r}, 'steps': 4}}; "
        "print(json.dumps(h.in_this_process(request)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    [row] = json.loads(done.stdout.splitlines()[-1])
    assert row["way"] == way
    assert len(row["all host ms"]) == 4
    if way != "lazy":  # the lazy way, only measured against, now and then compiles once more on a busy machine
        assert row["recompiles"] == 0
    assert row["host ms"] >= row["call ms"] > 0


def test_the_cost_of_logging_is_measured_for_each_tracker(monkeypatch):
    monkeypatch.setattr(logging, "LOGS", 3)
    monkeypatch.setattr(logging, "EVALUATIONS", 1)
    rows = {row["trackers"]: row for row in logging.measure(["recursion.n_sup=2", "model=tiny"])}
    assert rows.keys() == logging.TRACKERS.keys()
    assert all(row["ms a log"] > 0 and row["share %"] > 0 for row in rows.values())
    assert rows["metrics.jsonl"]["MB in the end"] < rows["with TensorBoard"]["MB in the end"] < rows["all"]["MB in the end"]


@pytest.mark.long
def test_share(tmp_path):
    few = ["train.max_steps=6", "train.log_every_steps=2", "train.global_batch_size=8", "data.num_puzzles=16"]
    few += ["data.num_test_puzzles=8", "evaluate.max_puzzles=8", "evaluate.batch_size=8", "model.hidden_size=8"]
    rows = rows_of(tmp_path, "share", "--ways", "passive", "--rounds", "1", *few, "hardware.backend=eager")
    assert [row["way"] for row in rows] == ["passive"]
    for row in rows:
        assert [len(row[f"{case}, measured"]) for case in ("alone", "beside", "each of two")] == [1, 1, 2]
        assert row["beside/alone"] == pytest.approx(row["beside a busy process"] / row["alone"])
        assert row["both/alone"] == pytest.approx(2 * row["each of two"] / row["alone"])
    with pytest.raises(RunFailure, match="a run that was to be measured ended badly"):
        main(["share", "--rounds", "1", "train.max_steps=0"])


@pytest.mark.long
def test_an_interrupted_benchmark_shows_what_it_has_and_leaves_no_process(tmp_path):
    command = [sys.executable, "-m", "trm.bench", "step", "--sizes", "demo", "--ways", "eager", "--rounds", "100000"]
    with (tmp_path / "err").open("w+") as err:
        process = subprocess.Popen(
            [*command, "train.global_batch_size=8", "evaluate.batch_size=8"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            start_new_session=True,
        )
        wait_for(lambda: re.search(r"rounds: +\d+%.*[1-9]\d*/100000", (tmp_path / "err").read_text()), timeout_s=200)
        process.terminate()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: these are the figures" in out
    assert "samples/s" in out
    wait_for(lambda: not _there(process.pid), timeout_s=20)


def _there(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
