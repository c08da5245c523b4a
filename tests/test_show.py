"""A model's thinking in the terminal and as an animation."""

import base64
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import termios

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageColor
from thinking_fixtures import SIZES, architecture, puzzle, thoughts
from toy_task import CLEAR, FILLED, Sums

from trm.show import terminal
from trm.show.page import page, thinking_data
from trm.show.pictures import ACCENT, FRAME_MS, LAST_MS, animation, contact_sheet, veiled
from trm.show.terminal import MARKS_LEGEND, Watcher
from trm.show.thinking import Frame, Puzzle
from trm.tasks.maze.task import COLOURS, MazeTask
from trm.tasks.sudoku.task import SudokuTask as Sudoku

pytestmark = pytest.mark.usefixtures("one_thread")
SUDOKU = Sudoku(2, 2)
MADE = Puzzle("p", SUDOKU, SUDOKU.parse("1...|..1.|.1..|...1"), SUDOKU.parse("1234|3412|2143|4321"))


def frame(step: int, text: str, halting: float = 0.25) -> Frame:
    return Frame(step, 1, SUDOKU.parse(text), np.full(16, 0.5), halting)


STEPS = [frame(1, "1134|3412|2143|4321"), frame(2, "1234|3412|2143|432.", 0.9), frame(3, "1234|3412|2143|4321", 1.0)]


def watched(stream, made: Puzzle = MADE, steps=STEPS, **env: str) -> None:
    watcher = Watcher(made, len(steps), stream, env)
    for step in steps:
        watcher.show(step)


def on_a_terminal(lines: int, columns: int, made: Puzzle = MADE, steps=STEPS, **env: str) -> str:
    """What `watched` writes to a pseudo-terminal of this size."""
    leader, follower = pty.openpty()
    try:
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        with open(follower, "w", closefd=False) as stream:
            watched(stream, made, steps, **env)
        os.close(follower)
        written = b""
        with contextlib.suppress(OSError):  # Linux says so when the other end is closed and all has been read
            while part := os.read(leader, 65536):
                written += part
    finally:
        os.close(leader)
    return written.decode().replace("\r\n", "\n")


def screen(written: str) -> list[str]:
    """The lines that stand on the terminal in the end: the two movements that the watcher uses, colours left out."""
    lines = [""]
    for token in re.findall(r"\x1b\[\d+A|\x1b\[J|\x1b\[[\d;]*m|\n|[^\x1b\n]+", written):
        if re.fullmatch(r"\x1b\[\d+A", token):
            up = int(token[2:-1])
            assert lines[-1] == ""
            lines = lines[:-up] if up < len(lines) else []
            lines[-1] = ""
        elif token == "\n":
            lines.append("")
        elif not token.startswith("\x1b"):
            lines[-1] += token
    return lines


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(terminal, "PAUSE_S", 0)


PLAIN = f"""\
{MARKS_LEGEND}

step 1/3  halting 0.250 [#####---------------]  wrong  1  changed  0
[1]!1 | 3  4 
 3  4 |[1] 2 
------+------
 2 [1]| 4  3 
 4  3 | 2 [1]

step 2/3  halting 0.900 [##################--]  wrong  1  changed  2
[1] 2*| 3  4 
 3  4 |[1] 2 
------+------
 2 [1]| 4  3 
 4  3 | 2 !.*

step 3/3  halting 1.000 [####################]  wrong  0  changed  1
[1] 2 | 3  4 
 3  4 |[1] 2 
------+------
 2 [1]| 4  3 
 4  3 | 2 [1]

"""  # noqa: W291


def test_a_file_gets_every_grid_with_marks_and_no_escapes():
    stream = io.StringIO()
    watched(stream, TERM="xterm")
    assert stream.getvalue() == PLAIN


@pytest.mark.parametrize(("lines", "columns", "terminal"), [(40, 100, "dumb"), (8, 100, "xterm"), (40, 12, "xterm")])
def test_a_dumb_terminal_and_one_too_small_for_the_grid_get_one_below_the_other(lines, columns, terminal):
    assert on_a_terminal(lines, columns, TERM=terminal, NO_COLOR="1") == PLAIN


def test_a_terminal_keeps_a_line_for_each_step_and_the_last_grid():
    written = on_a_terminal(40, 100, TERM="xterm")
    lines = PLAIN.splitlines()
    legend, steps = written.splitlines()[0], [line for line in lines if line.startswith("step")]
    left = screen(written)
    assert [word in legend for word in ("given", "wrong", "changed")] == [True] * 3
    assert left[2:5] == steps
    assert left[5:] == [" 1  2 | 3  4 ", " 3  4 | 1  2 ", "------+------", " 2  1 | 4  3 ", " 4  3 | 2  1 ", "", ""]


def test_colours_tell_cells_apart():
    written = on_a_terminal(40, 100, TERM="xterm")
    first, second, third = re.split(r"step \d/3", written)[1:]
    assert f"\x1b[{terminal.GIVEN}m 1 \x1b[0m\x1b[{terminal.WRONG}m 1 \x1b[0m| 3  4 " in first
    assert f"\x1b[{terminal.GIVEN}m 1 \x1b[0m\x1b[{terminal.CHANGED}m 2 \x1b[0m| 3  4 " in second
    assert f"\x1b[{terminal.WRONG_AND_CHANGED}m . \x1b[0m" in second
    assert terminal.WRONG not in third
    assert "!" not in written
    assert "[1]" not in written


def test_no_color_gives_marks_on_a_terminal():
    written = on_a_terminal(40, 100, TERM="xterm", NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*m", written)
    assert screen(written)[0] == MARKS_LEGEND
    assert screen(written)[5] == "[1] 2 | 3  4 "


@pytest.mark.parametrize("sudoku", SIZES, ids=lambda s: f"{s.side}x{s.side}")
def test_every_size_in_every_form(sudoku):
    made = puzzle(sudoku)
    frames = thoughts(architecture(sudoku, n_sup=2, T=2), made.question)
    stream = io.StringIO()
    watcher = Watcher(made, 2, stream, {})
    for step in frames[1::2]:
        watcher.show(step)
    grids = stream.getvalue().split("\n\n")[1:3]
    for grid, shown in zip(grids, frames[1::2], strict=True):
        digits = "".join(re.sub(r"[-+\[\]!*| \n]", "", grid.partition("\n")[2]))
        assert digits == sudoku.text(shown.answer)
    picture = Image.open(io.BytesIO(animation(made, frames)))
    assert picture.n_frames == len(frames)
    (data,) = thinking_data([(made, frames)])["puzzles"]
    assert [list(base64.b64decode(item["answer"])) for item in data["frames"]] == [f.answer.tolist() for f in frames]
    for item, shown in zip(data["frames"], frames, strict=True):
        assert [data["violations"][i] for i in item["violations"]] == sudoku.violations(made.question, shown.answer)


def difference(one: Image.Image, other: Image.Image, box: tuple[int, int, int, int]) -> int:
    """The largest difference of a pixel in the box, in levels of 255."""
    return max(high for _, high in ImageChops.difference(one.crop(box), other.crop(box)).getextrema())


def test_animation_holds_the_last_frame_and_repeats():
    picture = Image.open(io.BytesIO(animation(MADE, STEPS)))
    durations, pictures = [], []
    for i in range(picture.n_frames):
        picture.seek(i)
        durations.append(picture.info["duration"])
        pictures.append(picture.convert("RGB"))
    assert picture.info["loop"] == 0
    assert durations == [FRAME_MS, FRAME_MS, LAST_MS]
    # the second cell: wrong in the first frame, changed in the second, neither in the third
    assert all(difference(pictures[i], pictures[j], (119, 58, 224, 163)) > 100 for i, j in ((0, 1), (1, 2), (0, 2)))
    # the third: right all the time; the frames' palettes differ by a few levels
    assert difference(pictures[0], pictures[1], (228, 62, 324, 159)) < 10


def test_a_tasks_own_colours_are_the_ground_of_its_cells():
    task, half = Sums(3), np.full(16, 0.5)
    (question,), (answer,) = task.generate(1, 0)
    made, grounds = Puzzle("p", task, question, answer), set(task.view.colours.values())
    sheet = contact_sheet(made, [Frame(1, 1, answer, half, 0.5)]).convert("RGB")
    shown = {colour for _, colour in sheet.getcolors()}
    assert {ImageColor.getrgb(ground) for ground in grounds} <= shown
    assert not {ImageColor.getrgb(veiled(ground)) for ground in grounds} & shown
    wrong = contact_sheet(made, [Frame(1, 1, np.where(answer == FILLED, CLEAR, FILLED), half, 0.5)]).convert("RGB")
    assert {ImageColor.getrgb(veiled(ground)) for ground in grounds} & {colour for _, colour in wrong.getcolors()}


def test_the_page_escapes_what_comes_from_outside():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"
    html = page(Puzzle(evil, SUDOKU, MADE.question, None), STEPS, f"run {evil}")
    assert "<img" not in html
    assert html.count("<script") == 2
    assert html.count("</script>") == 2
    assert "&lt;/script&gt;" in html
    assert re.findall(r"""(?:src|href)\s*=\s*["']?(\w+)""", html.replace("src=x", "")) == ["data"]


def a_maze(side=30):
    """A maze, and as answers first the maze itself, then its path with a step beside it, then the path."""
    task = MazeTask(side, side, None)
    (question,), (answer,) = task.generate(1, 0)
    astray = answer.copy()
    astray[np.flatnonzero(answer == 2)[-1]] = 5
    steps = [Frame(i, 1, cells, np.full(side**2, 0.5), 0.5) for i, cells in enumerate((question, astray, answer), 1)]
    return Puzzle("m", task, question, answer), steps


def test_a_line_joins_the_cells_of_a_path():
    made, (bare, _, path) = a_maze(7)
    for frame, drawn in ((bare, False), (path, True)):
        sheet = contact_sheet(made, [frame]).convert("RGB")
        assert (ImageColor.getrgb(ACCENT) in {colour for _, colour in sheet.getcolors(10**6)}) is drawn
    assert json.loads(json.dumps(thinking_data([(made, [path])])))["view"]["line"] == list(made.view.line)


def test_a_maze_is_drawn_narrow_enough_for_a_terminal_with_marks_in_plain_text():
    made, steps = a_maze()
    stream = io.StringIO()
    watched(stream, made, steps)
    text = stream.getvalue()
    assert text.startswith("!x wrong   *x changed since the step before\n")
    grids = text.split("step ")[2:]
    wrong = [int(grid.splitlines()[0].split("wrong ")[1].split()[0]) for grid in grids]
    assert wrong == [(steps[0].answer != steps[2].answer).sum(), 1, 0]
    last = grids[-1].splitlines()[1:31]
    assert {len(line) for line in last} == {60}
    assert "".join(line[1::2] for line in last) == made.task.view.text(steps[2].answer)
    assert "!" not in "".join(last)
    assert "".join(grids[1].splitlines()[1:31]).count("!o") == 1


def test_a_maze_has_its_colours_on_a_terminal_and_wrong_steps_stand_out():
    made, steps = a_maze(7)  # what is written must fit the pseudo-terminal's buffer
    written = on_a_terminal(40, 80, made, steps, TERM="xterm")
    wall, path = (";".join(str(int(COLOURS[token][i : i + 2], 16)) for i in (1, 3, 5)) for token in (1, 5))
    assert f"\x1b[97;48;2;{wall}m #\x1b[0m" in written
    assert f"\x1b[30;48;2;{path}m o\x1b[0m" in written
    assert "\x1b[1;31;7;4m o\x1b[0m" in written
    assert len(screen(written)) < 40  # drawn in place
    assert "given" not in written


def test_an_answer_that_is_as_right_as_the_known_one_has_no_wrong_cells():
    task = MazeTask(3, 1, None)
    question, known, other, gap = (task.parse(text) for text in ("S       G", "Soo  o  G", "S  o  ooG", "S  o   oG"))
    made = Puzzle("m", task, question, known)
    assert not made.marks(other, None).wrong.any()
    assert np.flatnonzero(made.marks(gap, None).wrong).tolist() == [1, 2, 3, 5, 7]
