"""`python -m trm.solve` with the options that show how the model thinks; tests/test_train.py has the plain command."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from composing import composed
from running import TINY, run

from trm.backends import start
from trm.config import HardwareConfig
from trm.data.build import held_out_puzzles
from trm.data.format import array_path
from trm.inference.evaluator import make_evaluator
from trm.inference.selection import over, select
from trm.run.saved import open_run
from trm.show.thinking import Puzzle
from trm.solve import answered, find_puzzles, frames_of
from trm.tasks.base import task_of

SHORT = [*TINY, "train.max_steps=2", "evaluate.max_puzzles=16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the run `outputs/whole`, trained for two steps."""
    folder = tmp_path_factory.mktemp("work")
    run(folder, "trm.train", *SHORT, "run_name=whole")
    return folder


def solve(folder, *arguments, **how):
    return run(folder, "trm.solve", "checkpoint=outputs/whole", *arguments, **how)


def test_solve_shows_how_it_thinks(folder):
    plain = solve(folder, "test:0").stdout
    shown = solve(folder, "--html", "seen/a=b.html", "test:0", "--watch", "--gif=seen/a.gif").stdout
    watched, _, rest = shown.partition(plain)
    assert rest.splitlines() == ["written: seen/a=b.html", "written: seen/a.gif"]
    last_grid = watched.rstrip().rpartition("step 4/4")[2].partition("\n")[2]
    answer = re.search(r"^([1-4.]{16}): ", plain, re.MULTILINE)
    assert answer
    assert re.sub(r"[^1-4.]", "", last_grid) == answer[1]
    assert f">{answer[1]}</code> <strong>NOT a solution" in (folder / "seen" / "a=b.html").read_text()
    assert (folder / "seen" / "a.gif").read_bytes().startswith(b"GIF89a")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["test:0", "--html"], "--html"),
        (["test:0", "--wach"], "--wach (did you mean --watch?)"),
        (["test:0", "--gif", "outputs"], "--gif outputs: cannot be written to"),
        (["test:0", "1234"], "one puzzle"),
        (["11.. .... .... ...."], "no solution: row 1 has 1 more than once; box 1 has 1 more than once: correct its givens"),
        (["1---------------", "--checkpoint=x"], "without dashes: checkpoint=..."),
        (["test:" + "9" * 5000], "held-out puzzles are test:0 to test:"),  # more digits than int() reads
        (["test:0", "inference=frontier"], "name one way, such as inference=votes8"),
        (["test:0", "evaluate.by_difficulty=true"], "name one way, such as inference=votes8"),
    ],
)
def test_wrong_options_are_named(folder, arguments, words):
    refused = solve(folder, *arguments, check=2).stderr
    assert words in refused
    assert len(refused.splitlines()) == 1


def test_blanks_may_be_dashes(folder):
    dots, dashes = (solve(folder, ".1..|....|....|...2".replace(".", blank)).stdout for blank in ".-")
    assert dots == dashes
    assert "question" in dots
    assert solve(folder, "-" * 16).stdout.startswith("question")


def test_a_file_of_many_puzzles_is_solved_puzzle_by_puzzle_as_each_alone(folder):
    puzzles = [".1......" + "." * 7 + "2", "1......2.3......", "." * 16]
    (folder / "many.sdm").write_text("# three\r\n" + "\r\n".join(puzzles) + "\r\n\r\n", "utf-8-sig")
    many = [json.loads(line) for line in solve(folder, "--json", "many.sdm").stdout.splitlines()]
    assert many == [json.loads(solve(folder, "--json", puzzle).stdout) for puzzle in puzzles]
    assert [row["question"] for row in many] == puzzles
    assert all(row["valid"] == row["verdict"].startswith("valid") and len(row["answer"]) == 16 for row in many)
    assert solve(folder, "many.sdm").stdout.count("question") == 3
    assert "--watch: shows one puzzle, and many.sdm holds 3" in solve(folder, "many.sdm", "--watch", check=2).stderr
    (folder / "bad.sdm").write_text("." * 16 + "\n11" + "." * 14 + "\n")
    refused = solve(folder, "bad.sdm", check=2).stderr
    assert "puzzle 2 of 2 has no solution: row 1 has 1 more than once" in refused
    framed = "+==+==+\n|.1|..|\n|..|..|\n+==+==+\n|..|..|\n|..|.2|\n+==+==+"
    assert json.loads(solve(folder, "--json", framed).stdout)["question"] == puzzles[0]


def test_puzzles_that_are_no_sudoku_are_refused(folder):
    """The network is trained on a folder of 5x5 grids, which the settings call 4x4 Sudoku."""
    shutil.copytree(folder / "data/sudoku_4x4_n64_aug0_seed0", folder / "grids")
    (folder / "grids/build.json").unlink()
    for split in ("train", "test", "selection"):
        metadata = folder / "grids" / split / "dataset.json"
        metadata.write_text(metadata.read_text().replace('"seq_len": 16', '"seq_len": 25'))
        for name in ("inputs", "labels"):
            file = array_path(folder / "grids", split, name)
            np.save(file, np.pad(np.load(file), ((0, 0), (0, 9)), constant_values=2))
    run(folder, "trm.train", *SHORT, "train.max_steps=1", "data.path=grids", "data.on_the_fly_aug=0", "run_name=grids")
    for puzzle, words in (
        ("test:0", "/grids: holds no 4x4 Sudoku"),
        ("1...|..1.|.1..|...1", "data.box_rows=2 data.box_cols=2: 4x4 Sudoku"),
    ):
        refused = run(folder, "trm.solve", "checkpoint=outputs/grids", puzzle, check=2).stderr
        assert words in refused
        assert len(refused.splitlines()) == 1


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


FEW = 4  # puzzles
SMALLER = {"copies": 3, "restarts": 3, "rollouts": 3}
SINGLE = ["standard", "votes8", "ptrm", "halt_first"]  # ptrm100, votes32 and steps64 differ from these in what is made smaller
WAYS = [*((name, early) for name in SINGLE for early in (False, True)), ("eqr", False), ("guided", False)]


@pytest.mark.parametrize(("name", "early"), WAYS)
def test_every_puzzle_gets_the_answer_that_it_has_in_the_evaluation(folder, name, early, tmp_path):
    way = vars(composed(f"inference={name}").inference)
    smaller = [f"inference.{key}={value}" for key, value in SMALLER.items() if (way[key] or 1) > value]
    more = ["inference.supervision_steps=5", f"inference.early_exit={early}"]  # the run was trained with 4
    arguments = [f"inference={name}", *smaller, *more]
    run = opened(folder, *arguments, bias=-2.0 if name == "halt_first" else -0.5)  # of several the first one halts sooner
    runtime = start(HardwareConfig(name="cpu", backend="eager", dtype="float64"))
    seen = []
    make_evaluator(run.cfg, runtime, run.arch, run.buffers).run(run.eval_weights, None, see=lambda found, _: seen.append(found))
    found = over(lambda *parts: np.concatenate(parts, axis=1), *seen)
    winners, _, candidates = select(found, run.cfg.inference, run.cfg.inference_steps - 1)
    answers, steps = (of[np.arange(FEW), winners] for of in (candidates.answers, candidates.values["steps"]))
    dataset = held_out_puzzles(run.cfg.data)
    task = task_of(run.cfg.data)
    for number, theirs in enumerate(answers):
        alone, _, loader = answered(run, dataset, number)
        assert np.array_equal(alone.answers, [theirs])
        assert alone.steps == steps[number]
        if name != "guided":  # whose candidates have no history of their own
            frames = frames_of(run, Puzzle("", task, dataset.inputs[number], None), alone, loader, number)
            assert np.array_equal(frames[-1].answer, theirs)
    (tmp_path / "rows.sdm").write_text("\n".join(task.view.text(question) for question in dataset.inputs[:FEW]))
    puzzles, rows, _ = find_puzzles(run, str(tmp_path / "rows.sdm"))
    there, _, _ = answered(run, rows, None)  # row N of a file is row N of a dataset: the same copies, noise and answers
    assert len(puzzles) == FEW
    assert (there.answers.tolist(), there.candidates.tolist()) == (answers.tolist(), winners.tolist())
    if early or name == "halt_first":
        assert len(set(steps.tolist())) > 1, "the cases that matter"


def test_an_option_of_inference_keeps_the_networks_own_steps(folder):
    trained_with = open_run(folder / "outputs/whole", []).cfg.inference_steps
    run(folder, "trm.interop", "publish", "checkpoint=outputs/whole", "seven", "inference.supervision_steps=7")
    for arguments, steps in (
        ([], 7),
        (["inference=standard"], 7),
        (["inference=votes8"], 7),
        (["inference=steps64"], 64),
        (["inference=votes8", "inference.supervision_steps=2"], 2),
        (["inference=standard", "inference.supervision_steps=null"], trained_with),
    ):
        assert open_run(folder / "seven", arguments).cfg.inference_steps == steps
