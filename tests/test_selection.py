"""Which puzzles choose the best checkpoint, and that a number which the test puzzles chose says so."""

import pytest
from report_fixtures import config, write_run
from running import TINY, metrics, run, summary
from test_which_puzzles import SUDOKU, write_csv

from trm.cli import compose
from trm.errors import ConfigError
from trm.report.output import terminal
from trm.report.runs import collect
from trm.report.variants import compare

QUICK = [*TINY, "recursion.n_sup=1", "train.max_steps=4", "train.eval_every_steps=2", "data.num_puzzles=24"]
SAID = "caution: this checkpoint was chosen as the best of its run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on generated data, one that is told to let the test puzzles choose, and one on csv files."""
    folder = tmp_path_factory.mktemp("runs")
    questions, answers = SUDOKU.generate(40, 0)
    files = [
        f"data.{split}_csv={write_csv(folder / f'{split}.csv', questions[rows], answers[rows])}"
        for split, rows in {"train": slice(0, 24), "test": slice(24, 40)}.items()
    ]
    csv = ["data.source=csv", "data.num_test_puzzles=null", "data.path=csv", *files]
    for name, more in {"apart": ["evaluate.selection_puzzles=7"], "told": ["evaluate.selection_puzzles=0"], "csv": csv}.items():
        run(folder, "trm.train", *QUICK, f"run_name={name}", *more)
    return folder


@pytest.mark.parametrize(("name", "on"), [("apart", "selection"), ("told", "test"), ("csv", "test")])
def test_the_summary_says_which_puzzles_chose(runs, name, on):
    found = summary(runs / "outputs" / name)
    chosen, tested = (metrics(runs / "outputs" / name, kind) for kind in ("selection", "eval"))
    assert (found["selected_on"], found["selected_by"]) == (on, "exact")
    assert [line["count"] for line in chosen] == ([7, 7] if on == "selection" else [])
    assert found["selection_score"] == max(line["exact_accuracy"] for line in chosen or tested)
    assert found["best_exact_accuracy"] == tested[found["best_step"] // 2 - 1]["exact_accuracy"]
    assert f"chosen on the {on} puzzles" in (runs / "outputs" / name / "train.log").read_text()


@pytest.mark.parametrize(("name", "said"), [("apart", False), ("told", True)])
def test_an_evaluation_of_the_best_checkpoint_says_that_the_test_puzzles_chose_it(runs, name, said):
    best = f"checkpoint=outputs/{name}/checkpoints/best"
    assert (SAID in run(runs, "trm.evaluate", best).stdout) == said
    assert SAID not in run(runs, "trm.evaluate", f"checkpoint=outputs/{name}").stdout
    run(runs, "trm.interop", "publish", best, f"given_{name}")
    assert (SAID in run(runs, "trm.evaluate", f"checkpoint=given_{name}").stdout) == said


def test_more_selection_puzzles_than_there_are_are_refused(runs):
    refused = run(runs, "trm.train", *QUICK, "run_name=many", "evaluate.selection_puzzles=65", check=2).stderr
    assert "evaluate.selection_puzzles=65, but data/sudoku_4x4_n24_aug0_seed0 has 64 such puzzles: lower it" in refused


def test_data_without_such_puzzles_refuses_them():
    with pytest.raises(ConfigError, match=r"evaluate\.selection_puzzles=5: data\.source=csv has only training and test puzzles"):
        compose(["run_name=r", "data=sudoku_extreme", "evaluate.selection_puzzles=5"])


@pytest.mark.parametrize(("on", "words"), [(None, "the test puzzles themselves"), ("selection", "which are not test puzzles")])
def test_the_report_says_which_puzzles_chose_the_best(tmp_path, on, words):
    write_run(tmp_path / "a", config("data=sudoku_4x4"), selected_on=on)
    assert words in " ".join(terminal(compare(collect([tmp_path]))).split())


def test_the_best_run_is_that_of_the_score_that_decides(tmp_path):
    settings = config("data=maze_small", "evaluate.best_by=optimal")
    for name, optimal, one_path in (("a", 0.2, 0.9), ("b", 0.3, 0.4)):
        scores = {"optimal": optimal, "one_path": one_path}
        write_run(tmp_path / name, settings, accuracy=1 - optimal, last_eval=scores, shown_scores=list(scores))
    assert max(collect([tmp_path]), key=lambda each: each.deciding_score).name == "b"
