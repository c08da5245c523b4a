"""`python -m trm.solve` with the options that show how the model thinks; tests/test_train.py has the plain command."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from composing import composed
from running import TINY, command, run, run_unread

from trm.backends import start
from trm.config import HardwareConfig
from trm.config.groups import group_options
from trm.data.build import held_out_puzzles
from trm.data.format import array_path
from trm.errors import ConfigError
from trm.inference.evaluator import make_evaluator
from trm.inference.selection import over, select
from trm.run.saved import open_run
from trm.show.think import think
from trm.solve import find_puzzle, solved

SHORT = [*TINY, "train.max_steps=2", "evaluate.max_puzzles=16"]
SIDES = {"sudoku_4x4": 4, "sudoku_6x6": 6}

of_every_size = pytest.mark.parametrize("trained", SIDES, indirect=True)
of_4x4 = pytest.mark.parametrize("trained", ["sudoku_4x4"], indirect=True)


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory):
    """The grid's side, and a working directory with the run `outputs/whole`, trained for two steps."""
    folder = tmp_path_factory.mktemp("work")
    run(folder, "trm.train", *SHORT, f"data={request.param}", "run_name=whole")
    return SIDES[request.param], folder


@of_every_size
def test_solve_shows_how_it_thinks(trained):
    side, folder = trained
    plain = run(folder, "trm.solve", "checkpoint=outputs/whole", "test:0").stdout
    shown = run(
        folder, "trm.solve", "checkpoint=outputs/whole", "--html", "seen/a=b.html", "test:0", "--watch", "--gif=seen/a.gif"
    ).stdout
    watched, _, rest = shown.partition(plain)
    assert rest.splitlines() == ["written: seen/a=b.html", "written: seen/a.gif"]
    last_grid = watched.rstrip().rpartition("step 4/4")[2].partition("\n")[2]
    answer = re.search(rf"^([1-{side}.]{{{side**2}}}): ", plain, re.MULTILINE)
    assert answer
    assert re.sub(rf"[^1-{side}.]", "", last_grid) == answer[1]
    assert f">{answer[1]}</code> <strong>NOT a solution" in (folder / "seen" / "a=b.html").read_text()
    assert (folder / "seen" / "a.gif").read_bytes().startswith(b"GIF89a")


@of_4x4
def test_wrong_options_are_named(trained):
    _, folder = trained
    for arguments, words in (
        (["--html"], "--html"),
        (["--wach"], "--wach"),
        (["--gif", "outputs"], "--gif outputs: cannot be written to"),
        (["1234"], "one puzzle"),
    ):
        refused = run(folder, "trm.solve", "checkpoint=outputs/whole", "test:0", *arguments, check=2)
        assert words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    for arguments, words in (
        (["11.. .... .... ...."], "no solution: row 1 has 1 more than once; box 1 has 1 more than once: correct its givens"),
        (["1---------------", "--checkpoint=x"], "without dashes: checkpoint=..."),
    ):
        refused = run(folder, "trm.solve", "checkpoint=outputs/whole", *arguments, check=2)
        assert words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    refused = run(folder, "trm.solve", "checkpoint=outputs/whole", "test:" + "9" * 5000, check=2)  # more digits than int() reads
    assert "held-out puzzles are test:0 to test:" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@of_4x4
def test_blanks_may_be_dashes(trained):
    dots, dashes = (
        run(trained[1], "trm.solve", "checkpoint=outputs/whole", ".1..|....|....|...2".replace(".", blank)).stdout for blank in ".-"
    )
    assert dots == dashes
    assert "question" in dots
    assert run(trained[1], "trm.solve", "checkpoint=outputs/whole", "-" * 16).stdout.startswith("question")


@of_4x4
def test_a_file_of_many_puzzles_is_solved_puzzle_by_puzzle_as_each_alone(trained):
    folder, puzzles = trained[1], [".1..|....|....|...2", "1...|...2|.3..|....", "...." * 4]
    (folder / "many.sdm").write_text(
        "# three\r\n" + "\r\n".join(puzzle.replace("|", "") for puzzle in puzzles) + "\r\n\r\n", "utf-8-sig"
    )
    for way in ([], ["inference=votes8"]):
        solve = ["trm.solve", "checkpoint=outputs/whole", *way, "--json"]
        many = [json.loads(line) for line in run(folder, *solve, "many.sdm").stdout.splitlines()]
        assert many == [json.loads(run(folder, *solve, puzzle).stdout) for puzzle in puzzles]
        assert [row["question"] for row in many] == [puzzle.replace("|", "") for puzzle in puzzles]
        assert all(row["valid"] == row["verdict"].startswith("valid") and len(row["answer"]) == 16 for row in many)
    plain = run(folder, "trm.solve", "checkpoint=outputs/whole", "many.sdm").stdout
    assert plain.count("question") == 3
    assert (
        "--watch: shows one puzzle, and many.sdm holds 3"
        in run(folder, "trm.solve", "checkpoint=outputs/whole", "many.sdm", "--watch", check=2).stderr
    )
    (folder / "bad.sdm").write_text("." * 16 + "\n11" + "." * 14 + "\n")
    refused = run(folder, "trm.solve", "checkpoint=outputs/whole", "bad.sdm", check=2)
    assert "puzzle 2 of 2: the puzzle has no solution: row 1 has 1 more than once" in refused.stderr
    framed = "+==+==+\n|.1|..|\n|..|..|\n+==+==+\n|..|..|\n|..|.2|\n+==+==+"
    assert (
        json.loads(run(folder, "trm.solve", "checkpoint=outputs/whole", "--json", framed).stdout)["question"] == many[0]["question"]
    )


@of_4x4
def test_watching_ends_quietly_when_nobody_reads(trained):
    watch = command("trm.solve", "checkpoint=outputs/whole", "test:0", "--watch")
    assert run_unread(trained[1], *watch) == (141, "")


def test_puzzles_that_are_no_sudoku_are_refused(tmp_path):
    run(tmp_path, "trm.build_data", "data=sudoku_4x4", "data.num_puzzles=64", "data.num_test_puzzles=64", "data.path=grids")
    (tmp_path / "grids/build.json").unlink()
    for split in ("train", "test", "selection"):
        metadata = tmp_path / "grids" / split / "dataset.json"
        metadata.write_text(metadata.read_text().replace('"seq_len": 16', '"seq_len": 25'))
        for name in ("inputs", "labels"):
            file = array_path(tmp_path / "grids", split, name)
            np.save(file, np.pad(np.load(file), ((0, 0), (0, 9)), constant_values=2))
    run(tmp_path, "trm.train", *SHORT, "data.path=grids", "data.on_the_fly_aug=0", "run_name=whole")
    for puzzle, words in (
        ("test:0", "/grids: holds no 4x4 Sudoku"),
        ("1...|..1.|.1..|...1", "data.box_rows=2 data.box_cols=2: 4x4 Sudoku"),
    ):
        refused = run(tmp_path, "trm.solve", "checkpoint=outputs/whole", puzzle, check=2)
        assert words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


# --------------------------------------------------------------------------------------------- one puzzle of the same evaluation


def opened(folder, *overrides, bias=-0.5):
    """The run `outputs/whole` with a halting head of its own, so that halting comes at every step."""
    small = [f"evaluate.max_puzzles={FEW}", "evaluate.batch_size=4", "hardware.dtype=float64"]
    small += [f"data.path={folder}/data/sudoku_4x4"]
    run = open_run(folder / "outputs/whole", [*overrides, *small])
    head = torch.randn(run.eval_weights["q_head.weight"].shape, generator=torch.Generator().manual_seed(4)).double() / 2
    weights = {name: tensor.double() for name, tensor in run.eval_weights.items()}
    weights |= {"q_head.weight": head, "q_head.bias": torch.tensor([bias, 0.0], dtype=torch.float64)}
    return replace(run, ema=weights)


FEW = 5  # puzzles
SMALLER = {"copies": 3, "restarts": 3, "rollouts": 3, "supervision_steps": 5}
WAYS = [(name, early) for name in group_options("inference") if name != "frontier" for early in (False, True)]


@of_4x4
@pytest.mark.parametrize(("name", "early"), WAYS)
def test_every_puzzle_gets_the_answer_that_it_has_in_the_evaluation(trained, name, early):
    way = vars(composed(f"inference={name}").inference)
    smaller = [f"inference.{key}={value}" for key, value in SMALLER.items() if (way[key] or 1) > value]
    arguments = [f"inference={name}", *smaller, f"inference.early_exit={early}"]
    if early and name in ("eqr", "guided"):
        with pytest.raises(ConfigError, match=r"set inference\.early_exit=false"):
            opened(trained[1], *arguments)
        return
    run = opened(trained[1], *arguments, bias=-2.0 if name == "halt_first" else -0.5)  # of several the first one halts sooner
    runtime = start(HardwareConfig(name="cpu", backend="eager", dtype="float64"))
    seen = []
    make_evaluator(run.cfg, runtime, run.arch, run.buffers).run(run.eval_weights, None, see=lambda found, _: seen.append(found))
    found = over(lambda *parts: np.concatenate(parts, axis=1), *seen)
    winners, _, candidates = select(found, run.cfg.inference, run.cfg.inference_steps - 1)
    answers, steps = (of[np.arange(FEW), winners] for of in (candidates.answers, candidates.values["steps"]))
    dataset = held_out_puzzles(run.cfg.data)
    for number, theirs in enumerate(answers):
        answer, course, _ = solved(run, dataset, number)
        assert np.array_equal(answer, theirs)
        assert course.num_steps == steps[number]
        if name != "guided":  # whose candidates have no history of their own
            *_, (*_, last) = think(
                run.arch, run.eval_weights, run.buffers, None, course.question, (run.cfg.inference, course.key), course.num_steps
            )
            assert np.array_equal(course.undone(last).answer, answer)
    if early or name == "halt_first":
        assert len(set(steps.tolist())) > 1, "the cases that matter"
    puzzle, alone, row = find_puzzle(run, "1...|..1.|.1..|...1")
    assert solved(run, alone, row)[0].shape == puzzle.question.shape  # a puzzle without a known answer is answered too


@of_4x4
def test_an_option_of_inference_keeps_the_networks_own_steps(trained):
    folder = trained[1] / "outputs/whole"
    trained_with = open_run(folder, []).cfg.inference_steps
    own = ["inference.supervision_steps=7"]
    run(trained[1], "trm.interop", "publish", "checkpoint=outputs/whole", "seven", *own)
    for arguments, steps in (
        ([], 7),
        (["inference=standard"], 7),
        (["inference=votes8"], 7),
        (["inference=steps64"], 64),
        (["inference=votes8", "inference.supervision_steps=2"], 2),
        (["inference=standard", "inference.supervision_steps=null"], trained_with),
    ):
        assert open_run(trained[1] / "seven", arguments).cfg.inference_steps == steps
    done = run(trained[1], "trm.evaluate", "checkpoint=seven", "inference.ladder=[standard,votes8]", "--out", "ladder")
    assert done.returncode == 0
    rows = json.loads((trained[1] / "ladder" / "frontier.json").read_text())["rows"]
    assert {row["inference"]: row["supervision_steps"] for row in rows} == {"standard": 7, "votes8": 7}
    plain = json.loads(run(trained[1], "trm.evaluate", "checkpoint=seven").stdout.splitlines()[-1])
    standard = next(row for row in rows if row["inference"] == "standard")
    assert {key: standard[key] for key in ("exact_accuracy", "lm_loss", "flops_per_puzzle")} == {
        key: plain[key] for key in ("exact_accuracy", "lm_loss", "flops_per_puzzle")
    }


@of_4x4
@pytest.mark.parametrize(
    "argument",
    ["inference=frontier", "evaluate.by_difficulty=true"],
)
def test_tables_are_of_trm_evaluate(trained, argument):
    refused = run(trained[1], "trm.solve", "checkpoint=outputs/whole", "test:0", argument, check=2)
    assert "name one way, such as inference=votes8" in refused.stderr
