"""What `import trm` offers: in this process, from any thread and folder, with the commands' own lines as exceptions."""

import inspect
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import hydra
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from report_fixtures import write_run
from running import MESH, TINY, XLA, environment

import trm
import trm.report
import trm.run
from trm import api
from trm.config.groups import CONF_DIR
from trm.errors import ConfigError, DataError, RunFailure, UserError
from trm.interop import ModelTensors, write_reference_file
from trm.run.saved import open_run

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = [*TINY, "train.max_steps=2", "train.eval_every_steps=null", "train.checkpoint_every_steps=null", "data.num_test_puzzles=16"]
PUZZLE = "1.....1..1.....1"  # 4x4
WAYS = [["inference=votes8"], ["inference.early_exit=true"], ["recursion.act_continue=true"]]


@pytest.fixture(scope="module")
def network():
    return trm.load("models/sudoku_4x4")


@pytest.fixture(scope="module")
def questions(network):
    return network.task.generate(5, 3)[0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_importing_it_takes_no_time():
    script = "import sys, trm; print(sorted({'torch', 'numpy', 'hydra', 'trm.api'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_functions_are_documented_and_stay_so_when_the_packages_of_their_names_are_imported():
    for name in trm.__all__:
        function = getattr(trm, name)
        assert next(iter(inspect.signature(function).parameters)) in ("checkpoint", "overrides", "folders"), name
        assert re.search(rf"\b{name}\b", trm.__doc__) or name == "compose"
    assert trm.run.__name__ == "trm.run"
    assert "sudoku" in trm.compose(["data=sudoku_4x4"]).data.task


# ---------------------------------------------------------------------------------------------------------------- networks


def test_puzzles_are_given_as_text_as_arrays_and_in_files(network, questions, here):
    lines = [network.task.view.text(question) for question in questions]
    (here / "puzzles.txt").write_text("\n".join(lines))
    found = network.solve(questions)
    for given in ("\n".join(lines), lines, here / "puzzles.txt", "puzzles.txt", questions.tolist()):
        assert network.solve(given).text == found.text
    assert (found.answers.shape, found.solved.dtype, len(found)) == (questions.shape, bool, 5)
    assert found.solved.all()
    assert ((found.halting > 0.5) & (found.halting <= 1)).all()
    assert set(found.steps) == {network.settings.recursion.n_sup}
    assert found.cost["passes_per_puzzle"] > 0
    assert network.solve(questions[2]).text == found.text[2:3]
    assert str(found).endswith("\n5 of 5 are solved")
    assert str(network.solve(PUZZLE)).startswith("question ")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[0])
def test_the_answer_is_that_of_the_command_and_the_last_frame(questions, way):
    network = trm.load("models/sudoku_4x4", way)
    found, frames = network.solve(questions[:1]), network.think(questions[0])
    assert (frames[-1].answer == found.answers[0]).all()
    assert frames[-1].step == found.steps[0]
    assert frames[-1].halting == pytest.approx(found.halting[0], abs=1e-5)
    assert found.votes[0] <= found.cost["candidates"]
    assert "<iframe sandbox" in frames._repr_html_()


def test_a_held_out_puzzle_is_solved_in_its_own_place(here):
    """By which copies and noise are drawn, as the command does."""
    network = trm.load("models/sudoku_4x4", ["inference=ptrm", "inference.rollouts=4", "inference.noise=3"])
    found = network.solve("test:5")
    assert (found.text, found.halting[0]) == ((thought := network.think("test:5").solution).text, thought.halting[0])


def test_logits_are_those_that_answers_are_read_from(network, questions):
    logits = network.predict(questions)
    assert logits.shape == (*questions.shape, network.task.facts.vocab_size)
    assert (logits.argmax(-1) == network.solve(questions).answers).all()
    assert network.predict(questions[1]) == pytest.approx(logits[1:2], abs=1e-4)


def test_thoughts_are_saved_as_page_and_animation(network, here):
    frames = network.think(PUZZLE)
    frames.save("page.html")
    frames.save("steps.gif")
    assert (here / "page.html").read_text() == frames.page
    assert (here / "steps.gif").read_bytes()[:3] == b"GIF"
    with pytest.raises(UserError, match=r"steps.txt: is neither"):
        frames.save("steps.txt")


@pytest.mark.parametrize(
    ("puzzles", "words"),
    [
        ("1234", "4 cells, but a 4x4 puzzle has 16"),
        ("no.sdk", "no.sdk: there is no such file"),
        ([PUZZLE, "11.............."], "puzzle 2 of 2 has no solution: "),
        (np.full((2, 16), 9), "puzzle 1 cell 1: 9 is no token of 4x4 Sudoku: they are 0 to 5"),
        (np.zeros((2, 16)), r"an array of float64 \[2, 16\]: give integers"),
        (np.ones((2, 9), int), r"give integers \[16\] or \[N, 16\]"),
        ([], r"give integers \[16\] or \[N, 16\]"),
        ([[1, 2], [1]], r"give integers \[16\] or \[N, 16\]"),
    ],
)
def test_what_is_no_puzzle_is_refused(network, puzzles, words):
    with pytest.raises(DataError, match=words):
        network.solve(puzzles)


def test_identifiers_that_the_network_does_not_have_are_refused(network, questions):
    for identifiers in ([0], [1] * 5, [-1] * 5, [0.0] * 5):
        with pytest.raises(DataError, match="give 5 integers from 0 to 0, one for each puzzle"):
            network.predict(questions, identifiers)


def test_what_makes_tables_has_no_frames(here):
    with pytest.raises(ConfigError, match=r"trm\.evaluate"):
        trm.load("models/sudoku_4x4", ["inference=frontier"]).solve(PUZZLE)
    with pytest.raises(UserError, match="nowhere"):
        trm.load("nowhere")


def test_a_file_of_the_released_code_is_a_network(here, questions):
    run = open_run(Path("models/sudoku_4x4"), [])
    write_reference_file(here / "step_9", ModelTensors(run.eval_weights, run.buffers, run.puzzle_embedding), run.arch)
    recipe = ["data=sudoku_4x4", *(f"model.{key}={value}" for key, value in vars(run.cfg.model).items() if key != "name")]
    recipe += [f"recursion.{key}={getattr(run.cfg.recursion, key)}" for key in ("T", "n", "n_sup")]
    network = trm.load("step_9", recipe)
    assert network.predict(questions) == pytest.approx(trm.load("models/sudoku_4x4").predict(questions), abs=1e-4)
    assert [path.name for path in here.iterdir()] == ["step_9"]


# -------------------------------------------------------------------------------------------------------------------- runs


def test_runs_follow_one_another_inside_a_program_that_uses_hydra_itself(here):
    mine = logging.StreamHandler()
    logging.root.addHandler(mine)
    try:
        first = trm.run([*SHORT, "run_name=a"])
        with hydra.initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
            outer = GlobalHydra.instance().hydra
            assert trm.compose("seed=3").seed == 3  # a text alone is one override
            second = trm.run([*SHORT, "run_name=b"])
            assert GlobalHydra.instance().hydra is outer
        assert logging.root.handlers.count(mine) == 1
        assert [handler for handler in logging.root.handlers if isinstance(handler, logging.FileHandler)] == []
    finally:
        logging.root.removeHandler(mine)
    assert (first["status"], second["status"]) == ("completed", "completed")
    assert first["run_dir"] == str(here / "outputs" / "a")
    assert first | {"run_dir": None} == json.loads((here / "outputs/a/summary.json").read_text()) | {"run_dir": None}
    for name in ("a", "b"):
        said = (here / "outputs" / name / "train.log").read_text()
        assert said.count("completed: exact accuracy") == 1
        assert f"outputs/{'b' if name == 'a' else 'a'}" not in said
    assert trm.run([*SHORT, "run_name=a"])["steps"] == 2  # nothing is left to train
    assert trm.load(first["run_dir"]).step == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recursion.Q=3"], "^recursion.Q is not a config key: did you mean recursion.n"),
        (["model=none"], "^model=none"),
        (["train.max_steps=-1"], "^train.max_steps"),
    ],
)
def test_what_the_command_refuses_is_raised_and_leaves_nothing(here, capsys, overrides, words):
    for function in (trm.run, trm.compose, trm.sweep):
        with pytest.raises(ConfigError, match=words):
            function(overrides)
    assert list(here.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_a_sweep_is_no_run(here):
    for function in (trm.run, trm.compose):
        with pytest.raises(ConfigError, match=r"^\+sweep=: these are the settings of several runs"):
            function(["+sweep=tn_sweep"])
    assert list(here.iterdir()) == []


def test_another_number_of_devices_is_another_process(here, monkeypatch):
    """torch_xla keeps its devices as long as the process lives."""
    started = []
    monkeypatch.setattr(api, "_ran", set())
    monkeypatch.setattr(api, "run_here", lambda *_: here)
    monkeypatch.setattr(api, "_command", started.append)
    for engine in (XLA, XLA, MESH):
        trm.run([*SHORT, *engine, "run_name=r"])
    assert [("hardware=cpu_mesh" in words) for words in started] == [True]


def test_a_run_that_cannot_go_on_raises(here, monkeypatch):
    def diverged(*_):
        raise RunFailure("the loss is not finite")

    monkeypatch.setattr("trm.train.check_losses", diverged)
    with pytest.raises(RunFailure, match="the loss is not finite"):
        trm.run([*SHORT, "run_name=a"])
    assert json.loads((here / "outputs/a/summary.json").read_text())["status"] == "failed"


def test_an_interruption_saves_the_run(here):
    long, before = [*SHORT, "run_name=a", "train.max_steps=2000", "train.log_every_steps=1"], signal.getsignal(signal.SIGINT)

    def interrupt():
        log = here / "outputs/a/metrics.jsonl"
        while not (log.exists() and log.stat().st_size):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match="saved; the same call"):
        trm.run(long)
    assert signal.getsignal(signal.SIGINT) is before
    stopped = json.loads((here / "outputs/a/summary.json").read_text())
    assert stopped["status"] == "preempted"
    assert trm.load("outputs/a").step == stopped["steps"] > 0


def test_another_thread_trains_without_signals_and_one_at_a_time(here):
    found = []

    def work():
        with api._training:
            try:
                trm.run(SHORT)
            except UserError as error:
                found.append(str(error))
        found.append(trm.run([*SHORT, "run_name=a"])["status"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].startswith("a run is going on in this process")
    assert found[1:] == ["completed"]
    assert "no signal can stop the run" in (here / "outputs/a/train.log").read_text()


@pytest.mark.long
def test_backends_follow_one_another(here, capsys):
    found = [trm.run([*SHORT, *engine, f"run_name=r{i}"]) for i, engine in enumerate(([], XLA, []))]
    assert [summary["runtime"].split()[0] for summary in found] == ["torch", "torch_xla", "torch"]
    losses = [summary["last_eval"]["lm_loss"] for summary in found]
    assert losses[0] == losses[2] == pytest.approx(losses[1], rel=1e-3)
    assert capsys.readouterr().out.count("in a process of its own") == 1


# ------------------------------------------------------------------------------------------------------- sweeps and reports


@pytest.mark.parametrize(
    ("code", "said", "kind", "words"),
    [
        (2, "error: seed: wrong", UserError, "^seed: wrong$"),
        (1, "1 of 2 jobs did not complete in x:\n  seed1: failed: why", RunFailure, "seed1: failed: why"),
    ],
)
def test_how_a_sweep_ends_is_raised(here, monkeypatch, code, said, kind, words):
    script = here / "python"
    script.write_text(f"#!/bin/sh\necho '[1/2] a'\necho '{said}' >&2\nexit {code}\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    with pytest.raises(kind, match=words):
        trm.sweep([*SHORT, "seed=0,1"])


def test_a_report_is_tables(tmp_path):
    pytest.importorskip("pandas", reason="pandas is not installed: pip install -e .[dev]")
    for seed in (0, 1):
        write_run(tmp_path / f"s{seed}", seed=seed)
    found = trm.report(tmp_path)
    assert len(found.variants) == 1
    assert list(found.runs["seed"]) == [0, 1]
    assert found.variants["exact_accuracy_mean"][0] == pytest.approx(found.runs["exact_accuracy"].mean())
    assert set(found.evaluations["run"]) == set(found.runs["name"])
    with pytest.raises(ConfigError, match="nothing"):
        trm.report(tmp_path, group=["nothing"])
    assert len(trm.report(tmp_path, group="recursion").variants) == 1
    for wrong in ({"target": 80}, {"group": []}):
        with pytest.raises(UserError, match=r"^--(target 80|group needs)"):
            trm.report(tmp_path, **wrong)


def test_a_report_without_pandas_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'trm-scaling-study\[notebook\]'"):
        trm.report(tmp_path)
