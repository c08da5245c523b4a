"""A contact sheet: the grid after every supervision step, side by side in one picture."""

import functools

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from trm.show.grid import ACCENT, BAD, BAD_BAND, BAND, INK, PAGE, RULE, SOFT, draw_grid, font
from trm.show.thinking import Frame, Puzzle

COLUMNS = 4
MOST_GRIDS = 16  # of more supervision steps the sheet shows the first, the last and evenly spread ones between them
GRID_PX, SMALLEST_CELL_PX = 180, 14  # about; a cell has a whole number of pixels
MARGIN_PX = 12
LINE_PX, TEXT_PX = 21, 18  # as large as fits above a grid: TensorBoard shows a sheet at two thirds of its size
SHADES = 6  # of a letter's edge, from the paper to the ink


def contact_sheet(puzzle: Puzzle, frames: list[Frame]) -> Image.Image:
    """The frames of a puzzle, one a supervision step, in rows of COLUMNS.

    Marks are those of the frames that are shown: a changed cell is one unlike the grid before it on the sheet.
    """
    shown = [frames[i] for i in _spread(len(frames), MOST_GRIDS)]
    view = puzzle.task.view
    cell = max(GRID_PX // view.columns, SMALLEST_CELL_PX)
    columns = min(COLUMNS, len(shown))
    width, height = cell * view.columns + MARGIN_PX, cell * view.rows + MARGIN_PX + 2 * LINE_PX + 6
    image = Image.new("RGB", (MARGIN_PX + columns * width, MARGIN_PX + -(len(shown) // -columns) * height), PAGE)
    draw = ImageDraw.Draw(image)
    for i, (frame, marks) in enumerate(zip(shown, puzzle.marks_of(shown), strict=True)):
        left, top = MARGIN_PX + i % columns * width, MARGIN_PX + i // columns * height
        lines = (f"step {frame.step}: {marks.wrong.sum()} wrong", f"halting {frame.halting:.3f}")
        for line, text in enumerate(lines):
            draw.text((left, top + line * LINE_PX), text, fill=(INK, SOFT)[line], font=font(TEXT_PX))
        draw_grid(image, puzzle, frame, marks, cell, (left, top + 2 * LINE_PX + 4))
    return image.quantize(palette=_palette(), dither=Image.Dither.NONE)


@functools.cache
def _palette() -> Image.Image:
    """The colours of all sheets, which halve the PNG. Finding some for each sheet takes 5 ms."""
    names = ((PAGE, BAND, BAD_BAND), (INK, SOFT, BAD), (RULE, ACCENT))
    papers, inks, others = (np.array([ImageColor.getrgb(name) for name in group]) for group in names)
    shades = np.linspace(papers[:, None], inks[None], SHADES).reshape(-1, 3)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([shades, others]).astype(np.uint8).tobytes())
    return palette


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0..count-1, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
