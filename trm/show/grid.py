"""One grid of a puzzle drawn as pixels: what the animation and the contact sheet are made of."""

import functools
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from trm.show.thinking import Frame, Marks, Puzzle
from trm.tasks.base import GridView

PAGE, INK, SOFT, RULE, BAND, ACCENT, BAD, BAD_BAND = (
    "#ffffff", "#1c2126", "#5b656f", "#c3cad0", "#eceff2", "#0b62a8", "#a33300", "#fbe3d9",
)  # fmt: skip


def draw_grid(image: Image.Image, puzzle: Puzzle, frame: Frame, marks: Marks, cell: int, origin: tuple[int, int]) -> None:
    """Draw a frame's answer with its marks and confidence; cells are `cell` pixels wide, the left top corner is at `origin`."""
    draw = ImageDraw.Draw(image)
    view, inset = puzzle.task.view, cell // 10
    for i, char in enumerate(view.text(frame.answer)):
        left, top = origin[0] + i % view.columns * cell, origin[1] + i // view.columns * cell
        flags = (bool(marks.given[i]), bool(marks.wrong[i]), bool(marks.changed[i]), bool(marks.conflict[i]))
        image.paste(_cell(cell, char, *flags), (left, top))
        length, y = round((cell - 2 * inset) * float(frame.confidence[i])), top + cell - inset
        draw.line((left + inset, y, left + inset + length, y), SOFT, max(2, cell // 20))
    _draw_lines(draw, view, cell, origin)


@functools.cache
def font(size: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """A font that matplotlib brings, `size` pixels high."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


@functools.lru_cache(1000)
def _cell(cell: int, char: str, given: bool, wrong: bool, changed: bool, conflict: bool) -> Image.Image:
    """A cell but for its confidence, with the lines around it. There are few different ones, and letters take longest to draw."""
    image = Image.new("RGB", (cell + 1, cell + 1), BAD_BAND if wrong else BAND if given else PAGE)
    draw = ImageDraw.Draw(image)
    if changed:
        draw.rectangle((2, 2, cell - 2, cell - 2), outline=ACCENT, width=max(2, cell // 20))
    if conflict:
        size = cell // 5
        draw.polygon([(cell - size, 0), (cell, 0), (cell, size)], BAD)
    letters = font(cell * 11 // 20, "DejaVuSans-Bold" if given else "DejaVuSans")
    draw.text((cell / 2, cell / 2), char, fill=BAD if wrong else INK, font=letters, anchor="mm")
    if wrong:
        draw.line((cell // 4, cell - cell // 4, cell - cell // 4, cell // 4), BAD, max(1, cell // 30))
    return image


def _draw_lines(draw: ImageDraw.ImageDraw, view: GridView, cell: int, origin: tuple[int, int]) -> None:
    left, top = origin
    right, bottom = left + view.columns * cell, top + view.rows * cell
    # thin lines first, so that none crosses a thick one
    for thick in (False, True):
        for i in range(view.columns + 1):
            if (i in (0, view.columns) or i in view.heavy_columns) == thick:
                draw.line((left + i * cell, top, left + i * cell, bottom), INK if thick else RULE, 2 if thick else 1)
        for i in range(view.rows + 1):
            if (i in (0, view.rows) or i in view.heavy_rows) == thick:
                draw.line((left, top + i * cell, right, top + i * cell), INK if thick else RULE, 2 if thick else 1)
