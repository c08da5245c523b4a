"""The benchmarks run and count; what they measure is nobody's business here."""

import importlib
import importlib.metadata
import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from running import environment, run
from sweeping import wait_for

from bench import __main__ as bench
from bench import loader, machine, step
from bench.__main__ import SUBCOMMANDS, main
from bench.compare import ratio_with_interval
from bench.machine import facts, in_child, median_and_spread, table
from trm.errors import RunFailure, UserError

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

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(machine, "code", machine.code.__wrapped__)  # which is asked once a process
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(machine.os, "sysconf", Mock(side_effect=ValueError))
    monkeypatch.setattr(machine, "open", Mock(side_effect=FileNotFoundError), raising=False)
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


def test_sides_with_other_rows_are_refused_after_one_turn(monkeypatch):
    sides = []
    monkeypatch.setattr(importlib.import_module("bench.compare"), "_run", lambda *of: sides.append(of) or [{}] * len(sides))
    with pytest.raises(RunFailure, match="the same rows"):
        main(["compare", "step", "--configs", "seed=1", "seed=2"])
    assert len(sides) == 2


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_each_benchmark_takes_its_own_options(name, monkeypatch):
    benchmark = importlib.import_module(f"bench.{SUBCOMMANDS[name]}")
    monkeypatch.setattr(bench, "facts", dict)
    taken = inspect.signature(benchmark.measure)
    monkeypatch.setattr(benchmark, "measure", lambda *given, **options: taken.bind(*given, **options) and [{"ms": 1.0}])
    main([name])


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


@pytest.mark.long
def test_loader(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loader, "BLOCK_S", 0.02)
    small = ["data=sudoku_4x4", "data.num_puzzles=16", "model=tiny", "model.hidden_size=8", "recursion=t2_n2"]
    rows = rows_of(tmp_path, "loader", "--rounds", "2", *small, "hardware.backend=eager")
    machines = [("cpu", 1, 768), ("v4_8", 1, 768), ("v4_64", 8, 96)]
    assert [(row["machine"], row["hosts"], row["rows of a host"]) for row in rows] == machines
    assert [row["consumed"].split()[0] for row in rows] == ["measured,", "the", "the"]
    assert all(row["times"] > 0 and row["bar"] == 20 and len(row["all batches/s"]) == 2 for row in rows)
    assert "batches/s" in capsys.readouterr().out


def test_build_data(tmp_path):
    few = ["data.num_puzzles=16", "data.num_test_puzzles=4", "data.num_aug=2"]
    rows = rows_of(tmp_path, "build_data", "--rounds", "1", "--sizes", "4x4,csv", *few)
    # with selection puzzles where they are generated
    assert [(row["size"], row["puzzles"], row["rows"]) for row in rows] == [("4x4", 24, 56), ("csv", 20, 52)]
    for row in rows:
        assert row["MB"] > 0
        assert row["puzzles/s"] == pytest.approx(row["puzzles"] / row["s"])


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
@pytest.mark.parametrize("way", ["compiled", "loop"])
def test_host_time_of_the_real_step(tmp_path, way):
    code = (
        "import json; import bench.host as h; overrides = [*h.TINY, *h.SHALLOWEST]; "
        f"request = {{'overrides': [*overrides, 'hardware=cpu_mesh'], 'way': {way!r}, 'steps': 4}}; "
        "print(json.dumps(h.in_this_process(request)))"
    )
    command, env = [sys.executable, "-c", code], environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=200)
    [row] = json.loads(done.stdout.splitlines()[-1])
    assert row["way"] == way
    assert len(row["all host ms"]) == 4
    assert row["recompiles"] == 0
    assert row["host ms"] >= row["call ms"] > 0


@pytest.mark.long
def test_an_interrupted_benchmark_shows_what_it_has_and_leaves_no_process(tmp_path):
    command = [sys.executable, "-m", "trm.bench", "step", "--sizes", "demo", "--ways", "eager", "--rounds", "100000"]
    with (tmp_path / "err").open("w+") as err:
        streams = {"stdout": subprocess.PIPE, "stderr": err, "text": True}
        command += ["train.global_batch_size=8", "evaluate.batch_size=8"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), start_new_session=True, **streams)
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
