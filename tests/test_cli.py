"""What all commands that read their own arguments have in common: trm.cli.plain_command."""

import subprocess
import sys

import pytest
from report_fixtures import write_run
from running import command, environment, run_unread

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
