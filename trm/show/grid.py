"""One grid of a puzzle drawn as pixels: what the animation and the contact sheet are made of."""

import functools
import itertools
from pathlib import Path

import matplotlib
from PIL import ImageDraw, ImageFont

from trm.thinking import Frame, Marks, Puzzle

PAGE, INK, SOFT, RULE, BAND, ACCENT, BAD, BAD_BAND = (
    "#ffffff", "#1c2126", "#5b656f", "#c3cad0", "#eceff2", "#0b62a8", "#a33300", "#fbe3d9",
)  # fmt: skip


def draw_grid(draw: ImageDraw.ImageDraw, puzzle: Puzzle, frame: Frame, marks: Marks, cell: int, origin: tuple[int, int]) -> None:
    """Draw a frame's answer with its marks and confidence; cells are `cell` pixels wide, the left top corner is at `origin`."""
    _draw_cells(draw, puzzle, frame, marks, cell, origin)
    _draw_lines(draw, puzzle, cell, origin)


@functools.cache
def font(size: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """A font that matplotlib brings, `size` pixels high."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


def _draw_cells(draw: ImageDraw.ImageDraw, puzzle: Puzzle, frame: Frame, marks: Marks, cell: int, origin: tuple[int, int]) -> None:
    side, text = puzzle.sudoku.side, puzzle.sudoku.text(frame.answer)
    plain, bold = font(cell * 11 // 20), font(cell * 11 // 20, "DejaVuSans-Bold")
    for i, char in enumerate(text):
        left, top = origin[0] + i % side * cell, origin[1] + i // side * cell
        right, bottom = left + cell, top + cell
        draw.rectangle((left, top, right, bottom), BAD_BAND if marks.wrong[i] else BAND if marks.given[i] else PAGE)
        if marks.changed[i]:
            draw.rectangle((left + 2, top + 2, right - 2, bottom - 2), outline=ACCENT, width=max(2, cell // 20))
        if marks.conflict[i]:
            size = cell // 5
            draw.polygon([(right - size, top), (right, top), (right, top + size)], BAD)
        ink, middle = BAD if marks.wrong[i] else INK, ((left + right) / 2, (top + bottom) / 2)
        draw.text(middle, char, fill=ink, font=bold if marks.given[i] else plain, anchor="mm")
        if marks.wrong[i]:
            draw.line((left + cell // 4, bottom - cell // 4, right - cell // 4, top + cell // 4), BAD, max(1, cell // 30))
        inset = cell // 10
        length = round((cell - 2 * inset) * float(frame.confidence[i]))
        draw.line((left + inset, bottom - inset, left + inset + length, bottom - inset), SOFT, max(2, cell // 20))


def _draw_lines(draw: ImageDraw.ImageDraw, puzzle: Puzzle, cell: int, origin: tuple[int, int]) -> None:
    sudoku, (left, top) = puzzle.sudoku, origin
    size = sudoku.side * cell
    # thin lines first, so that none crosses a thick one
    for thick, i in itertools.product((False, True), range(sudoku.side + 1)):
        at = i * cell
        down, across = (left + at, top, left + at, top + size), (left, top + at, left + size, top + at)
        for per_box, line in ((sudoku.box_cols, down), (sudoku.box_rows, across)):
            if (i % per_box == 0) == thick:
                draw.line(line, INK if thick else RULE, 2 if thick else 1)
