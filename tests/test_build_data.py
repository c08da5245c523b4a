"""Building dataset folders from csv files and from generated puzzles."""

import bz2
import dataclasses
import gzip
import hashlib
import itertools
import json
import lzma
import multiprocessing
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
from sweeping import start, stopped, wait_for

from trm.cli import compose
from trm.config import Config
from trm.data import puzzle_text
from trm.data.build import build_command, build_dataset, ensure_dataset
from trm.data.format import ARRAYS, array_path, load_dataset
from trm.errors import DataError
from trm.tasks.sudoku.generate import generate
from trm.tasks.sudoku.rules import BLANK
from trm.tasks.sudoku.settings import Settings
from trm.tasks.sudoku.task import SudokuTask as Sudoku

NINE = Sudoku(3, 3)


@pytest.fixture(scope="module")
def puzzles():
    return generate(NINE, 30, 0)


def rows_of(puzzles, rows):
    return [f"made,{NINE.text(puzzles[0][i])},{NINE.text(puzzles[1][i])},{i}" for i in rows]


def write_csv(path, rows, end="\n"):
    path.write_text(end.join([puzzle_text.HEADER, *rows, ""]), newline="")
    return str(path)


@pytest.fixture
def data(puzzles, tmp_path):
    """Settings with 20 training and 10 test puzzles in csv files."""
    return Settings(
        name="tiny",
        path=str(tmp_path / "set"),
        train_csv=write_csv(tmp_path / "train.csv", rows_of(puzzles, range(20))),
        test_csv=write_csv(tmp_path / "test.csv", rows_of(puzzles, range(20, 30))),
        num_puzzles=20,
    )


def contents(folder):
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob("*") if f.is_file()}


def read_like_the_reference(folder, split, rng):
    """What the reference's loader does with the files: one random variant of every group, as int32 with -100 for no label."""
    metadata = json.loads((folder / split / "dataset.json").read_text())
    (set_name,) = metadata["sets"]
    names = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
    arrays = {name: np.load(folder / split / f"{set_name}__{name}.npy") for name in names}
    rows = []
    for group in range(arrays["group_indices"].size - 1):
        puzzle = rng.integers(arrays["group_indices"][group], arrays["group_indices"][group + 1])
        start, stop = arrays["puzzle_indices"][puzzle], arrays["puzzle_indices"][puzzle + 1]
        rows.append((start + rng.choice(stop - start, 1)[0], puzzle))
    index, puzzle = map(np.array, zip(*rows, strict=True))
    batch = {
        "inputs": arrays["inputs"][index].astype(np.int32),
        "labels": arrays["labels"][index].astype(np.int32),
        "puzzle_identifiers": arrays["puzzle_identifiers"][puzzle].astype(np.int32),
    }
    batch["labels"][batch["labels"] == metadata["ignore_label_id"]] = -100
    return metadata, batch


def test_the_reference_loader_reads_what_is_written(data):
    data.num_aug = 6
    folder = build_dataset(data).path
    metadata, batch = read_like_the_reference(folder, "train", np.random.default_rng(0))
    assert metadata == {
        "seq_len": 81, "vocab_size": 11, "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "num_puzzle_identifiers": 1,
        "total_groups": 20, "mean_puzzle_examples": 1.0, "total_puzzles": 140, "sets": ["all"],
    }  # fmt: skip
    assert batch["inputs"].shape == batch["labels"].shape == (20, 81)
    assert NINE.check_rows(batch["inputs"].astype(np.uint8), batch["labels"].astype(np.uint8)).all()
    assert batch["puzzle_identifiers"].tolist() == [0] * 20
    assert json.loads((folder / "identifiers.json").read_text()) == ["<blank>"]
    assert len(read_like_the_reference(folder, "test", np.random.default_rng(0))[1]["inputs"]) == 10


def test_rows_are_the_puzzle_and_then_its_variants(data, puzzles):
    data.num_aug = 3
    path = build_dataset(data).path
    train, test = (load_dataset(path, split) for split in ("train", "test"))
    assert (train.num_rows, train.num_groups, test.num_rows, test.num_groups) == (80, 20, 10, 10)
    assert np.array_equal(train.inputs[::4], puzzles[0][:20])
    assert np.array_equal(train.labels[::4], puzzles[1][:20])
    assert np.array_equal(test.inputs, puzzles[0][20:])
    assert len(np.unique(train.inputs, axis=0)) == 80
    signatures = NINE.symmetry.signature(train.inputs, train.labels).reshape(20, 4)
    assert (signatures == signatures[:, :1]).all()
    assert len(np.unique(signatures[:, 0])) == 20
    assert {train.inputs.dtype, train.labels.dtype} == {np.dtype(np.uint8)}
    assert train.group_indices.dtype == np.int32


@pytest.mark.parametrize("changes", [{}, {"num_puzzles": 7, "num_test_puzzles": 4, "num_aug": 2}])
def test_two_builds_are_equal_to_the_byte_wherever_the_files_lie(data, tmp_path, monkeypatch, changes):
    first = dataclasses.replace(data, **changes)
    build_dataset(first)
    moved = dataclasses.replace(first, path=str(tmp_path / "elsewhere/again"), train_csv=str(tmp_path / "other.csv"))
    (tmp_path / "other.csv").write_bytes((tmp_path / "train.csv").read_bytes())
    monkeypatch.setattr("trm.data.format.CHUNK_ROWS", 6)  # made in several parts
    again = build_dataset(moved)
    assert contents(tmp_path / "set") == contents(again.path)
    other = build_dataset(dataclasses.replace(first, path=str(tmp_path / "seed"), seed=1))
    assert contents(other.path)["build.json"] != contents(again.path)["build.json"]
    same_rows = contents(other.path)["train/all__inputs.npy"] == contents(again.path)["train/all__inputs.npy"]
    assert same_rows == (not changes)


def test_the_build_record_has_the_hash_of_every_array(data):
    folder = build_dataset(data).path
    record = json.loads((folder / "build.json").read_text())
    files = {f"{split}/{name}": array_path(folder, split, name) for split in ("train", "test") for name in ARRAYS}
    assert record["sha256"] == {key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in files.items()}
    assert str(folder) not in json.dumps(record)


def test_fewer_puzzles_are_drawn_with_the_seed(data, puzzles, tmp_path):
    drawn = []
    for seed in range(2):
        build = dataclasses.replace(data, num_puzzles=5, num_test_puzzles=3, seed=seed, path=str(tmp_path / f"s{seed}"))
        build_dataset(build)
        train, test = load_dataset(tmp_path / f"s{seed}", "train"), load_dataset(tmp_path / f"s{seed}", "test")
        known = {row.tobytes(): answer.tobytes() for row, answer in zip(*puzzles, strict=True)}
        assert all(known[q.tobytes()] == a.tobytes() for q, a in zip(train.inputs, train.labels, strict=True))
        assert len({row.tobytes() for row in train.inputs}) == 5
        assert len(test.inputs) == 3
        drawn.append(train.inputs.tolist())
    assert drawn[0] != drawn[1]


Q = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
A = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


BAD_ROWS = {
    "x": "1 fields",
    f"x,{Q},{A}": "3 fields",
    f"x,{Q},{A},3,4": "5 fields",
    f"a,b,{Q},{A},3": "5 fields",
    f"x,{Q[:-1]},{A},3": "the question: 80 cells, but a 9x9 puzzle has 81",
    f"x,{Q},{A}1,3": "the answer: 82 cells",
    f"x,{Q[:-1]},{A}1,3": "the question: 80 cells",
    f"x,{Q[:3]}q{Q[4:]},{A},3": "the question: line 1 column 4: 'q'",
    f"x,{Q},{A[:80]}?,3": r"the answer: line 1 column 81: '\?'",
    f"x,{Q},{A[:80]}|,3": "the answer: 80 cells",
    f"x,{Q},{A[:3]}.{A[4:]},3": "1 cell has no digit, the first in row 1 column 4",
    f"x,{Q},{A[:2]}5{A[3:]},3": "row 1 has 5 more than once",
    f"x,{Q},{A[9:]}{A[:9]},3": "row 1 column 1 was given as 5, not 6",
    f'x,"{Q},{A},3': "unexpected end of data",
}
PLACES = itertools.cycle([(2, "\n", "train"), (9, "\r\n", "test"), (21, "\n", "train"), (2, "\r\n", "test"), (21, "\n", "test")])


@pytest.mark.parametrize(
    ("row", "reason", "line", "end", "split"), [(*bad, *place) for bad, place in zip(BAD_ROWS.items(), PLACES, strict=False)]
)
def test_a_bad_row_is_refused_with_file_and_line(data, puzzles, tmp_path, row, reason, line, end, split):
    rows = rows_of(puzzles, range(20) if split == "train" else [*range(20, 30)] * 2)
    rows[line - 2] = row
    file = write_csv(tmp_path / f"{split}.csv", rows, end)
    # Only some rows are drawn, but all are checked.
    bad = dataclasses.replace(data, num_puzzles=1, num_test_puzzles=1)
    with pytest.raises(DataError, match=reason) as error:
        build_dataset(bad)
    assert str(error.value).startswith(f"{file}:{line}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()


def read(path, content):
    """The rows of a csv file of this content."""
    path.write_bytes(content)
    file = puzzle_text.scan(path, "data.train_csv")
    return puzzle_text.read_rows(file, NINE, np.arange(file.num_rows))[:2]


def one_column(rows, *places):
    return [",".join(row.split(",")[place] for place in places) for row in rows]


def forms_of(rows):
    """Files that mean the same as these rows: as editors leave them, and as other people write them."""
    quoted = [",".join(f'"{field}"' for field in row.split(",")) for row in rows]
    comma = ['"a, b"' + row[row.index(",") :] for row in rows]
    some = [row if i % 3 else ",".join([*row.split(",")[:2], "", "1"]) for i, row in enumerate(rows)]
    header = puzzle_text.HEADER
    return {
        "blank lines": [header, *rows, "", " ", ""],
        "zeros": [header, *(row.replace(".", "0") for row in rows)],
        "byte order mark": ["\N{ZERO WIDTH NO-BREAK SPACE}" + header, *rows],
        "quoted": [header, *quoted],
        "a grid as the first source": [header, A + rows[0][rows[0].index(",") :], *quoted[1:]],
        "comma in the source": [header, *comma[:7], *rows[7:]],
        "answers that are filled in": ["puzzle", *one_column(rows, 1)],
        "some of them": [header, *some],
        "no rating": ["source,question,answer", *one_column(rows, 0, 1, 2)],
        "puzzle and solution": ["puzzle,solution", *one_column(rows, 1, 2)],
        "plural": ["quizzes,solutions", *one_column(rows, 1, 2)],
        "answer first": ["Answer,Question", *one_column(rows, 2, 1)],
        "with an id, clues and difficulty": ["id,puzzle,solution,clues,difficulty", *(f"7,{r.split(',', 1)[1]},2.5" for r in rows)],
        "quoted header": ['"source","question","answer","rating"', *rows],
        "names with spaces": ["source, question, answer, rating", *rows],
        "an own name wins": ["puzzle,question,answer", *one_column(rows, 3, 1, 2)],
        "semicolons": [header.replace(",", ";"), *(row.replace(",", ";") for row in rows)],
        "tabs": [header.replace(",", "\t"), *(row.replace(",", "\t") for row in rows)],
        "an index without a name": [",puzzle,solution", *(f"0,{row}" for row in one_column(rows, 1, 2))],
        "quoted rows": ["question,answer", *('"' + row.replace(",", '","') + '"' for row in one_column(rows, 1, 2))],
    }


def test_files_that_mean_the_same_give_the_same_rows(puzzles, tmp_path):
    """Whatever ends their lines, with or without a last one, in the encodings of editors, compressed."""
    ends = itertools.cycle([("\n", "\n"), ("\r\n", "\r\n"), ("\r", "\r"), ("\n", "")])
    packed = itertools.cycle([bytes, gzip.compress, bytes])
    for (name, lines), (end, last), pack in zip(forms_of(rows_of(puzzles, range(20))).items(), ends, packed, strict=False):
        for encoding in ("utf-8", "utf-16"):
            questions, answers = read(tmp_path / "form.csv", pack((end.join(lines) + last).encode(encoding)))
            assert np.array_equal(questions, puzzles[0][:20]), (name, encoding)
            assert np.array_equal(answers, puzzles[1][:20]), (name, encoding)


@pytest.mark.parametrize(("question", "words"), [("." * 81, "several solutions"), ("11" + "." * 79, "no solution")])
def test_an_answer_is_filled_in_only_where_the_puzzle_has_exactly_one(puzzles, tmp_path, question, words):
    questions = one_column(rows_of(puzzles, range(18)), 1)
    with pytest.raises(DataError, match=rf"form\.csv:21: the row has no answer, and the puzzle has {words}"):
        read(tmp_path / "form.csv", "\n".join(["question", *questions, "", question, ""]).encode())


def test_the_command_that_is_told_can_be_typed(data, tmp_path):
    folder = tmp_path / "a b, ünï"
    text = build_command(dataclasses.replace(data, path=str(folder), train_csv=None))
    given = [word for word in shlex.split(text)[3:] if word.startswith("data.path")]
    assert compose(given).data.path == str(folder)


def test_a_compressed_file_is_the_same_data(data, tmp_path):
    build_dataset(data)
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress((tmp_path / "train.csv").read_bytes()))
    packed = dataclasses.replace(data, train_csv=str(tmp_path / "train.csv.gz"))
    assert ensure_dataset(packed) == tmp_path / "set"
    again = build_dataset(dataclasses.replace(packed, path=str(tmp_path / "again")))
    assert contents(again.path) == contents(tmp_path / "set")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question,answer\n".encode("utf-16-be"), "not UTF-8 text"),
        (b"PK\x03\x04\x14\x00", "not UTF-8 text"),
        (bz2.compress(b"question,answer\n"), "not UTF-8 text"),
        (lzma.compress(b"question,answer\n"), "not UTF-8 text"),
        (b"PAR1\x15\x00", "not UTF-8 text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "the header is 'version https://git-lfs"),
        (b"<!DOCTYPE html>\n<html>", "the header is '<!DOCTYPE html>'"),
        (gzip.compress(b"question,answer\n" * 99, mtime=0)[:-20], "gzip cannot unpack it"),
        (f"{Q},{A}\n".encode() * 3, "seems to be a puzzle"),
        (b"puzzle,quiz,answer\n1,2,3\n", "puzzle and quiz could each be the question"),
        (b"question,question,answer\n1,2,3\n", "question and question could each be the question"),
        (b"sudoku,solution\n1,2\n", "no column is called question"),
        (b"question,answer\n\xff,2\n", "not UTF-8 text"),
        (b'"' + b"x" * 200_000 + b'",answer\n', "the header cannot be read"),
        (b"", r"train\.csv:1: the header is ''"),
        (puzzle_text.HEADER.encode() + b"\n", "holds no puzzles"),
        (b"question,text\n1,2\n", r"train\.csv:2: the question: 1 cells"),
        (f"x,{Q},{A},3\n".encode() * 2, r"train\.csv:1: the header"),
    ],
)
def test_a_file_that_is_no_such_csv_is_named(data, tmp_path, content, message):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        build_dataset(dataclasses.replace(data, num_puzzles=1))
    assert str(error.value).startswith(f"{tmp_path}/train.csv:")
    assert str(error.value).isprintable()


def test_easy_puzzles_are_left_out_in_both_files(data, puzzles, tmp_path):
    """Row i of the fixture is rated i."""
    hard = dataclasses.replace(data, num_puzzles=3, min_rating=15.0)
    record = build_dataset(hard).record
    assert (record["puzzles"], record["settings"]["min_rating"]) == ({"train": 3, "test": 10}, 15.0)
    known = {row.tobytes(): i for i, row in enumerate(puzzles[0])}
    assert {known[row.tobytes()] for row in load_dataset(tmp_path / "set", "train").inputs} <= set(range(15, 20))
    assert build_dataset(hard).seconds is None
    with pytest.raises(DataError, match=r"data\.min_rating=None, but .* built with data\.min_rating=15"):
        ensure_dataset(dataclasses.replace(hard, min_rating=None))
    assert "data.min_rating=15.0" in build_command(hard)
    turned = {"train_csv": data.test_csv, "test_csv": data.train_csv, "num_puzzles": 10, "path": str(tmp_path / "turned")}
    assert build_dataset(dataclasses.replace(hard, **turned)).record["puzzles"] == {"train": 10, "test": 5}


@pytest.mark.parametrize(
    ("changes", "header", "message"),
    [
        ({"min_rating": 19.5}, None, r"data\.num_puzzles=20, but .*train\.csv has 0 puzzles rated 19\.5 or more: lower it"),
        ({"min_rating": 25, "num_puzzles": 0}, None, r"has 0 puzzles rated 25"),
        ({"min_rating": 1}, "source,question,answer,level", r"train\.csv:1: data\.min_rating needs a column rating"),
        ({"min_rating": 1}, "rating,question,answer,level", r"train\.csv:2: the rating 'made' is not a number"),
    ],
)
def test_a_filter_that_cannot_be_applied_is_refused(data, tmp_path, changes, header, message):
    if header:
        rows = (tmp_path / "train.csv").read_text().splitlines()[1:]
        (tmp_path / "train.csv").write_text("\n".join([header, *rows, ""]))
    with pytest.raises(DataError, match=message):
        build_dataset(dataclasses.replace(data, **changes))


@pytest.mark.parametrize("rating", ["nan", "inf", ""])
def test_a_rating_that_is_no_finite_number_is_refused_with_its_line(data, tmp_path, rating):
    header, first, *rows = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([header, f"{first.rpartition(',')[0]},{rating}", *rows, ""]))
    with pytest.raises(DataError, match=rf"train\.csv:2: the rating '{rating}' is not a number"):
        build_dataset(dataclasses.replace(data, min_rating=1))


def test_a_file_of_several_blocks_is_read_like_one_block(data, puzzles, monkeypatch):
    file, chosen = puzzle_text.scan(Path(data.train_csv), "data.train_csv"), np.array([17, 3, 11, 0])
    for size in (1, 3, 20):
        monkeypatch.setattr(puzzle_text, "_BLOCK_ROWS", size)
        questions, answers, lines = puzzle_text.read_rows(file, NINE, chosen)
        assert np.array_equal(questions, puzzles[0][chosen])
        assert np.array_equal(answers, puzzles[1][chosen])
        assert lines == [19, 5, 13, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_puzzles": 21}, r"data\.num_puzzles=21, but .*train\.csv has 20 puzzles"),
        ({"num_test_puzzles": 11}, r"data\.num_test_puzzles=11, but .*test\.csv has 10 puzzles"),
        ({"train_csv": "missing.csv"}, r"data\.train_csv=missing\.csv cannot be read"),
        ({"box_rows": 2}, "the question: 81 cells, but a 6x6 puzzle has 36"),
        ({"box_rows": 2, "train_csv": None}, "6x6 Sudoku cannot be downloaded"),
    ],
)
def test_wrong_settings_are_refused(data, changes, message):
    with pytest.raises(DataError, match=message):
        build_dataset(dataclasses.replace(data, **changes))


def test_a_puzzle_in_both_files_is_refused_with_both_lines(data, puzzles, tmp_path):
    write_csv(tmp_path / "test.csv", rows_of(puzzles, [25, 26, 3, 27]))
    with pytest.raises(DataError, match=r"test\.csv:4: the puzzle is also in .*train\.csv:5"):
        build_dataset(data)


def test_what_cannot_be_downloaded_is_told_with_the_command_that_needs_no_network(data, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    missing = dataclasses.replace(data, train_csv=None, test_csv=None)
    for given, paths in (
        (missing, "data.train_csv=PATH data.test_csv=PATH"),
        (dataclasses.replace(data, train_csv=None), "data.train_csv=PATH"),
    ):
        with pytest.raises(DataError, match=r"cannot download train\.csv") as error:
            ensure_dataset(given)
        assert f"`{build_command(given)} {paths}`" in str(error.value)
        assert "\n" not in str(error.value)
    assert f"data=tiny data.path={data.path} data.num_puzzles=20 data.num_aug=0 data.seed=0" in build_command(missing)


def test_ensure_builds_once_and_then_checks(data, tmp_path):
    folder = ensure_dataset(data)
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    assert ensure_dataset(data) == folder
    assert build_dataset(data).seconds is None
    # The csv files are not needed any more, but where they are they must be the same.
    assert ensure_dataset(dataclasses.replace(data, train_csv=None, test_csv=None)) == folder
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*")} == before
    for key, value in {"num_puzzles": 19, "num_test_puzzles": 9, "num_aug": 1, "seed": 5}.items():
        message = rf"data\.{key}={value}, but .* built with data\.{key}=.*choose another data\.path"
        for build in (ensure_dataset, build_dataset):
            with pytest.raises(DataError, match=message):
                build(dataclasses.replace(data, **{key: value}))
    with (tmp_path / "train.csv").open("a") as file:
        file.write(f"x,{Q},{A},1\n")
    with pytest.raises(DataError, match=r"data\.train_csv=.* is not the file"):
        ensure_dataset(data)


def test_a_folder_of_another_format_version_is_refused(data):
    record_file = build_dataset(data).path / "build.json"
    record_file.write_text(json.dumps({**json.loads(record_file.read_text()), "format_version": 0}))
    with pytest.raises(DataError, match="format version 0"):
        ensure_dataset(data)


def test_a_folder_of_the_reference_is_used_but_not_written_over(data):
    folder = build_dataset(data).path
    (folder / "build.json").unlink()
    assert ensure_dataset(data) == folder
    with pytest.raises(DataError, match="was not built here"):
        build_dataset(data)


def test_what_a_killed_build_left_is_cleared_away(data, tmp_path):
    (tmp_path / ".set.building/train").mkdir(parents=True)
    (tmp_path / ".set.building/train/all__inputs.npy").write_bytes(b"half")
    build_dataset(data)
    load_dataset(tmp_path / "set", "train")
    assert not (tmp_path / ".set.building").exists()


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(data, tmp_path):
    with pytest.raises(DataError, match=r"data\.path=.* cannot be written"):
        build_dataset(dataclasses.replace(data, path=str(tmp_path / "train.csv/set")))


def _ensure_and_report(data, queue):
    queue.put(build_dataset(data).seconds is not None)


def test_processes_that_want_one_folder_build_it_once(data):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_ensure_and_report, args=(data, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    assert sorted(queue.get(timeout=60) for _ in processes) == [False, False, False, True]
    for process in processes:
        process.join()


def generated(path, box_cols, **settings):
    return Settings(name="made", source="generated", box_rows=2, box_cols=box_cols, path=str(path), **settings)


@pytest.mark.parametrize(("box_cols", "count"), [(2, 40), (3, 20)])
def test_generated_splits_share_no_puzzle(tmp_path, box_cols, count):
    sudoku = Sudoku(2, box_cols)
    data = generated(tmp_path / "set", box_cols, num_puzzles=count, num_test_puzzles=count // 2)
    report = build_dataset(data)
    train, test = load_dataset(report.path, "train"), load_dataset(report.path, "test")
    assert (train.num_rows, test.num_rows) == (count, count // 2)
    assert sudoku.check_rows(train.inputs, train.labels).all()
    assert (train.inputs == BLANK).any()
    rows = np.concatenate([train.inputs, test.inputs])
    assert len(np.unique(rows, axis=0)) == 3 * count // 2
    if sudoku.side == 4:
        assert "too few puzzles that are not copies" in report.record["disjointness"]
        assert "too few" in str(report)
        assert json.loads((report.path / "build.json").read_text())["disjointness"] == report.record["disjointness"]
    else:
        assert len(np.unique(sudoku.symmetry.signature(rows, np.concatenate([train.labels, test.labels])))) == 3 * count // 2
        assert "nor any symmetric copy" in report.record["disjointness"]
    # More training puzzles leave the test puzzles as they are, another seed does not.
    for name, more, same in (("more", {"num_puzzles": count + 5}, True), ("other", {"seed": 1}, False)):
        other = build_dataset(dataclasses.replace(data, **more, path=str(tmp_path / name)))
        assert np.array_equal(load_dataset(other.path, "test").inputs, test.inputs) == same


def test_the_command_prints_what_it_wrote(tmp_path, capsys):
    from trm.build_data import run

    data = generated(tmp_path / "set", 2, num_puzzles=7, num_test_puzzles=5, num_aug=2)
    run(Config(data=data))
    out = capsys.readouterr().out
    assert f"{tmp_path / 'set'}: built in" in out
    assert "train: 7 puzzles, 21 rows" in out
    assert "test: 5 puzzles, 5 rows" in out
    run(Config(data=data))
    assert "already built with the same settings" in capsys.readouterr().out


def test_a_build_that_is_stopped_says_how_far_it_was_and_leaves_nothing_half_written(tmp_path):
    arguments = ["data=sudoku_4x4", "data.num_puzzles=64", "data.num_test_puzzles=64", "data.num_aug=100000", "data.path=set"]
    process = start(tmp_path, *arguments, command=("-m", "trm.build_data"))
    wait_for((tmp_path / ".set.building/train/all__inputs.npy").exists)
    code, _, err = stopped(process, signal.SIGTERM)
    assert code == 143
    (line,) = err.splitlines()
    assert line.startswith("stopped: train rows written: ")
    assert line.endswith(" of 6,400,064; set is not built, and nothing of it is left")
    assert {path.name for path in tmp_path.iterdir()} <= {".set.lock", "data"}  # data: of `start`
