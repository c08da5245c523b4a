"""The networks of models/ and their cards; publishing a run; solving without checkpoint=."""

import hashlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from running import TINY, run
from safetensors import safe_open

from trm.cli import compose
from trm.config import to_plain
from trm.errors import CheckpointError, ConfigError
from trm.run.saved import open_run, published

MODELS = Path(__file__).parents[1] / "models"
SPEC = importlib.util.spec_from_file_location("models", MODELS.parent / "scripts" / "models.py")
models = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(models)
CARDS = {path.parent.name: yaml.safe_load(path.read_text().split("---\n")[1]) for path in sorted(MODELS.glob("*/README.md"))}
SUDOKUS = {
    "sudoku_4x4": "1...|..1.|.1..|...1".replace("|", ""),
    "sudoku_9x9": "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
}
MAZE = [
    "         ",
    " ##### # ",
    "     # # ",
    " ##### # ",
    " #   # # ",
    " ### # ##",
    "   # #   ",
    "## # ### ",
    "G  #    S",
]


def result(done):
    return json.loads(done.stdout.splitlines()[-1])


def test_every_network_has_a_card():
    assert [model.folder.name for model in published()] == list(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_of_the_weights_beside_it(name):
    card, folder = CARDS[name], MODELS / name
    blob, meta = (folder / "state.safetensors").read_bytes(), json.loads((folder / "meta.json").read_text())
    assert len(blob) <= 2_000_000
    assert hashlib.sha256(blob).hexdigest() == card["sha256"] == meta["state_sha256"]
    assert (card["steps"], card["caveats"]) == (meta["step"], meta["caveats"])
    assert card["training_puzzles"] == meta["training_range"]
    assert meta["puzzles"]["test"] >= card["held_out_puzzles"]
    assert card["interval_95"][0] <= card["exact_accuracy"] <= card["interval_95"][1]
    with safe_open(folder / "state.safetensors", "np") as file:
        assert card["parameters"] == sum(file.get_tensor(name).size for name in file.keys() if name.startswith("ema/"))  # noqa: SIM118


@pytest.mark.parametrize("name", CARDS)
def test_a_cards_words_and_command_are_of_its_network(name):
    text, meta = (MODELS / name / "README.md").read_text(), json.loads((MODELS / name / "meta.json").read_text())
    assert text.split("---\n", 2)[2] == models.words(name, CARDS[name], meta), "words() of scripts/models.py"
    (command,) = re.findall(r"^python -m trm\.train (.*)", text, re.MULTILINE)
    cfg = to_plain(compose([*shlex.split(command), "run_name=r"]))
    assert cfg["train"]["max_steps"] == meta["step"]
    for group in ("data", "model", "recursion", "optimizer", "ema"):
        assert {key: cfg[group][key] for key in meta["config"][group]} == meta["config"][group]  # which leaves paths out
    assert cfg["train"]["global_batch_size"] == meta["config"]["train"]["global_batch_size"]


@pytest.mark.long
@pytest.mark.parametrize("name", CARDS)
def test_a_cards_figures_are_repeated(tmp_path, name):
    """On a sample; in float32 with another backend than they were found with too, in bfloat16 that rounds otherwise."""
    other = [] if "hardware.dtype=bfloat16" in (MODELS / name / "README.md").read_text() else ["hardware.backend=eager"]
    other += ["data.num_puzzles=20", "data.path=few"]  # the test puzzles, a split of their own, are the same
    sample = 250  # of them: all take minutes
    found = result(run(tmp_path, "trm.evaluate", f"checkpoint={MODELS / name}", f"evaluate.max_puzzles={sample}", *other))
    assert found["count"] == sample
    for key in CARDS[name].keys() & {"exact_accuracy", "optimal", "one_path"}:
        share = CARDS[name][key]
        assert abs(found[key] - share) <= 4 * (share * (1 - share) / sample) ** 0.5 + 0.003


@pytest.mark.parametrize(  # the puzzles that it was trained on are made again, which takes minutes
    "name", [pytest.param("sudoku_9x9", marks=pytest.mark.long), "maze_9x9", "sudoku_4x4"]
)
def test_a_held_out_puzzle_is_there_in_an_empty_folder(tmp_path, name):
    few = ["data.num_puzzles=20", "data.num_test_puzzles=2"]
    done = run(tmp_path, "trm.solve", f"checkpoint={MODELS / name}", "test:0", *few)
    assert done.stdout.startswith("question")
    assert list((tmp_path / "data").iterdir())


def test_an_experiment_is_what_it_sets_otherwise(tmp_path):
    model = MODELS / "maze_9x9"
    plain, same = open_run(model, []), open_run(model, ["experiment=maze_small"])
    for group in ("data", "model", "recursion", "evaluate", "inference"):  # it was trained by this experiment
        assert getattr(same.cfg, group) == getattr(plain.cfg, group)
    assert not same.asked_data
    kept = ["experiment=maze_small", "inference=votes8", "inference.early_exit=false", f"data.path={tmp_path}/d"]
    way = open_run(model, kept)
    assert (way.cfg.inference_steps, way.cfg.inference.copies, way.cfg.inference.early_exit) == (16, 8, False)
    assert (way.cfg.data.path, way.asked_data) == (f"{tmp_path}/d", True)
    with pytest.raises(CheckpointError, match="these settings"):
        open_run(MODELS / "sudoku_4x4", ["experiment=maze_small"])
    with pytest.raises(ConfigError, match="experiment=nothing"):
        open_run(model, ["experiment=nothing"])


@pytest.mark.parametrize("name", sorted(SUDOKUS.keys() & CARDS))
def test_the_network_that_fits_solves_without_being_named(tmp_path, name):
    done = run(tmp_path, "trm.solve", SUDOKUS[name])
    card = CARDS[name]
    told = f"it solves {100 * card['exact_accuracy']:.1f} % of {card['held_out_puzzles']:,} held-out puzzles"
    assert done.stdout.startswith(f"models/{name} answers: {told} (")
    assert ": valid solution\n" in done.stdout


def test_a_maze_is_known_from_a_sudoku_of_as_many_cells(tmp_path):
    (tmp_path / "maze.txt").write_text("\n".join(MAZE))
    done = run(tmp_path, "trm.solve", "maze.txt")
    assert done.stdout.startswith("models/maze_9x9 answers: it solves ")
    assert "answer: valid solution, optimal: a shortest path of 28 steps\n" in done.stdout


def test_a_network_that_was_evaluated_with_halting_stops_where_it_halts(tmp_path):
    words = [
        run(tmp_path, "trm.solve", SUDOKUS["sudoku_4x4"], *more).stdout.splitlines()[-1]
        for more in ([], ["inference.early_exit=true"])
    ]
    assert words[0].endswith("after 16 supervision steps")
    assert int(words[1].split()[-3]) < 16


def test_a_puzzle_without_a_network_is_refused_where_none_comes_along(tmp_path, monkeypatch):
    monkeypatch.setattr("trm.solve.published", list)
    assert "there is no network in models/: give checkpoint=" in run(tmp_path, "trm.solve", "1" * 16, check=2).stderr


def test_what_no_network_fits_is_refused(tmp_path):
    for puzzle, words in (
        ("1" * 17, "as a 4x4 Sudoku, the nearest: 17 cells, but a 4x4 puzzle has 16"),
        (
            "53..7....\n6..195...\n.98....6.\n8..?6...3\n" + "." * 45,
            "as a 9x9 Sudoku, the nearest: line 4 column 4: '?' is neither",
        ),
        ("#" * 20 + "S G" + "#" * 57 + "?", "as a 9x9 maze, the nearest: line 1 column 81: '?' is not one"),
        ("missing.sdk", "missing.sdk: there is no such file"),
    ):
        assert words in run(tmp_path, "trm.solve", puzzle, check=2).stderr
    assert "test:3 is a held-out puzzle of a run" in run(tmp_path, "trm.solve", "test:3", check=2).stderr


def test_a_published_run_evaluates_as_the_run_does(tmp_path):
    run(tmp_path, "trm.train", *TINY, "train.max_steps=3", "run_name=r")
    run(tmp_path, "trm.interop", "publish", "checkpoint=outputs/r", "given/away")
    assert sorted(path.name for path in (tmp_path / "given" / "away").iterdir()) == ["meta.json", "state.safetensors"]
    assert result(run(tmp_path, "trm.evaluate", "checkpoint=given/away")) == result(
        run(tmp_path, "trm.evaluate", "checkpoint=outputs/r")
    )
    run(tmp_path, "trm.interop", "publish", "checkpoint=outputs/r", "elsewhere", "hardware=cpu", "hardware.dtype=bfloat16")
    there, here = (json.loads((tmp_path / name / "meta.json").read_text())["config"] for name in ("elsewhere", "given/away"))
    assert {key for key in there if there[key] != here[key]} == {"hardware"}
    assert there["hardware"]["dtype"] == "bfloat16"
    assert "EMA weights alone" in run(tmp_path, "trm.evaluate", "checkpoint=given/away", "ema=off", check=2).stderr
    for arguments, words in (
        (["checkpoint=outputs/r", "given/away"], "given/away: exists already"),
        (["checkpoint=outputs/r", "seed=3", "other"], "seed=3: a published checkpoint keeps"),
        (["checkpoint=outputs/r"], "one FOLDER to make"),
    ):
        assert words in run(tmp_path, "trm.interop", "publish", *arguments, check=2).stderr
