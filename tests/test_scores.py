"""Scores that a task has of its own: which checkpoint is the best by them, and where they are seen."""

import csv
import io
import json

import numpy as np
import pytest
from report_fixtures import config, write_run
from tracking_fixtures import samples

from trm.inference.compute import by_difficulty
from trm.inference.evaluator import EvalResult
from trm.report.output import csv_text, json_text, terminal
from trm.report.runs import collect
from trm.report.variants import compare
from trm.run.record import Record


def result(exact, optimal):
    return EvalResult([{"exact_accuracy": exact, "optimal": optimal, "count": 4}], samples(), ("optimal",))


@pytest.mark.parametrize(("by", "best", "step"), [("exact", [1, 2, 2], 2), ("optimal", [1, 1, 3], 3)])
@pytest.mark.parametrize("on", ["test", "selection"])
def test_the_best_checkpoint_is_chosen_by_the_score_and_the_puzzles_that_are_asked_for(by, best, step, on):
    """The scores kept are those on the test puzzles at that step, whatever they were elsewhere."""
    record, found, other = Record(), [], result(0.9, 0.9)
    rows = [result(0.1, 0.5), result(0.3, 0.4), result(0.2, 0.6)]
    for record.step, row in enumerate(rows, 1):
        tested, selection = (row, None) if on == "test" else (other, row)
        record.evaluated(tested, tested, by, selection)
        found.append(record.scores.best_step)
    scores, shown = record.scores, rows[step - 1] if on == "test" else other
    assert found == best
    assert (scores.best_step, scores.best_puzzles, scores.selected_on, scores.selected_by) == (step, 4, on, by)
    assert scores.selection_score == rows[step - 1].score(by)
    assert (scores.best_exact_accuracy, scores.best_scores) == (shown.score("exact"), {"optimal": shown.score("optimal")})
    assert not record.warnings


@pytest.mark.parametrize("now", [("optimal", None), ("exact", result(0.1, 0.1)), ("exact", result(0.8, 0.8))])
def test_scores_on_other_puzzles_or_of_another_kind_are_not_compared(now):
    record = Record(step=1)
    record.evaluated(result(0.5, 0.5), result(0.5, 0.5))
    record.step = 2
    record.evaluated(result(0.3, 0.3), result(0.3, 0.3), *now)
    assert record.scores.best_step == 2
    assert "the search for the best starts again" in record.warnings[0]


def test_results_over_two_parts_are_joined_by_their_counts():
    one, other = result(0.5, 1.0), result(0.0, 0.0)
    other.by_step[0]["count"] = 12
    assert one.joined(other).final == {"exact_accuracy": 0.125, "optimal": 0.25, "count": 16}
    assert one.joined(other).score("optimal") == 0.25


def mazes(folder, **evaluate):
    settings = config("data=maze_small", *(f"evaluate.{key}={value}" for key, value in evaluate.items()))
    for seed, optimal in enumerate((0.4, 0.6, 0.8)):
        last = {"optimal": optimal, "one_path": 0.9, "accuracy": 0.5}
        scores = {"last_eval": last, "shown_scores": ["optimal", "one_path"]}
        write_run(folder / str(seed), settings, accuracy=0.5, seed=seed, **scores)
    return compare(collect([folder]))


@pytest.mark.parametrize(("by", "title"), [("exact", "exact accuracy % (decides)"), ("optimal", "optimal % (decides)")])
def test_the_report_has_the_scores_and_names_the_one_that_decides(tmp_path, by, title):
    comparison = mazes(tmp_path, best_by=by)
    text = terminal(comparison)
    head, row = text.splitlines()[:2]
    assert head.count("(decides)") == 1
    assert title in head
    assert "60.0 ± 49.7" in row
    assert f"{by} decides which checkpoint" in " ".join(text.split())
    (record,) = csv.DictReader(io.StringIO(csv_text(comparison)))
    assert float(record["optimal_mean"]) == pytest.approx(0.6)
    assert float(record["one_path_ci95_half_width"]) == pytest.approx(0)
    assert [run["scores"]["optimal"] for run in json.loads(json_text(comparison))["runs"]] == [0.4, 0.6, 0.8]


@pytest.mark.parametrize(
    "values", [{}, {"shown_scores": 3}, {"shown_scores": ["optimal"]}, {"shown_scores": ["x"], "last_eval": []}]
)
def test_a_summary_without_sound_scores_has_none(tmp_path, values):
    write_run(tmp_path / "a", config("data=maze_small"), **values)
    assert collect([tmp_path])[0].scores == {}


def test_levels_of_difficulty_hold_every_puzzle_once_and_are_about_alike_large():
    hard = np.random.default_rng(0).integers(10, 60, 1000)
    rows = by_difficulty(hard, {"exact_accuracy": hard < 30})
    assert len(rows) == 10
    assert sum(row["count"] for row in rows) == 1000
    assert all(row["from"] <= row["mean"] <= row["to"] for row in rows)
    assert all(60 <= row["count"] <= 140 for row in rows)
    assert (rows[0]["exact_accuracy"], rows[-1]["exact_accuracy"]) == (1.0, 0.0)
    assert len(by_difficulty(np.full(7, 3), {"exact_accuracy": np.ones(7, bool)})) == 1
