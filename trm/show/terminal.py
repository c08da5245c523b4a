"""The grid after every supervision step, in the terminal: colours where it has them, marks in plain text otherwise."""

import os
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from PIL import ImageColor

from trm.show.thinking import Frame, Puzzle

PAUSE_S = 0.3  # a terminal shows each step at least this long before it draws the next one over it
BAR_WIDTH = 20  # characters
WIDE, NARROW = 3, 2  # columns of a cell: of a grid whose cells have gaps in text, and of others
GIVEN, WRONG, CHANGED, WRONG_AND_CHANGED, PLAIN = "1;34", "1;31;7", "4;36", "1;31;7;4", "0"  # ANSI: bold blue, red, underlined
MARKS_LEGEND = "[5] given   !5  wrong   5* changed since the step before"
NARROW_LEGEND = "!x wrong   *x changed since the step before"


class Watcher:
    """Writes one line for each supervision step, and the grid: over the last grid on a terminal, below it in a file or pipe."""

    def __init__(self, puzzle: Puzzle, num_steps: int, stream: TextIO | None = None, env: Mapping[str, str] = os.environ) -> None:
        """`env` is asked for NO_COLOR (https://no-color.org) and TERM."""
        self._puzzle, self._num_steps, self._stream = puzzle, num_steps, stream or sys.stdout
        self._before: Frame | None = None
        self._drawn = 0  # lines of the grid that stands on the terminal
        view = puzzle.view
        self._wide = bool(view.gap)
        self._width = WIDE if self._wide else NARROW
        terminal = self._stream.isatty() and env.get("TERM") != "dumb"
        self._colour = terminal and not env.get("NO_COLOR")
        self._in_place = False
        if terminal:  # which has to show a whole grid: the cursor does not get back to lines that left the screen
            size, width = os.get_terminal_size(self._stream.fileno()), self._width * view.columns + len(view.heavy_columns)
            self._in_place = size.lines > view.rows + len(view.heavy_rows) + 3 and size.columns > width + 1
        legend = MARKS_LEGEND if self._wide else NARROW_LEGEND
        if self._colour:  # where tokens have colours, a given cell has that of its token
            names = {WRONG: "wrong", CHANGED: "changed since the step before", WRONG_AND_CHANGED: "wrong and changed"}
            names = names if view.colours else {GIVEN: "given", **names}
            legend = "  ".join(f"{_paint(' 5 ', code)} {name}" for code, name in names.items())
        print(f"{legend}\n", file=self._stream)

    def show(self, frame: Frame) -> None:
        """The next supervision step: its number, the halting probability with a bar, counts of marked cells, and the grid."""
        marks, view = self._puzzle.marks(frame.answer, self._before.answer if self._before else None), self._puzzle.view
        self._before = frame
        if self._in_place and self._drawn:
            time.sleep(PAUSE_S)
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")  # up to where the grid began, and clear from there
        flags = zip(marks.given.tolist(), marks.wrong.tolist(), marks.changed.tolist(), strict=True)
        cells = zip(frame.answer.tolist(), view.text(frame.answer), flags, strict=True)
        grid = view.lines([self._cell(token, char, *flag) for token, char, flag in cells], self._width)
        full = round(BAR_WIDTH * frame.halting)
        bar = "#" * full + "-" * (BAR_WIDTH - full)
        step = f"step {frame.step:>{len(str(self._num_steps))}}/{self._num_steps}  halting {frame.halting:.3f} [{bar}]"
        counts = f"wrong {marks.wrong.sum():>2}  changed {marks.changed.sum():>2}"
        print(f"{step}  {counts}", *grid, "", sep="\n", file=self._stream, flush=True)
        self._drawn = len(grid) + 1

    def _cell(self, token: int, char: str, given: bool, wrong: bool, changed: bool) -> str:
        """A cell in its colours; without colours with marks around it, or before it where cells are narrow."""
        if not self._colour:
            if not self._wide:
                return f"{'!' if wrong else '*' if changed else ' '}{char}"
            return f"[{char}]" if given and not wrong else f"{'!' if wrong else ' '}{char}{'*' if changed else ' '}"
        text, ground = f" {char} " if self._wide else f" {char}", (self._puzzle.view.colours or {}).get(token)
        if wrong:
            return _paint(text, WRONG_AND_CHANGED if changed else WRONG)
        if not self._wide and ground:  # with black or white letters
            red, green, blue = ImageColor.getrgb(ground)[:3]
            return _paint(text, f"{30 if red + green + blue > 3 * 128 else 97};48;2;{red};{green};{blue}")
        return _paint(text, GIVEN if self._wide and given else CHANGED if changed else PLAIN)


def _paint(text: str, code: str) -> str:
    return text if code == PLAIN else f"\x1b[{code}m{text}\x1b[0m"
