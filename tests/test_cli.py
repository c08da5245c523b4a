"""What all commands have in common, whether they read their own arguments or Hydra does: streams, exit codes, options."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from report_fixtures import write_run
from running import SMALLEST, command, environment, metrics, run, run_unread, summary

from trm.errors import ConfigError
from trm.ground.rank import STARTERS, refuse_other_starters
from trm.ground.streams import standard_streams

COMMAND = """
from trm.cli import plain_command
from trm.errors import UserError

def main(arguments):
    print("line", flush=True)
    for _ in range({lines}):
        print("line")
    {end}

plain_command(main, "usage")
"""


@pytest.mark.parametrize("lines", [1, 10_000], ids=["flushed at the end", "written on the way"])
@pytest.mark.parametrize("end", ["pass", "raise SystemExit(1)"])
def test_a_closed_pipe_ends_the_command_quietly(tmp_path, lines, end):
    script = COMMAND.format(lines=lines, end=end)
    assert run_unread(tmp_path, sys.executable, "-c", script, "argument") == (141, "")


def test_help_and_real_commands_end_quietly(tmp_path):
    write_run(tmp_path / "runs" / "a")
    assert run_unread(tmp_path, *command("trm.report", "--help")) == (141, "")
    assert run_unread(tmp_path, *command("trm.report", "runs")) == (141, "")
    assert (tmp_path / "runs" / "report" / "index.html").exists()  # the files are written first


def test_errors_keep_their_code_and_line(tmp_path):
    script = COMMAND.format(lines=1, end='raise UserError("wrong")')
    done = subprocess.run([sys.executable, "-c", script, "x"], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "line\nline\n", "error: wrong\n")


ROOT = Path(__file__).parents[1]
COMMANDS = ["train", "build_data", "evaluate", "solve", "interop", "plan", "report", "doctor", "dashboard", "bench", "playground"]
ONE = [*SMALLEST, "run_name=one"]


def test_every_command_has_them():
    for name in COMMANDS:
        path = ROOT / "trm" / name
        text = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        assert "plain_command(" in text or "hydra_command(" in text, name


def test_what_a_hydra_command_prints_ends_quietly_when_nobody_reads(tmp_path):
    assert run_unread(tmp_path, *command("trm.train", "--cfg", "job")) == (141, "")
    assert run_unread(tmp_path, *command("trm.build_data", *ONE, "data.path=set")) == (141, "")
    assert (tmp_path / "set" / "build.json").exists()


def test_a_run_goes_on_without_its_reader(tmp_path):
    code, error = run_unread(tmp_path, *command("trm.train", *ONE))
    assert code in (0, 141)
    assert error == ""
    assert summary(tmp_path / "outputs" / "one")["status"] == "completed"


def test_a_command_runs_with_closed_descriptors(tmp_path):
    def shell(*argv):
        line = subprocess.list2cmdline(argv) + " <&- >&- 2>&-"
        return subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, timeout=240, check=False)

    done = shell(*command("trm.train", *ONE))
    assert (done.returncode, done.stderr) == (0, b"")
    assert summary(tmp_path / "outputs" / "one")["status"] == "completed"
    assert len(metrics(tmp_path / "outputs" / "one", "train")) == 1  # and no line of a library among them
    assert shell(*command("trm.train", "no_such_key=1")).returncode == 2
    assert shell(*command("trm.solve")).returncode == 2


def test_processes_started_without_descriptors_have_some(tmp_path):
    """Else the first file that a child opens becomes its standard output."""
    script = (
        "import subprocess, sys; from trm.ground.streams import standard_streams\n"
        "with standard_streams():\n"
        "    child = 'import os; [os.fstat(number) for number in (0, 1, 2)]'\n"
        "    sys.exit(subprocess.run([sys.executable, '-c', child]).returncode)"
    )
    line = subprocess.list2cmdline([sys.executable, "-c", script]) + " <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), check=False).returncode == 0


def test_a_full_disk_behind_the_output_is_told_in_one_line(tmp_path):
    for arguments in (["trm.dashboard", "--help"], ["trm.build_data", "--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command(*arguments), env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert (done.returncode, done.stderr) == (
            1,
            "error: the output cannot be written: No space left on device: send it elsewhere\n",
        )


def test_another_broken_pipe_is_no_reader_that_went_away():
    with pytest.raises(BrokenPipeError), standard_streams():
        raise BrokenPipeError(32, "of a socket")


def test_a_preempted_run_keeps_its_code_without_a_reader(tmp_path):
    script = (
        "import sys; from trm.ground.streams import standard_streams\n"
        "sys.stdout = open(1, 'w')  # with a buffer, whatever the environment says\n"
        "with standard_streams():\n    print('x')\n    raise SystemExit(143)"
    )
    assert run_unread(tmp_path, sys.executable, "-c", script) == (143, "")


# options -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_overrides_are_read_on_both_sides_of_an_option(tmp_path):
    done = run(tmp_path, "trm.train", "tracking=none", "--cfg", "job", "recursion=t2_n2", process=True)
    assert "T: 2" in done.stdout
    run(tmp_path, "trm.train", *SMALLEST, "-m", "seed=0,1", process=True)
    assert sorted(path.name for path in (tmp_path / "multirun").glob("*/seed=*")) == ["seed=0", "seed=1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trm.train", "--lr", "3"], "lr=... (did you mean optimizer.lr?)"),
        (["trm.build_data", "--subsample-size=1000"], "data.num_puzzles"),
        (["trm.train", "--train.max_steps=3"], "without dashes: train.max_steps=..."),
        (["trm.solve", "--checkpoint", "outputs/a", "1..."], "without dashes: checkpoint=..."),
        (["trm.train", "-m", "--cfg", "job"], "exclude one another"),
    ],
)
def test_settings_written_as_options(tmp_path, arguments, words):
    done = run(tmp_path, *arguments, check=2)
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# processes ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "rank"), STARTERS.items())
def test_several_processes_of_one_command_are_refused(tmp_path, monkeypatch, size, rank):
    refuse_other_starters()
    monkeypatch.setenv(rank, "1")
    refuse_other_starters()
    for alone in ("1", ""):
        monkeypatch.setenv(size, alone)
        refuse_other_starters()
    monkeypatch.setenv(size, "2")
    with pytest.raises(ConfigError, match=rf"{size}=2.*start it once.*hardware\.jobs=N"):
        refuse_other_starters()
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")  # a job of a sweep, on several hosts
    refuse_other_starters()


@pytest.mark.long
def test_a_run_started_by_torchrun_is_refused_by_each_rank(tmp_path):
    for more in ([], ["--multirun", "seed=0,1"]):
        done = run(tmp_path, "trm.train", *ONE, *more, check=2, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
        assert "torchrun" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


FIRST = """
import os, sys
import torch, trm.cli  # which take seconds
for first in ("trm.core.optimizers", "trm.core.variants", "trm.core.recursion"):
    if not (child := os.fork()):
        __import__(first)
        trm.cli.compose([])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, first
"""


def test_whatever_is_imported_first_the_default_settings_pass(tmp_path):
    """A check of a registry's names comes with the registry, never before what fills it."""
    done = subprocess.run([sys.executable, "-c", FIRST], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# what comes before torch ---------------------------------------------------------------------------------------------------------

IMPORTED = """
import contextlib, io, json, runpy, sys
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv[1:], out, err = arguments, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    heavy = [name for name in ("torch", "scipy.stats") if name in sys.modules]
    print(json.dumps([[module, *arguments], heavy, out.getvalue(), err.getvalue()]))
"""
COMPUTE_NOTHING = [
    ("trm.train", "--help"),
    ("trm.train", "--cfg", "job"),
    ("trm.train", "-m", "lr=3,4"),
    ("trm.train", "train.max_steps=0"),
    ("trm.solve", "--help"),
    ("trm.evaluate", "--help"),
    ("trm.interop", "--help"),
    ("trm.plan", "--help"),
    ("trm.report", "runs"),
]


def test_what_computes_nothing_imports_neither_torch_nor_scipys_statistics(tmp_path):
    write_run(tmp_path / "runs" / "a")
    argv = [sys.executable, "-c", IMPORTED, json.dumps(COMPUTE_NOTHING)]
    done = subprocess.run(argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [tuple(arguments) for arguments, *_ in found] == COMPUTE_NOTHING
    for arguments, heavy, out, err in found:
        assert heavy == [], arguments
        assert out or len(err.splitlines()) == 1, arguments  # help, settings, a table; or one line of a refusal
