"""A contact sheet: the grid after every supervision step, side by side in one picture."""

import functools

import numpy as np
from PIL import Image, ImageColor

from trm.show.grid import ACCENT, BAD, BAD_BAND, BAND, INK, PAGE, RULE, SOFT, ink_on, panel, veiled
from trm.show.thinking import Frame, Puzzle

COLUMNS = 4
MOST_GRIDS = 16  # of more supervision steps the sheet shows the first, the last and evenly spread ones between them
GRID_PX, SMALLEST_CELL_PX = 180, 14  # about; a cell has a whole number of pixels
MARGIN_PX = 12
TEXT_PX = 18  # as large as fits above a grid: TensorBoard shows a sheet at two thirds of its size
SHADES = 6  # of a letter's edge, from the paper to the ink


def contact_sheet(puzzle: Puzzle, frames: list[Frame]) -> Image.Image:
    """The frames of a puzzle, one a supervision step, in rows of COLUMNS.

    Marks are those of the frames that are shown: a changed cell is one unlike the grid before it on the sheet.
    """
    spread = np.linspace(0, len(frames) - 1, min(len(frames), MOST_GRIDS)).round().astype(int)
    shown = [frames[i] for i in spread]
    cell = max(GRID_PX // puzzle.view.columns, SMALLEST_CELL_PX)
    grids = []
    for frame, marks in zip(shown, puzzle.marks_of(shown), strict=True):
        lines = f"step {frame.step}: {marks.wrong.sum()} wrong", f"halting {frame.halting:.3f}"
        grids.append(panel(puzzle, frame, marks, cell, lines, TEXT_PX))
    width, height = grids[0].width + MARGIN_PX, grids[0].height + MARGIN_PX
    columns = min(COLUMNS, len(grids))
    image = Image.new("RGB", (MARGIN_PX + columns * width, MARGIN_PX + -(len(grids) // -columns) * height), PAGE)
    for i, grid in enumerate(grids):
        image.paste(grid, (MARGIN_PX + i % columns * width, MARGIN_PX + i // columns * height))
    return image.quantize(palette=_palette(tuple((puzzle.view.colours or {}).values())), dither=Image.Dither.NONE)


@functools.cache
def _palette(grounds: tuple[str, ...]) -> Image.Image:
    """The colours of all sheets of a view, which halve the PNG. Finding some for each sheet takes 5 ms."""
    names = [(PAGE, INK), (BAND, SOFT), (BAD_BAND, BAD), (RULE, ACCENT)]
    names += [(paper, ink_on(ground)) for ground in grounds for paper in (ground, veiled(ground))]
    papers, inks = (np.array([ImageColor.getrgb(name) for name in group]) for group in zip(*names, strict=True))
    shades = np.linspace(papers, inks, SHADES).reshape(-1, 3)
    palette = Image.new("P", (1, 1))
    palette.putpalette(shades.astype(np.uint8).tobytes())
    return palette
