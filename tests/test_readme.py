"""The README: its commands run, its numbers are those of committed files, and it is short."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from running import run
from test_pages import pages

from trm.cli import compose_jobs

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
# What a command gets beside its own words, so that it takes seconds: plain torch and a handful of steps and puzzles.
FEW = ["evaluate.max_puzzles=8"]
SMALL = [
    *FEW, "hardware.backend=eager", "train.max_steps=2", "train.eval_every_steps=null", "train.checkpoint_every_steps=null",
    "data.num_puzzles=16", "data.num_test_puzzles=16", "tracking=none", "recursion.n_sup=2",
]  # fmt: skip


def test_every_command_runs(tmp_path):
    """In this process at a tiny size; of a sweep each job by itself. What installs is done by other tests, which have the words."""
    package = (ROOT / "tests" / "test_package.py").read_text()
    for line in COMMANDS:
        words = shlex.split(line)
        if words[0] == "make":
            dry = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            assert "scripts/demo.sh" in dry if words[1:] == ["demo"] else dry
        elif words[0] == ".":
            assert f"VENV := {Path(words[1]).parts[0]}\n" in (ROOT / "Makefile").read_text()
        elif words[0] == "pip":
            assert words[1:] == ["install", "."] and '"install", "-q", "--no-deps", str(wheel)' in package  # noqa: PT018
        elif words[0].startswith("trm-"):
            assert f'"{words[0]}", "{words[1]}"' in package
        else:
            run_small(tmp_path, *words[2:])
    assert (tmp_path / "thinking.html").exists()
    assert (tmp_path / "outputs" / "report" / "index.html").exists()


def run_small(folder, module, *words):
    if "--multirun" in words:
        jobs = compose_jobs([word for word in words if word != "--multirun"])
        assert set(jobs) == {f"recursion={name},seed={seed}" for name in ("t2_n2", "t2_n6") for seed in (0, 1)}
        for name in jobs:
            single = [word for word in words if not word.startswith(("--", "recursion=", "seed=", "run_name="))]
            label = "_".join(re.findall(r"=(\w+)", name))
            run(folder, module, *single, *name.split(","), f"run_name=mine_{label}", *SMALL)
    elif module == "trm.train":
        run(folder, module, *words, *SMALL)
    elif module == "trm.report":  # of the sweep's jobs, which stand beside the first run here
        out = run(folder, module, *[word.replace("multirun/mine", "outputs") for word in words]).stdout
        assert "t2_n2" in out
        assert "t2_n6" in out
    elif module == "trm.evaluate":
        assert "exact_accuracy" in run(folder, module, *words, *FEW).stdout
    else:
        assert run(folder, module, *words).stdout


@pytest.mark.parametrize(("name", "file", "text"), pages.FILLED.findall(TEXT))
def test_a_table_is_of_the_files(name, file, text):
    assert file == "docs/results"
    assert text == pages.table(name, ROOT), "run python scripts/dev/pages.py"


def test_measured_numbers_stand_in_filled_tables_alone():
    words = pages.FILLED.sub("", TEXT).replace("95 % interval", "")
    assert re.findall(r"\d ?%|±\s*\d|\d points|\d samples/s", words) == []


def test_it_is_read_in_two_minutes():
    assert len(TEXT.splitlines()) <= 120
