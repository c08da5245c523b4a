"""Pages, each one HTML file that needs no network and no other file, and the data of the viewer that shows a model thinking."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import ArrayLike

from trm.show.pictures import ink_on
from trm.show.thinking import Frame, Puzzle

HERE = Path(__file__).parent
VIEWER = HERE / "viewer.js"
FLAGS = ("given", "wrong", "changed", "conflict")  # bit i of a cell's marks in the page's data stands for FLAGS[i]
NO_TOKEN = 255  # in the page's data, for a cell that is not known; tokens are smaller

Thoughts = Sequence[tuple[Puzzle, list[Frame]]]  # puzzles of one view, with as many frames each


def render(template: Path, scripts: Sequence[Path], **values: Any) -> str:
    """A template that extends page.html, with the scripts at its end. All values are escaped.

    The page's policy forbids any load, and any script but those, whose hashes it names.
    """
    texts = [script.read_text(encoding="utf-8") for script in scripts]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    loader = FileSystemLoader([template.parent, HERE])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template(template.name).render(
        scripts=[Markup(text) for text in texts],  # the project's own, with nothing from a run in them
        script_hashes=Markup(" ".join(f"'sha256-{found}'" for found in hashes)),
        **values,
    )


def page(puzzle: Puzzle, frames: list[Frame], title: str) -> str:
    """The page of all frames of a run of `think`."""
    answer = frames[-1].answer
    return render(
        HERE / "thinking.html",
        [VIEWER],
        title=title,
        puzzle=puzzle,
        answer=puzzle.view.text(answer),
        verdict=puzzle.verdict(answer),
        last=frames[-1],
        data=thinking_data([(puzzle, frames)]),
    )


def pairs_page(puzzle: Puzzle, frames: list[Frame], title: str, shown: dict[str, Any], votes: str) -> str:
    """The page of a puzzle of pairs: the ranked answers (`Ballots.shown`), and all frames of a run of `think` on the puzzle."""
    return render(
        HERE / "solved_pairs.html",
        [VIEWER],
        title=title,
        shown=shown,
        votes=votes,
        colours=shown["colours"],
        last=frames[-1],
        symbol=puzzle.view.symbols[-1],
        data=thinking_data([(puzzle, frames)]),
    )


def thinking_data(thoughts: Thoughts) -> dict[str, Any]:
    """What viewer.js draws of puzzles that share a view, ready for JSON.

    Tokens are below NO_TOKEN. Grids are base64: a byte a cell for tokens and marks, two (little endian) for confidence in 65535ths.
    """
    puzzles = []
    for puzzle, frames in thoughts:
        numbers: dict[str, int] = {}  # a violation lasts for many frames: its words are written once
        drawn = [
            {
                "answer": _base64(frame.answer, "u1"),
                "marks": _base64(sum(getattr(marks, name).astype(int) << bit for bit, name in enumerate(FLAGS)), "u1"),
                "confidence": _base64(np.rint(65535 * frame.confidence.clip(0, 1)), "<u2"),
                "halting": round(frame.halting, 6),
                "violations": [numbers.setdefault(text, len(numbers)) for text in puzzle.violations(frame.answer)],
            }
            for frame, marks in zip(frames, puzzle.marks_of(frames), strict=True)
        ]
        solution = None if puzzle.solution is None else _base64(np.where(puzzle.known, puzzle.solution, NO_TOKEN), "u1")
        about = {"name": puzzle.name, "question": _base64(puzzle.question, "u1"), "solution": solution, "judged": puzzle.judged}
        puzzles.append({**about, "violations": list(numbers), "frames": drawn})
    view, last = thoughts[0][0].view, thoughts[0][1][-1]
    return {
        "view": {
            **{name: getattr(view, name) for name in ("rows", "columns", "heavy_rows", "heavy_columns", "symbols", "line")},
            "colours": {token: [colour, ink_on(colour)] for token, colour in (view.colours or {}).items()},
        },
        "flags": FLAGS,
        "recursions": last.recursion,
        "puzzles": puzzles,
    }


def _base64(values: ArrayLike, kind: str) -> str:
    return base64.b64encode(np.asarray(values).astype(kind).tobytes()).decode()
