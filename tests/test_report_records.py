"""`python -m trm.report DIR --records`: what is a record, and what speaks against one."""

import numpy as np
import pytest
from report_fixtures import config, write_run
from scipy import stats
from test_report_target import write_metrics

from trm.report.__main__ import main
from trm.report.records import welch


@pytest.mark.parametrize("sizes", [(5, 5), (7, 5), (2, 9)])
def test_the_p_value_is_scipys(sizes):
    random = np.random.default_rng(sum(sizes))
    a, b = random.normal(9, 1, sizes[0]), random.normal(10, 3, sizes[1])
    assert welch(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False, alternative="less").pvalue, rel=1e-9)


def told(tmp_path, capsys, seeds=5, fast=20, spread=1, missing="", hardware=()):
    """The line on two variants, of which muon reaches 99 % at step `fast` and the other at step 60 or so, at half a second each."""
    for name, option, step in (("adam", [], 60), ("muon", ["optimizer=muon", *hardware], fast)):
        for seed in range(seeds):
            folder = write_run(tmp_path / f"{name}-{seed}", config("data=sudoku_6x6", "model=tiny", *option), 0.99, seed=seed)
            exact = 0.9 if (name, seed) == (missing, 0) else 0.995
            write_metrics(folder, {10: 0.1, step + spread * seed: exact}, {50: 0.5, 100: 0.5})
    main([str(tmp_path), "--records"])
    return capsys.readouterr().out.partition("records: ")[2].partition("written")[0]


def test_a_record(tmp_path, capsys):
    text = told(tmp_path, capsys)
    assert "seconds of training to 99 %" in text
    assert "muon 11.0 s against" in text
    assert text.rstrip().endswith(": a record")


def test_a_seed_of_the_standing_record_that_never_gets_there_counts_with_its_whole_training(tmp_path, capsys):
    text = told(tmp_path, capsys, missing="adam")
    assert "31.0 s (1 seed(s) never reached it: their whole training counts)" in text  # as if it had, at its last evaluation
    assert text.rstrip().endswith(": a record")


def test_a_seed_without_its_evaluations_is_no_seed(tmp_path, capsys):
    told(tmp_path, capsys)
    (tmp_path / "adam-0" / "metrics.jsonl").unlink()
    main([str(tmp_path), "--records"])
    assert "no record: adam_atan2 has 4 seeds, of 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": 4}, "muon has 4 seeds, of 5"),
        ({"fast": 58, "spread": 3}, "p is not below 0.01"),
        ({"missing": "muon"}, "1 of muon's seeds did not reach 99 %"),
        ({"hardware": ("hardware.backend=eager",)}, "the two ran on other machines or backends"),
    ],
)
def test_what_speaks_against_one(tmp_path, capsys, settings, words):
    text = told(tmp_path, capsys, **settings)
    assert "no record: " in text
    assert words.removeprefix("muon ") in text
