"""Grids of a puzzle drawn as pixels: an animated GIF of all recursions, and a contact sheet of the supervision steps."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from trm.show.thinking import Frame, Marks, Puzzle

PAGE, INK, SOFT, RULE, BAND, ACCENT, BAD, BAD_BAND = (
    "#ffffff", "#1c2126", "#5b656f", "#c3cad0", "#eceff2", "#0b62a8", "#a33300", "#fbe3d9",
)  # fmt: skip
ON_DARK = "#b4bec8"  # softer than the paper: what is dark, such as a wall, needs no reading
WRONG_VEIL, WRONG_SHARE = "#e04a10", 0.6  # over the colour of a wrong cell, where its token has one

FRAME_MS, LAST_MS = 250, 2500
GIF_PX, SMALLEST_GIF_CELL_PX, GIF_MARGIN_PX, GIF_TEXT_PX, CURVE_PX = 420, 22, 14, 16, 70  # a grid's width is about GIF_PX
COLUMNS = 4  # of a sheet
MOST_GRIDS = 16  # of more supervision steps the sheet shows the first, the last and evenly spread ones between them
SHEET_PX, SMALLEST_SHEET_CELL_PX, SHEET_MARGIN_PX = 180, 14, 12
SHEET_TEXT_PX = 18  # as large as fits above a grid: TensorBoard shows a sheet at two thirds of its size
SHADES = 6  # of a letter's edge, from the paper to the ink


def animation(puzzle: Puzzle, frames: list[Frame]) -> bytes:
    """All frames of a run of `think` as GIF bytes: the grid with marks and confidence, and the halting probability as a curve."""
    cell, last, pictures = max(GIF_PX // puzzle.view.columns, SMALLEST_GIF_CELL_PX), frames[-1], []
    for current, (frame, marks) in enumerate(zip(frames, puzzle.marks_of(frames), strict=True)):
        lines = (
            f"step {frame.step}/{last.step}   recursion {frame.recursion}/{last.recursion}   halting {frame.halting:.3f}",
            f"{marks.wrong.sum()} wrong (crossed), {marks.changed.sum()} changed (framed)",
        )
        grid = _panel(puzzle, frame, marks, cell, lines, GIF_TEXT_PX)
        image = Image.new("RGB", (grid.width + 2 * GIF_MARGIN_PX, grid.height + CURVE_PX + 3 * GIF_MARGIN_PX), PAGE)
        image.paste(grid, (GIF_MARGIN_PX, GIF_MARGIN_PX))
        left, right, bottom = GIF_MARGIN_PX, image.width - GIF_MARGIN_PX, image.height - GIF_MARGIN_PX
        draw = ImageDraw.Draw(image)
        for share in (0, 0.5, 1):
            draw.line((left, bottom - CURVE_PX * share, right, bottom - CURVE_PX * share), RULE)
        points = [(left + (right - left) * (i + 1) / len(frames), bottom - CURVE_PX * f.halting) for i, f in enumerate(frames)]
        if current:
            draw.line(points[: current + 1], ACCENT, 2)
        x, y = points[current]
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), PAGE, INK, 2)
        pictures.append(image)
    buffer, durations = io.BytesIO(), [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return buffer.getvalue()


def contact_sheet(puzzle: Puzzle, frames: list[Frame]) -> Image.Image:
    """The frames of a puzzle, one for each supervision step, in rows of COLUMNS.

    Marks are those of the frames that are shown: a changed cell is one unlike the grid before it on the sheet.
    """
    spread = np.linspace(0, len(frames) - 1, min(len(frames), MOST_GRIDS)).round().astype(int)
    shown, cell, grids = [frames[i] for i in spread], max(SHEET_PX // puzzle.view.columns, SMALLEST_SHEET_CELL_PX), []
    for frame, marks in zip(shown, puzzle.marks_of(shown), strict=True):
        lines = f"step {frame.step}: {marks.wrong.sum()} wrong", f"halting {frame.halting:.3f}"
        grids.append(_panel(puzzle, frame, marks, cell, lines, SHEET_TEXT_PX))
    width, height = grids[0].width + SHEET_MARGIN_PX, grids[0].height + SHEET_MARGIN_PX
    columns = min(COLUMNS, len(grids))
    image = Image.new("RGB", (SHEET_MARGIN_PX + columns * width, SHEET_MARGIN_PX + -(len(grids) // -columns) * height), PAGE)
    for i, grid in enumerate(grids):
        image.paste(grid, (SHEET_MARGIN_PX + i % columns * width, SHEET_MARGIN_PX + i // columns * height))
    return image.quantize(palette=_palette(tuple((puzzle.view.colours or {}).values())), dither=Image.Dither.NONE)


@functools.cache
def _palette(grounds: tuple[str, ...]) -> Image.Image:
    """The colours of all sheets of a view, which halve the PNG. Finding some for each sheet takes 5 ms."""
    names = [(PAGE, INK), (BAND, SOFT), (BAD_BAND, BAD), (RULE, ACCENT)]
    names += [(paper, ink_on(ground)) for ground in grounds for paper in (ground, veiled(ground))]
    papers, inks = (np.array([ImageColor.getrgb(name) for name in group]) for group in zip(*names, strict=True))
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.linspace(papers, inks, SHADES).reshape(-1, 3).astype(np.uint8).tobytes())
    return palette


def ink_on(ground: str) -> str:
    """The ink that can be read on a colour, #rrggbb."""
    red, green, blue = ImageColor.getrgb(ground)[:3]
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else ON_DARK


def veiled(ground: str) -> str:
    """The colour of a wrong cell whose token has the colour `ground`."""
    mixed = (round(a + WRONG_SHARE * (b - a)) for a, b in zip(*map(ImageColor.getrgb, (ground, WRONG_VEIL)), strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _panel(puzzle: Puzzle, frame: Frame, marks: Marks, cell: int, lines: Sequence[str], text_px: int) -> Image.Image:
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
    on = np.isin(frame.answer, view.line).reshape(view.rows, view.columns)  # a line joins neighbouring cells of these tokens
    for first, second, step in ((on[:, :-1], on[:, 1:], (0, 1)), (on[:-1], on[1:], (1, 0))):
        for row, column in np.argwhere(first & second).tolist():
            ends = [
                (x * cell + cell // 2, top + y * cell + cell // 2) for y, x in ((row, column), (row + step[0], column + step[1]))
            ]
            draw.line(ends, ACCENT, max(2, cell // 5))
    return image


@functools.cache
def _font(size: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """A font that matplotlib brings, `size` pixels high."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


@functools.lru_cache(1000)
def _cell(cell: int, char: str, ground: str | None, given: bool, wrong: bool, changed: bool, conflict: bool) -> Image.Image:
    """A cell without its confidence, with the lines around it. Few cells differ, and letters take longest to draw."""
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
