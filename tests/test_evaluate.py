"""Evaluation: the ordinary pass against eval_step by hand, early exit against a full trace, votes, the command."""

import csv
import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import MESH, TINY, XLA, metrics, refused, run, summary

import trm.evaluate
from trm.backends import start
from trm.backends.native import NativeRuntime
from trm.cli import compose, compose_jobs
from trm.config import HardwareConfig, InferenceConfig, ModelConfig, RecursionConfig
from trm.core.architecture import Architecture
from trm.core.initial import init_buffers, init_weights
from trm.core.metrics import METRICS, MOST_SAMPLES
from trm.core.programs import ONE
from trm.core.step import empty_carry, eval_step
from trm.data.format import Dataset, Metadata
from trm.data.loader import EvalLoader
from trm.errors import ConfigError, DataError
from trm.evaluate import main
from trm.inference.candidates import candidate_loader
from trm.inference.evaluator import Evaluator
from trm.inference.samples import Samples
from trm.inference.selection import over
from trm.tasks.augment import augment, undo
from trm.tasks.sudoku.task import SudokuTask as Sudoku

C, V, N, BATCH, S = 4, 5, 37, 8, 6  # cells, vocabulary, puzzles, rows of a batch, supervision steps
IGNORED = -100

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    """(runtime, arch, weights, buffers) of an untrained model in float64, whose wish to halt comes at different steps."""
    arch = Architecture(
        model=ModelConfig(hidden_size=8, num_layers=1, puzzle_emb_ndim=0, puzzle_emb_len=0),
        recursion=RecursionConfig(T=1, n=1, n_sup=S),
        seq_len=C,
        vocab_size=V,
        num_puzzle_identifiers=1,
        dtype=torch.float64,
        loss_dtype=torch.float64,
    )
    weights = init_weights(arch, 0)
    weights["q_head.weight"] = torch.randn(weights["q_head.weight"].shape, generator=torch.Generator().manual_seed(4)).double()
    weights["q_head.bias"] = torch.tensor([-0.5, 0.0], dtype=weights["q_head.bias"].dtype)
    runtime = start(HardwareConfig(name="native", backend="eager", dtype="float64"))
    return runtime, arch, weights, init_buffers(arch, 0)


@pytest.fixture(scope="module")
def loader():
    """Puzzles with few labelled cells, so that an untrained model solves some; puzzle 5 has no label at all."""
    random = np.random.default_rng(0)
    inputs, labels = random.integers(1, V, (N, C)), random.integers(1, V, (N, C))
    labels[random.random((N, C)) < 0.75] = 0
    labels[:, 0] = np.maximum(labels[:, 0], 1)
    labels[5] = 0
    facts = Metadata(
        seq_len=C, vocab_size=V, pad_id=0, ignore_label_id=0, blank_identifier_id=0, num_puzzle_identifiers=1,
        total_groups=N, mean_puzzle_examples=1.0, total_puzzles=N, sets=["all"],
    )  # fmt: skip
    count = np.arange(N + 1)
    dataset = Dataset(inputs, labels, np.zeros(N, int), count, count, facts, None)
    return EvalLoader(dataset, global_batch_size=BATCH)


EXIT = InferenceConfig(early_exit=True)


def passed(model, loader, way=ONE, weights=None):
    """The result of an evaluation, and the predictions of all its rows."""
    (runtime, arch, own, buffers), seen = model, []
    result = Evaluator(runtime, arch, buffers, loader, S, "off", way).run(
        weights or own, None, see=lambda found, _: seen.append(found)
    )
    return result, over(lambda *parts: np.concatenate(parts, axis=1), *seen)


@pytest.fixture(scope="module")
def full(model, loader):
    """The result of all supervision steps for all puzzles, and the predictions [S, N, ...] on the way."""
    return passed(model, loader)


@pytest.fixture(scope="module")
def early(model, loader):
    return passed(model, loader, EXIT)[0]


def labelled(loader):
    return (loader.rows(0, N)["labels"] != IGNORED).any(axis=1)


def stops(trace):
    """Index of the step at which each puzzle halts."""
    halts = trace.halting > 0
    first = np.where(halts.any(axis=0), halts.argmax(axis=0), S - 1)
    assert set(first) >= {0, 1, S - 1}, "the cases that matter"
    return first


def test_the_pass_is_eval_step_batch_by_batch(model, loader, full):
    _, arch, weights, buffers = model
    sums = [dict.fromkeys(METRICS, 0.0) for _ in range(S)]
    for host_batch in loader:
        batch = {name: torch.from_numpy(rows) for name, rows in host_batch.items()}
        carry, counted = empty_carry(arch, buffers, BATCH), (batch["labels"] != IGNORED).any(-1)
        for s in range(S):
            carry, _, values = eval_step(arch, weights, buffers, None, carry, batch)
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


def test_predictions_and_samples_are_those_of_the_puzzles_in_order(loader, full):
    result, rows = full
    shown, puzzles = result.samples, loader.rows(0, MOST_SAMPLES)
    assert np.array_equal(shown.inputs, puzzles["inputs"])
    assert np.array_equal(shown.labels, puzzles["labels"])
    assert np.array_equal(shown.predictions, rows.answers[:, :MOST_SAMPLES])
    assert shown.q_halt == pytest.approx(rows.halting[:, :MOST_SAMPLES], rel=1e-6)
    assert ((shown.confidence > 1 / V) & (shown.confidence <= 1)).all()
    labels = loader.rows(0, N)["labels"]
    right = ((rows.answers == labels) | (labels == IGNORED)).all(axis=-1)
    assert np.array_equal(rows.values["exact_accuracy"], right)


def test_samples_come_back_from_their_file(full):
    samples = full[0].samples
    again = Samples.from_json(samples.to_json())
    for name, array in vars(samples).items():
        assert getattr(again, name).dtype == array.dtype
        assert getattr(again, name) == pytest.approx(array, abs=1e-4)
    for text in ("[]", "{}", "nothing"):
        with pytest.raises(ValueError, match=r"samples|Expecting"):
            Samples.from_json(text)


def test_early_exit_is_the_full_trace_cut_at_each_puzzles_halt(loader, full, early):
    _, trace = full
    counted = labelled(loader)
    stop = stops(trace)
    every = np.arange(N)
    for step, values in enumerate(early.by_step, 1):
        here = np.minimum(stop, step - 1)
        assert values["count"] == N - 1
        assert values["steps"] == pytest.approx((here[counted] + 1).mean(), rel=1e-12)
        assert values["exact_accuracy"] == pytest.approx(trace.values["exact_accuracy"][here, every][counted].mean(), rel=1e-12)
        q, right = trace.q_halt[here, every][counted], trace.values["exact_accuracy"][here, every][counted]
        assert values["q_halt_accuracy"] == pytest.approx(((q >= 0) == right).mean(), rel=1e-12)
        assert values["q_halt_loss"] == pytest.approx(np.log1p(np.exp(np.where(right, -q, q))).mean(), rel=1e-9)
    assert 1 < early.final["steps"] < S


def test_early_exit_keeps_the_samples_of_the_halting_step(full, early):
    result, trace = full
    stop, ours, theirs = stops(trace)[:MOST_SAMPLES], early.samples, result.samples
    every = np.arange(MOST_SAMPLES)
    for s in range(S):
        here = np.minimum(stop, s)
        for name in ("predictions", "confidence", "q_halt"):
            assert getattr(ours, name)[s] == pytest.approx(getattr(theirs, name)[here, every], rel=1e-5), name
    assert np.array_equal(ours.inputs, theirs.inputs)


class Odd:
    """A task of which only its scores are asked: answers whose tokens add up to an odd number, or that copy a cell."""

    score_names = ("odd", "copied")

    def scores(self, questions, answers, predictions):
        assert len(questions) == len(answers) == len(predictions)
        return {"odd": predictions.sum(axis=1) % 2 == 1, "copied": (questions == predictions).any(axis=1)}


def test_a_tasks_own_scores_are_those_of_every_answer_and_with_early_exit_of_the_halting_step(model, loader, full):
    scored = EvalLoader(dataclasses.replace(loader.dataset, task=Odd()), global_batch_size=BATCH)
    counted, rows = labelled(loader), loader.rows(0, N)
    found, (early, _) = passed(model, scored)[0], passed(model, scored, EXIT)
    for s in range(S):
        for result, at in ((found, np.full(N, s)), (early, np.minimum(stops(full[1]), s))):
            answers = full[1].answers[at, np.arange(N)]
            for name, has in Odd().scores(rows["inputs"], rows["labels"], answers).items():
                assert result.by_step[s][name] == pytest.approx(has[counted].mean(), rel=1e-12)
                assert 0 < result.by_step[s][name] < 1
    assert [{k: v for k, v in step.items() if k not in Odd.score_names} for step in found.by_step] == full[0].by_step
    runtime, arch, weights, buffers = model
    part = EvalLoader(scored.dataset, global_batch_size=BATCH, max_puzzles=20)
    evaluator = Evaluator(runtime, arch, buffers, part, S, "off")
    joined = evaluator.run(weights, None).joined(evaluator.rest().run(weights, None))
    assert joined.final == pytest.approx(found.final, rel=1e-9)
    assert joined.row_steps == found.row_steps


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_early_exit_does_not_depend_on_the_batch(model, loader, early, batch):
    found, _ = passed(model, EvalLoader(loader.dataset, global_batch_size=batch), EXIT)
    assert found.row_steps == early.row_steps
    for ours, theirs in zip(found.by_step, early.by_step, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_a_model_that_never_halts_gives_the_ordinary_result(model, loader, full):
    never = model[2] | {"q_head.bias": torch.full_like(model[2]["q_head.bias"], -1e3)}
    ours, rows = passed(model, loader, EXIT, never)
    assert np.array_equal(rows.answers, full[1].answers)
    for step, theirs in zip(ours.by_step, full[0].by_step, strict=True):
        for name in ("exact_accuracy", "accuracy", "lm_loss", "steps", "count"):
            assert step[name] == pytest.approx(theirs[name], rel=1e-9), name


# votes -------------------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    shape=st.sampled_from([(2, 2), (2, 3), (3, 2), (3, 3)]),
    seed=st.integers(0, 2**31 - 1),
    variants=st.lists(st.integers(0, 999), min_size=1, max_size=6),
)
def test_undo_is_the_inverse_of_augment(shape, seed, variants):
    """For any tokens, not only solutions: a model's answer may hold padding and blanks."""
    sudoku = Sudoku(*shape)
    cells = np.random.default_rng(seed).integers(0, sudoku.vocab_size, (3, sudoku.num_cells)).astype(np.uint8)
    variants = np.array(variants)
    puzzles = np.arange(len(variants)) % 3
    there, _ = augment(sudoku, cells, cells, seed=seed, puzzles=puzzles, variants=variants)
    assert np.array_equal(undo(sudoku, there, seed=seed, puzzles=puzzles, variants=variants), cells[puzzles])


def sudoku_dataset(puzzles=5):
    """Sudokus of 4x4: permuted digits of one solution, a third of the cells blank."""
    sudoku = Sudoku(2, 2)
    random = np.random.default_rng(0)
    base = np.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1])
    labels = np.array([random.permutation(4)[base - 1] + 2 for _ in range(puzzles)], np.uint8)
    inputs = np.where(random.random(labels.shape) < 1 / 3, 1, labels).astype(np.uint8)
    facts = Metadata(
        seq_len=16, vocab_size=6, pad_id=0, ignore_label_id=None, blank_identifier_id=0, num_puzzle_identifiers=1,
        total_groups=puzzles, mean_puzzle_examples=1.0, total_puzzles=puzzles, sets=["all"],
    )  # fmt: skip
    count = np.arange(puzzles + 1)
    return Dataset(inputs, labels, np.zeros(puzzles, np.int32), count, count, facts, sudoku)


@pytest.mark.parametrize("copies", [1, 3, 8])
def test_a_solver_that_solves_every_copy_is_exact(copies):
    dataset = sudoku_dataset()
    loader = EvalLoader(dataset, global_batch_size=4, copies=copies, data_seed=3)
    batches = list(loader)
    assert len(batches) == len(loader) == math.ceil(5 * copies / 4)
    joined = {name: np.concatenate([batch[name] for batch in batches])[: loader.num_rows] for name in batches[0]}
    assert np.array_equal(joined["inputs"][::copies], dataset.inputs)  # the identity is one of the copies
    for question, answer in zip(joined["inputs"], joined["labels"], strict=True):
        assert not dataset.task.violations(question, answer)
    answers = loader.undo(joined["labels"]).reshape(5, copies, 16)
    assert (answers == dataset.labels[:, None]).all()


def test_copies_need_known_symmetries(loader):
    with pytest.raises(DataError, match=r"inference\.copies"):
        EvalLoader(loader.dataset, global_batch_size=4, copies=2)


# the command -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the trained run `outputs/r`."""
    folder = tmp_path_factory.mktemp("work")
    learning = [
        "optimizer.warmup_steps=1",
        "optimizer.lr=0.003",
        "ema.rate=0.5",
        "train.max_steps=30",
        "train.eval_every_steps=null",
    ]
    run(folder, "trm.train", *TINY, *learning, "train.checkpoint_every_steps=null", "run_name=r", "train.progress=on")
    return folder


def evaluate(folder, *arguments):
    done = run(folder, "trm.evaluate", "checkpoint=outputs/r", *arguments)
    return json.loads(done.stdout.splitlines()[-1]), done


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


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
    assert len(rows_of(folder / "f" / "evaluation.csv")) == 4


@pytest.mark.long
def test_on_a_mesh_the_same(folder):
    for arguments in (["inference.early_exit=true"], []):
        one, _ = evaluate(folder, *arguments, *XLA)
        mesh, _ = evaluate(folder, *arguments, *MESH, "hardware.devices_per_host=4")
        assert mesh == pytest.approx(one, rel=1e-5)


def test_training_can_evaluate_with_early_exit(folder):
    run(
        folder,
        "trm.train",
        *TINY,
        "run_name=early",
        "train.max_steps=10",
        "inference.early_exit=true",
    )
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


@pytest.mark.parametrize(("puzzles", "devices", "rows"), [(5, 1, 5), (5, 8, 8), (10, 8, 16), (16, 8, 16), (17, 8, 32), (33, 1, 32)])
def test_a_batch_has_no_more_padding_than_rows(tmp_path, puzzles, devices, rows):
    cfg = compose([*TINY, f"data.path={tmp_path}/data", f"evaluate.max_puzzles={puzzles}", "evaluate.batch_size=32"])
    runtime = SimpleNamespace(num_devices=devices, process_index=0, process_count=1)
    assert candidate_loader(cfg, runtime).global_batch_size == rows
