"""What a sweep's folder and its jobs are called: functions of the choice, not of how it is written; one name for one run."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trm.cli import compose_jobs
from trm.study.names import job_names, sweep_name, word

NASTY = st.text("abA/ '=,*()é_-.", max_size=90)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["+sweep=tn_sweep"], "tn_sweep"),
        (["+sweep=tn_sweep", "seed=0,1,2"], "tn_sweep,seed=0,1,2"),
        (["data=sudoku_6x6", "+sweep=tn_sweep", "model=tiny"], "tn_sweep,data=sudoku_6x6,model=tiny"),
        (["+sweep=tn_sweep", "run_name=mine"], "mine"),
        (["+sweep=tn_sweep", "hardware.jobs=2", "tracking=none", "hardware.placement=chip"], "tn_sweep"),
        (["optimizer.lr=1e-3,1e-4"], "lr=1e-4,1e-3"),
        (["data.seed=0,1"], "data.seed=0,1"),
        ([], "defaults"),
    ],
)
def test_a_sweeps_folder_is_named_by_what_it_computes(overrides, name):
    assert sweep_name(overrides) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["seed=0,1,2", "ema=on,off"], ["ema=off,on", "seed=2,0,1"]),
        (["seed=0,1,2"], ["++seed=range(0,3)"]),
        (["seed=0,1"], ["seed=choice(1, 0)"]),
        (["seed=0,1"], ["seed=0,1,0"]),
        (["optimizer.lr=1e-3,0.01", "train.max_steps=5"], ["train.max_steps=5", "optimizer.lr=0.001,1e-2"]),
        (["optimizer.weight_decay=1,0.1"], ["optimizer.weight_decay=1.0,.1"]),
        (["data.path=a,b"], ["data.path='a',\"b\""]),
    ],
)
def test_the_same_choice_written_otherwise_is_the_same_sweep(one, other):
    assert sweep_name(one) == sweep_name(other)


def test_sweeps_of_keys_that_end_alike_are_two():
    assert sweep_name(["seed=0,1"]) != sweep_name(["data.seed=0,1"])
    assert sweep_name(["seed=0,1", "data.seed=2,3"]) != sweep_name(["seed=2,3", "data.seed=0,1"])
    assert sweep_name(["+sweep=tn_sweep", "seed=0"]) != sweep_name(["+sweep=tn_sweep", "seed=0", "train.epochs=3"])


@given(st.lists(NASTY, min_size=1, max_size=4, unique=True))
def test_names_are_plain_file_names_and_tell_values_apart(values):
    jobs = job_names([{"data.path": v} for v in values])
    assert len(set(jobs)) == len(values)
    for name in [sweep_name([f'data.path="{v}"' for v in values]), *jobs]:
        assert name
        assert name not in (".", "..")
        assert len(name.encode()) < 100
        assert not set(name) & set("/'\" *()")


KEYS = ("experiment", "model", "seed", "data.seed", "data.path", "optimizer.lr", "tracking.notes", "hydra/launcher")


GRIDS = st.lists(
    st.dictionaries(st.sampled_from(KEYS), NASTY), min_size=1, max_size=5, unique_by=lambda job: tuple(sorted(job.items()))
)


@given(GRIDS)
def test_distinct_choices_have_distinct_names_in_whatever_order_jobs_and_keys_come(jobs):
    names = job_names(jobs)
    assert len(set(names)) == len(jobs)
    again = job_names([dict(reversed(job.items())) for job in reversed(jobs)])
    assert again == names[::-1]


def test_jobs_are_named_by_what_differs_and_by_their_seed():
    assert job_names([{"recursion": "t2_n2", "model": "tiny"}, {"recursion": "t3_n6", "model": "tiny"}]) == [
        "recursion=t2_n2",
        "recursion=t3_n6",
    ]
    assert job_names([{"ema": "on", "experiment": "a", "tracking": "none"}]) == ["a,ema=on"]
    assert job_names([{"model": "tiny", "seed": "0"}, {"model": "tiny", "seed": "1"}]) == ["seed=0", "seed=1"]
    assert job_names([{"seed": "0", "experiment": "a"}, {"seed": "0", "experiment": "b"}]) == ["a,seed=0", "b,seed=0"]
    assert job_names([{"seed": "0", "data.seed": seed} for seed in "01"]) == ["seed=0,data.seed=0", "seed=0,data.seed=1"]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_has_one_word_that_reads_as_the_number(value):
    assert float(word(value)) == value
    assert word(value) == word(float(word(value)))


def test_a_grid_has_the_same_jobs_however_it_is_written():
    one = compose_jobs(["run_name=s", "optimizer.lr=1e-3,1e-4", "recursion=t2_n2,t2_n6"])
    other = compose_jobs(["recursion=glob(t2*)", "++optimizer.lr=0.0001,.10e-2", "run_name=s"])
    assert one == other
    assert len({repr(cfg) for cfg in one.values()}) == 4


def test_what_is_given_twice_runs_once():
    assert set(compose_jobs(["seed=0,0,1", "run_name=s"])) == {"seed=0", "seed=1"}
    assert len(compose_jobs(["optimizer.lr=1e-3,0.001", "run_name=s"])) == 1
    assert set(compose_jobs(["experiment=e2_2_t3_n6,e1_1_baseline", "seed=0"])) == {"e1_1_baseline,seed=0"}


def test_a_name_holds_the_values_that_the_keys_come_to():
    (name,) = compose_jobs(["recursion=t2_n2", "++recursion.T=4", "optimizer.lr=0.00030", "run_name=s"])
    assert name == "recursion=t2_n2,lr=3e-4,T=4"
    (name,) = compose_jobs(["data.path='a b,c=d'", "run_name=s"])
    assert re.fullmatch(r"path=a_b_c_d-[0-9a-f]{8}", name)
