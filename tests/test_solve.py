"""`python -m trm.solve` with the options that show how the model thinks; tests/test_train.py has the plain command."""

import re

import numpy as np
import pytest
from running import TINY, command, run, run_unread

from trm.data.format import array_path

SHORT = [*TINY, "train.max_steps=2", "evaluate.max_puzzles=16"]
SIDES = {"sudoku_4x4": 4, "sudoku_6x6": 6}

of_every_size = pytest.mark.parametrize("trained", SIDES, indirect=True)
of_4x4 = pytest.mark.parametrize("trained", ["sudoku_4x4"], indirect=True)


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory):
    """The grid's side, and a working directory with the run `outputs/whole`, trained for two steps."""
    folder = tmp_path_factory.mktemp("work")
    run(folder, "trm.train", *SHORT, f"data={request.param}", "run_name=whole")
    return SIDES[request.param], folder


@of_every_size
def test_solve_shows_how_it_thinks(trained):
    side, folder = trained
    plain = run(folder, "trm.solve", "checkpoint=outputs/whole", "test:0").stdout
    shown = run(
        folder, "trm.solve", "checkpoint=outputs/whole", "--html", "seen/a=b.html", "test:0", "--watch", "--gif=seen/a.gif"
    ).stdout
    watched, _, rest = shown.partition(plain)
    assert rest.splitlines() == ["written: seen/a=b.html", "written: seen/a.gif"]
    last_grid = watched.rstrip().rpartition("step 4/4")[2].partition("\n")[2]
    answer = re.search(rf"^([1-{side}.]{{{side**2}}}): ", plain, re.MULTILINE)
    assert answer
    assert re.sub(rf"[^1-{side}.]", "", last_grid) == answer[1]
    assert f">{answer[1]}</code> <strong>NOT a solution" in (folder / "seen" / "a=b.html").read_text()
    assert (folder / "seen" / "a.gif").read_bytes().startswith(b"GIF89a")


@of_4x4
def test_wrong_options_are_named(trained):
    _, folder = trained
    for arguments, words in (
        (["--html"], "--html"),
        (["--wach"], "--wach"),
        (["--gif", "outputs"], "--gif outputs: cannot be written to"),
        (["1234"], "one puzzle"),
    ):
        refused = run(folder, "trm.solve", "checkpoint=outputs/whole", "test:0", *arguments, check=2)
        assert words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    for arguments, words in (
        (["11.. .... .... ...."], "no solution: row 1 has 1 more than once; box 1 has 1 more than once: mend its givens"),
        (["1---------------", "--checkpoint=x"], "without dashes: checkpoint=..."),
    ):
        refused = run(folder, "trm.solve", "checkpoint=outputs/whole", *arguments, check=2)
        assert words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    refused = run(folder, "trm.solve", "checkpoint=outputs/whole", "test:" + "9" * 5000, check=2)  # more digits than int() reads
    assert "held-out puzzles are test:0 to test:" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@of_4x4
def test_blanks_may_be_dashes(trained):
    dots, dashes = (
        run(trained[1], "trm.solve", "checkpoint=outputs/whole", ".1..|....|....|...2".replace(".", blank)).stdout for blank in ".-"
    )
    assert dots == dashes
    assert "question" in dots
    assert run(trained[1], "trm.solve", "checkpoint=outputs/whole", "-" * 16).stdout.startswith("question")


@of_4x4
def test_watching_ends_quietly_when_nobody_reads(trained):
    watch = command("trm.solve", "checkpoint=outputs/whole", "test:0", "--watch")
    assert run_unread(trained[1], *watch) == (141, "")


def test_puzzles_that_are_no_sudoku_are_refused(tmp_path):
    run(tmp_path, "trm.build_data", "data=sudoku_4x4", "data.num_puzzles=64", "data.num_test_puzzles=64", "data.path=grids")
    (tmp_path / "grids/build.json").unlink()
    for split in ("train", "test"):
        metadata = tmp_path / "grids" / split / "dataset.json"
        metadata.write_text(metadata.read_text().replace('"seq_len": 16', '"seq_len": 25'))
        for name in ("inputs", "labels"):
            file = array_path(tmp_path / "grids", split, name)
            np.save(file, np.pad(np.load(file), ((0, 0), (0, 9)), constant_values=2))
    run(tmp_path, "trm.train", *SHORT, "data.path=grids", "data.on_the_fly_aug=0", "run_name=whole")
    for puzzle, words in (
        ("test:0", "/grids: holds no 4x4 Sudoku"),
        ("1...|..1.|.1..|...1", "data.box_rows=2 data.box_cols=2: 4x4 Sudoku"),
    ):
        refused = run(tmp_path, "trm.solve", "checkpoint=outputs/whole", puzzle, check=2)
        assert words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
