"""trm.report --scaling on made runs: what varies is found, laws are recovered, and what has no law is refused in one line."""

import copy
import json
import shutil

import numpy as np
import pytest
from report_fixtures import config, write_run
from running import refused

from trm.report import laws as fits
from trm.report.__main__ import main

pytestmark = pytest.mark.usefixtures("undrawn")
WIDTHS = (16, 32, 64, 128, 256)
LARGEST = "predicted at 6.5536e+06, from the smaller ones"
TEST, OTHER, TRAIN = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture(scope="module")
def base():
    return config("data=sudoku_6x6", "recipe=tiny")


def write(folder, base, random, loss, *, seeds=3, first_seed=0, noise=0.01, digest=TEST, train=TRAIN, accuracy=None, **changes):
    """Runs of these seeds with settings GROUP__KEY and what their summaries say."""
    settings, summary = copy.deepcopy(base), {}
    for name, value in changes.items():
        group, _, key = name.partition("__")
        if key:
            settings[group][key] = value
        else:
            summary[name] = value
    for seed in range(first_seed, first_seed + seeds):
        measured = float(loss * (1 + noise * random.standard_normal()))
        exact = 0.9 * np.exp(-measured) if accuracy is None else accuracy
        name = "-".join(f"{value or 0:g}" for value in changes.values()) + f"-{seed}"
        write_run(
            folder / name, settings, float(exact), seed=seed, steps=int(summary.get("steps", 400)),
            last_eval={"lm_loss": measured, "count": 500}, data={"train_digest": train, "test_digest": digest},
            **{key: value for key, value in summary.items() if key != "steps"},
        )  # fmt: skip


def told(folder, capsys):
    main([str(folder), "--scaling"])
    found = json.loads((folder / "scaling" / "scaling.json").read_text())
    return (
        capsys.readouterr().out,
        {(row["axis"], row["where"], row["measure"], row["quantity"]): row for row in found["laws"]},
        found,
    )


def write_widths(folder, base, widths=WIDTHS, loss=lambda N: 0.1 + 30 * N**-0.5, **more):
    random = np.random.default_rng(0)
    for width in widths:
        N = 100 * width**2
        write(folder, base, random, loss(N), model__hidden_size=width, parameters=N, training_flops=10**12, **more)


def test_a_law_over_parameters_is_found_and_predicts_the_largest(tmp_path, base, capsys, monkeypatch):
    monkeypatch.undo()  # with pictures
    write_widths(tmp_path / "runs", base)
    printed, laws, _ = told(tmp_path / "runs", capsys)
    exponent = laws["parameters", "", "loss", "a"]
    assert exponent["low"] < 0.5 < exponent["high"]
    held = laws["parameters", "", "loss", LARGEST]
    assert held["verdict"] == "the law held"
    assert ("parameters", "", "exact accuracy", "slope") in laws
    assert "the law held" in printed
    written = {path.name for path in (tmp_path / "runs" / "scaling").iterdir()}
    assert written == {"scaling.csv", "scaling.json", "parameters.png", "index.html"}
    page = (tmp_path / "runs" / "scaling" / "index.html").read_text()
    assert page.count("data:image/png") == 2
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("loss", "quantity", "verdict"),
    [
        (lambda N: 0.1 + 30 * N**-0.5 if N < 6e6 else 0.4, LARGEST, "the law failed"),
        (lambda N: 0.2, "law", "refused: sizes are not told apart"),
    ],
)
def test_a_law_that_breaks_at_the_largest_size_or_is_noise_is_none(tmp_path, base, capsys, loss, quantity, verdict):
    write_widths(tmp_path / "runs", base, loss=loss)
    printed, laws, _ = told(tmp_path / "runs", capsys)
    assert laws["parameters", "", "loss", quantity]["verdict"].startswith(verdict)
    assert verdict.removeprefix("refused: sizes are ") in printed


def test_budgets_by_widths_have_parabolas_and_exponents(tmp_path, base, capsys, monkeypatch):
    monkeypatch.undo()  # with pictures
    random, fit, seeds = np.random.default_rng(1), fits.fit_parabola, []
    monkeypatch.setattr(fits, "fit_parabola", lambda found, seed: seeds.append(seed) or fit(found, seed=seed))
    for budget in (1e12, 4e12, 1.6e13, 6.4e13):
        best = 3e-2 * budget**0.5
        for i, width in enumerate(WIDTHS):
            N, steps = best * 2.0 ** (i - 2), int(budget / (best * 2.0 ** (i - 2)) / 1e4)
            loss = 2e3 * budget**-0.3 * np.exp(0.08 * np.log(N / best) ** 2)
            write(tmp_path / "runs", base, random, loss, model__hidden_size=width, train__max_flops=budget, train__max_steps=None,
                  parameters=N, training_flops=budget * 1.001, steps=steps)  # fmt: skip
    printed, laws, _ = told(tmp_path / "runs", capsys)
    place = "parameters at equal training FLOPs", "", "loss"
    exponent = laws[(*place, "exponent of the best parameters in FLOPs")]
    assert exponent["low"] < 0.5 < exponent["high"]
    assert laws[(*place, "exponent of the best samples in FLOPs")]["value"] == pytest.approx(0.5, abs=0.1)
    assert laws[(*place, "best parameters at 1e+12 FLOPs")]["low"] < 3e4 < laws[(*place, "best parameters at 1e+12 FLOPs")]["high"]
    assert ("training FLOPs", "hidden_size=64", "loss", "a") in laws
    assert (tmp_path / "runs" / "scaling" / "equal_compute_0.png").exists()
    assert "exponent of the best samples" in printed
    assert len(set(seeds)) == 4  # each budget is drawn by itself


def test_passes_by_T_and_by_n_are_apart_and_tell_what_a_recursion_is_worth(tmp_path, base, capsys):
    random = np.random.default_rng(2)
    for width in (32, 128):
        for T, n in ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (1, 8)):
            recurrent, once = 100 * width**2, 20 * width
            loss = 0.1 + 40 * (once + (T * (n + 1)) ** 0.46 * recurrent) ** -0.4
            write(tmp_path / "runs", base, random, loss, model__hidden_size=width, recursion__T=T, recursion__n=n,
                  parameters=once + recurrent, recurrent_parameters=recurrent, noise=0.003)  # fmt: skip
    _, laws, found = told(tmp_path / "runs", capsys)
    assert {row["size"] for row in found["points"] if row["axis"] == "passes by T and n"} == {2, 3, 4, 5, 8, 9, 16}
    assert {axis for axis, *_ in laws} >= {"passes by T and n", "passes by T", "passes by n", "passes by T and parameters"}
    phis = [row for (_, _, _, quantity), row in laws.items() if quantity == "phi"]
    assert any(row["low"] < 0.46 < row["high"] for row in phis)
    assert any("sizes, and a law needs 4" in reason for reason in found["refused"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"widths": WIDTHS[:3]}, "3 sizes, and a law needs 4"),
        ({"seeds": 1}, "one seed at"),
        ({"train__max_flops": 2e12, "train__max_steps": None}, "its budget of 2e+12 training FLOPs was not reached"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(tmp_path, base, change, words):
    write_widths(tmp_path / "runs", base, **change)
    refused(main, [str(tmp_path / "runs"), "--scaling"], words)


def test_runs_of_different_test_puzzles_and_other_options_are_refused(tmp_path, base):
    write_widths(tmp_path / "one", base, widths=(16,), seeds=1)
    write_widths(tmp_path / "other", base, widths=(512,), seeds=1, digest=OTHER)
    refused(main, [str(tmp_path), "--scaling"], "2 different sets of test puzzles")
    refused(main, [str(tmp_path), "--scaling", "--target", "0.5"], "--scaling finds by itself what varies")


def test_summaries_without_a_loss_are_told(tmp_path, base, capsys):
    write_widths(tmp_path / "runs", base)
    files = sorted((tmp_path / "runs").glob("*-0/summary.json"))
    for file, last in zip(files, ({}, {"lm_loss": "?"}, {"lm_loss": 0}), strict=False):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"last_eval": {"count": 500} | last}))
    printed, _, _ = told(tmp_path / "runs", capsys)
    for file in files[:3]:
        assert f"not fitted: {file.parent.name}: its summary has no held-out loss" in printed


def test_a_law_of_runs_with_different_training_puzzles_is_refused(tmp_path, base, capsys):
    """Also one that takes several series together, each of which has the same puzzles."""
    random, words = np.random.default_rng(6), "the runs have different training puzzles: give those of one dataset"
    for part, train in enumerate((TRAIN, OTHER)):
        own = {"seeds": 2, "train": train}
        for width in WIDTHS[:4]:
            N, budget = 100 * width**2, 1e12 * 4**part
            write(tmp_path / "budgets", base, random, 0.1 + 30 * N**-0.5, **own, model__hidden_size=width, train__max_flops=budget,
                  train__max_steps=None, parameters=N, training_flops=budget)  # fmt: skip
        for T in (1, 2, 4, 8):
            width = 32 * 4**part
            sizes = {"parameters": 100 * width**2 + 20 * width, "recurrent_parameters": 100 * width**2}
            write(tmp_path / "passes", base, random, 1 / T, **own, model__hidden_size=width, recursion__T=T, **sizes)
        for rate in (1e-3, 4e-3):
            write(tmp_path / "rates", base, random, 0.5, **own, optimizer__lr=rate * 2**part)
    for folder, axis, single in (
        ("budgets", "parameters at equal training FLOPs", "parameters"),
        ("passes", "passes by T and parameters", "passes by T"),
    ):
        _, laws, found = told(tmp_path / folder, capsys)
        assert f"{axis}: {words}" in found["refused"]
        assert axis not in {fitted for fitted, *_ in laws}
        assert single in {fitted for fitted, *_ in laws}
    refused(main, [str(tmp_path / "rates"), "--scaling"], f"learning rate: {words}")


def test_a_ceiling_is_warned_of(tmp_path, base, capsys):
    random = np.random.default_rng(3)
    for i, width in enumerate(WIDTHS):
        write(tmp_path / "runs", base, random, 0.5 / (i + 1), accuracy=1 - 0.2 / 4**i, model__hidden_size=width,
              parameters=100 * width**2)  # fmt: skip
    printed, _, _ = told(tmp_path / "runs", capsys)
    assert "exact accuracy is at its ceiling" in printed


def test_the_best_learning_rate_of_each_width_is_told(tmp_path, base, capsys, monkeypatch):
    monkeypatch.undo()  # with pictures
    random = np.random.default_rng(4)
    for width in (16, 64):
        for rate in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2):
            loss = 0.5 * np.exp(0.1 * np.log(rate * width / 16 / 8e-3) ** 2)
            write(tmp_path / "runs", base, random, loss, model__hidden_size=width, optimizer__lr=rate, parameters=100 * width**2)
    _, laws, _ = told(tmp_path / "runs", capsys)
    for width, best in ((16, 8e-3), (64, 2e-3)):
        found = laws["learning rate", f"hidden_size={width}", "loss", "best learning rate, of a parabola"]
        assert found["low"] < best < found["high"]
    files = tmp_path / "runs" / "scaling"
    assert {row["axis"] for row in json.loads((files / "scaling.json").read_text())["points"]} == {"learning rate"}
    assert (files / "learning_rate.png").exists()
    assert ',not fitted,,,,"parameters (lr=0.001): 2 sizes, and a law needs 4"' in (files / "scaling.csv").read_text()
    for folder in (tmp_path / "runs").glob("*0.016*"):
        shutil.rmtree(folder)
    for folder in (tmp_path / "runs").glob("*0.008*"):
        shutil.rmtree(folder)
    refused(main, [str(tmp_path / "runs"), "--scaling"], "learning rate (hidden_size=16): 3 sizes, and a law needs 4")


def test_the_joint_law_needs_more_sizes_than_it_has_parameters(tmp_path, base):
    random = np.random.default_rng(9)
    for width in (32, 64):
        for T in (1, 2, 4):
            write(tmp_path, base, random, 1 / T, model__hidden_size=width, recursion__T=T, parameters=110 * width**2,
                  recurrent_parameters=100 * width**2, train__max_flops=1e12, train__max_steps=None, steps=1000 // T + width,
                  training_flops=10**12)  # fmt: skip
    refused(main, [str(tmp_path), "--scaling"], "passes by T and parameters: 6 sizes of 2 widths and 3 depths: the law needs 7 of")


def test_more_steps_and_votes_of_trained_runs_have_laws_over_their_flops(tmp_path, base, capsys):
    """Two widths and three seeds, each asked with 4 to 32 supervision steps, and 1 to 8 copies that vote."""
    random = np.random.default_rng(5)
    write_widths(tmp_path / "runs", base, widths=(16, 32))
    for folder in (tmp_path / "runs").iterdir():
        (folder / "evaluation").mkdir()
        ways = {f"{steps} x {copies}": (steps, copies) for steps in (4, 8, 16, 32) for copies in (1, 2, 4, 8)}
        lines = [
            {"inference": name, "supervision_steps": steps, "candidates": copies, "count": 500, "seconds_per_puzzle": 0.1,
             "flops_per_puzzle": 1e8 * steps * copies, "candidates_run": copies, "oracle_exact_accuracy": 0.9,
             "exact_accuracy": 1 / (1 + 2 / copies) + 0.002 * random.standard_normal(),
             "lm_loss": 0.2 + 0.001 * random.standard_normal()}
            for name, (steps, copies) in ways.items()
        ]  # fmt: skip
        settings = {
            name: {"inference.supervision_steps": steps, "inference.copies": copies, "inference.selection": "vote"}
            for name, (steps, copies) in ways.items()
        }
        record = {"checkpoint_step": 400, "test_digest": TEST, "rows": lines, "ways": settings}
        (folder / "evaluation" / "frontier.json").write_text(json.dumps(record))
    odd = next((tmp_path / "runs").iterdir()) / "evaluation" / "frontier.json"
    record = json.loads(odd.read_text())
    record["rows"] += [
        {**record["rows"][0], "count": 20},
        {name: value for name, value in record["rows"][0].items() if name != "lm_loss"},
    ]
    odd.write_text(json.dumps(record))
    _, laws, found = told(tmp_path / "runs", capsys)
    assert {(axis, where) for axis, where, *_ in laws} == {
        *(("FLOPs a puzzle by supervision steps", f"hidden_size={D}, copies={K}") for D in (16, 32) for K in (1, 2, 4, 8)),
        *(("FLOPs a puzzle by votes", f"hidden_size={D}, supervision_steps={S}") for D in (16, 32) for S in (4, 8, 16, 32)),
    }
    slope = laws["FLOPs a puzzle by votes", "hidden_size=16, supervision_steps=4", "exact accuracy", "slope"]
    assert slope["low"] < 1 < slope["high"]
    more_steps = "FLOPs a puzzle by supervision steps", "hidden_size=16, copies=1"
    assert laws[(*more_steps, "exact accuracy", "law")]["verdict"].startswith("refused: sizes are not told apart")
    name = odd.parents[1].name
    assert found["refused"] == [
        "parameters: 2 sizes, and a law needs 4",
        f"{name}: 4 x 1: test puzzles evaluated 20, not 500",
        f"{name}: a way of inference has no held-out loss: evaluate it again",
    ]
    record["rows"] = record["rows"][1:-2]
    odd.write_text(json.dumps(record))
    _, _, found = told(tmp_path / "runs", capsys)
    assert [reason for reason in found["refused"] if "not every run was asked once at each size" in reason]


def test_what_differs_in_more_than_its_size_has_no_law(tmp_path, base, capsys):
    """Two numbers of heads have as many weights; rates that follow the width are no axis, and neither is the width."""
    write_widths(tmp_path / "heads", base)
    write_widths(tmp_path / "heads", base, model__num_heads=2, widths=(64,))
    refused(main, [str(tmp_path / "heads"), "--scaling"], "differ in model.num_heads and have one size: leave one out")
    for width in WIDTHS:
        write_widths(tmp_path / "rates", base, widths=(width,), optimizer__lr=0.1 / width)
    refused(main, [str(tmp_path / "rates"), "--scaling"], "parameters: each size differs in optimizer.lr too")


def test_a_recursion_of_one_state_makes_n_passes(tmp_path, base, capsys):
    random, single = np.random.default_rng(8), copy.deepcopy(base)
    single["recursion"]["variant"] = "single_state"
    for n in (1, 2, 4, 8):
        write(tmp_path / "runs", single, random, 1 / n, recursion__T=2, recursion__n=n)
    _, _, found = told(tmp_path / "runs", capsys)
    assert {row["size"] for row in found["points"]} == {2, 4, 8, 16}


def test_accuracies_of_zero_predict_nothing_and_uneven_seeds_are_warned_of(tmp_path, base, capsys, monkeypatch):
    monkeypatch.undo()  # with pictures
    random = np.random.default_rng(10)
    for i, width in enumerate(WIDTHS[:4]):
        for seed in range(5):  # exact accuracies of 0 but for the largest
            write(tmp_path / "runs", base, random, 2.0**-i, seeds=1, first_seed=seed, noise=0.1 if i == 3 else 0.002,
                  accuracy=(i == 3) * (0.1 + 0.01 * seed), model__hidden_size=width, parameters=100 * width**2)  # fmt: skip
    _, laws, found = told(tmp_path / "runs", capsys)
    assert ("parameters", "", "exact accuracy", "slope") in laws
    assert not [key for key in laws if key[2] == "exact accuracy" and key[3].startswith("predicted")]
    assert "parameters: all sizes but the largest solve no puzzle or every one, which predicts nothing" in found["refused"]
    assert any("spread of the seeds' loss differs between sizes" in warning for warning in found["warnings"])
    assert laws["parameters", "", "exact accuracy", "half"]["verdict"] == "outside of the measured sizes"
