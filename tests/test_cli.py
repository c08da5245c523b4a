"""What all commands have in common, whether they read their own arguments or Hydra does: streams, exit codes, options."""

import json
import subprocess
import sys

import pytest
from report_fixtures import write_run
from running import SMALLEST, environment, metrics, run, summary

from trm.cli import ROOT
from trm.errors import ConfigError
from trm.ground.rank import STARTERS, refuse_other_starters
from trm.ground.signals import standard_streams

COMMANDS = ["train", "build_data", "evaluate", "solve", "interop", "plan", "report", "doctor", "dashboard", "bench", "playground"]
ONE = [*SMALLEST, "run_name=one"]

# Imports once what all commands need and then runs each of them in a child, which ends as an interpreter does.
HOST = """
import json, os, runpy, sys, tempfile

def ended(streams, module, *arguments):
    files = [tempfile.TemporaryFile() for _ in range(3)]
    out, err, note = (file.fileno() for file in files)
    if not (child := os.fork()):
        if streams == "unread":
            read, out = os.pipe()
            os.close(read)
        elif streams == "full":
            out = os.open("/dev/full", os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(err, 2)
        if streams == "closed":
            os.closerange(0, 3)
            sys.stdin = sys.stdout = sys.stderr = None  # as an interpreter that starts so
        sys.argv[1:] = arguments
        try:
            exec(arguments[0], {}) if module == "-c" else runpy.run_module(module, run_name="__main__", alter_sys=True)
        finally:
            os.write(note, json.dumps([name for name in ("torch", "scipy.stats") if name in sys.modules]).encode())
        sys.exit()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for file in files:
        file.seek(0)
    return [code, *(file.read().decode() for file in files)]

light, others = json.loads(sys.argv[1])
found = [ended("kept", *words) for words in light]
import torch, trm.cli  # which take seconds
print(json.dumps([found, {name: ended(*case) for name, case in others.items()}]))
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


def printing(lines, end):
    """A command that prints so many lines, and ends so."""
    return f"""
from trm.cli import plain_command
from trm.errors import UserError

def main(arguments):
    for _ in range({lines}):
        print("line")
    {end}

plain_command(main, "usage")
"""


FULL = "error: the output cannot be written: No space left on device: send it elsewhere\n"
WITH_STREAMS = "import subprocess, sys; from trm.ground.signals import standard_streams\nwith standard_streams():\n    "
# What its standard streams are, the command, its exit code and what it says on stderr
STREAMS = {
    "flushed at the end": ("unread", "-c", printing(1, "pass"), 141, ""),
    "flushed at the end of a failure": ("unread", "-c", printing(1, "raise SystemExit(1)"), 141, ""),
    "written on the way": ("unread", "-c", printing(10_000, "pass"), 141, ""),
    "an error": ("kept", "-c", printing(2, 'raise UserError("wrong")'), 2, "error: wrong\n"),
    "preempted": ("unread", "-c", f"{WITH_STREAMS}print('x')\n    raise SystemExit(143)", 143, ""),
    # else the first file that a child opens becomes its standard output
    "a process of its own": ("closed", "-c", f"{WITH_STREAMS}subprocess.run(['sh', '-c', ': <&0 >&1 2>&2'], check=True)", 0, ""),
    "help": ("unread", "trm.report", "--help", 141, ""),
    "a report": ("unread", "trm.report", "runs", 141, ""),
    "settings": ("unread", "trm.train", "--cfg", "job", 141, ""),
    "a dataset": ("unread", "trm.build_data", *ONE, "data.path=set", 141, ""),
    "a run": ("closed", "trm.train", *SMALLEST, "run_name=closed", 0, ""),
    "a refusal": ("closed", "trm.report", "nowhere", 2, ""),
    "a full disk": ("full", "trm.dashboard", "--help", 1, FULL),
    "a full disk and Hydra": ("full", "trm.build_data", "--help", 1, FULL),
}
# A check of a registry's names comes with the registry, never before what fills it.
FIRST = ("trm.core.optimizers", "trm.core.variants", "trm.core.recursion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the host ran; it holds what the commands wrote."""
    folder = tmp_path_factory.mktemp("work")
    write_run(folder / "runs" / "a")
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    """Of each command of COMPUTE_NOTHING, and by name of the others: exit code, stdout, stderr, the heavy modules imported."""
    others = {name: case[:-2] for name, case in STREAMS.items()} | {"goes on": ("unread", "trm.train", *ONE)}
    others |= {name: ("kept", "-c", f"import {name}, trm.cli; trm.cli.compose([])") for name in FIRST}
    argv, env = [sys.executable, "-c", HOST, json.dumps([COMPUTE_NOTHING, others])], environment(PYTHONUNBUFFERED="")
    return json.loads(subprocess.run(argv, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.mark.parametrize("name", STREAMS)
def test_a_command_ends_with_its_code_and_at_most_a_line_whatever_its_streams_are(ended, name):
    code, _, err, _ = ended[1][name]
    assert (code, err) == STREAMS[name][-2:]


def test_what_nobody_reads_is_written_to_its_files_all_the_same(folder, ended):
    assert ended[1]["an error"][1] == "line\nline\n"
    assert (folder / "runs" / "report" / "index.html").exists()
    assert (folder / "set" / "build.json").exists()
    code, _, err, _ = ended[1]["goes on"]
    assert (code in (0, 141), err) == (True, "")
    for name in ("one", "closed"):
        assert summary(folder / "outputs" / name)["status"] == "completed"
        assert len(metrics(folder / "outputs" / name, "train")) == 1  # and no line of a library among them


def test_what_computes_nothing_imports_neither_torch_nor_scipys_statistics(ended):
    for arguments, (_, out, err, heavy) in zip(COMPUTE_NOTHING, ended[0], strict=True):
        assert heavy == "[]", arguments
        assert out or len(err.splitlines()) == 1, arguments  # help, settings, a table; or one line of a refusal


@pytest.mark.parametrize("name", FIRST)
def test_whatever_is_imported_first_the_default_settings_pass(ended, name):
    assert ended[1][name][:3] == [0, "", ""]


def test_another_broken_pipe_is_no_reader_that_went_away():
    with pytest.raises(BrokenPipeError), standard_streams():
        raise BrokenPipeError(32, "of a socket")


def test_every_command_has_them():
    for name in COMMANDS:
        path = ROOT / "trm" / name
        text = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        assert "plain_command(" in text or "hydra_command(" in text, name


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
    done = run(tmp_path, *arguments, check=2, process=False)
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# processes ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "rank"), STARTERS.items())
def test_several_processes_of_one_command_are_refused(monkeypatch, size, rank):
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
