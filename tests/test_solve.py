"""`python -m trm.solve` with the options that show how the model thinks; tests/test_train.py has the plain command."""

import re

import pytest
from running import TINY, command, run, run_unread


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the run `outputs/whole`, trained for two steps."""
    folder = tmp_path_factory.mktemp("work")
    run(folder, "trm.train", *TINY, "run_name=whole", "train.max_steps=2", "hardware.backend=eager", "evaluate.max_puzzles=16")
    return folder


def test_solve_shows_how_it_thinks(folder):
    plain = run(folder, "trm.solve", "checkpoint=outputs/whole", "test:0").stdout
    shown = run(
        folder, "trm.solve", "checkpoint=outputs/whole", "--html", "seen/a=b.html", "test:0", "--watch", "--gif=seen/a.gif"
    ).stdout
    watched, _, rest = shown.partition(plain)
    assert rest.splitlines() == ["written: seen/a=b.html", "written: seen/a.gif"]
    last_grid = watched.rstrip().rpartition("step 4/4")[2].partition("\n")[2]
    answer = re.search(r"^([1-4.]{16}): ", plain, re.MULTILINE)
    assert answer
    assert re.sub(r"[^1-4.]", "", last_grid) == answer[1]
    assert f"Final answer {answer[1]}:" in (folder / "seen" / "a=b.html").read_text()
    assert (folder / "seen" / "a.gif").read_bytes().startswith(b"GIF89a")
    for arguments, words in (
        (["--html"], "--html"),
        (["--wach"], "--wach"),
        (["--gif", "outputs"], "--gif outputs: cannot be written to"),
        (["1234"], "one puzzle"),
    ):
        refused = run(folder, "trm.solve", "checkpoint=outputs/whole", "test:0", *arguments, check=2)
        assert words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_watching_ends_quietly_when_nobody_reads(folder):
    watch = command("trm.solve", "checkpoint=outputs/whole", "test:0", "--watch")
    assert run_unread(folder, *watch) == (141, "")
