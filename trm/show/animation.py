"""An animated GIF: one picture for each latent recursion, the last one held."""

import io

from PIL import Image, ImageDraw

from trm.show.grid import ACCENT, INK, PAGE, RULE, SOFT, draw_grid, font
from trm.show.thinking import Frame, Marks, Puzzle

FRAME_MS, LAST_MS = 250, 2500
GRID_PX = 420  # about; a cell has a whole number of pixels
SMALLEST_CELL_PX = 22
MARGIN_PX, TEXT_PX, CURVE_PX = 14, 16, 70


def animation(puzzle: Puzzle, frames: list[Frame]) -> bytes:
    """All frames of a run of `think` as GIF bytes: the grid with marks and confidence, and the halting probability as a curve."""
    pictures = [_picture(puzzle, frames, i, marks) for i, marks in enumerate(puzzle.marks_of(frames))]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _picture(puzzle: Puzzle, frames: list[Frame], current: int, marks: Marks) -> Image.Image:
    view = puzzle.task.view
    cell = max(GRID_PX // view.columns, SMALLEST_CELL_PX)
    width, grid_end = 2 * MARGIN_PX + cell * view.columns, MARGIN_PX + cell * view.rows
    curve_top = grid_end + 3 * MARGIN_PX + 2 * TEXT_PX
    image = Image.new("RGB", (width, curve_top + CURVE_PX + MARGIN_PX), PAGE)
    draw = ImageDraw.Draw(image)
    draw_grid(image, puzzle, frames[current], marks, cell, (MARGIN_PX, MARGIN_PX))
    frame, last = frames[current], frames[-1]
    lines = (
        f"step {frame.step}/{last.step}   recursion {frame.recursion}/{last.recursion}   halting {frame.halting:.3f}",
        f"{marks.wrong.sum()} wrong (crossed), {marks.changed.sum()} changed (framed)",
    )
    for line, text in enumerate(lines):
        place = (MARGIN_PX, grid_end + MARGIN_PX + line * (TEXT_PX + 6))
        draw.text(place, text, fill=(INK, SOFT)[line], font=font(TEXT_PX))
    _draw_curve(draw, frames, current, (MARGIN_PX, curve_top, width - MARGIN_PX, curve_top + CURVE_PX))
    return image


def _draw_curve(draw: ImageDraw.ImageDraw, frames: list[Frame], current: int, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box

    def point(i: int) -> tuple[float, float]:
        return left + (right - left) * (i + 1) / len(frames), bottom - (bottom - top) * frames[i].halting

    for share in (0, 0.5, 1):
        y = bottom - (bottom - top) * share
        draw.line((left, y, right, y), RULE)
    points = [point(i) for i in range(len(frames))]
    if current:
        draw.line(points[: current + 1], ACCENT, 2)
    x, y = points[current]
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), PAGE, INK, 2)
