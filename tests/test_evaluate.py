"""Evaluation: the ordinary pass against eval_step by hand, early exit against a full trace, votes, the command."""

import csv
import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from passes import ARCH, LABELLED, C, N, S, V, dataset, evaluator_of, halting_steps, loader_of, network, passed
from running import MESH, TINY, metrics, refused, run, summary

import trm.evaluate
from trm.backends.native import NativeRuntime
from trm.cli import compose, compose_jobs
from trm.config import IGNORE_LABEL, InferenceConfig
from trm.core.metrics import METRICS, MOST_SAMPLES
from trm.core.programs import ONE
from trm.core.step import empty_carry, eval_step
from trm.errors import ConfigError, DataError
from trm.evaluate import main
from trm.inference.evaluator import candidate_loader
from trm.inference.samples import Samples
from trm.tasks.augment import augment, undo
from trm.tasks.sudoku.task import SudokuTask as Sudoku

BATCH = 8
EXIT = InferenceConfig(early_exit=True)
EVERY = np.arange(N)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def full():
    """The result of all supervision steps for all puzzles, and the predictions [S, N, ...] on the way."""
    return passed()


@pytest.fixture(scope="module")
def early():
    return passed(EXIT)[0]


def test_the_pass_is_eval_step_batch_by_batch(full):
    weights, buffers = network()
    sums = [dict.fromkeys(METRICS, 0.0) for _ in range(S)]
    for host_batch in loader_of(ONE, BATCH):
        batch = {name: torch.from_numpy(rows) for name, rows in host_batch.items()}
        carry, counted = empty_carry(ARCH, buffers, BATCH), (batch["labels"] != IGNORE_LABEL).any(-1)
        for s in range(S):
            carry, _, values = eval_step(ARCH, weights, buffers, None, carry, batch)
            for name, value in values.items():
                sums[s][name] += value[counted].sum().item()
    result, _ = full
    for ours, by_hand in zip(result.by_step, sums, strict=True):
        assert ours["count"] == N - 1
        for name, total in by_hand.items():
            assert ours[name] == pytest.approx(total / (N - 1), rel=1e-13), name
    assert result.final is result.by_step[-1]
    assert 0 < result.final["exact_accuracy"] < 1
    assert result.row_steps == tuple(N * s for s in range(1, S + 1))


def test_predictions_and_samples_are_those_of_the_puzzles_in_order_and_come_back_from_their_file(full):
    result, rows = full
    shown, puzzles = result.samples, loader_of(ONE, BATCH).rows(0, N)
    assert np.array_equal(shown.inputs, puzzles["inputs"][:MOST_SAMPLES])
    assert np.array_equal(shown.labels, puzzles["labels"][:MOST_SAMPLES])
    assert np.array_equal(shown.predictions, rows.answers[:, :MOST_SAMPLES])
    assert shown.q_halt == pytest.approx(rows.halting[:, :MOST_SAMPLES], rel=1e-6)
    assert ((shown.confidence > 1 / V) & (shown.confidence <= 1)).all()
    right = ((rows.answers == puzzles["labels"]) | (puzzles["labels"] == IGNORE_LABEL)).all(axis=-1)
    assert np.array_equal(rows.values["exact_accuracy"], right)
    again = Samples.from_json(shown.to_json())
    for name, array in vars(shown).items():
        assert getattr(again, name).dtype == array.dtype
        assert getattr(again, name) == pytest.approx(array, abs=1e-4)
    for text in ("[]", "{}", "nothing"):
        with pytest.raises(ValueError, match=r"samples|Expecting"):
            Samples.from_json(text)


def test_early_exit_is_the_full_trace_cut_at_each_puzzles_halt(full, early):
    result, trace = full
    stop = halting_steps(trace)
    for s, values in enumerate(early.by_step):
        here = np.minimum(stop, s)
        q, right = (of[here, EVERY][LABELLED] for of in (trace.q_halt, trace.values["exact_accuracy"]))
        assert values["count"] == N - 1
        assert values["steps"] == pytest.approx((here[LABELLED] + 1).mean(), rel=1e-12)
        assert values["exact_accuracy"] == pytest.approx(right.mean(), rel=1e-12)
        assert values["q_halt_accuracy"] == pytest.approx(((q >= 0) == right).mean(), rel=1e-12)
        assert values["q_halt_loss"] == pytest.approx(np.log1p(np.exp(np.where(right, -q, q))).mean(), rel=1e-9)
        for name in ("predictions", "confidence", "q_halt"):
            shown, of_all = getattr(early.samples, name)[s], getattr(result.samples, name)
            assert shown == pytest.approx(of_all[here[:MOST_SAMPLES], EVERY[:MOST_SAMPLES]], rel=1e-5), name
    assert 1 < early.final["steps"] < S
    assert np.array_equal(early.samples.inputs, result.samples.inputs)


class Odd:
    """A task of which only its scores are asked: an odd sum of an answer's tokens, an odd number of cells copied."""

    score_names = ("odd", "copied")

    def scores(self, questions, answers, predictions):
        assert len(questions) == len(answers) == len(predictions)
        return {"odd": predictions.sum(axis=1) % 2 == 1, "copied": (questions == predictions).sum(axis=1) % 2 == 1}


def test_a_tasks_own_scores_are_those_of_every_answer_and_with_early_exit_of_the_halting_step(full):
    scored, puzzles = dataclasses.replace(dataset(), task=Odd()), loader_of(ONE, BATCH).rows(0, N)
    (found, _), (early, _) = passed(data=scored), passed(EXIT, data=scored)
    for s in range(S):
        for result, at in ((found, np.full(N, s)), (early, np.minimum(halting_steps(full[1]), s))):
            answers = full[1].answers[at, EVERY]
            for name, has in Odd().scores(puzzles["inputs"], puzzles["labels"], answers).items():
                assert result.by_step[s][name] == pytest.approx(has[LABELLED].mean(), rel=1e-12)
    assert all(0 < found.final[name] < 1 for name in Odd.score_names)
    assert [{k: v for k, v in step.items() if k not in Odd.score_names} for step in found.by_step] == full[0].by_step
    evaluator, weights = evaluator_of(data=scored, max_puzzles=7), network()[0]
    joined = evaluator.run(weights, None).joined(evaluator.rest().run(weights, None))
    assert joined.final == pytest.approx(found.final, rel=1e-9)
    assert joined.row_steps == found.row_steps


# votes -------------------------------------------------------------------------------------------------------------------------


def test_undo_is_the_inverse_of_augment():
    """For any tokens, not only solutions: a model's answer may hold padding and blanks."""
    sudoku, puzzles, variants = Sudoku(2, 3), np.arange(60) % 3, np.arange(60)
    cells = np.random.default_rng(0).integers(0, sudoku.vocab_size, (3, sudoku.num_cells)).astype(np.uint8)
    there, _ = augment(sudoku, cells, cells, seed=5, puzzles=puzzles, variants=variants)
    assert np.array_equal(undo(sudoku, there, seed=5, puzzles=puzzles, variants=variants), cells[puzzles])


def test_a_solver_that_solves_every_copy_is_exact():
    plain = dataset()
    solutions = np.where(plain.inputs == 1, 2, plain.inputs)  # of which only the cells are compared
    loader = loader_of(InferenceConfig(copies=3), 4, dataclasses.replace(plain, labels=solutions))
    batches = list(loader)
    assert len(batches) == len(loader) == math.ceil(3 * N / 4)
    joined = {name: np.concatenate([batch[name] for batch in batches])[: loader.num_rows] for name in batches[0]}
    assert np.array_equal(joined["inputs"][::3], plain.inputs)  # the identity is one of the copies
    given = joined["inputs"] > 1
    assert np.array_equal(joined["labels"][given], joined["inputs"][given])
    assert len(np.unique(joined["inputs"], axis=0)) > 2 * N
    assert (loader.undo(joined["labels"]).reshape(N, 3, C) == solutions[:, None]).all()


def test_copies_need_known_symmetries():
    with pytest.raises(DataError, match=r"inference\.copies"):
        loader_of(InferenceConfig(copies=2), 4, dataclasses.replace(dataset(), task=None))


# the command -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the trained run `outputs/r`."""
    folder = tmp_path_factory.mktemp("work")
    learning = ["optimizer.warmup_steps=1", "optimizer.lr=0.003", "ema.rate=0.5", "train.max_steps=30"]
    once = ["train.eval_every_steps=null", "train.checkpoint_every_steps=null"]
    run(folder, "trm.train", *TINY, *learning, *once, "run_name=r", "train.progress=on")
    return folder


def evaluate(folder, *arguments):
    done = run(folder, "trm.evaluate", "checkpoint=outputs/r", *arguments)
    return json.loads(done.stdout.splitlines()[-1]), done


def test_a_run_keeps_samples_and_accuracy_by_step(folder):
    run_dir = folder / "outputs" / "r"
    by_step = summary(run_dir)["exact_accuracy_by_step"]
    assert len(by_step) == 4
    assert by_step[-1] == metrics(run_dir, "eval")[-1]["exact_accuracy"] == summary(run_dir)["exact_accuracy"]
    samples = Samples.from_json((run_dir / "samples.json").read_text())
    assert samples.predictions.shape == samples.confidence.shape == (4, 8, 16)
    assert samples.q_halt.shape == (4, 8)


def test_an_evaluation_is_written_with_what_it_has_after_each_step(folder):
    ordinary, done = evaluate(folder, "train.progress=on", "--out", "f")
    assert "/12 " in done.stderr  # 3 batches of 4 steps
    assert "<" in done.stderr  # the time left
    record = json.loads((folder / "f" / "evaluation.json").read_text())
    rows = record["rows"]
    assert [row["exact_accuracy"] for row in rows] == summary(folder / "outputs" / "r")["exact_accuracy_by_step"]
    assert {name: rows[-1][name] for name in ordinary if name in rows[-1]} == {n: v for n, v in ordinary.items() if n in rows[-1]}
    assert [row["flops_per_puzzle"] / rows[0]["flops_per_puzzle"] for row in rows] == [1, 2, 3, 4]
    assert record["puzzles"] == 40
    assert {path.name for path in (folder / "f").iterdir()} == {"evaluation.csv", "evaluation.json", "evaluation.png"}
    with (folder / "f" / "evaluation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


@pytest.mark.long
def test_on_a_mesh_the_same(folder):
    """As plain torch finds on one device."""
    for arguments in (["inference.early_exit=true"], []):
        one, _ = evaluate(folder, *arguments, "hardware.dtype=float64")
        mesh, _ = evaluate(folder, *arguments, "hardware.dtype=float64", *MESH, "hardware.devices_per_host=4")
        assert mesh == pytest.approx(one, rel=1e-4)
        assert {k: v for k, v in mesh.items() if "loss" not in k} == {k: v for k, v in one.items() if "loss" not in k}


def test_training_can_evaluate_with_early_exit(folder):
    run(folder, "trm.train", *TINY, "run_name=early", "train.max_steps=1", "inference.early_exit=true")
    assert len(summary(folder / "outputs" / "early")["exact_accuracy_by_step"]) == 4
    assert metrics(folder / "outputs" / "early", "eval")[-1]["count"] == 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate.supervision_steps=[1,2]"], "reports the accuracy after each of its inference.supervision_steps=D"),
        (["evaluate.augmentations=8"], "symmetric copies that vote are inference=votes8"),
        (["evaluate.early_exit=true"], "evaluate.early_exit is not a config key: it is inference.early_exit now"),
        (["--out", "/dev/null/x"], "--out DIR"),
        (["evaluate.by_difficulty=true", "--out", "/dev/null/x"], "--out DIR"),
        (["--curve"], "--help"),
        (["puzzle"], "puzzle: not understood"),
        (
            ["data=sudoku_6x6", "data.num_puzzles=16", "data.num_test_puzzles=16"],
            "puzzles of 36 cells and 8 tokens, but the run was trained on 16 cells and 6 tokens",
        ),
    ],
)
def test_bad_input_names_the_key_and_the_fix(folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    refused(main, ["checkpoint=outputs/r", *arguments], words)


def test_bad_input_ends_with_one_line_and_exit_code_2(folder):
    done = run(folder, "trm.evaluate", "checkpoint=outputs/r", "inference.supervision_steps=0", check=2)
    assert done.stderr == "error: inference.supervision_steps=0 is out of range: it must be at least 1\n"


@pytest.mark.parametrize("asked", ["evaluate.by_difficulty=true", "evaluate.blank_identifiers=true", "inference=frontier"])
def test_training_refuses_what_only_the_command_does_before_there_is_a_folder(folder, asked):
    done = run(folder, "trm.train", *TINY, "run_name=no", asked, check=2)
    assert "python -m trm.evaluate" in done.stderr
    assert not (folder / "outputs" / "no").exists()
    with pytest.raises(ConfigError, match=r"job seed=1.*python -m trm\.evaluate"):
        compose_jobs([*TINY, "seed=1,2", "run_name=no", asked])


def test_of_several_hosts_one_prints_and_writes(folder, monkeypatch, capsys):
    class Second(NativeRuntime):
        is_main = False

    monkeypatch.chdir(folder)
    monkeypatch.setattr(trm.evaluate, "started", lambda cfg: Second(cfg.hardware))
    monkeypatch.setattr(trm.evaluate, "process_rank", lambda: (1, 2))
    main(["checkpoint=outputs/r"])
    main(["checkpoint=outputs/r", "evaluate.by_difficulty=true", "--out", "nowhere"])
    assert capsys.readouterr().out == ""
    assert not (folder / "nowhere").exists()


def test_a_batch_has_no_more_padding_than_rows(tmp_path):
    cfg = compose([*TINY, f"data.path={tmp_path}/data", "evaluate.batch_size=32"])
    for puzzles, devices, rows in [(5, 1, 5), (5, 8, 8), (10, 8, 16), (16, 8, 16), (17, 8, 32), (33, 1, 32)]:
        few = dataclasses.replace(cfg, evaluate=dataclasses.replace(cfg.evaluate, max_puzzles=puzzles))
        runtime = SimpleNamespace(num_devices=devices, process_index=0, process_count=1)
        assert candidate_loader(few, runtime).global_batch_size == rows
