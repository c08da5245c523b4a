"""Puzzles as programs and people write them, and files that are not what they seem."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from trm.data.puzzle_text import questions_in, questions_of, text_of
from trm.errors import DataError
from trm.ground import files
from trm.ground.files import data_files, read_json, read_text
from trm.tasks.arc.source import puzzle_of
from trm.tasks.maze.task import MazeTask
from trm.tasks.sudoku.task import SudokuTask

NINE, SIX, FOUR = SudokuTask(3, 3), SudokuTask(2, 3), SudokuTask(2, 2)
LINE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ROWS = [LINE[i : i + 9] for i in range(0, 81, 9)]
CELLS = [[int(cell.replace(".", "0")) for cell in row] for row in ROWS]


def framed(top, between, side, rows=ROWS):
    """A drawn grid with these lines around its boxes."""
    lines = [side.join(["", *(row[i : i + 3] for i in (0, 3, 6)), ""]) for row in rows]
    return "\n".join([top, *lines[:3], between, *lines[3:6], between, *lines[6:], top])


def drawn():
    """The grid with box drawing characters, spaced, around every box and every cell."""
    yield framed("┌───┬───┬───┐", "├───┼───┼───┤", "│")
    yield framed("╔═══╦═══╦═══╗", "╠═══╬═══╬═══╣", "║")
    cells = ["║" + "│".join(f" {cell} " for cell in row) + "║" for row in ROWS]
    yield "\n".join(["╔" + "═" * 35 + "╗", *(line for cell in cells for line in (cell, "╟" + "───┼" * 8 + "───╢"))])


PENCIL = """
.-----------------.----------------.---------------.
| 5    3    124   | 26   7    2468 | 149  1249 248 |
| 6    247  247   | 1    9    5    | 3478 234  2478|
| 12   9    8     | 23   34   24   | 1345 6    247 |
:-----------------+----------------+---------------:
""" + "\n".join(f"| {' '.join(row[:3])} | {' '.join(row[3:6])} | {' '.join(row[6:])} |" for row in ROWS[3:])

FORMS = {
    "sdk": "#AAuthor\n#D a description, 123\n#C\n[Puzzle]\n" + "\n".join(ROWS) + "\n[State]\n" + "\n".join(["1" * 9] * 9),
    "ss": framed("*-----------*", "|---+---+---|", "|"),
    "ss with x": framed(" *-----------*", " |---+---+---|", "|", [row.replace(".", "X") for row in ROWS]),
    "crosses": framed("+---+---+---+", "+---+---+---+", "|"),
    "spaced": framed("+-------+-------+-------+", "+-------+-------+-------+", " | "),
    "rules alone": framed("", "------+-------+------", "|"),
    "lines alone": "\n".join([*ROWS[:3], "-----------", *ROWS[3:6], "-----------", *ROWS[6:]]),
    "double": framed("+===+===+===+", "+===+===+===+", "|"),
    **{f"boxes {i}": text for i, text in enumerate(drawn())},
    "candidates": PENCIL,
    **{f"blank {blank}": LINE.replace(".", blank) for blank in "0_*xX-"},
    "asterisks in frames": framed("*-----------*", "*---+---+---*", "|", [row.replace(".", "*") for row in ROWS]),
    "dashes in frames": framed("+---+---+---+", "+---+---+---+", "|", [row.replace(".", "-") for row in ROWS]),
    "2-D": json.dumps(CELLS),
    "2-D over lines": json.dumps(CELLS, indent=1),
    "flat": json.dumps(np.array(CELLS).ravel().tolist()),
    "null": json.dumps([[cell or None for cell in row] for row in CELLS]),
    "empty strings": json.dumps([[str(cell or "") for cell in row] for row in CELLS]),
    "floats": json.dumps([[float(cell) for cell in row] for row in CELLS]),
    "strings": json.dumps(ROWS),
    "one string": json.dumps([LINE]),
    "object": json.dumps({"id": 3, "grid": CELLS, "level": "hard"}),
    "Python": str(CELLS).replace("]]", "],]").replace("],", "],\n"),
    "NumPy": str(np.array(CELLS)),
    "csv": "\n".join(",".join(row) for row in ROWS),
    "csv with empty cells": "\n".join(",".join("" if c == "." else c for c in row) for row in ROWS),
    "csv, a comma at each end": "\n".join(",".join(["" if c == "." else c for c in row]) + "," for row in ROWS),
    "semicolons": "\n".join(";".join(row.replace(".", "0")) for row in ROWS),
    "tabs": "\n".join("\t".join("" if c == "." else c for c in row) for row in ROWS),
    "csv in a line": ",".join("" if c == "." else c for c in LINE),
    "quoted csv": "\n".join(",".join(f'"{c}"' for c in row) for row in ROWS),
    "question column": f"id,puzzle,solution\n7,{LINE},{'1' * 81}\n",
    "-1 in JSON": json.dumps([[cell or -1 for cell in row] for row in CELLS]),
    "-1 in csv": "\n".join(",".join(row).replace(".", "-1") for row in ROWS),
    "None in Python": str([[cell or None for cell in row] for row in CELLS]),
    "Markdown": "\n".join(f"| {' | '.join(row.replace('.', ' '))} |" for row in ROWS),
    "spaces": "\n".join(row.replace(".", " ").rstrip() for row in ROWS),
    "spaces in frames": framed("+---+---+---+", "+---+---+---+", "|", [row.replace(".", " ") for row in ROWS]),
    "headed": "Grid 01\n" + "\n".join(ROWS),
    "other comments": "; by me, 12\n// easy 3\n% 2 more\n" + "\n".join(ROWS),
    "with a comment": LINE + " # 7.2 ED=1.2/3.4",
    "with a rating": LINE + ",7.1",
}


@pytest.mark.parametrize("form", FORMS)
def test_sudoku_is_read_as_programs_write_it(form):
    (question,) = questions_in(FORMS[form], NINE)
    assert NINE.text(question) == LINE


@pytest.mark.parametrize("task", [FOUR, SIX, NINE, SudokuTask(4, 4), SudokuTask(5, 5)], ids=lambda task: task.title)
def test_every_size_is_read_from_json_csv_and_frames(task):
    side = task.side
    tokens = (np.arange(side**2) * 7 // 3 % (side + 1) + 1).astype(np.uint8)
    numbers = (tokens.reshape(side, side) - 1).tolist()
    forms = [
        json.dumps(numbers),
        json.dumps(np.array(numbers).ravel().tolist()),
        "\n".join(",".join(str(c or "") for c in row) for row in numbers),
    ]
    forms += ["\n".join(" ".join(str(c or ".") for c in row) for row in numbers), task.view.grid(tokens), task.text(tokens)]
    forms += ["\n".join("\t".join(str(c) for c in row) for row in numbers) + "\n\n"]
    for text in forms:
        (question,) = questions_in(text, task)
        assert np.array_equal(question, tokens), text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("\n".join([LINE] * 3), 3),
        ("\n\n".join(["# from a book", "[Puzzles]", LINE, LINE + " # hard", "1" + LINE[1:] + "\t8.3", ""]), 3),
        ("puzzle,clues\n" + f"{LINE},30\n" * 2, 2),
        ("question\n" + f"{LINE}\n" * 2 + "\n", 2),
        (json.dumps([LINE, LINE]), 2),
        (json.dumps([CELLS, CELLS]), 2),
        (json.dumps([np.array(CELLS).ravel().tolist()] * 2), 2),
        ("\n\n".join(["\n".join(ROWS)] * 2), 2),
        ("\n\n".join([framed("+---+---+---+", "+---+---+---+", "|")] * 2), 2),
        ("".join(f"Grid 0{i}\n" + "\n".join(ROWS) + "\n" for i in (1, 2, 3)), 3),
        (f"{json.dumps({'puzzle': LINE})}\n" * 2, 2),
        (json.dumps({"puzzles": [{"quiz": LINE}, {"quiz": LINE}]}), 2),
    ],
)
def test_many_puzzles_are_read(text, count):
    assert [NINE.text(question)[1:] for question in questions_in(text, NINE)] == [LINE[1:]] * count


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n".join([*ROWS[:4], "8..?6...3", *ROWS[5:]]), r"line 5 column 4: '\?' is neither"),
        ("\n".join([*ROWS[:4], "8...6..3", *ROWS[5:]]), "80 cells, but a 9x9 puzzle has 81; line 5 has 8"),
        (framed("+---+---+---+", "+---+---+---+", "|", ["53..7..A.", *ROWS[1:]]), "line 2 column 11: 'A' is neither a digit 1-9"),
        (f"{LINE}\n{LINE[:-1]}?\n", r"line 2: line 1 column 81: '\?'"),
        (f"question\n{LINE}\n{LINE[:-1]}\n", "line 3: 80 cells"),
        (json.dumps([CELLS[:-1]]), "72 cells"),
        (json.dumps({"a": 1, "b": 2}), "JSON with the keys a, b: call the one that holds the puzzle question"),
        ("\n\n".join(["\n".join(ROWS), "\n".join(ROWS), "\n".join(ROWS[:-1])]), "puzzle 3: 72 cells"),
        ("\n".join(["1" * 9] * 8 + ["1" * 8]), "80 cells"),
        ("", "0 cells"),
    ],
)
def test_what_is_no_puzzle_is_told_with_line_and_column(text, words):
    with pytest.raises(DataError, match=words):
        questions_in(text, NINE)


@pytest.mark.parametrize(
    "plain", [{"grid": 5}, {"grid": None}, [None, []], [1, "abc"], [[]], [], {}, [{"puzzle": True}], [[1], 2.5]]
)
def test_json_of_any_other_form_is_told_in_a_line(plain):
    for task in (FOUR, MazeTask(3, 1, None)):
        with pytest.raises(DataError):
            questions_in(json.dumps(plain), task)
    for task in (plain, {"train": plain, "test": plain}):
        with pytest.raises(DataError):
            puzzle_of(task, "n", "training", "a.json", 30)


def test_mazes_are_read_one_and_many():
    maze = MazeTask(3, 1, None)
    line = "S # #   G"
    grid = "\n".join(line[i : i + 3] for i in (0, 3, 6))
    for text in (
        line,
        grid,
        f"\n{grid}\n\n",
        line + "\n\n",
        json.dumps([line]),
        json.dumps(grid.splitlines()),
        f"puzzle\n{line}\n",
    ):
        assert [maze.view.text(question) for question in questions_in(text, maze)] == [line], text
    assert len(questions_in(f"{line}\n{line}\n", maze)) == 2
    assert len(questions_in("#S# #  G \n# S #  G \n", maze)) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with its mark", "utf-16-be with its mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_of_encoding_and_line_ends_are_the_same_to_every_reader(tmp_path, encoding, end):
    def write(name, text):
        mark = "\ufeff" if "mark" in encoding else ""
        (tmp_path / name).write_bytes((mark + end.join([*text.split("\n"), "", ""])).encode(encoding.split()[0]))
        return tmp_path / name

    for form in ("sdk", "crosses", "boxes 0", "2-D over lines", "csv", "question column"):
        (question,) = questions_in(text_of(str(write("puzzle.txt", FORMS[form]))), NINE)
        assert NINE.text(question) == LINE
    assert read_json(write("a.json", json.dumps({"a": [1]}, indent=1))) == {"a": [1]}


def test_files_that_are_no_text_or_not_there_are_told(tmp_path):
    for content, words in (
        (b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8 text"),
        (b"\xff\xfea", "not UTF-8 text"),
        (b"caf\xe9", "not UTF-8 text"),
    ):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_text(tmp_path / "a.txt")
    with pytest.raises(DataError, match="Is a directory"):
        text_of(str(tmp_path))
    with pytest.raises(DataError, match=r"puzzle\.sdk: there is no such file"):
        text_of("puzzle.sdk")
    (tmp_path / "a.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(DataError, match="a occurs twice"):
        read_json(tmp_path / "a.json")


def test_what_is_no_data_is_skipped_and_said_once(tmp_path, monkeypatch):
    names = ["b.json", "sub/A.JSON", "._b.json", ".DS_Store", "README.md", "__MACOSX/b.json", ".hidden/c.json", "sub/._A.JSON"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    said = []
    monkeypatch.setattr(files, "_log", SimpleNamespace(info=lambda text, *words: said.append(text % words)))
    assert [file.name for file in data_files(tmp_path, ".json")] == ["b.json", "A.JSON"]
    (line,) = said
    assert "no data, not read: .DS_Store, " in line
    assert "and 1 more" in line


@pytest.mark.parametrize(("text", "words"), [("", "the file is empty"), ('{"a": ', "1 cells, but a 9x9 puzzle has 81")])
def test_a_file_that_holds_no_puzzle_is_named(tmp_path, text, words):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(DataError, match=f"p.txt: {words}"):
        questions_of(str(tmp_path / "p.txt"), NINE)
