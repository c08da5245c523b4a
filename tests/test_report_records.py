"""`python -m trm.report DIR --records`: what is a record, and what speaks against one."""

import numpy as np
import pytest
from report_fixtures import config, write_run
from scipy import stats
from test_report_target import write_metrics

from trm.report import records
from trm.report.records import welch
from trm.report.runs import collect
from trm.report.variants import compare


def test_the_p_value_is_welchs_and_none_without_a_spread():
    random = np.random.default_rng(0)
    a, b = list(random.normal(9, 1, 10)), list(random.normal(10, 3, 9))
    assert welch(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False, alternative="less").pvalue)
    assert welch([1.0, 1.0], [2.0, 2.0]) is None
    assert welch([1.0], [2.0, 3.0]) is None


def told(tmp_path, seeds=range(100, 110), fast=0.2, level=0.9945, hardware=(), puzzles=1000, failed=0, **fast_data):
    """What is said of two variants of 100 steps: muon takes about `fast` seconds a step and ends at `level`, the other 0.6."""
    data = {"train_digest": "a" * 16, "test_digest": "b" * 16}
    for name, option, pace, end in (("adam", [], 0.6, 0.9945), ("muon", ["optimizer=muon", *hardware], fast, level)):
        for i, seed in enumerate(seeds):
            settings, own = config("data=sudoku_6x6", "model=tiny", *option), data | (fast_data if name == "muon" else {})
            status = "failed" if name == "muon" and i < failed else "completed"
            exact = end + 0.001 * (i % 3 - 1)
            folder = write_run(tmp_path / f"{name}-{seed}", settings, exact, seed=seed, steps=100, status=status, data=own,
                               last_eval={"count": puzzles}, last_eval_step=100)  # fmt: skip
            write_metrics(folder, {50: 1.0, 100: exact}, {50: pace + 0.01 * i, 100: pace})
    return records.text(compare(collect([tmp_path]), target=0.99))


def test_a_record(tmp_path):
    text = told(tmp_path)
    assert "muon: 22.2 s to 99.44 % (mean of 10, p = " in text  # the whole training, though an evaluation before has 100 %
    assert text.count("meets the rule") == 2
    assert text.splitlines()[-1].startswith("  muon 22.2 s against adam_atan2 62.2 s, p = ")
    assert text.endswith(": a record")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": range(100, 109)}, "not a block of 10"),
        ({"seeds": range(10)}, "not a block of 10 that no search has used"),
        ({"seeds": (*range(100, 109), 117)}, "not a block of 10"),  # chosen among more
        ({"level": 0.9901}, "luck may explain a mean above 99 %"),
        ({"level": 0.98}, "its mean is below 99 %"),
        ({"puzzles": 250}, "fewer than 1,000 held-out puzzles"),
        ({"fast": 0.59}, "luck may explain the shorter time"),
        ({"failed": 1}, "1 of its 10 jobs are not counted"),
        ({"hardware": ("hardware.backend=eager",)}, "the two ran on different machines or backends"),
        ({"hardware": ("hardware.num_devices=2",)}, "the two ran on different machines or backends"),
    ],
)
def test_what_speaks_against_one(tmp_path, settings, words):
    text = told(tmp_path, **settings)
    assert words in text
    assert "no record: " in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"test_digest": "c" * 16}, f"not counted: muon: puzzles.test {'c' * 16}, not {'b' * 16}"),
        ({"train_digest": "c" * 16}, f"not counted: muon: puzzles.train {'c' * 16}, not {'a' * 16}"),
        ({"hardware": ("data.num_puzzles=2000",), "train_digest": "c" * 16}, "not counted: muon: other training puzzles"),
        ({"hardware": ("train.eval_every_steps=7",)}, "not counted: muon: train.eval_every_steps 7, not 5000"),
        ({"hardware": ("inference=votes8",)}, "not counted: muon: inference.copies 8, not 1"),
    ],
)
def test_what_may_not_be_compared_is_listed_and_is_no_record(tmp_path, settings, words):
    text = told(tmp_path, **settings)
    assert words in text
    assert "a record" not in text
    assert "against" not in text
