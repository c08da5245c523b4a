"""A contact sheet: the grid after every supervision step, side by side in one picture."""

from PIL import Image, ImageDraw

from trm.show.grid import INK, PAGE, SOFT, draw_grid, font
from trm.thinking import Frame, Puzzle

COLUMNS = 4
MOST_GRIDS = 16  # of more supervision steps the sheet shows the first, the last and evenly spread ones between them
GRID_PX, SMALLEST_CELL_PX = 180, 14  # about; a cell has a whole number of pixels
MARGIN_PX, TEXT_PX = 12, 13
COLOURS = 32  # a palette halves the PNG


def contact_sheet(puzzle: Puzzle, frames: list[Frame]) -> Image.Image:
    """The frames of a puzzle, one a supervision step, in rows of COLUMNS.

    Marks are those of the frames that are shown: a changed cell is one unlike the grid before it on the sheet.
    """
    shown = [frames[i] for i in _spread(len(frames), MOST_GRIDS)]
    side = puzzle.sudoku.side
    cell = max(GRID_PX // side, SMALLEST_CELL_PX)
    columns = min(COLUMNS, len(shown))
    width, height = cell * side + MARGIN_PX, cell * side + MARGIN_PX + 2 * TEXT_PX + 6
    image = Image.new("RGB", (MARGIN_PX + columns * width, MARGIN_PX + -(len(shown) // -columns) * height), PAGE)
    draw = ImageDraw.Draw(image)
    for i, (frame, marks) in enumerate(zip(shown, puzzle.marks_of(shown), strict=True)):
        left, top = MARGIN_PX + i % columns * width, MARGIN_PX + i // columns * height
        lines = (f"step {frame.step}: {marks.wrong.sum()} wrong", f"halting {frame.halting:.3f}")
        for line, text in enumerate(lines):
            draw.text((left, top + line * TEXT_PX), text, fill=(INK, SOFT)[line], font=font(TEXT_PX - 1))
        draw_grid(draw, puzzle, frame, marks, cell, (left, top + 2 * TEXT_PX + 4))
    return image.quantize(COLOURS, Image.Quantize.FASTOCTREE)


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0..count-1, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
