"""Candidates and their selection: random numbers by counter, the pass against a loop by hand, races, the commands."""

import csv
import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import MESH, TINY, XLA, environment, metrics, refused, run, summary, warnings
from scipy import stats

from trm.backends import start
from trm.cli import compose
from trm.config import HardwareConfig, InferenceConfig, LatentsConfig, ModelConfig, RecursionConfig
from trm.config.groups import group_options
from trm.core.architecture import Architecture
from trm.core.candidates import change, prepared, resampled, row_keys, started
from trm.core.initial import init_buffers, init_weights, with_latents
from trm.core.metrics import Predictions
from trm.core.model import forward
from trm.data.format import Dataset, Metadata
from trm.data.loader import EvalLoader
from trm.errors import ConfigError
from trm.evaluate import main, sweep_of
from trm.ground.rng import ROLLOUT_NOISE, normal
from trm.inference.compute import pareto
from trm.inference.cost import Work, cost
from trm.inference.evaluator import Evaluator
from trm.inference.selection import SELECTIONS, over, residuals, select
from trm.tasks.augment import undo
from trm.tasks.sudoku.task import SudokuTask

STUDY = Path(__file__).parents[1] / "scripts" / "inference_study.py"

C, N, S = 16, 11, 5  # cells, puzzles, supervision steps

pytestmark = pytest.mark.usefixtures("one_thread")


def way(selection, **keys):
    return InferenceConfig(selection=selection, **keys)


# ------------------------------------------------------------------------------------------------------ random numbers of rows


def test_every_candidate_has_a_key_of_its_own_whatever_the_number_of_candidates():
    some, more = way("vote", copies=3, restarts=2, rollouts=5), way("vote", copies=1024, restarts=2, rollouts=5)
    puzzles, places = np.divmod(np.arange(4 * some.candidates), some.candidates)
    keys = row_keys(some, puzzles, places)
    assert len(set(keys.tolist())) == len(keys)
    assert keys.dtype == np.int64
    assert np.array_equal(keys, row_keys(more, puzzles, places))
    assert np.array_equal(keys, row_keys(some, torch.from_numpy(puzzles), torch.from_numpy(places)).numpy())
    fewer = row_keys(way("best_q", rollouts=8, noise=1.0), puzzles * 0, np.arange(len(puzzles)) % 8)
    assert np.array_equal(fewer[:8], row_keys(way("best_q", rollouts=100, noise=1.0), puzzles[:8] * 0, np.arange(8)))
    last = row_keys(way("vote", copies=1024, restarts=2048, rollouts=2048, noise=1.0), np.array([2**31 - 1]), np.array([2**32 - 1]))
    assert last.tolist() == [2**63 - 1]


@pytest.fixture(scope="module")
def arch():
    """A network of 4x4 Sudoku in float64."""
    return Architecture(
        model=ModelConfig(hidden_size=8, num_layers=1, puzzle_emb_ndim=0, puzzle_emb_len=0),
        recursion=RecursionConfig(T=1, n=1, n_sup=S),
        seq_len=C,
        vocab_size=6,
        num_puzzle_identifiers=1,
        dtype=torch.float64,
        loss_dtype=torch.float64,
    )


def test_random_starts_are_of_restarts_alone_before_the_first_step(arch):
    some = way("residual", restarts=3, rollouts=2, noise=1.0)
    keys = row_keys(some, torch.arange(400).repeat_interleave(6), torch.arange(6).repeat(400))
    own = {z: torch.full((2400, C, 8), 7.0, dtype=torch.float64) for z in arch.latent_names}
    found = started(arch, some, own, keys, torch.zeros(2400, dtype=torch.int32))
    assert all(torch.equal(value, own[z]) for z, value in started(arch, some, own, keys, torch.ones(2400)).items())
    z_H, z_L = (found[z].view(400, 3, 2, -1) for z in arch.latent_names)
    assert (z_H[:, 0] == 7).all()  # the first start is the model's own
    assert torch.equal(z_H[:, :, 0], z_H[:, :, 1])  # rollouts of one start begin alike
    starts = torch.cat([z_H[:, 1:, 0].flatten(0, 1), z_L[:, 1:, 0].flatten(0, 1)]).numpy()  # [1600, 128]
    assert abs(starts.mean()) < 0.01
    assert starts.std() == pytest.approx(1, abs=0.01)
    assert abs(starts).max() <= 2 / 0.8796
    between = np.corrcoef(starts)[np.triu_indices(len(starts), 1)]
    assert abs(between).max() < 6 / np.sqrt(starts.shape[1])  # no two starts share numbers
    assert abs(between.mean()) < 1e-3


def test_noise_has_the_std_that_is_asked_for_and_is_new_for_every_row_and_step(arch):
    some = way("best_q", rollouts=4, noise=0.3, seed=5)
    keys = row_keys(some, torch.arange(50).repeat_interleave(4), torch.arange(4).repeat(50))
    own = {z: torch.zeros(200, C, 8, dtype=torch.float64) for z in arch.latent_names}
    steps = [prepared(arch, some, own, keys, torch.full((200,), s)) for s in range(4)]
    assert all((latents["z_L"] == 0).all() for latents in steps)
    noise = torch.stack([latents["z_H"] for latents in steps]).view(800, -1).numpy()
    assert noise.std() == pytest.approx(0.3, abs=0.003)
    assert abs(noise.mean()) < 0.003
    assert stats.kstest(noise.ravel() / 0.3, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise)[np.triu_indices(800, 1)]).max() < 6 / np.sqrt(noise.shape[1])
    part = prepared(arch, some, {z: value[:7] for z, value in own.items()}, keys[60:67], torch.full((7,), 2))
    assert torch.equal(part["z_H"], steps[2]["z_H"][60:67])  # however rows are split over batches
    assert torch.equal(part["z_H"], 0.3 * normal(5, keys[60:67], (C, 8), stream=ROLLOUT_NOISE, step=2, dtype=torch.float64))


def test_particles_are_drawn_within_their_group_by_their_halting_probability():
    some = way("resample", rollouts=4, noise=1.0, beta=2.0)
    keys = row_keys(some, torch.arange(3000).repeat_interleave(4), torch.arange(4).repeat(3000))
    latents = {"z_H": torch.arange(12000).view(-1, 1, 1)}
    q_halt = torch.tensor([2.0, 0.0, -1.0, -50.0], dtype=torch.float64).repeat(3000)
    found = resampled(some, latents, q_halt, keys, torch.full((12000,), 3))["z_H"].view(3000, 4)
    assert torch.equal(torch.div(found, 4, rounding_mode="floor"), torch.arange(3000).unsqueeze(1).expand(-1, 4))
    drawn = np.bincount((found % 4).flatten(), minlength=4)
    weights = torch.sigmoid(q_halt[:4]).numpy() ** 2
    assert drawn[3] == 0
    assert stats.chisquare(drawn[:3], 12000 * weights[:3] / weights[:3].sum()).pvalue > 1e-3
    even = resampled(way("resample", rollouts=4, noise=1.0, beta=0.0), latents, q_halt, keys, torch.full((12000,), 3))["z_H"]
    assert stats.chisquare(np.bincount((even % 4).flatten(), minlength=4)).pvalue > 1e-3
    # what one particle draws says nothing of what its neighbour does
    table = stats.contingency.crosstab((even.view(3000, 4)[:, 0] % 4).numpy(), (even.view(3000, 4)[:, 1] % 4).numpy()).count
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("beta", [0.25, 1000.0])
def test_particles_are_drawn_by_how_much_more_one_wants_to_halt_than_another(beta):
    """However little they want to, where every weight by itself is too small for its type."""
    some = way("resample", rollouts=4, noise=1.0, beta=beta)
    keys = row_keys(some, torch.arange(1000).repeat_interleave(4), torch.arange(4).repeat(1000))
    latents = {"z_H": torch.arange(4).repeat(1000).view(-1, 1, 1)}
    for q_halt in ([-1e4, -1e4 + 3 / beta, -1e6, -1e4 + 3 / beta], [-3e38, -1e38, -3e38, -1e38]):
        found = resampled(some, latents, torch.tensor(q_halt).repeat(1000), keys, torch.full((4000,), 3))["z_H"].flatten()
        weights = np.exp(beta * (np.array(q_halt, np.float32).astype(np.float64) - np.float64(np.float32(max(q_halt)))))
        drawn = np.bincount(found, minlength=4)
        assert not drawn[weights < 1e-9].any()
        assert stats.chisquare(drawn[weights >= 1e-9], 4000 * weights[weights >= 1e-9] / weights.sum()).pvalue > 1e-3


# ------------------------------------------------------------------------------------------------------------------ selection


def said(grids, q_halt, halts=None, residual=None):
    answers = np.array([[[ord(cell), 1] for cell in puzzle] for puzzle in grids])
    q_halt = np.array(q_halt, float)
    return Predictions({}, q_halt if halts is None else np.array(halts, float), q_halt, answers, change=residual)


@pytest.mark.parametrize(
    ("selection", "winners"),
    [("vote", [1, 1, 0, 3]), ("mode", [1, 0, 0, 0]), ("best_q", [0, 1, 2, 3]), ("resample", [0, 1, 2, 3])],
)
def test_who_answers(selection, winners):
    grids, q_halt = ("abbc", "abcd", "aabc", "abab"), [[9, -2, -2, -3], [0, 1, 0.5, 0], [-5, -6, 9, 0], [0, 0, 0, 1]]
    assert SELECTIONS[selection](said(grids, q_halt)).tolist() == winners


def test_the_least_change_answers_and_a_race_is_won_by_the_surest_of_the_first():
    changes = np.array([[9.0, 9], [1, 8], [4, 1], [4, 1], [1, 4]])
    assert residuals(changes, 4, 3).tolist() == [3, 2]
    assert residuals(changes, 2, 3).tolist() == [2.5, 4.5]  # the first step has no change
    assert residuals(changes, 0, 3).tolist() == [0, 0]
    left = residuals(changes, 4, 3)[None]
    assert SELECTIONS["residual"](said(["ab"], [[0, 0]], residual=left)).tolist() == [1]
    race = said(("abc", "abc"), [[9, 1, 2], [-3, -2, -1]], [[0, 1, 1], [0, 0, 0]])
    assert SELECTIONS["halt_first"](race).tolist() == [2, 2]


def test_change_is_the_mean_norm_over_the_vocabulary():
    before, now = torch.zeros(1, 2, 3), torch.tensor([[[3.0, 4, 0], [0, 0, 1]]])
    assert change(now, before).tolist() == [3.0]


def test_pareto_front_by_hand():
    rows = [
        dict(zip(("flops_per_puzzle", "exact_accuracy"), pair, strict=True)) for pair in ((3, 0.9), (1, 0.5), (2, 0.4), (3, 0.8))
    ]
    assert [(row["flops_per_puzzle"], row["pareto"]) for row in pareto(rows)] == [(1, True), (2, False), (3, True), (3, False)]


@pytest.mark.parametrize(("of_seeds", "of_puzzles"), [(1.0, 1.0), (0.3, 1.0), (0.0, 2.0), (0.5, 0.0)])
def test_the_interval_over_seeds_and_puzzles_covers_as_it_says(inference_study, of_seeds, of_puzzles):
    """Three seeds on 150 puzzles that all share: the true mean of all seeds and puzzles is within, 95 times of 100."""
    random = np.random.default_rng(0)

    def solved(seeds, puzzles):
        strength = 0.8 + of_seeds * random.normal(size=(seeds, 1)) + of_puzzles * random.normal(size=(1, puzzles))
        return 1 / (1 + np.exp(-strength))

    true = solved(2000, 2000).mean()
    chances = [solved(3, 150) for _ in range(500)]
    found = [inference_study.interval((random.random(each.shape) < each).astype(float)) for each in chances]
    assert np.mean([abs(each.mean - true) <= each.half_width for each in found]) >= 0.935


def test_the_interval_of_one_seed_is_over_puzzles_and_without_a_spread_there_is_none(inference_study):
    values = np.random.default_rng(0).random((1, 30))
    by_scipy = stats.ttest_1samp(values[0], 0)
    found, ends = inference_study.interval(values), by_scipy.confidence_interval()
    assert (found.mean - found.half_width, found.p) == pytest.approx((ends.low, by_scipy.pvalue))
    assert inference_study.interval(np.ones((3, 9))) == inference_study.Interval(1.0, None, None)


@pytest.fixture
def inference_study():
    spec = importlib.util.spec_from_file_location("inference_study", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_study_counts_a_puzzle_once(inference_study):
    base = [np.zeros(5, bool)] * 3
    assert inference_study.paired(base, [np.ones(5, bool)] * 3)["sign_p"] == stats.binomtest(5, 5).pvalue  # not 15 of 15
    nothing = {"difference": 0, "difference_low": 0, "difference_high": 0, "p": None, "sign_p": None}
    assert inference_study.paired(base, base) == nothing


def test_the_studys_seconds_hold_no_compiling(inference_study, monkeypatch, tmp_path):
    done = []
    evaluator = SimpleNamespace(
        prepare=lambda *_: done.append("compiled"),
        run=lambda *_, **__: done.append("passed") or SimpleNamespace(work=Work(row_steps=4)),
    )
    cfg = compose(["data=sudoku_4x4", "recipe=tiny", "run_name=r"])
    parts = SimpleNamespace(cfg=cfg, arch=None, buffers=None, eval_weights=None, puzzle_embedding=None)
    for name, value in {"open_run": parts, "started": SimpleNamespace(replicate=lambda x: x), "make_evaluator": evaluator,
                        "on_devices": None, "count_row_flops": 1, "passes": (1, 2)}.items():  # fmt: skip
        monkeypatch.setattr(inference_study, name, lambda *_, value=value: value)
    monkeypatch.setattr(inference_study.time, "perf_counter", lambda: done.append("clock") or 0.0)
    inference_study.measured(tmp_path, inference_study.Pass("steps", (), ()), [], tmp_path / "kept.npz")
    assert done == ["compiled", "clock", "passed", "clock"]


# ----------------------------------------------------------------------------------------------------------------- the pass


@pytest.fixture(scope="module")
def model(arch):
    """(runtime, arch, weights, buffers) of an untrained model whose wish to halt comes at different steps."""
    weights = init_weights(arch, 0)
    weights["q_head.weight"] = (
        0.7 * torch.randn(weights["q_head.weight"].shape, generator=torch.Generator().manual_seed(1)).double()
    )
    weights["q_head.bias"] = torch.tensor([-0.6, 0.0], dtype=torch.float64)
    return start(HardwareConfig(name="native", backend="eager", dtype="float64")), arch, weights, init_buffers(arch, 0)


@pytest.fixture(scope="module")
def dataset():
    """4x4 Sudokus with one or two labelled cells, so that an untrained model solves some; puzzle 4 has no label at all."""
    random, base = np.random.default_rng(0), np.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1])
    solutions = np.array([random.permutation(4)[base - 1] + 2 for _ in range(N)], np.uint8)
    inputs = np.where(random.random(solutions.shape) < 1 / 3, 1, solutions).astype(np.uint8)
    labels = np.where(random.random(solutions.shape) < 0.08, solutions, 0).astype(np.uint8)
    labels[:, 3] = solutions[:, 3]
    labels[4] = 0
    facts = Metadata(
        seq_len=C, vocab_size=6, pad_id=0, ignore_label_id=0, blank_identifier_id=0, num_puzzle_identifiers=1,
        total_groups=N, mean_puzzle_examples=1.0, total_puzzles=N, sets=["all"],
    )  # fmt: skip
    count = np.arange(N + 1)
    return Dataset(inputs, labels, np.zeros(N, np.int32), count, count, facts, SudokuTask(2, 2))


WAYS = [
    way("vote", copies=3),
    way("mode", copies=2, rollouts=2, noise=0.5),
    way("best_q", rollouts=4, noise=0.5, seed=3),
    way("residual", restarts=4, window=2),
    way("vote", copies=2, restarts=2, rollouts=2, noise=0.2),
    way("resample", copies=2, rollouts=3, noise=0.5, beta=1.0),
]
names = [f"{each.selection}-{each.copies}x{each.restarts}x{each.rollouts}" for each in WAYS]


def loader_of(dataset, some, batch, **keys):
    return EvalLoader(
        dataset,
        global_batch_size=batch,
        copies=some.copies,
        repeats=some.particles,
        keys=lambda puzzles, places: row_keys(some, puzzles, places),
        data_seed=3,
        **keys,
    )


def evaluator_of(model, dataset, some, batch, **keys):
    """The evaluator with batches of at least so many rows."""
    runtime, arch, _, buffers = model
    batch = -(batch // -some.rows_together) * some.rows_together
    return Evaluator(runtime, arch, buffers, loader_of(dataset, some, batch, **keys), S, "off", some)


def passed(model, dataset, some, batch, weights=None):
    """The result of a pass, and the predictions [S, N * K, ...] of all rows."""
    seen = []
    evaluator = evaluator_of(model, dataset, some, batch)
    result = evaluator.run(weights or model[2], None, see=lambda found, _: seen.append(found))
    return result, over(lambda *parts: np.concatenate(parts, axis=1), *seen)


def by_hand(model, dataset, some):
    """Logits [N, K, S, C, V] and halting logits [N, K, S] of candidates that are run one by one; no resampling."""
    _, arch, weights, buffers = model
    loader, found = loader_of(dataset, some, 1), []
    for batch in loader:
        keys, inputs = torch.from_numpy(batch["rows"]), torch.from_numpy(batch["inputs"])
        latents, logits, q_halt = with_latents(arch, buffers, 1), [], []
        for s in range(S):
            latents = prepared(arch, some, latents, keys, torch.tensor([s]))
            out = forward(arch, weights, buffers, None, latents, inputs)
            latents = out.latents
            logits.append(out.logits[0])
            q_halt.append(out.q_halt[0])
        found.append((torch.stack(logits), torch.stack(q_halt)))
    logits, q_halt = (torch.stack(parts).unflatten(0, (N, -1)).numpy() for parts in zip(*found, strict=True))
    return logits, q_halt


def selected_by_hand(some, logits, q_halt, answers):
    """The candidate [N] and the step [N] that answer, in loops."""
    winners, steps = [], []
    for n in range(N):
        K, q = logits.shape[1], q_halt[n, :, -1]
        step = S - 1
        if some.selection == "halt_first":
            step = next((s for s in range(S) if (q_halt[n, :, s] > 0).any()), S - 1)
            order = [(-q_halt[n, k, step], k) for k in range(K)]
        elif some.selection == "best_q":
            order = [(-q[k], k) for k in range(K)]
        elif some.selection == "residual":
            moved = np.linalg.norm(np.diff(logits[n], axis=1), axis=-1).mean(axis=-1)  # [K, S - 1]
            order = [(moved[k, -some.window :].mean(), k) for k in range(K)]
        else:
            votes = [sum((answers[n, k, -1] == answers[n, j, -1]).all() for j in range(K)) for k in range(K)]
            order = [(-votes[k], -q[k] if some.selection == "vote" else 0, k) for k in range(K)]
        winners.append(min(order)[-1])
        steps.append(step)
    return np.array(winners), np.array(steps)


def answers_of(dataset, some, logits):
    """The candidates' answers [N, K, S, C] in the puzzles' own cells."""
    tokens = logits.argmax(-1)
    n, k, s = (axis.ravel() for axis in np.indices(tokens.shape[:3]))
    flat = undo(dataset.task, tokens.reshape(-1, C), seed=3, puzzles=n, variants=k // some.particles)
    assert len(s) == len(flat)
    return flat.reshape(tokens.shape)


RACE = way("halt_first", copies=2, rollouts=2, noise=0.5)


@pytest.mark.parametrize("some", [*WAYS[:-1], RACE], ids=[*names[:-1], "halt_first"])
def test_the_pass_is_candidates_one_by_one(model, dataset, some):
    logits, q_halt = by_hand(model, dataset, some)
    answers = answers_of(dataset, some, logits)
    winners, steps = selected_by_hand(some, logits, q_halt, answers)
    result, rows = passed(model, dataset, some, 8)
    winner, at, candidates = select(rows, some, S - 1)
    assert np.array_equal(winner, winners)
    assert np.array_equal(at, steps)
    assert np.array_equal(candidates.answers[np.arange(N), winner], answers[np.arange(N), winners, steps])
    labels = np.where(dataset.labels == 0, -1, dataset.labels.astype(int))
    right = ((answers == labels[:, None, None]) | (labels < 0)[:, None, None]).all(axis=-1)  # [N, K, S]
    counted, every = (labels > 0).any(axis=1), np.arange(N)
    final = result.final
    assert final["count"] == N - 1
    assert final["exact_accuracy"] == pytest.approx(right[every, winners, steps][counted].mean())
    assert final["oracle_exact_accuracy"] == pytest.approx(right[every, :, steps].any(axis=1)[counted].mean())
    assert final["single_exact_accuracy"] == pytest.approx(right[every, :, steps].mean(axis=1)[counted].mean())
    assert final["oracle_exact_accuracy"] >= max(final["exact_accuracy"], final["single_exact_accuracy"])
    assert len(result.by_step) == S
    assert result.work.puzzles == N  # the one without an answer costs as much
    assert result.work.row_steps == some.candidates * (sum(steps + 1) if some is RACE else N * S)


@pytest.mark.parametrize("some", WAYS, ids=names)
def test_results_do_not_depend_on_the_batch_to_the_bit(model, dataset, some):
    first, rows = passed(model, dataset, some, 8)
    for batch in (3, 64):
        result, others = passed(model, dataset, some, batch)
        for name in ("exact_accuracy", "accuracy", "oracle_exact_accuracy", "single_exact_accuracy", "q_halt_accuracy", "count"):
            assert [step[name] for step in result.by_step] == pytest.approx([step[name] for step in first.by_step], abs=1e-15)
        assert np.array_equal(others.answers, rows.answers)
        assert result.final["lm_loss"] == pytest.approx(first.final["lm_loss"], rel=1e-12)
    again, _ = passed(model, dataset, some, 8)
    assert again.by_step == first.by_step


def test_other_seeds_and_rollouts_differ_and_the_first_ones_are_those_of_more(model, dataset):
    def rows_of(some):
        return passed(model, dataset, some, 16)[1].q_halt[-1].reshape(N, -1)

    three, five = rows_of(way("best_q", rollouts=3, noise=0.5)), rows_of(way("best_q", rollouts=5, noise=0.5))
    assert np.allclose(three, five[:, :3], rtol=1e-12, atol=0)
    assert len(np.unique(five.round(12))) == five.size
    assert not np.isclose(rows_of(way("best_q", rollouts=3, noise=0.5, seed=1)), three).any()
    plain = rows_of(way("vote", copies=3))
    assert np.allclose(rows_of(way("best_q", restarts=2))[:, 0], plain[:, 0], rtol=1e-12)  # the first start is the model's own


@pytest.mark.parametrize("batch", [1, 5, 16, 64])
def test_a_race_with_early_exit_is_the_whole_pass_cut_where_it_ends(model, dataset, batch):
    slower = model[2] | {"q_head.bias": torch.tensor([-2.3, 0.0], dtype=torch.float64)}
    _, rows = passed(model, dataset, dataclasses.replace(RACE, selection="best_q"), 8, slower)  # without a race
    raced, ended = passed(model, dataset, RACE, batch, slower)
    winner, at, candidates = select(rows, RACE, S - 1)
    ours, there, theirs = select(ended, RACE, S - 1)
    assert {0, S - 1} <= set(at.tolist()), "the cases that matter"
    assert np.array_equal(winner, ours)
    assert np.array_equal(at, there)
    assert np.array_equal(candidates.answers, theirs.answers)
    counted, every = np.arange(N) != 4, np.arange(N)
    for name, values in candidates.values.items():
        assert raced.final[name] == pytest.approx(values[every, winner][counted].mean(), rel=1e-9)
    assert raced.work.row_steps == RACE.candidates * (at + 1).sum()


@pytest.mark.parametrize("some", [WAYS[0], WAYS[1], WAYS[2]], ids=names[:3])
def test_candidates_that_exit_early_are_selected_by_their_predictions_of_then(model, dataset, some):
    _, rows = passed(model, dataset, some, 8)
    halts = rows.halting > 0
    stop, every = np.where(halts.any(axis=0), halts.argmax(axis=0), S - 1), np.arange(halts.shape[1])
    assert {0, S - 1} <= set(stop.tolist())
    counted = np.arange(N) != 4
    for batch in (3, 8):
        found, ended = passed(model, dataset, dataclasses.replace(some, early_exit=True), batch)
        for s in range(S):
            at = np.minimum(stop, s)
            then = over(lambda values, at=at: values[at, every].reshape(N, some.candidates, *values.shape[2:]), rows)
            assert np.array_equal(ended.answers[s].reshape(then.answers.shape), then.answers)
            exact = then.values["exact_accuracy"]
            winners = SELECTIONS[some.selection](then)
            assert found.by_step[s]["exact_accuracy"] == pytest.approx(exact[np.arange(N), winners][counted].mean())
            assert found.by_step[s]["oracle_exact_accuracy"] == pytest.approx(exact.any(axis=1)[counted].mean())
            assert found.row_steps[s] == (at + 1).sum()


def test_the_rest_of_the_puzzles_has_its_own_numbers(model, dataset):
    for some in (WAYS[2], RACE):
        part = evaluator_of(model, dataset, some, 8, max_puzzles=7)
        both = part.run(model[2], None).joined(part.rest().run(model[2], None))
        whole, _ = passed(model, dataset, some, 8)
        assert both.final == pytest.approx(whole.final, rel=1e-9)
        assert (both.work.puzzles, both.work.row_steps) == (whole.work.puzzles, whole.work.row_steps)


def test_fewer_candidates_are_selected_from_a_pass_of_many(model, dataset):
    """As scripts/inference_study.py does: one pass answers for every K and selection."""
    _, many = passed(model, dataset, way("best_q", rollouts=5, noise=0.5), N * 5)
    for selection in ("best_q", "vote", "mode"):
        few = way(selection, rollouts=3, noise=0.5)
        winners, _, _ = select(passed(model, dataset, few, 9)[1], few, S - 1)
        of_many = select(many, way(selection, rollouts=5, noise=0.5), S - 1, first=3)
        assert np.array_equal(of_many[0], winners)


# ------------------------------------------------------------------------------------------------------------------- settings


def test_every_way_composes():
    for name in group_options("inference"):
        cfg = compose([f"inference={name}", "run_name=r"])
        assert cfg.inference.name == name
        assert set(cfg.inference.ladder) <= set(group_options("inference"))
    plain = compose(["run_name=r"]).inference
    assert plain == InferenceConfig()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inference.copies=8"], "inference.selection=last is for one candidate and there are 8"),
        (["inference.rollouts=8", "inference.selection=best_q"], "the same answer without noise: set inference.noise"),
        (["inference.selection=resample"], "set inference.rollouts above 1"),
        (["inference=eqr", "inference.supervision_steps=3"], "inference.window=3"),
        (["inference=eqr", "inference.early_exit=true"], "set inference.early_exit=false"),
        (["inference=frontier", "evaluate.by_difficulty=true"], "evaluate.by_difficulty needs one way of inference"),
        (["inference=votes32", "data=maze_small"], "a 11x11 maze has 8 symmetric copies (turned and mirrored)"),
        (["inference.selection=luck"], "inference.selection=luck is not one of last, vote"),
        (["inference=votes9"], "inference=votes9"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, words):
    with pytest.raises(ConfigError) as caught:
        compose([*arguments, "run_name=r"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_costs_are_those_of_rows_that_ran():
    cfg = compose(["data=sudoku_4x4", "recipe=tiny", "inference=votes8", "inference.supervision_steps=10", "run_name=r"])
    from trm.core.architecture import architecture
    from trm.core.flops import count_row_flops
    from trm.tasks.base import task_of

    arch = architecture(cfg, **task_of(cfg.data).facts.sizes)
    found = cost(Work(puzzles=4, candidates=32, row_steps=4 * 40, seconds=2.0), cfg, arch)
    T, n = cfg.recursion.T, cfg.recursion.n
    assert (found["candidates"], found["candidates_run"]) == (8, 4)
    assert found["passes_per_puzzle"] == 40 * T * (n + 1)
    assert found["flops_per_puzzle"] == 40 * count_row_flops(cfg, arch)
    residual = compose(["data=sudoku_4x4", "recipe=tiny", "inference=eqr", "run_name=r"])
    head = 2 * arch.num_tokens * arch.model.hidden_size * arch.vocab_size
    assert 0 < count_row_flops(residual, arch) - count_row_flops(cfg, arch) <= head + 4 * arch.model.hidden_size


def test_a_sweep_is_of_ways():
    found = sweep_of(["inference=standard,votes8", "inference.seed=0,1", "data.subsets=[a,b]"])
    assert [each[:2] for each in found] == [
        [f"inference={a}", f"inference.seed={b}"] for a in ("standard", "votes8") for b in (0, 1)
    ]
    for arguments, words in (
        (["seed=0,1"], "--multirun is for inference=a,b"),
        (["inference=ptrm"], "nothing to compare"),
        (["inference=[a,"], "not understood"),
    ):
        with pytest.raises(ConfigError, match=words):
            sweep_of(arguments)


# ----------------------------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the trained run `outputs/r`, whose evaluations are PTRM's."""
    folder = tmp_path_factory.mktemp("work")
    small = ["optimizer.warmup_steps=1", "optimizer.lr=0.003", "ema.rate=0.5", "train.eval_every_steps=10"]
    run(folder, "trm.train", *TINY, *small, "inference=ptrm", "inference.rollouts=3", "evaluate.max_puzzles=20",
        "evaluate.selection_puzzles=8", "run_name=r")  # fmt: skip
    return folder


def evaluate(folder, *arguments):
    done = run(folder, "trm.evaluate", "checkpoint=outputs/r", *arguments)
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_training_evaluates_so_and_the_command_repeats_it(folder):
    told = metrics(folder / "outputs" / "r", "eval")[-1]
    again, text = evaluate(folder)
    for name in ("exact_accuracy", "oracle_exact_accuracy", "single_exact_accuracy", "accuracy", "lm_loss"):
        assert again[name] == told[name]
    assert "pass@3 (oracle: any right)" in text or "pass@3, an oracle" in text
    assert again["candidates"] == again["candidates_run"] == 3
    assert len(summary(folder / "outputs" / "r")["exact_accuracy_by_step"]) == 4
    other, _ = evaluate(folder, "train.global_batch_size=7", "inference.seed=0")
    assert {k: v for k, v in other.items() if "loss" not in k} == {k: v for k, v in again.items() if "loss" not in k}


def test_frontier_and_multirun(folder):
    few = "evaluate.max_puzzles=8"
    found, _ = evaluate(folder, few, "inference=frontier", "inference.ladder=[standard,votes8,halt_first]", "--out", "f")
    assert {row["inference"] for row in found["rows"]} == {"standard", "halt_first", "votes8"} == found["ways"].keys()
    assert (found["ways"]["votes8"]["inference.copies"], len(found["test_digest"])) == (8, 16)  # what may be compared with it
    assert found["rows"] == sorted(found["rows"], key=lambda row: row["flops_per_puzzle"])
    assert any(row["pareto"] for row in found["rows"])
    assert {path.name for path in (folder / "f").iterdir()} == {"frontier.csv", "frontier.json", "frontier.png"}
    with (folder / "f" / "frontier.csv").open() as file:
        assert [row["inference"] for row in csv.DictReader(file)] == [row["inference"] for row in found["rows"]]
    standard, _ = evaluate(folder, few, "inference=standard")
    rows = {row["inference"]: row for row in found["rows"]}
    assert rows["standard"]["exact_accuracy"] == standard["exact_accuracy"]
    assert rows["halt_first"]["candidates_run"] <= 8
    swept, _ = evaluate(folder, few, "--multirun", "inference=standard,votes8", "hardware.num_devices=1", "--out", "g")
    assert {row["inference"]: row["exact_accuracy"] for row in swept["rows"]} == {
        name: rows[name]["exact_accuracy"] for name in ("standard", "votes8")
    }
    labelled, _ = evaluate(folder, few, "-m", "inference=standard", "inference.supervision_steps=1,2", "--out", "h")
    assert [row["inference"] for row in labelled["rows"]] == ["standard supervision_steps=1", "standard supervision_steps=2"]


def test_random_starts_of_a_model_without_them_are_told(folder):
    _, text = evaluate(folder, "inference=eqr", "inference.restarts=2", "inference.supervision_steps=5")
    assert "caution: inference.restarts=2: the model was not trained with random starts" in text
    run(folder, "trm.train", *TINY, "inference=eqr", "inference.restarts=2", "inference.window=2", "inference.supervision_steps=3",
        "train.max_steps=1", "run_name=e", "train.eval_every_steps=null")  # fmt: skip
    assert any("not trained with random starts" in each for each in warnings(folder / "outputs" / "e"))


def test_solving_with_candidates(folder):
    for name in ("votes8", "ptrm", "halt_first", "guided"):
        small = [] if name in ("votes8", "halt_first") else ["inference.rollouts=3"]
        out = run(folder, "trm.solve", "checkpoint=outputs/r", "test:1", f"inference={name}", *small).stdout
        assert f"inference.selection={'resample' if name == 'guided' else ''}" in out
        assert " answers (inference.selection=" in out
    out = run(folder, "trm.solve", "checkpoint=outputs/r", "test:1", "inference=votes8", "--html", "x.html", "--watch").stdout
    assert "written: x.html" in out
    refused = run(folder, "trm.solve", "checkpoint=outputs/r", "test:1", "inference=guided", "--watch", check=2).stderr
    assert "have no history to show" in refused
    assert "trm.evaluate" in run(folder, "trm.solve", "checkpoint=outputs/r", "test:1", "inference=frontier", check=2).stderr


def test_a_checkpoint_of_the_released_code_is_run_through_it(folder):
    """A file in the released code's format: the names, tensors and prefix of its state_dict, by torch.save."""
    run(folder, "trm.interop", "export", "checkpoint=outputs/r", "released.pt")
    names = torch.load(folder / "released.pt", weights_only=True).keys()
    assert all(name.startswith("_orig_mod.model.inner.") for name in names)
    run(folder, "trm.interop", "import", "released.pt", "outputs/imported", *TINY, "evaluate.max_puzzles=20")
    for arguments in (["inference=ptrm", "inference.rollouts=3"], ["inference=votes8", "inference.copies=3"]):
        own, _ = evaluate(folder, *arguments)
        done = run(folder, "trm.evaluate", "checkpoint=outputs/imported", *arguments)
        found = json.loads(done.stdout.splitlines()[-1])
        assert found | {"checkpoint_step": 20} == own


@pytest.mark.long
def test_the_study_writes_its_table_and_goes_on_where_it_stopped(folder):
    command = [sys.executable, STUDY, "outputs/r", "outputs/r", "evaluate.max_puzzles=6", "--quick", "--out", "study"]
    for _ in range(2):
        subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)
        rows = json.loads((folder / "study" / "frontier.json").read_text())["rows"]
        standard = next(row for row in rows if (row["selection"], row["candidates"], row["supervision_steps"]) == ("last", 1, 4))
        assert (standard["difference"], standard["p"], standard["sign_p"], standard["candidates_run"]) == (0, None, None, 1)
        assert all(row["exact_accuracy"] <= row["oracle_exact_accuracy"] for row in rows)
        assert (folder / "study.md").read_text().count("\n| ") == len(rows) + 2
        for kept in (folder / "study" / "passes" / "1_r").glob("noise*.npz"):  # only what is missing is measured again
            kept.unlink()


def test_a_signal_leaves_the_rungs_that_are_done(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    asked = []

    def stop(self):
        asked.append(0)
        return len(asked) > 8  # of the first way: 2 batches of 4 steps

    monkeypatch.setattr("trm.ground.signals.StopSignal.requested", property(stop, lambda self, value: None), raising=False)
    with pytest.raises(SystemExit) as end:
        main(["checkpoint=outputs/r", "-m", "inference=standard,votes8", "--out", "stopped"])
    assert end.value.code == 143
    record = json.loads((folder / "stopped" / "frontier.json").read_text())
    assert [row["inference"] for row in record["rows"]] == ["standard"]
    assert "votes8 and what comes after it are left out" in record["left_out"][0]
    assert "stopped before its end" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inference=frontier", "--multirun"], "nothing to compare"),
        (["-m", "inference=standard,frontier"], "a ladder by itself"),
        (["inference=frontier", "inference.ladder=[nonsense]"], "nonsense"),
        (["inference=frontier", "inference.early_exit=true", "inference.ladder=[eqr]"], "none of them is possible"),
    ],
)
def test_bad_input_names_the_key_and_the_fix(folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    refused(main, ["checkpoint=outputs/r", *arguments], words)


def test_training_refuses_a_ladder(folder):
    assert "compares ways of inference" in run(folder, "trm.train", *TINY, "inference=frontier", "run_name=no", check=2).stderr


@pytest.mark.long
@pytest.mark.parametrize("name", ["eqr", "guided"])
def test_on_a_mesh_the_same(folder, name):
    small = [f"inference={name}", "inference.supervision_steps=4", "evaluate.max_puzzles=12", "hardware.dtype=float64"]
    small += {"ptrm": ["inference.rollouts=3"], "eqr": ["inference.restarts=3"], "guided": ["inference.rollouts=4"]}.get(name, [])
    one, _ = evaluate(folder, *small, *XLA)
    for engine in (MESH, ["hardware.backend=eager"]):
        other, _ = evaluate(folder, *small, *engine)
        assert other == pytest.approx(one, rel=1e-4)
        assert {k: v for k, v in other.items() if "loss" not in k} == {k: v for k, v in one.items() if "loss" not in k}


@pytest.mark.parametrize("keys", [{}, {"restarts": 3, "selection": "residual"}, {"rollouts": 3, "selection": "best_q"}], ids=str)
def test_a_model_that_draws_by_itself_has_numbers_for_each_candidate(model, dataset, keys):
    """EqR's random starts and noise in every pass: the same for any batch; another candidate, others."""
    arch = Architecture(
        model=ModelConfig(hidden_size=8, num_layers=1, puzzle_emb_ndim=0, puzzle_emb_len=0),
        recursion=RecursionConfig(T=1, n=1, n_sup=S, noise=0.3),
        seq_len=C,
        vocab_size=6,
        num_puzzle_identifiers=1,
        dtype=torch.float64,
        loss_dtype=torch.float64,
        latents=LatentsConfig(init="random"),
    )
    (runtime, _, weights, _), buffers = model, init_buffers(arch, 0)
    some, found = InferenceConfig(window=2, **keys), []
    for batch in (1, 5, 64):
        _, rows = passed((runtime, arch, weights, buffers), dataset, some, batch)
        found.append(rows.q_halt[-1].reshape(N, -1))
    assert np.allclose(found[0], found[1], rtol=1e-12)
    assert np.allclose(found[0], found[2], rtol=1e-12)
    assert len(np.unique(found[0].round(10))) == found[0].size
