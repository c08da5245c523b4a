"""What may be compared (trm/report/comparable.py), and that every table, picture and claim says what may not."""

import json

import pytest
from report_fixtures import config, write_run

from trm.config import flatten
from trm.report.__main__ import main
from trm.report.baseline import differences
from trm.report.comparable import LAST, facts, unlike
from trm.report.frontier import ways
from trm.report.runs import Run, collect
from trm.report.variants import compare

DATA = {"train_digest": "a" * 16, "test_digest": "b" * 16}


def run(*overrides, count=500, step=400, **data):
    digests = {f"puzzles.{name.partition('_')[0]}": value for name, value in (DATA | data).items()}
    return facts(
        Run("r", "completed", settings=flatten(config(*overrides)) | digests, evaluated_puzzles=count, evaluated_step=step)
    )


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"test_digest": "c" * 16}, "puzzles.test"),
        ({"train_digest": "c" * 16}, "puzzles.train"),
        ({"count": 128}, "test puzzles evaluated"),
        ({"count": None}, "test puzzles evaluated unknown, not 500"),
        ({"step": 200}, "training step"),
        *(({"overrides": [text]}, word) for text, word in [
            ("inference=votes8", "inference.copies"), ("inference.early_exit=true", "inference.early_exit"),
            ("inference.supervision_steps=4", "supervision steps 4, not 16"),
        ]),
    ],
)  # fmt: skip
def test_what_changes_the_meaning_of_an_accuracy_may_not_be_compared(other, word):
    assert word in unlike(run(*other.pop("overrides", []), **other), run())


@pytest.mark.parametrize(
    ("overrides", "other"),
    [
        (["recursion=t2_n2", "ema=off", "evaluate.batch_size=7", "inference.name=x"], {}),
        (["data.num_puzzles=2000"], {"train_digest": "c" * 16}),  # what an experiment varies
        (["train.max_steps=800"], {"step": 800}),
        (["recursion.n_sup=2", "inference.supervision_steps=16"], {}),  # as many as the other has in training
        (["recursion.n_sup=2"], {}),  # each as many as in its training
        (["train.eval_every_steps=7"], {}),
    ],
)
def test_what_an_experiment_varies_may(overrides, other):
    assert unlike(run(*overrides, **other), run()) == ""


def test_runs_of_one_budget_have_the_steps_that_it_buys_each():
    budget = "train.max_flops=1e15"
    assert unlike(run(budget, "recursion=t2_n2", step=900), run(budget)) == ""
    assert "is the run's last step" in unlike(run(budget) | {LAST: False}, run(budget))
    assert "training step 300, not 200" in unlike(*(run(budget, step=step) | {LAST: False} for step in (300, 200)))


def test_intervals_of_evaluations_matter_in_a_race():
    assert "train.eval_every_steps" in unlike(run("train.eval_every_steps=7"), run(), race=True)


def test_runs_that_do_not_say_their_puzzles_are_told_apart_by_their_settings():
    bare = {"train_digest": None, "test_digest": None}
    assert "data.name sudoku_4x4, not sudoku_6x6" in unlike(run("data=sudoku_4x4", **bare), run("data=sudoku_6x6", **bare))
    assert unlike(run("data=sudoku_6x6", "ema=off", **bare), run("data=sudoku_6x6", **bare)) == ""
    assert "puzzles.test unknown" in unlike(run(**bare), run())


@pytest.fixture
def folder(tmp_path):
    """Two comparable variants, one on other puzzles, and of the first a run that was evaluated on fewer."""
    for name, options, test in (("a", [], "b"), ("b", ["ema=off"], "b"), ("c", ["data=sudoku_4x4"], "d")):
        for seed in range(3):
            count = 100 if (name, seed) == ("a", 2) else 500
            data = DATA | {"test_digest": test * 16}
            settings = config("data=sudoku_6x6", "model=tiny", *options)
            write_run(tmp_path / f"{name}{seed}", settings, 0.5 + 0.1 * seed + 0.01 * seed * (name == "b"), seed=seed, data=data,
                      last_eval={"count": count}, last_eval_step=400)  # fmt: skip
    return tmp_path


@pytest.mark.usefixtures("undrawn")
def test_what_was_measured_otherwise_is_not_counted_and_not_compared(folder, capsys):
    comparison = compare(collect([folder]), baseline="t3_n6")
    assert [(run.name, reason) for run, reason in comparison.not_counted] == [
        ("a2", "measured in another way than the other runs of its variant: test puzzles evaluated 100, not 500")
    ]
    assert differences(comparison).keys() == {"ema off"}
    main([str(folder), "--baseline", "t3_n6"])
    text = capsys.readouterr().out
    assert f'may not be compared with "t3_n6": puzzles.test {"d" * 16}, not {"b" * 16}' in text
    assert "sudoku_4x4 †" in " ".join(line.partition("  ")[0] for line in text.splitlines())
    assert json.loads((folder / "report" / "report.json").read_text())["not_compared"]
    assert "puzzles.test" in (folder / "report" / "report.csv").read_text()
    assert "†" in (folder / "report" / "index.html").read_text()


VOTE = {"inference.selection": "vote"}
LINE = {
    **{"inference": "votes8", "exact_accuracy": 0.5, "oracle_exact_accuracy": 0.6, "flops_per_puzzle": 8e9, "count": 500},
    **{"seconds_per_puzzle": 0.01, "candidates_run": 8.0, "candidates": 8, "supervision_steps": 16},
}


@pytest.mark.parametrize(
    ("line", "record", "word"),
    [
        ({"count": 20}, {}, "test puzzles evaluated 20, not 500"),
        ({"candidates": 4}, {}, "candidates 4, not 8"),
        ({"supervision_steps": 4}, {"ways": {"votes8": VOTE | {"inference.supervision_steps": 4}}}, "supervision steps 4, not 16"),
        ({}, {"ways": {"votes8": {"inference.selection": "mode"}}}, "inference.selection mode, not vote"),
        ({}, {"checkpoint_step": 200}, "training step 200, not 400"),
        ({}, {"test_digest": "e" * 16}, "puzzles.test"),
        ({}, {"ways": {"votes8": VOTE | {"inference.noise": 1.0}}}, "inference.noise 1.0, not 0.0"),
        ({}, {"ways": {}}, "does not say how it was measured: evaluate the run again"),  # as earlier revisions left it
    ],
)
def test_ways_of_inference_pool_what_was_measured_alike(tmp_path, line, record, word):
    for seed in range(3):
        here, own = (line, record) if seed == 2 else ({}, {})
        folder = write_run(tmp_path / str(seed), seed=seed, data=DATA, last_eval={"count": 500}, last_eval_step=400)
        (folder / "evaluation").mkdir()
        frontier = {"checkpoint_step": 400, "test_digest": "b" * 16, "rows": [{**LINE, **here}]}
        frontier |= {"ways": {"votes8": VOTE}, **own}
        (folder / "evaluation" / "frontier.json").write_text(json.dumps(frontier))
    comparison = compare(collect([tmp_path]))
    found, ((name, reason),) = ways(comparison)
    assert (name.partition(":")[0], [way.exact_accuracy.n for way in found]) == ("2", [2])
    assert word in reason
