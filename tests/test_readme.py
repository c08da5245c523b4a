"""The README: its commands run, its numbers are those of committed files, and it is short."""

import os
import re
import shlex
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
from running import run
from test_package import copy_sources, with_dependencies
from test_pages import pages

from trm.cli import compose_jobs

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
WITH_MAKE, WITH_PIP, THEN = re.findall(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
# What a command gets beside its own words, so that it takes seconds: plain torch and a handful of steps and puzzles.
FEW = ["evaluate.max_puzzles=8"]
SMALL = [
    *FEW, "hardware.backend=eager", "train.max_steps=2", "train.eval_every_steps=null", "train.checkpoint_every_steps=null",
    "data.num_puzzles=16", "data.num_test_puzzles=16", "tracking=none", "recursion.n_sup=2",
]  # fmt: skip


def test_every_command_runs(tmp_path):
    """In this process at a tiny size; of a sweep each job by itself."""
    for line in THEN.splitlines():
        run_small(tmp_path, *shlex.split(line)[2:])
    assert (tmp_path / "thinking.html").exists()
    assert (tmp_path / "outputs" / "report" / "index.html").exists()


def run_small(folder, module, *words):
    if "--multirun" in words:
        jobs = compose_jobs([word for word in words if word != "--multirun"])
        assert set(jobs) == {f"recursion={name},seed={seed}" for name in ("t2_n2", "t2_n6") for seed in (0, 1)}
        for name in sorted(job for job in jobs if job.endswith("seed=0")):
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
    elif module == "trm.plan":  # tests/test_pages.py runs this command, whose output is on a page
        assert " ".join(words) in pages.blocks()
    else:
        assert run(folder, module, *words).stdout


def in_a_shell(folder, commands, **variables):
    """Run lines as bash reads them from the README, without this checkout on any path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | variables
    done = subprocess.run(["bash", "-ec", commands], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_the_lines_with_make_run_in_a_fresh_checkout(tmp_path):
    """The environment that `make setup` would make is there, for its packages are another test's; the demo's runs are tiny."""
    checkout = copy_sources(tmp_path / "checkout")
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    shutil.copy(ROOT / "Makefile", checkout)
    venv.create(checkout / ".venv", symlinks=True)
    with_dependencies(checkout / ".venv")
    (checkout / ".venv" / ".ready-dev").touch()
    small = [word for word in SMALL if word != "tracking=none"]  # which the sweep sets itself
    out = in_a_shell(checkout, WITH_MAKE, DEMO=" ".join(small))
    assert "all 5 jobs completed" in out
    assert (checkout / "multirun" / "demo" / "report" / "index.html").exists()
    assert "sudoku_4x4 answers" in out
    assert out.rstrip().endswith("supervision steps")


def test_the_lines_with_pip_are_those_of_the_packages_test():
    """tests/test_package.py: test_the_installed_commands_work_in_an_empty_folder."""
    assert WITH_PIP == 'pip install .\ntrm-solve "1...|..1.|.1..|...1"\n'


@pytest.mark.parametrize(("name", "file", "text"), pages.FILLED.findall(TEXT))
def test_a_table_is_of_the_files(name, file, text):
    assert file == "docs/results"
    assert text == pages.table(name, ROOT), "run python scripts/dev/pages.py"


def test_measured_numbers_stand_in_filled_tables_alone():
    words = pages.FILLED.sub("", TEXT).replace("95 % interval", "")
    assert re.findall(r"\d ?%|±\s*\d|\d points|\d samples/s", words) == []


def test_it_is_read_in_two_minutes():
    assert len(TEXT.splitlines()) <= 120
