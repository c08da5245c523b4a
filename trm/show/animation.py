"""An animated GIF: one picture for each latent recursion, the last one held."""

import io

from PIL import Image, ImageDraw

from trm.show.grid import ACCENT, INK, PAGE, RULE, panel
from trm.show.thinking import Frame, Marks, Puzzle

FRAME_MS, LAST_MS = 250, 2500
GRID_PX, SMALLEST_CELL_PX = 420, 22  # about; a cell has a whole number of pixels
MARGIN_PX, TEXT_PX, CURVE_PX = 14, 16, 70


def animation(puzzle: Puzzle, frames: list[Frame]) -> bytes:
    """All frames of a run of `think` as GIF bytes: the grid with marks and confidence, and the halting probability as a curve."""
    pictures = [_picture(puzzle, frames, i, marks) for i, marks in enumerate(puzzle.marks_of(frames))]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _picture(puzzle: Puzzle, frames: list[Frame], current: int, marks: Marks) -> Image.Image:
    frame, last = frames[current], frames[-1]
    lines = (
        f"step {frame.step}/{last.step}   recursion {frame.recursion}/{last.recursion}   halting {frame.halting:.3f}",
        f"{marks.wrong.sum()} wrong (crossed), {marks.changed.sum()} changed (framed)",
    )
    grid = panel(puzzle, frame, marks, max(GRID_PX // puzzle.view.columns, SMALLEST_CELL_PX), lines, TEXT_PX)
    image = Image.new("RGB", (grid.width + 2 * MARGIN_PX, grid.height + CURVE_PX + 3 * MARGIN_PX), PAGE)
    image.paste(grid, (MARGIN_PX, MARGIN_PX))

    left, right, bottom = MARGIN_PX, image.width - MARGIN_PX, image.height - MARGIN_PX
    draw = ImageDraw.Draw(image)
    for share in (0, 0.5, 1):
        y = bottom - CURVE_PX * share
        draw.line((left, y, right, y), RULE)
    points = [(left + (right - left) * (i + 1) / len(frames), bottom - CURVE_PX * f.halting) for i, f in enumerate(frames)]
    if current:
        draw.line(points[: current + 1], ACCENT, 2)
    x, y = points[current]
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), PAGE, INK, 2)
    return image
