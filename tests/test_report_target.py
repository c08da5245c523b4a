"""`python -m trm.report DIR --target SHARE`: samples and seconds to an exact accuracy."""

import csv
import json

import pytest
from report_fixtures import config, write_run
from running import refused

from trm.report.__main__ import main
from trm.report.output import csv_text, terminal
from trm.report.records import reached, seconds_until
from trm.report.runs import Run, collect
from trm.report.variants import compare, estimate


def write_metrics(folder, evaluations, step_times):
    lines = [{"kind": "train", "global_step": step, "loss": 1.0, "step_time_s": s} for step, s in step_times.items()]
    lines += [{"kind": "eval", "global_step": step, "exact_accuracy": exact} for step, exact in evaluations.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("step", "seconds"), [(10, 10 * 0.1), (15, 10 * 0.1 + 5 * 0.3), (20, 10 * 0.1 + 10 * 0.3), (24, 10 * 0.1 + 14 * 0.3)]
)
def test_seconds_add_up_the_steps_at_their_logged_mean(step, seconds):
    assert seconds_until([(10, 0.1), (20, 0.3)], step) == pytest.approx(seconds)


def test_the_first_evaluation_that_reaches_it_counts():
    run = Run("r", "completed", evaluations=[(10, 0.2), (20, 0.8), (30, 0.5), (40, 0.9)], settings={"train.global_batch_size": 64})
    assert reached(run, 0.8) == (20 * 64, None)
    assert reached(run, 0.95) is None


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two options, three seeds: one is faster, and one of its seeds never reaches 80 %."""
    sweep = tmp_path_factory.mktemp("runs") / "sweep"
    for name, option, first in (("none", [], 40), ("muon", ["optimizer=muon"], 20)):
        settings = config("data=sudoku_6x6", "model=tiny", *option)
        for seed in range(3):
            folder = write_run(sweep / f"{name}-{seed}", settings, 0.9, seed=seed)
            exact = 0.7 if (name, seed) == ("muon", 2) else 0.85
            write_metrics(folder, {10: 0.1, first + 10 * seed: exact}, {50: 0.5, 100: 0.5})
    return sweep


@pytest.mark.usefixtures("undrawn")
def test_the_table_the_files_and_the_page_tell_it(sweep, capsys):
    main([str(sweep), "--target", "0.8"])
    table = capsys.readouterr().out
    assert "samples to 80 %" in table
    assert "seconds to 80 %" in table
    none, muon = (next(line for line in table.splitlines() if word in line) for word in ("adam_atan2", "muon"))
    rows = estimate(768 * steps for steps in (40, 50, 60))
    assert f"{rows.mean:,.0f} ± {rows.half_width:,.0f}" in none
    assert "2 of 3" in muon
    records = {row["variant"]: row for row in csv.DictReader((sweep / "report" / "report.csv").open())}
    fast = next(row for variant, row in records.items() if "muon" in variant)
    assert int(fast["target_reached_seeds"]) == 2
    assert float(fast["samples_to_target_mean"]) == 768 * 25
    assert float(fast["seconds_to_target_mean"]) == pytest.approx(12.5)
    assert "seconds to 80 %" in (sweep / "report" / "index.html").read_text()


def test_what_no_run_reaches_is_said_and_without_a_target_nothing(sweep):
    runs = collect([sweep])
    assert "not reached by 3" in terminal(compare(runs, target=0.99))
    assert "samples to" not in terminal(compare(runs))
    assert "target" not in csv_text(compare(runs))


@pytest.mark.parametrize("share", ["0", "1.2", "80", "nan"])
def test_a_target_is_a_share(sweep, share):
    refused(main, [str(sweep), "--target", share], "--target")


def test_a_curriculum_is_named_by_its_depths(tmp_path):
    for name, option in (("none", []), ("curriculum", ["recursion.curriculum=[{until:0.3,T:1,n:2},{until:0.6,T:2,n:4}]"])):
        write_run(tmp_path / "sweep" / name, config("data=sudoku_6x6", "model=tiny", *option))
    assert "curriculum t1_n2 t2_n4" in terminal(compare(collect([tmp_path / "sweep"])))
