"""Candidates and their selection: random numbers by counter, the pass against a loop by hand, races, the commands."""

import csv
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composing import composed
from passes import ARCH, LABELLED, C, N, S, dataset, evaluator_of, halting_steps, loader_of, network, passed
from running import MESH, TINY, XLA, metrics, refused, run, summary, warnings
from scipy import stats

from trm.cli import compose
from trm.config import InferenceConfig, LatentsConfig
from trm.config.groups import group_options
from trm.core.architecture import architecture
from trm.core.candidates import change, prepared, resampled, row_keys, started
from trm.core.flops import count_row_flops
from trm.core.initial import with_latents
from trm.core.metrics import Predictions
from trm.core.model import forward
from trm.errors import ConfigError
from trm.evaluate import main, sweep_of
from trm.ground.rng import ROLLOUT_NOISE, normal
from trm.inference.compute import pareto
from trm.inference.cost import Work, cost
from trm.inference.selection import SELECTIONS, over, residuals, select
from trm.tasks.augment import undo
from trm.tasks.base import task_of

STUDY = Path(__file__).parents[1] / "scripts" / "inference_study.py"

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


def test_random_starts_are_of_restarts_alone_before_the_first_step():
    some = way("residual", restarts=3, rollouts=2, noise=1.0)
    keys = row_keys(some, torch.arange(400).repeat_interleave(6), torch.arange(6).repeat(400))
    own = {z: torch.full((2400, C, 8), 7.0, dtype=torch.float64) for z in ARCH.latent_names}
    found = started(ARCH, some, own, keys, torch.zeros(2400, dtype=torch.int32))
    assert all(torch.equal(value, own[z]) for z, value in started(ARCH, some, own, keys, torch.ones(2400)).items())
    z_H, z_L = (found[z].view(400, 3, 2, -1) for z in ARCH.latent_names)
    assert (z_H[:, 0] == 7).all()  # the first start is the model's own
    assert torch.equal(z_H[:, :, 0], z_H[:, :, 1])  # rollouts of one start begin alike
    starts = torch.cat([z_H[:, 1:, 0].flatten(0, 1), z_L[:, 1:, 0].flatten(0, 1)]).numpy()  # [1600, 128]
    assert abs(starts.mean()) < 0.01
    assert starts.std() == pytest.approx(1, abs=0.01)
    assert abs(starts).max() <= 2 / 0.8796
    between = np.corrcoef(starts)[np.triu_indices(len(starts), 1)]
    assert abs(between).max() < 6 / np.sqrt(starts.shape[1])  # no two starts share numbers
    assert abs(between.mean()) < 1e-3


def test_noise_has_the_std_that_is_asked_for_and_is_new_for_every_row_and_step():
    some = way("best_q", rollouts=4, noise=0.3, seed=5)
    keys = row_keys(some, torch.arange(50).repeat_interleave(4), torch.arange(4).repeat(50))
    own = {z: torch.zeros(200, C, 8, dtype=torch.float64) for z in ARCH.latent_names}
    steps = [prepared(ARCH, some, own, keys, torch.full((200,), s)) for s in range(4)]
    assert all((latents["z_L"] == 0).all() for latents in steps)
    noise = torch.stack([latents["z_H"] for latents in steps]).view(800, -1).numpy()
    assert noise.std() == pytest.approx(0.3, abs=0.003)
    assert abs(noise.mean()) < 0.003
    assert stats.kstest(noise.ravel() / 0.3, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise)[np.triu_indices(800, 1)]).max() < 6 / np.sqrt(noise.shape[1])
    part = prepared(ARCH, some, {z: value[:7] for z, value in own.items()}, keys[60:67], torch.full((7,), 2))
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


@pytest.mark.parametrize(("of_seeds", "of_puzzles"), [(0.3, 1.0), (0.0, 2.0)])
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
    cfg = composed("data=sudoku_4x4", "recipe=tiny")
    parts = SimpleNamespace(cfg=cfg, arch=None, buffers=None, eval_weights=None, puzzle_embedding=None)
    for name, value in {"open_run": parts, "started": SimpleNamespace(replicate=lambda x: x), "make_evaluator": evaluator,
                        "on_devices": None, "count_row_flops": 1, "passes": (1, 2)}.items():  # fmt: skip
        monkeypatch.setattr(inference_study, name, lambda *_, value=value: value)
    monkeypatch.setattr(inference_study.time, "perf_counter", lambda: done.append("clock") or 0.0)
    inference_study.measured(tmp_path, inference_study.Pass("steps", (), ()), [], tmp_path / "kept.npz")
    assert done == ["compiled", "clock", "passed", "clock"]


# ----------------------------------------------------------------------------------------------------------------- the pass


WAYS = [
    way("vote", copies=3),
    way("mode", copies=2, rollouts=2, noise=0.5),
    way("best_q", rollouts=4, noise=0.5, seed=3),
    way("residual", restarts=4, window=2),
    way("vote", copies=2, restarts=2, rollouts=2, noise=0.2),
    way("resample", copies=2, rollouts=3, noise=0.5, beta=1.0),
]
names = [f"{each.selection}-{each.copies}x{each.restarts}x{each.rollouts}" for each in WAYS]


def by_hand(some):
    """Logits [N, K, S, C, V] and halting logits [N, K, S] of candidates that are run one by one; no resampling."""
    (weights, buffers), found = network(), []
    for batch in loader_of(some, 1):
        keys, inputs = torch.from_numpy(batch["rows"]), torch.from_numpy(batch["inputs"])
        latents, logits, q_halt = with_latents(ARCH, buffers, 1), [], []
        for s in range(S):
            latents = prepared(ARCH, some, latents, keys, torch.tensor([s]))
            out = forward(ARCH, weights, buffers, None, latents, inputs)
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


def answers_of(some, logits):
    """The candidates' answers [N, K, S, C] in the puzzles' own cells."""
    tokens = logits.argmax(-1)
    n, k, s = (axis.ravel() for axis in np.indices(tokens.shape[:3]))
    flat = undo(dataset().task, tokens.reshape(-1, C), seed=3, puzzles=n, variants=k // some.particles)
    assert len(s) == len(flat)
    return flat.reshape(tokens.shape)


RACE = way("halt_first", copies=2, rollouts=2, noise=0.5)


@pytest.mark.parametrize("some", [*WAYS[:-1], RACE], ids=[*names[:-1], "halt_first"])
def test_the_pass_is_candidates_one_by_one(some):
    logits, q_halt = by_hand(some)
    answers = answers_of(some, logits)
    winners, steps = selected_by_hand(some, logits, q_halt, answers)
    result, rows = passed(some)
    winner, at, candidates = select(rows, some, S - 1)
    assert np.array_equal(winner, winners)
    assert np.array_equal(at, steps)
    assert np.array_equal(candidates.answers[np.arange(N), winner], answers[np.arange(N), winners, steps])
    labels = np.where(dataset().labels == 0, -1, dataset().labels.astype(int))
    right = ((answers == labels[:, None, None]) | (labels < 0)[:, None, None]).all(axis=-1)  # [N, K, S]
    final, every = result.final, np.arange(N)
    assert final["count"] == N - 1
    assert final["exact_accuracy"] == pytest.approx(right[every, winners, steps][LABELLED].mean())
    assert final["oracle_exact_accuracy"] == pytest.approx(right[every, :, steps].any(axis=1)[LABELLED].mean())
    assert final["single_exact_accuracy"] == pytest.approx(right[every, :, steps].mean(axis=1)[LABELLED].mean())
    assert final["oracle_exact_accuracy"] >= max(final["exact_accuracy"], final["single_exact_accuracy"])
    assert len(result.by_step) == S
    assert result.work.puzzles == N  # the one without an answer costs as much
    assert result.work.row_steps == some.candidates * (sum(steps + 1) if some is RACE else N * S)


@pytest.mark.parametrize("some", [WAYS[1], WAYS[-1]], ids=[names[1], names[-1]])
def test_results_do_not_depend_on_the_batch_to_the_bit(some):
    first, rows = passed(some)
    for batch in (3, 64):
        result, others = passed(some, batch)
        for name in ("exact_accuracy", "accuracy", "oracle_exact_accuracy", "single_exact_accuracy", "q_halt_accuracy", "count"):
            assert [step[name] for step in result.by_step] == pytest.approx([step[name] for step in first.by_step], abs=1e-15)
        assert np.array_equal(others.answers, rows.answers)
        assert result.final["lm_loss"] == pytest.approx(first.final["lm_loss"], rel=1e-12)
    assert passed(some)[0].by_step == first.by_step


def test_other_seeds_and_rollouts_differ_and_the_first_ones_are_those_of_more():
    def rows_of(some):
        return passed(some, 16)[1].q_halt[-1].reshape(N, -1)

    three, five = rows_of(way("best_q", rollouts=3, noise=0.5)), rows_of(way("best_q", rollouts=5, noise=0.5))
    assert np.allclose(three, five[:, :3], rtol=1e-12, atol=0)
    assert len(np.unique(five.round(12))) == five.size
    assert not np.isclose(rows_of(way("best_q", rollouts=3, noise=0.5, seed=1)), three).any()
    plain = rows_of(way("vote", copies=3))
    assert np.allclose(rows_of(way("best_q", restarts=2))[:, 0], plain[:, 0], rtol=1e-12)  # the first start is the model's own


@pytest.mark.parametrize("batch", [5, 64])
def test_a_race_with_early_exit_is_the_whole_pass_cut_where_it_ends(batch):
    slower = network()[0] | {"q_head.bias": torch.tensor([-2.3, 0.0], dtype=torch.float64)}
    _, rows = passed(dataclasses.replace(RACE, selection="best_q"), 8, slower)  # without a race
    raced, ended = passed(RACE, batch, slower)
    winner, at, candidates = select(rows, RACE, S - 1)
    ours, there, theirs = select(ended, RACE, S - 1)
    assert {0, S - 1} <= set(at.tolist()), "the cases that matter"
    assert np.array_equal(winner, ours)
    assert np.array_equal(at, there)
    assert np.array_equal(candidates.answers, theirs.answers)
    for name, values in candidates.values.items():
        assert raced.final[name] == pytest.approx(values[np.arange(N), winner][LABELLED].mean(), rel=1e-9)
    assert raced.work.row_steps == RACE.candidates * (at + 1).sum()


@pytest.mark.parametrize(("some", "batch"), [(WAYS[1], 3), (WAYS[2], 8)], ids=names[1:3])
def test_candidates_that_exit_early_are_selected_by_their_predictions_of_then(some, batch):
    _, rows = passed(some)
    stop = halting_steps(rows)
    every = np.arange(len(stop))
    found, ended = passed(dataclasses.replace(some, early_exit=True), batch)
    for s in range(S):
        at = np.minimum(stop, s)
        then = over(lambda values, at=at: values[at, every].reshape(N, some.candidates, *values.shape[2:]), rows)
        assert np.array_equal(ended.answers[s].reshape(then.answers.shape), then.answers)
        exact = then.values["exact_accuracy"]
        winners = SELECTIONS[some.selection](then)
        assert found.by_step[s]["exact_accuracy"] == pytest.approx(exact[np.arange(N), winners][LABELLED].mean())
        assert found.by_step[s]["oracle_exact_accuracy"] == pytest.approx(exact.any(axis=1)[LABELLED].mean())
        assert found.row_steps[s] == (at + 1).sum()


def test_the_rest_of_the_puzzles_has_its_own_numbers():
    for some in (WAYS[2], RACE):
        part, weights = evaluator_of(some, max_puzzles=7), network()[0]
        both = part.run(weights, None).joined(part.rest().run(weights, None))
        whole, _ = passed(some)
        assert both.final == pytest.approx(whole.final, rel=1e-9)
        assert (both.work.puzzles, both.work.row_steps) == (whole.work.puzzles, whole.work.row_steps)


def test_fewer_candidates_are_selected_from_a_pass_of_many():
    """As scripts/inference_study.py does: one pass answers for every K and selection."""
    _, many = passed(way("best_q", rollouts=5, noise=0.5), N * 5)
    for selection in ("best_q", "vote", "mode"):
        few = way(selection, rollouts=3, noise=0.5)
        winners, _, _ = select(passed(few, 9)[1], few, S - 1)
        of_many = select(many, way(selection, rollouts=5, noise=0.5), S - 1, first=3)
        assert np.array_equal(of_many[0], winners)


# ------------------------------------------------------------------------------------------------------------------- settings


def test_a_ladder_is_of_ways_and_a_run_has_one_candidate():
    assert set(composed("inference=frontier").inference.ladder) <= set(group_options("inference"))
    assert composed().inference == InferenceConfig()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inference.copies=8"], "inference.selection=last is for one candidate and there are 8"),
        (["inference.rollouts=8", "inference.selection=best_q"], "the same answer without noise: set inference.noise"),
        (["inference.selection=resample"], "set inference.rollouts above 1"),
        (["inference=eqr", "inference.supervision_steps=3"], "inference.window=3"),
        (["inference=eqr", "inference.early_exit=true"], "set inference.early_exit=false"),
        (["inference=guided", "inference.early_exit=true"], "set inference.early_exit=false"),
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
    cfg = composed("data=sudoku_4x4", "recipe=tiny", "inference=votes8", "inference.supervision_steps=10")
    arch = architecture(cfg, **task_of(cfg.data).facts.sizes)
    found = cost(Work(puzzles=4, candidates=32, row_steps=4 * 40, seconds=2.0), cfg, arch)
    T, n = cfg.recursion.T, cfg.recursion.n
    assert (found["candidates"], found["candidates_run"]) == (8, 4)
    assert found["passes_per_puzzle"] == 40 * T * (n + 1)
    assert found["flops_per_puzzle"] == 40 * count_row_flops(cfg, arch)
    residual = composed("data=sudoku_4x4", "recipe=tiny", "inference=eqr")
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
    """A working directory with the trained run `outputs/r`, whose evaluations are PTRM's, with random starts."""
    folder = tmp_path_factory.mktemp("work")
    small = ["optimizer.warmup_steps=1", "optimizer.lr=0.003", "ema.rate=0.5", "train.eval_every_steps=10"]
    run(folder, "trm.train", *TINY, *small, "inference=ptrm", "inference.rollouts=2",
        "inference.restarts=2", "evaluate.max_puzzles=20", "evaluate.selection_puzzles=8", "run_name=r")  # fmt: skip
    return folder


def evaluate(folder, *arguments):
    done = run(folder, "trm.evaluate", "checkpoint=outputs/r", *arguments)
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_training_evaluates_so_and_the_command_repeats_it(folder):
    told = metrics(folder / "outputs" / "r", "eval")[-1]
    again, text = evaluate(folder)
    for name in ("exact_accuracy", "oracle_exact_accuracy", "single_exact_accuracy", "accuracy", "lm_loss"):
        assert again[name] == told[name]
    assert "pass@4 (oracle: any right)" in text or "pass@4, an oracle" in text
    assert "caution: inference.restarts=2: the model was not trained with random starts" in text
    assert any("not trained with random starts" in each for each in warnings(folder / "outputs" / "r"))
    assert again["candidates"] == again["candidates_run"] == 4
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
    standard = next(row for row in found["rows"] if row["inference"] == "standard")
    sweep = ["--multirun", "inference=standard", "inference.supervision_steps=1,4", "hardware.num_devices=1", "--out", "h"]
    labelled = evaluate(folder, few, *sweep)[0]["rows"]
    assert [row["inference"] for row in labelled] == ["standard supervision_steps=1", "standard supervision_steps=4"]
    alone, _ = evaluate(folder, few, "inference=standard")
    assert labelled[1]["exact_accuracy"] == standard["exact_accuracy"] == alone["exact_accuracy"]


def test_solving_with_candidates(folder):
    out = run(folder, "trm.solve", "checkpoint=outputs/r", "test:1", "inference=votes8", "--html", "x.html", "--watch").stdout
    assert " answers (inference.selection=vote" in out
    assert "written: x.html" in out
    guided = ["trm.solve", "checkpoint=outputs/r", "test:1", "inference=guided", "inference.rollouts=3"]
    assert " answers (inference.selection=resample" in run(folder, *guided).stdout
    assert "have no history to show" in run(folder, *guided, "--watch", check=2).stderr


@pytest.mark.long
def test_the_study_writes_its_table_and_goes_on_where_it_stopped(folder, inference_study, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["study", "outputs/r", "outputs/r", "evaluate.max_puzzles=6", "--quick", "--out", "study"])
    for _ in range(2):
        inference_study.main()
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
        (["-m", "inference=standard,frontier"], "already compares several ways"),
        (["inference=frontier", "inference.ladder=[nonsense]"], "nonsense"),
        (["inference=frontier", "inference.early_exit=true", "inference.ladder=[eqr]"], "none of them is possible"),
    ],
)
def test_bad_input_names_the_key_and_the_fix(folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    refused(main, ["checkpoint=outputs/r", *arguments], words)


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


@pytest.mark.parametrize("keys", [{}, {"restarts": 2, "rollouts": 2, "selection": "residual"}], ids=["one", "several"])
def test_a_model_that_draws_by_itself_has_numbers_for_each_candidate(keys):
    """EqR's random starts and noise in every pass: the same for any batch; another candidate, others."""
    noisy = dataclasses.replace(ARCH.recursion, noise=0.3)
    arch = dataclasses.replace(ARCH, recursion=noisy, latents=LatentsConfig(init="random"))
    some = InferenceConfig(window=2, **keys)
    found, other = (passed(some, batch, arch=arch)[1].q_halt[-1].reshape(N, -1) for batch in (5, 64))
    assert np.allclose(found, other, rtol=1e-12)
    assert len(np.unique(found.round(10))) == found.size
