"""One HTML file in which a reader moves through supervision steps and recursions; it needs no network and no other file."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from trm.show.thinking import Frame, Puzzle

FLAGS = ("given", "wrong", "changed", "conflict")  # bit i of a cell's number in the page's data stands for FLAGS[i]


def page(puzzle: Puzzle, frames: list[Frame], title: str) -> str:
    """The page of all frames of a run of `think`. Everything that comes from the run or the user is escaped.

    As in trm/report the page's policy forbids any load, and any script but the one whose hash it names.
    """
    script = _beside("page.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_beside("page.html")).render(
        title=title,
        puzzle=puzzle,
        answer=puzzle.task.view.text(frames[-1].answer),
        valid=not puzzle.task.violations(puzzle.question, frames[-1].answer),
        steps=frames[-1].step,
        recursions=frames[-1].recursion,
        data=page_data(puzzle, frames),
        script=Markup(script),  # ours, with nothing from the run in it
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def page_data(puzzle: Puzzle, frames: list[Frame]) -> dict[str, Any]:
    """What the page's script draws, ready for JSON: the frames in their order, grids as one line of text each."""
    view = puzzle.task.view
    numbers: dict[str, int] = {}  # a violation lasts for many frames: its words are written once
    drawn = []
    for frame, marks in zip(frames, puzzle.marks_of(frames), strict=True):
        violations = puzzle.task.violations(puzzle.question, frame.answer)
        drawn.append(
            {
                "answer": view.text(frame.answer),
                "confidence": frame.confidence.round(4).tolist(),
                "halting": frame.halting,
                "marks": sum(getattr(marks, name).astype(int) << bit for bit, name in enumerate(FLAGS)).tolist(),
                "violations": [numbers.setdefault(text, len(numbers)) for text in violations],
            }
        )
    return {
        "rows": view.rows,
        "columns": view.columns,
        "heavy_rows": view.heavy_rows,
        "heavy_columns": view.heavy_columns,
        "flags": FLAGS,
        "recursions": frames[-1].recursion,
        "solution": None if puzzle.solution is None else view.text(puzzle.solution),
        "violations": list(numbers),
        "frames": drawn,
    }


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
