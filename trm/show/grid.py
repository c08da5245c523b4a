"""One grid of a puzzle drawn as pixels: what the animation and the contact sheet are made of."""

import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from trm.show.thinking import Cells, Frame, Marks, Puzzle
from trm.tasks.base import GridView

PAGE, INK, SOFT, RULE, BAND, ACCENT, BAD, BAD_BAND = (
    "#ffffff", "#1c2126", "#5b656f", "#c3cad0", "#eceff2", "#0b62a8", "#a33300", "#fbe3d9",
)  # fmt: skip
ON_DARK = "#b4bec8"  # softer than the paper: what is dark, such as a wall, needs no reading
WRONG_VEIL, WRONG_SHARE = "#e04a10", 0.6  # over the colour of a wrong cell, where its token has one


def ink_on(ground: str) -> str:
    """The ink that can be read on a colour, #rrggbb."""
    red, green, blue = ImageColor.getrgb(ground)[:3]
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else ON_DARK


def veiled(ground: str) -> str:
    """The colour of a wrong cell whose token has the colour `ground`."""
    mixed = (round(a + WRONG_SHARE * (b - a)) for a, b in zip(*map(ImageColor.getrgb, (ground, WRONG_VEIL)), strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def panel(puzzle: Puzzle, frame: Frame, marks: Marks, cell: int, lines: Sequence[str], text_px: int) -> Image.Image:
    """Lines of text, the later ones softer, above a frame's answer with its marks and confidence; cells are `cell` pixels wide."""
    view, top, inset = puzzle.view, len(lines) * (text_px + 4) + 4, cell // 10
    image = Image.new("RGB", (view.columns * cell + 2, view.rows * cell + 2 + top), PAGE)
    draw = ImageDraw.Draw(image)
    for number, text in enumerate(lines):
        draw.text((0, number * (text_px + 4)), text, fill=SOFT if number else INK, font=_font(text_px))
    for i, token in enumerate(frame.answer.tolist()):
        x, y = i % view.columns * cell, top + i // view.columns * cell
        flags = (bool(marks.given[i]), bool(marks.wrong[i]), bool(marks.changed[i]), bool(marks.conflict[i]))
        ground = view.colours.get(token) if view.colours else None
        image.paste(_cell(cell, view.symbols[token], ground, *flags), (x, y))
        length, low = round((cell - 2 * inset) * float(frame.confidence[i])), y + cell - inset
        draw.line((x + inset, low, x + inset + length, low), SOFT, max(cell // 20, 2 if cell > 20 else 1))
    right, bottom = view.columns * cell, top + view.rows * cell
    for thick in (False, True):  # thin lines first, so that none crosses a thick one
        look = (INK, 2) if thick else (RULE, 1)
        for i in range(view.columns + 1):
            if (i in (0, view.columns, *view.heavy_columns)) == thick:
                draw.line((i * cell, top, i * cell, bottom), *look)
        for i in range(view.rows + 1):
            if (i in (0, view.rows, *view.heavy_rows)) == thick:
                draw.line((0, top + i * cell, right, top + i * cell), *look)
    for pair in _joined(view, frame.answer):
        ends = [(i % view.columns * cell + cell // 2, top + i // view.columns * cell + cell // 2) for i in pair]
        draw.line(ends, ACCENT, max(2, cell // 5))
    return image


def _joined(view: GridView, answer: Cells) -> list[tuple[int, int]]:
    """The neighbouring cells that a line joins."""
    on = np.isin(answer, view.line).reshape(view.rows, view.columns)
    index = np.arange(on.size).reshape(on.shape)
    beside, below = on[:, :-1] & on[:, 1:], on[:-1] & on[1:]
    pairs = [(index[:, :-1][beside], index[:, 1:][beside]), (index[:-1][below], index[1:][below])]
    return [pair for a, b in pairs for pair in zip(a.tolist(), b.tolist(), strict=True)]


@functools.cache
def _font(size: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """A font that matplotlib brings, `size` pixels high."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


@functools.lru_cache(1000)
def _cell(cell: int, char: str, ground: str | None, given: bool, wrong: bool, changed: bool, conflict: bool) -> Image.Image:
    """A cell but for its confidence, with the lines around it. There are few different ones, and letters take longest to draw."""
    ink, paper = (BAD, BAD_BAND) if wrong else (INK, BAND if given else PAGE)
    if ground:
        ink, paper = ink_on(ground), veiled(ground) if wrong else ground
    image = Image.new("RGB", (cell + 1, cell + 1), paper)
    draw = ImageDraw.Draw(image)
    if changed:
        draw.rectangle((2, 2, cell - 2, cell - 2), outline=ACCENT, width=max(2, cell // 20))
    if conflict:
        size = cell // 5
        draw.polygon([(cell - size, 0), (cell, 0), (cell, size)], BAD)
    letters = _font(cell * 11 // 20, "DejaVuSans-Bold" if given else "DejaVuSans")
    draw.text((cell / 2, cell / 2), char, fill=ink, font=letters, anchor="mm")
    if wrong:
        draw.line((cell // 4, cell - cell // 4, cell - cell // 4, cell // 4), BAD, max(1, cell // 30))
    return image
