"""An animated GIF: one picture for each latent recursion, the last one held."""

import io
import itertools
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from trm.thinking import Frame, Marks, Puzzle

FRAME_MS, LAST_MS = 250, 2500
GRID_PX = 420  # about; a cell has a whole number of pixels
SMALLEST_CELL_PX = 22
MARGIN_PX, TEXT_PX, CURVE_PX = 14, 16, 70
PAGE, INK, SOFT, RULE, BAND, ACCENT, BAD, BAD_BAND = (
    "#ffffff", "#1c2126", "#5b656f", "#c3cad0", "#eceff2", "#0b62a8", "#a33300", "#fbe3d9",
)  # fmt: skip


def animation(puzzle: Puzzle, frames: list[Frame]) -> bytes:
    """All frames of a run of `think` as GIF bytes: the grid with marks and confidence, and the halting probability as a curve."""
    pictures = [_picture(puzzle, frames, i, marks) for i, marks in enumerate(puzzle.marks_of(frames))]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _picture(puzzle: Puzzle, frames: list[Frame], current: int, marks: Marks) -> Image.Image:
    side = puzzle.sudoku.side
    cell = max(GRID_PX // side, SMALLEST_CELL_PX)
    width, grid_end = 2 * MARGIN_PX + cell * side, MARGIN_PX + cell * side
    curve_top = grid_end + 3 * MARGIN_PX + 2 * TEXT_PX
    image = Image.new("RGB", (width, curve_top + CURVE_PX + MARGIN_PX), PAGE)
    draw = ImageDraw.Draw(image)
    _draw_cells(draw, puzzle, frames[current], marks, cell)
    _draw_lines(draw, puzzle, cell)
    frame, last = frames[current], frames[-1]
    lines = (
        f"step {frame.step}/{last.step}   recursion {frame.recursion}/{last.recursion}   halting {frame.halting:.3f}",
        f"{marks.wrong.sum()} wrong (crossed), {marks.changed.sum()} changed (framed)",
    )
    for line, text in enumerate(lines):
        place = (MARGIN_PX, grid_end + MARGIN_PX + line * (TEXT_PX + 6))
        draw.text(place, text, fill=(INK, SOFT)[line], font=_font(TEXT_PX))
    _draw_curve(draw, frames, current, (MARGIN_PX, curve_top, width - MARGIN_PX, curve_top + CURVE_PX))
    return image


def _draw_cells(draw: ImageDraw.ImageDraw, puzzle: Puzzle, frame: Frame, marks: Marks, cell: int) -> None:
    side, text = puzzle.sudoku.side, puzzle.sudoku.text(frame.answer)
    plain, bold = _font(cell * 11 // 20), _font(cell * 11 // 20, "DejaVuSans-Bold")
    for i, char in enumerate(text):
        left, top = MARGIN_PX + i % side * cell, MARGIN_PX + i // side * cell
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


def _draw_lines(draw: ImageDraw.ImageDraw, puzzle: Puzzle, cell: int) -> None:
    sudoku = puzzle.sudoku
    end = MARGIN_PX + sudoku.side * cell
    # thin lines first, so that none crosses a thick one
    for thick, i in itertools.product((False, True), range(sudoku.side + 1)):
        at = MARGIN_PX + i * cell
        for per_box, line in ((sudoku.box_cols, (at, MARGIN_PX, at, end)), (sudoku.box_rows, (MARGIN_PX, at, end, at))):
            if (i % per_box == 0) == thick:
                draw.line(line, INK if thick else RULE, 2 if thick else 1)


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


def _font(size: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """A font that matplotlib brings, `size` pixels high."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)
