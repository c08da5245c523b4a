"""`python -m trm.report DIR --baseline VARIANT`: differences over common seeds and their p values."""

import csv
from pathlib import Path

import numpy as np
import pytest
from report_fixtures import config, write_run
from scipy import stats

from trm.errors import ConfigError
from trm.report.__main__ import main
from trm.report.baseline import differences, holm, student
from trm.report.runs import collect
from trm.report.variants import compare


@pytest.mark.parametrize("number", [2, 3, 9])
def test_the_p_value_is_scipys(number):
    random = np.random.default_rng(number)
    a, b = random.normal(0.9, 0.1, number), random.normal(0.8, 0.1, number)
    assert student(list(a - b)) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_differences_without_spread_and_of_one_seed():
    assert student([0.1]) is None
    assert student([0.62 - 0.6, 0.72 - 0.7]) is None  # no p without spread, but for rounding
    assert student([0.0, 0.0]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Beside T=2 n=2, whose fifth seed is missing: one better by two points for every seed, one not, and two without a p."""
    folder = tmp_path_factory.mktemp("runs")
    gains = {"t2_n2": [0] * 4, "t2_n6": [0.02, 0.021, 0.019, 0.02, 0.3], "t3_n6": [0.01, -0.02, 0.01, 0.0, 0.3]}
    for name, of_seeds in (gains | {"t3_n4": [0.02], "t4_n6": [0.05] * 4}).items():
        settings = config("data=sudoku_6x6", "model=tiny", f"recursion={name}")
        for seed, gain in enumerate(of_seeds):
            write_run(folder / f"{name}-{seed}", settings, 0.6 + 0.1 * seed + gain, seed=seed, training_flops=3 * 10**15)
    return folder


def test_differences_are_of_the_seeds_that_both_have_and_corrected_for_as_many_as_have_a_p(runs):
    """What has one seed, or no spread, has no p, and is none of those that the others are corrected for."""
    collected = collect([runs])
    found = differences(compare(collected, baseline="t2_n2"))
    assert list(found) == ["t2_n6", "t3_n4", "t3_n6", "t4_n6"]
    assert (found["t2_n6"].exact_accuracy.n, found["t2_n6"].exact_accuracy.mean) == (4, pytest.approx(0.02))
    assert [label for label, each in found.items() if each.p is None] == ["t3_n4", "t4_n6"]
    assert found["t2_n6"].corrected == pytest.approx(2 * found["t2_n6"].p)
    assert found["t2_n6"].corrected < 0.001 < 0.5 < found["t3_n6"].corrected
    assert differences(compare(collected)) == {}
    with pytest.raises(ConfigError, match="--baseline t9_n9: no variant; choose one of t2_n2; t2_n6; t3_n4; t3_n6; t4_n6"):
        compare(collected, baseline="t9_n9")


def test_runs_of_one_seed_are_averaged_first(tmp_path):
    """--group puts two rates together: before, the last run of a seed was taken, and the difference had the wrong sign."""
    for seed in range(3):
        for name, lr, exact in (("t2_n2", 1e-4, 0.5), ("t2_n6", 1e-4, 0.9), ("t2_n6", 3e-4, 0.4)):
            settings = config("data=sudoku_6x6", "model=tiny", f"recursion={name}", f"optimizer.lr={lr}")
            write_run(tmp_path / f"{name}-{lr}-{seed}", settings, exact + 0.01 * seed * (name == "t2_n6"), seed=seed)
    comparison = compare(collect([tmp_path]), ["recursion"], baseline="t2_n2")
    found = differences(comparison)["t2_n6"].exact_accuracy
    assert (found.n, found.mean) == (3, pytest.approx(0.16))
    pooled = next(variant for variant in comparison.variants if variant.label == "t2_n6")
    assert (pooled.exact_accuracy.n, pooled.exact_accuracy.mean) == (3, pytest.approx(0.66))  # two runs of a seed are no two seeds


def test_the_fields_table_is_corrected_for_as_many_rows_as_its_page_says():
    results = Path(__file__).parents[1] / "docs" / "results"
    rows = [row for row in csv.DictReader((results / "field_6x6" / "report.csv").open()) if row["p"]]
    assert holm([float(row["p"]) for row in rows]) == pytest.approx([float(row["p_corrected"]) for row in rows])
    assert len(rows) == 11
    assert "corrected by Holm for the 11 rows" in (results / "field_6x6.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_the_command_tells_them_in_its_table_and_files(runs, capsys):
    main([str(runs), "--baseline", "t2_n2"])
    text = capsys.readouterr().out
    for words in ("less t2_n2", "+2.0 ± 0.1", "TFLOP trained"):
        assert words in text
    assert "corrected by Holm for the 2 variants that have one" in " ".join(text.split())
    rows = {row["variant"]: row for row in csv.DictReader((runs / "report" / "report.csv").open())}
    assert float(rows["t2_n6"]["less_baseline_mean"]) == pytest.approx(0.02)
    assert rows["t2_n2"]["p_corrected"] == ""
    row = next(line for line in text.splitlines() if line.startswith("t2_n2"))
    assert " 3,000 " in row  # 3e15 of them: the unit of the title
    assert float(rows["t2_n2"]["training_flops"]) == 3e15
