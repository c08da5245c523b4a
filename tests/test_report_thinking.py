"""What the report's page gets of samples.json; how it draws that is in test_report_page.py."""

import base64
import dataclasses
import json
import math

import numpy as np
import pytest
from report_fixtures import config, made_samples, write_run

from trm.config import IGNORE_LABEL
from trm.inference.samples import Samples
from trm.report import plots
from trm.report.__main__ import main
from trm.report.page import MOST_PUZZLES, answers, page, thinking
from trm.report.runs import collect
from trm.report.variants import compare
from trm.show.page import FLAGS, NO_TOKEN
from trm.tasks.pairs import ANSWERS_FILE
from trm.tasks.sudoku.task import SudokuTask as Sudoku

KINDS = {Sudoku(2, 2): "sudoku_4x4", Sudoku(2, 3): "sudoku_6x6", Sudoku(3, 3): "sudoku_9x9"}


def found(folder):
    return thinking(compare(collect([folder])))


def tokens(text: str) -> list[int]:
    return list(base64.b64decode(text))


@pytest.mark.parametrize("sudoku", KINDS, ids=KINDS.get)
def test_every_kind_of_sudoku(tmp_path, sudoku):
    samples = made_samples(sudoku)
    write_run(tmp_path / "a", config(f"data={KINDS[sudoku]}"), samples=samples)
    (shown,) = found(tmp_path)
    view, puzzles = shown.data["view"], shown.data["puzzles"]
    assert (view["rows"], view["columns"], view["heavy_rows"]) == (sudoku.side, sudoku.side, sudoku.view.heavy_rows)
    assert (shown.data["recursions"], len(puzzles)) == (1, 4)
    for k, drawn in enumerate(puzzles):
        assert tokens(drawn["question"]) == samples.inputs[k].tolist()
        assert tokens(drawn["solution"]) == samples.labels[k].tolist()
        assert [tokens(frame["answer"]) for frame in drawn["frames"]] == samples.predictions[:, k].tolist()
        for frame, shares, logit in zip(drawn["frames"], samples.confidence[:, k], samples.q_halt[:, k], strict=True):
            assert np.frombuffer(base64.b64decode(frame["confidence"]), "<u2") / 65535 == pytest.approx(shares, abs=1e-4)
            assert frame["halting"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)
    text = "".join(view["symbols"][token] for token in tokens(puzzles[0]["frames"][-1]["answer"]))
    assert text == sudoku.text(samples.predictions[-1, 0])


def test_any_square_grid_with_cells_without_a_label(tmp_path):
    labels = np.arange(50, dtype=np.int32).reshape(2, 25) % 30
    labels[:, ::2] = IGNORE_LABEL
    answers = np.abs(np.stack([labels] * 3)) % 30
    answers[1, 0, :2] = 7  # the first has no label, the second another
    samples = Samples(np.abs(labels) % 30, labels, answers, np.ones(answers.shape, np.float32), np.zeros((3, 2), np.float32))
    write_run(tmp_path / "a", samples=samples)
    (shown,) = found(tmp_path)
    assert (shown.data["view"]["rows"], shown.data["view"]["heavy_rows"]) == (5, ())
    assert shown.data["view"]["symbols"][28] == "28"
    drawn = shown.data["puzzles"][0]
    assert tokens(drawn["solution"])[::2] == [NO_TOKEN] * 13
    given, wrong, changed = (1 << FLAGS.index(name) for name in ("given", "wrong", "changed"))
    assert tokens(drawn["frames"][1]["marks"])[:4] == [changed, given | wrong | changed, 0, given]


def test_tokens_beyond_those_of_the_task_are_drawn_as_numbers(tmp_path):
    samples = made_samples(Sudoku(2, 2))
    samples.predictions[0, 0, 0] = Sudoku(2, 2).vocab_size
    write_run(tmp_path / "a", config("data=sudoku_4x4"), samples=samples)
    (shown,) = found(tmp_path)
    assert (shown.problem, shown.data["view"]["heavy_rows"]) == ("", ())


def test_the_best_counted_run_stands_for_its_variant(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.9, 0.7)):
        write_run(tmp_path / str(seed), accuracy=accuracy, seed=seed, samples=made_samples(Sudoku(2, 2)))
    write_run(tmp_path / "better, but without", accuracy=0.95, seed=3)
    write_run(tmp_path / "better, but not done", accuracy=0.99, seed=4, status="preempted", samples=made_samples(Sudoku(2, 2)))
    assert [shown.run for shown in found(tmp_path)] == ["1"]
    assert [shown.run for shown in found(tmp_path / "better, but not done")] == ["better, but not done"]  # where there is no other


def test_a_page_holds_so_many_puzzles(tmp_path):
    settings, samples = config(), made_samples(Sudoku(2, 2))
    for number in range(9):
        settings["optimizer"]["lr"] = (number + 1) / 1000
        write_run(tmp_path / "nine" / str(number), settings, samples=samples)
    assert [len(shown.data["puzzles"]) for shown in found(tmp_path / "nine")] == [MOST_PUZZLES // 9] * 9


def test_accuracy_by_step_and_ways_of_inference_reach_the_report(tmp_path, capsys):
    votes = {"inference.copies": 8, "inference.selection": "vote"}  # ways of inference are what is compared
    for seed, share in enumerate((0.5, 0.7)):
        folder = write_run(tmp_path / "runs" / str(seed), accuracy=share, seed=seed, exact_accuracy_by_step=[share / 2, share])
        rows = [
            {"inference": name, "exact_accuracy": share + gain, "oracle_exact_accuracy": share + 0.2, "flops_per_puzzle": flops,
             "seconds_per_puzzle": 0.01, "candidates_run": 1.0, "count": 9, "supervision_steps": 16,
             "candidates": 8 if name == "votes8" else 1}
            for name, gain, flops in (("votes8", 0.1, 8e9), ("standard", 0.0, 1e9))
        ]  # fmt: skip
        frontier = {"checkpoint_step": 400, "test_digest": "b", "ways": {"standard": {}, "votes8": votes}, "rows": rows}
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "frontier.json").write_text(json.dumps(frontier))
    odd = write_run(tmp_path / "runs" / "odd", accuracy=0.6, seed=2, exact_accuracy_by_step=[0.1, "a", 3])
    (odd / "evaluation").mkdir()
    (odd / "evaluation" / "frontier.json").write_text('{"rows": [{"inference": "<b>"}]}')
    assert [run.exact_accuracy_by_step for run in collect([tmp_path / "runs"])] == [[0.25, 0.5], [0.35, 0.7], []]
    main([str(tmp_path / "runs"), "--out", str(tmp_path)])
    for name in ("steps", "frontier"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f'id="{name}"' in (tmp_path / "index.html").read_text()
    record = json.loads((tmp_path / "report.json").read_text())["inference"]
    assert [(way["inference"], way["exact_accuracy_mean"]) for way in record] == [("standard", 0.6), ("votes8", pytest.approx(0.7))]
    assert "ways of inference" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_older_runs_have_none(tmp_path):
    write_run(tmp_path / "a")
    comparison = compare(collect([tmp_path]))
    text = page(comparison, "title", plots.drawn(comparison))
    assert "How the networks solve puzzles" not in text
    assert "supervision step" not in text


@pytest.mark.parametrize(
    ("cell", "problem"), [(1, ""), (2, "a cell is no colour"), (-1, "a cell is no colour"), (True, "a cell is no colour")]
)
def test_answers_of_puzzles_of_pairs_are_shown_where_all_their_cells_are_colours(tmp_path, cell, problem):
    test = {"input": [[1]], "output": None, "answers": [{"grid": [[0, cell]], "votes": 3, "confidence": 0.5}]}
    shown = {"name": "t", "colours": ["#000000", "#1e93ff"], "train": [{"input": [[0]], "output": [[1]]}], "tests": [test]}
    folder = write_run(tmp_path / "a")
    (folder / ANSWERS_FILE).write_text(json.dumps({"solved": 0, "puzzles": 1, "rows": 3, "shown": [shown]}))
    (answer,) = answers(compare(collect([tmp_path])))
    assert problem in answer.problem
    assert answer.data == (None if problem else [shown])


def changed(**fields) -> str:
    return dataclasses.replace(made_samples(Sudoku(2, 2)), **fields).to_json()


DAMAGES = {
    "torn": (lambda: changed()[:100], "cannot be shown"),
    "no object": (lambda: "[1, 2]", "not the samples of an evaluation"),
    "shapes": (lambda: changed(q_halt=np.zeros((4, 2), np.float32)), "shapes do not agree"),
    "no puzzles": (lambda: Samples(*[np.zeros(0, np.int32)] * 5).to_json(), "shapes do not agree"),
    "not a number": (lambda: changed(q_halt=np.full((4, 5), np.nan, np.float32)), "not finite"),
    "large tokens": (lambda: changed(inputs=np.full((5, 16), 300, np.int32)), "tokens are not within 0 to 254"),
    "huge tokens": (lambda: changed().replace('"inputs": [[', f'"inputs": [[{10**30}, '), "cannot be shown"),
    "markup": (lambda: '{"</script><b>": 1}', "not the samples"),
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_samples_are_told_and_the_page_still_stands(tmp_path, damage):
    content, words = DAMAGES[damage]
    write_run(tmp_path / "<b>a", samples=made_samples(Sudoku(2, 2)))
    (tmp_path / "<b>a" / "samples.json").write_text(content())
    (shown,) = found(tmp_path)
    assert shown.data is None
    assert words in shown.problem
    comparison = compare(collect([tmp_path]))
    text = page(comparison, "title", plots.drawn(comparison))
    assert shown.problem.split(":")[0] in text
    assert "<b>a" not in text
