"""The benchmarks run and count; what they measure is nobody's business here."""

import json
import subprocess
import sys

import pytest
from running import environment, run

from trm.bench.machine import facts, in_child, median_and_spread, table
from trm.errors import RunFailure


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
    [(["speed"], "host, compile, checkpoint"), (["host", "fast"], "KEY=VALUE"), (["host", "--json"], "--json needs")],
)
def test_bad_arguments(tmp_path, arguments, words):
    done = run(tmp_path, "trm.bench", *arguments, check=2)
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_checkpoint_writes_json(tmp_path):
    small = ["data=sudoku_4x4", "model=tiny", "train.global_batch_size=8", "data.num_puzzles=16", "data.num_test_puzzles=8"]
    done = run(tmp_path, "trm.bench", "checkpoint", *small, "--json", "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["size"] for row in written["rows"]] == ["demo", "paper"]
    assert all(row["MB"] > 1 and row["held up s"] <= row["on disk after s"] for row in written["rows"])
    assert written["machine"]["torch_xla"] in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(("way", "machine"), [("compiled", "hardware=cpu_mesh"), ("lazy", "hardware=cpu")])
def test_host_time_of_the_real_step(tmp_path, way, machine):
    code = (
        "import json; import trm.bench.host as h; h.STEPS = h.LAZY_STEPS = 4; "
        f"print(json.dumps(h.in_this_process({{'overrides': [*h.TINY, 'recursion=t2_n2', {machine!r}], 'way': {way!r}}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True, timeout=200
    )
    [row] = json.loads(done.stdout.splitlines()[-1])
    assert row["way"] == way
    assert row["recompiles"] == 0
    assert row["host ms"] >= row["call ms"] > 0
