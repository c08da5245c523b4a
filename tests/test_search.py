"""hydra/sweeper=optuna: trials as jobs of a sweep, resumed as every sweep is; what the user may get wrong."""

import json
import signal

import pytest
from running import TINY, run, summary
from sweeping import start, summaries, sweep, wait_for

import trm.train
from trm.cli import compose_jobs
from trm.errors import UserError

pytest.importorskip("optuna")
LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
SEARCH = ["-m", "hydra/sweeper=optuna", "run_name=s", LR, "recursion=t2_n2,t3_n6", "hydra.sweeper.score=exact_accuracy"]


def overrides(folder):
    return {job["dir"]: job["overrides"] for job in json.loads((folder / "multirun/s/grid.json").read_text())["jobs"]}


@pytest.mark.long
def test_a_search_is_recorded_goes_on_and_ends_with_its_best_trial(tmp_path):
    arguments = [*SEARCH, "train.global_batch_size=int(interval(8,64))", "hardware.jobs=2"]
    code, out, err = sweep(tmp_path, *arguments, "hydra.sweeper.trials=3")
    assert (code, err) == (0, "")
    assert "best exact_accuracy: 0.5 by trial_0 (optimizer.lr=0.00" in out
    first = overrides(tmp_path)
    assert sorted(first) == sorted(summaries(tmp_path)) == ["trial_0", "trial_1", "trial_2"]
    code, out, err = sweep(tmp_path, *arguments, "hydra.sweeper.trials=5")
    assert (code, err) == (0, "")
    assert "3 of 5 trials are completed" in out
    drawn = overrides(tmp_path)
    assert {name: drawn[name] for name in first} == first
    assert len({tuple(job) for job in drawn.values()}) == 5  # a sampler that starts again draws something else
    code, _, err = sweep(tmp_path, *arguments, "hydra.sweeper.trials=5", "recursion=t2_n2,t3_n4")
    assert (code, err) == (2, "error: multirun/s has a search with other settings: give this one another run_name\n")


@pytest.mark.long
def test_failed_and_stopped_trials_are_gone_on_with(tmp_path):
    code, _, err = sweep(tmp_path, *SEARCH, "hydra.sweeper.trials=2", orders={"trial_0": "raise"})
    assert code == 1
    assert "1 of 2 jobs did not complete" in err
    process = start(tmp_path, *SEARCH, "hydra.sweeper.trials=3", orders={"trial_2": "hang"})
    wait_for((tmp_path / "multirun/s/trial_2/hung").exists)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert [s["status"] for s in summaries(tmp_path).values()] == ["completed", "completed", "preempted"]
    before = overrides(tmp_path)
    code, _, err = sweep(tmp_path, *SEARCH, "hydra.sweeper.trials=3")
    assert (code, err) == (0, "")
    assert overrides(tmp_path) == before
    assert {s["status"] for s in summaries(tmp_path).values()} == {"completed"}


@pytest.mark.long
def test_the_example_search_trains(tmp_path):
    small = ["train.max_steps=4", "train.eval_every_steps=4", "data.num_puzzles=20", "data.num_test_puzzles=8"]
    done = run(tmp_path, "trm.train", "+sweep=search_4x4", "hydra.sweeper.trials=2", *small, "hardware.backend=eager", process=True)
    assert "best selection_score: " in done.stdout
    assert "caution:" not in done.stdout  # the trials were compared on puzzles apart from the test puzzles


def test_trm_train_returns_its_score(tmp_path, monkeypatch):
    real, returned = trm.train.train, []

    def train(cfg):
        returned.append(real(cfg))

    monkeypatch.setattr("trm.train.train", train)
    for _ in range(2):  # a run, and one that has nothing to do
        run(tmp_path, "trm.train", *TINY, "train.max_steps=2", "run_name=r")
    assert returned == [summary(tmp_path / "outputs/r")["selection_score"]] * 2


def test_a_plan_sees_as_many_trials_as_are_asked_for():
    jobs = compose_jobs(["hydra/sweeper=optuna", LR, "seed=range(0,10,2)", "hydra.sweeper.trials=4"])
    assert sorted(jobs) == ["trial_0", "trial_1", "trial_2", "trial_3"]
    assert all(1e-4 <= cfg.optimizer.lr <= 1e-2 and cfg.seed in (0, 2, 4, 6, 8) for cfg in jobs.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seed=1"], "nothing to search"),
        (["optimizer.lr=interval(1,-1)"], "optimizer.lr=interval"),
        (["seed=range(3,3)"], "seed=range"),
        ([LR, "hydra.sweeper.trials=0"], "hydra.sweeper.trials=0: at least 1"),
        ([LR, "hydra.sweeper.direction=up"], "direction=up: maximize or minimize"),
    ],
)
def test_what_the_user_got_wrong(arguments, words):
    with pytest.raises(UserError, match=words):
        compose_jobs(["hydra/sweeper=optuna", *arguments])


def test_bounds_are_checked_before_anything_starts(tmp_path):
    code, _, err = sweep(tmp_path, *SEARCH, "optimizer.weight_decay=interval(-1,1)")
    assert code == 2
    assert "optimizer.weight_decay=-1" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "multirun").exists()
