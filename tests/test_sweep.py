"""Sweeps: idempotence, failures, jobs side by side. Jobs are those of fake_job.py, each a process of its own."""

import contextlib
import importlib
import json
import os
import re
import signal
import stat
import sys
from importlib.util import find_spec
from itertools import accumulate, pairwise

import filelock
import pytest
import yaml
from composing import jobs_composed_once  # noqa: F401 - a fixture
from omegaconf import OmegaConf
from running import SMALLEST, run
from sweeping import FAKE_JOB, put_unread_data, start, summaries, sweep, wait_for

from trm.backends.xla import compile_cache
from trm.cli import ROOT, compose, compose_jobs, compose_sweep
from trm.config import digest, to_plain
from trm.errors import EXIT_FAILED, EXIT_PREEMPTED
from trm.ground.folder import CONFIG_FILE, write_summary
from trm.ground.rank import process_rank
from trm.study import sweep as study
from trm.study.queue import QueueLauncher


def test_a_process_outside_of_a_job_is_rank_0(monkeypatch):
    for name in ("SUBMITIT_EXECUTOR", "TRM_RANK", "TRM_RANKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "3")  # an interactive shell inside an allocation
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert process_rank() == (0, 1)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert process_rank() == (3, 8)
    monkeypatch.setenv("TRM_RANK", "2")  # of scripts/launch_pod.sh
    monkeypatch.setenv("TRM_RANKS", "4")
    assert process_rank() == (2, 4)


def test_failures_stop_nothing_and_the_same_command_runs_only_what_is_missing(tmp_path):
    """Of an exception, a user's error and an exit; and the summary of an earlier attempt does not speak for a later one.

    Jobs see the GPUs that the sweep sees, and the folder for temporary files may have a long path.
    """
    temporary = tmp_path / ("\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 60)
    temporary.mkdir()
    command = ["-m", "seed=0,1,2,3", "run_name=s", "hardware.jobs=2"]
    machine = {"TMPDIR": str(temporary), "CUDA_VISIBLE_DEVICES": "1"}
    orders = {"seed=1": "raise", "seed=2": "user_error", "seed=3": "exit"}
    code, _, err = sweep(tmp_path, *command, orders=orders, **machine)
    assert code == 1
    assert "3 of 4 jobs did not complete in multirun/s:" in err
    assert "  seed=1: failed: RuntimeError: a bad day" in err
    assert f"  python {FAKE_JOB} -m seed=0,1,2,3 run_name=s" in err
    assert "Traceback" not in err
    first = summaries(tmp_path)
    statuses = {name: summary["status"] for name, summary in first.items()}
    assert statuses == {"seed=0": "completed"} | {f"seed={i}": "failed" for i in (1, 2, 3)}
    assert first["seed=2"]["reason"] == "DataError: data.path=x is not there"
    assert "ended without a summary" in first["seed=3"]["reason"]
    assert (first["seed=0"]["run_name"], first["seed=0"]["gpus"]) == ("seed=0", "1")
    assert "RuntimeError: a bad" in (tmp_path / "multirun/s/seed=1/train.log").read_text()
    grid = json.loads((tmp_path / "multirun/s/grid.json").read_text())
    assert [job["dir"] for job in grid["jobs"]] == [f"seed={i}" for i in range(4)]
    assert grid["jobs"][1]["overrides"] == ["seed=1", "run_name=s", "hardware.jobs=2"]

    # in the sweep's own process, one after the other
    code, out, err = sweep(tmp_path, *command, "hydra/launcher=basic", orders={"seed=1": "user_error"})
    assert code == 1
    assert "skipping 1 completed jobs: seed=0" in out
    assert "1 of 4 jobs did not complete" in err
    assert "seed=1: failed: DataError: data.path=x is not there" in err
    assert "a bad day" not in err
    second = summaries(tmp_path)
    assert second["seed=0"] == first["seed=0"]
    assert [second[f"seed={i}"]["status"] for i in (2, 3)] == ["completed"] * 2

    code, out, err = sweep(tmp_path, *command)
    assert (code, err) == (0, "")
    assert "skipping 3 completed jobs: seed=0, seed=2, seed=3" in out
    assert "all 4 jobs completed in multirun/s" in out
    third = summaries(tmp_path)
    assert {name for name in third if third[name] != second[name]} == {"seed=1"}


@pytest.fixture
def swept(tmp_path, monkeypatch, jobs_composed_once):  # noqa: F811
    """A function that goes through a sweep whose jobs all complete; returns those that it skips, and all folders then there."""
    monkeypatch.chdir(tmp_path)

    def sweep(*arguments):
        jobs = [study.Job(name, (), cfg) for name, cfg in compose_jobs(["run_name=s", *arguments]).items()]
        jobs = study.with_folders(tmp_path / "s", jobs)
        todo = study.left_to_do(tmp_path / "s", jobs)
        for job in todo:
            (tmp_path / "s" / job.dir).mkdir(parents=True, exist_ok=True)
            OmegaConf.save(OmegaConf.create(to_plain(job.cfg)), tmp_path / "s" / job.dir / CONFIG_FILE)
            write_summary(tmp_path / "s" / job.dir, {"status": "completed", "config_digest": job.digest})
        return {job.dir for job in jobs if job not in todo}, {path.name for path in (tmp_path / "s").iterdir()}

    return sweep


def test_the_same_sweep_in_another_order_or_with_more_values_trains_nothing_again(swept):
    four = {f"ema={ema},seed={seed}" for ema in ("on", "off") for seed in (0, 1)}
    assert swept("ema=on,off", "seed=0,1") == (set(), four)
    assert swept("++seed=1,0", "ema=glob(*)") == (four, four)
    assert swept("seed=range(0,3)", "ema=off,on") == (four, four | {"ema=on,seed=2", "ema=off,seed=2"})


def test_a_run_that_another_grid_gave_another_name_is_found(swept):
    """ema=on is the default, so that the first grid's jobs are a part of the second's, and of the third's."""
    two = {"seed=0", "seed=1"}
    assert swept("seed=0,1") == (set(), two)
    all_four = two | {"ema=off,seed=0", "ema=off,seed=1"}
    assert swept("seed=0,1", "ema=on,off") == (two, all_four)
    assert swept("seed=0", "ema.enabled=true,false") == ({"seed=0", "ema=off,seed=0"}, all_four)
    assert swept("seed=0,1", "train.max_steps=6") == (set(), all_four)  # completed with other settings, they go on


def test_jobs_of_other_settings_under_the_same_name_are_told_apart(swept):
    two = {"seed=0", "seed=1"}
    assert swept("seed=0,1") == (set(), two)
    skipped, there = swept("seed=0,1", "ema=off")
    assert skipped == set()
    assert len(there - two) == 2
    assert all(re.fullmatch(r"seed=[01]-[0-9a-f]{8}", name) for name in there - two)
    assert swept("seed=0,1", "ema=off") == (there - two, there)
    assert swept("seed=0,1") == (two, there)


def test_a_job_whose_name_is_taken_finds_its_own_run_first(swept):
    swept("seed=0,1", "ema=off")
    three = {"seed=0", "seed=1", "ema=on,seed=0"}
    assert swept("seed=0", "ema=on,off") == ({"seed=0"}, three)
    assert swept("seed=0", "ema=on") == ({"ema=on,seed=0"}, three)


def test_jobs_on_other_data_are_told_apart_but_not_on_data_that_moved(swept, tmp_path):
    for name, count in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        counts = {"train": count, "test": count}
        record = {"settings": {}, "csv_sha256": {}, "puzzles": counts, "rows": counts, "disjointness": "-"}
        (tmp_path / name / "build.json").write_text(json.dumps(record))
    swept("seed=0", "data.path=a")
    skipped, there = swept("seed=0", "data.path=b")
    assert (skipped, len(there)) == (set(), 2)
    (tmp_path / "a").rename(tmp_path / "c")
    assert swept("seed=0", "data.path=c") == ({"seed=0"}, there)


@pytest.mark.parametrize(
    ("code", "later", "ended"),
    [
        (EXIT_PREEMPTED, True, None),
        (EXIT_PREEMPTED, False, EXIT_PREEMPTED),
        (EXIT_FAILED, True, EXIT_FAILED),
    ],
)
def test_a_preempted_job_has_not_failed_where_its_queue_starts_it_again(tmp_path, monkeypatch, code, later, ended):
    """A failed job has, whatever its queue would do with a preempted one."""
    launcher = QueueLauncher()
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # which is a job's own process's
    monkeypatch.setattr(launcher, "placed", lambda folder: contextlib.nullcontext({"environment": {}}))
    monkeypatch.setattr(launcher, "run", lambda *_: sys.exit(code))
    monkeypatch.setattr(launcher, "goes_on_later", lambda rank: later)
    with pytest.raises(SystemExit) if ended else contextlib.nullcontext() as end:
        assert launcher([], "", 0, str(tmp_path / "job"), {}) is None
    assert end is None or end.value.code == ended


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "recursion=glob(x*)"], "recursion=glob(x*) matches nothing: choose from t2_n2, t2_n6, t3_n4, t3_n6, t4_n6"),
        (["-m", "seed=0,-1", "run_name=s"], "job seed=-1: seed=-1 is out of range"),
        (["-m", "seed=0", "tracking.tags=[a,'']"], "error: tracking.tags[1] is empty"),
        (["-m", "seed=0,1", "+recursion.depth=3"], "recursion.depth is not a config key"),
        (["+sweep=tn_sweep", "hardware=cpu_mesh", "train.global_batch_size=100"], "does not divide over 8 devices: use 96 or 104"),
        pytest.param(
            ["-m", "seed=0,1", "hydra/launcher=ray"],
            "hydra/launcher=ray is not installed: make setup EXTRAS=dev,ray",
            marks=pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed"),
        ),
        (["-m", "hardware.placement=chip,host", "hardware=v4_8"], "hardware.num_devices must be the same for all jobs"),
        (["-m", "hardware.num_devices=1,2", "hardware=gpus"], "hardware.num_devices must be the same for all jobs"),
        (["-m", "seed=0", "hardware=v4_64", "hardware.placement=pod", "hydra/launcher=submitit_slurm"], 'Could not detect "srun"'),
    ],
)
def test_what_the_user_got_wrong_is_one_line_before_anything_starts(tmp_path, arguments, message):
    put_unread_data(tmp_path)
    refused = run(tmp_path, "trm.train", *arguments, check=2, process=False, PATH="")  # where there is no srun
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("multirun/*/*/summary.json"))


def test_a_rank_that_fails_ends_the_other_ranks_of_its_slurm_job(tmp_path, monkeypatch):
    """By an option of srun, whatever commands the user runs before it."""
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    compose([])  # Hydra loads its plugins first, as in every command
    params = yaml.safe_load((ROOT / "conf/hydra/launcher/submitit_slurm.yaml").read_text()) | {"setup": ["module load cuda"]}
    del params["_target_"]
    slurm = importlib.import_module("trm.study.slurm").SlurmLauncher(**params)
    script = slurm._executor(tmp_path)._executor._make_submission_file_text("COMMAND", "id")
    assert "\nmodule load cuda\n" in script
    assert re.search(r"^srun .*--kill-on-bad-exit=1 COMMAND$", script, re.MULTILINE)


@pytest.mark.long
def test_never_more_jobs_at_once_than_slots(tmp_path):
    orders = dict.fromkeys(("seed=0", "seed=1", "seed=2", "seed=3"), "meet 2")
    code, _, err = sweep(tmp_path, "-m", "seed=0,1,2,3", "run_name=s", "hardware.jobs=2", orders=orders)
    assert (code, err) == (0, "")
    found = summaries(tmp_path)
    moments = sorted([(s["began"], 1) for s in found.values()] + [(s["ended"], -1) for s in found.values()])
    assert max(accumulate(change for _, change in moments)) == 2
    assert len({s["pid"] for s in found.values()}) == 4
    assert {json.loads(p.read_text())["slot"] for p in tmp_path.glob("multirun/s/*/placement.json")} == {0, 1}
    assert all(s["cores"] == max(1, len(os.sched_getaffinity(0)) // 2) for s in found.values())


OUTER = {"SLURM_JOB_ID": "7", "SLURM_CPU_BIND": "quiet", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SBATCH_PARTITION": "x"}
OUTER |= {"SUBMITIT_EXECUTOR": "slurm", "RANK": "1", "WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "TRM_RANKS": "2"}
OUTER |= {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "r"}
KEPT = {"SLURM_CONF": "/etc/slurm.conf", "WANDB_PROJECT": "p", "CUDA_VISIBLE_DEVICES": "0"}


def test_jobs_know_nothing_of_a_job_that_the_sweep_is_in(monkeypatch):
    compose([])  # Hydra loads its plugins first, as in every command
    queue = importlib.import_module("trm.study.queue")
    for name, value in (OUTER | KEPT).items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    for around in (queue.job_environment(2), queue.without_outer_job()):
        with around:
            assert not OUTER.keys() & os.environ.keys()
            assert KEPT.items() <= os.environ.items()
            assert process_rank() == (0, 1)
        assert dict(os.environ) == before
    monkeypatch.delenv("SLURM_JOB_ID")  # on a login node, what its user says to sbatch
    with queue.job_environment(1):
        assert os.environ["SBATCH_PARTITION"] == "x"


def test_a_job_is_the_run_whose_dataset_counts_otherwise_than_its_settings(tmp_path, monkeypatch):
    """As ARC's 960 tasks of which a source has 800: the folder's counts are the run's, and the same command finds it completed."""
    monkeypatch.chdir(tmp_path)
    run(tmp_path, "trm.build_data", "data=sudoku_4x4", "data.num_puzzles=16", "data.num_test_puzzles=16", "data.path=d")
    (tmp_path / "d/build.json").rename(tmp_path / "build.json")  # as the reference's builder leaves it
    asked = [*SMALLEST, "data.path=d", "data.num_puzzles=12"]
    run(tmp_path, "trm.train", *asked, "run_name=a", "hydra.run.dir=s/a")
    sweep_dir = tmp_path / "s"
    for name in ("a", "b"):  # by its name, and where the grid was another
        [job] = study.with_folders(sweep_dir, [study.Job(name, (), compose([*asked, f"run_name={name}"]))])
        assert job.dir == "a"
        assert study.why_incomplete(sweep_dir, job) is None
    [job] = study.with_folders(sweep_dir, [study.Job("a", (), compose([*asked, "run_name=a", "recursion.n=3"]))])
    assert job.dir != "a"
    (tmp_path / "build.json").rename(tmp_path / "d/build.json")  # now it says that it is of other settings
    monkeypatch.setattr(study, "_read", {})
    [job] = study.with_folders(sweep_dir, [study.Job("a", (), compose([*asked, "run_name=a"]))])
    assert job.dir != "a"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_stopped_sweep_lets_its_jobs_save_and_goes_on_later(tmp_path, number):
    """A terminal and a queue send theirs to the whole group: the sweep, its jobs, and what has started these.

    While it runs, the same sweep is refused. What is said of its jobs is why they are run again.
    """
    process = start(tmp_path, "-m", "seed=0,1", "run_name=s", orders={"seed=0": "hang"})
    wait_for((tmp_path / "multirun/s/seed=0/hung").exists)
    refused = run(tmp_path, "trm.train", "-m", "seed=0,1", "run_name=s", check=2, process=False)
    assert "this sweep is already running" in refused.stderr
    (process.send_signal if number == signal.SIGTERM else lambda n: os.killpg(process.pid, n))(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "seed=0: preempted at step 0 of 1" in err
    assert "seed=1: failed: not started: the sweep was stopped" in err


@pytest.mark.long
def test_a_tpu_host_gives_each_job_its_own_chip(tmp_path):
    """hardware=v4_8: four jobs at once, one chip each, unless hardware.placement says otherwise."""
    orders = dict.fromkeys(("seed=0", "seed=1", "seed=2", "seed=3", "seed=4"), "meet 4")
    code, _, err = sweep(tmp_path, "-m", "seed=0,1,2,3,4", "run_name=s", "hardware=v4_8", orders=orders)
    assert (code, err) == (0, "")
    found = sorted(summaries(tmp_path).values(), key=lambda s: s["began"])
    assert {s["tpu"]["TPU_VISIBLE_CHIPS"] for s in found[:4]} == {"0", "1", "2", "3"}
    assert {s["placement"] for s in found} == {"chip"}
    by_chip = {}
    for s in found:
        by_chip.setdefault(s["tpu"]["TPU_VISIBLE_CHIPS"], []).append((s["began"], s["ended"]))
    assert all(a[1] <= b[0] for spans in by_chip.values() for a, b in pairwise(sorted(spans)))


def test_the_study_at_cpu_size_is_the_same_command_with_other_groups():
    small = ["data=sudoku_6x6", "model=tiny", "seed=0,1", "experiment=e2_2_t2_n2,e2_2_t4_n6"]
    folder, jobs = compose_sweep(["+sweep=tn_sweep", *small])
    assert folder.name == "tn_sweep,data=sudoku_6x6,e2_2_t2_n2,e2_2_t4_n6,model=tiny,seed=0,1"
    assert sorted(jobs) == [f"e2_2_{grid},seed={seed}" for grid in ("t2_n2", "t4_n6") for seed in (0, 1)]
    assert len({digest(cfg) for cfg in jobs.values()}) == 4


@pytest.mark.long
def test_a_sweep_of_real_runs(tmp_path):
    """Two steps of two grid points by the real command; given again, nothing runs."""
    arguments = ["+sweep=tn_sweep", "experiment=e2_2_t2_n2,e2_2_t2_n6", "data=sudoku_4x4", "data.num_puzzles=20"]
    arguments += ["data.num_test_puzzles=8", "model=tiny", "train.max_steps=2", "train.global_batch_size=8", "recursion.n_sup=2"]
    arguments += ["hardware.backend=eager", "tracking=none", "run_name=s"]
    code, out, err = sweep(tmp_path, *arguments, command=("-m", "trm.train"))
    assert (code, err) == (0, ""), err
    found = summaries(tmp_path)
    assert {name: (s["status"], s["steps"]) for name, s in found.items()} == {
        "e2_2_t2_n2": ("completed", 2),
        "e2_2_t2_n6": ("completed", 2),
    }
    code, out, _ = sweep(tmp_path, *arguments, command=("-m", "trm.train"))
    assert code == 0
    assert "skipping 2 completed jobs: e2_2_t2_n2, e2_2_t2_n6" in out
    assert summaries(tmp_path) == found


def test_a_summary_is_judged_by_whether_it_was_written_not_by_a_clock(tmp_path):
    """A job's host may be hours behind this one: its own diagnosis must stay."""
    job = study.Job("a", (), compose(["run_name=a"]))
    (tmp_path / "a").mkdir()
    before = study.stamps(tmp_path, [job])
    write_summary(tmp_path / "a", {"status": "failed", "reason": "its own words"})
    os.utime(tmp_path / "a" / "summary.json", (1, 1))
    [(_, reason)] = study.failures(tmp_path, [job], before, {"a": "the launcher's words"})
    assert reason == "failed: its own words"
    [(_, reason)] = study.failures(tmp_path, [job], study.stamps(tmp_path, [job]), {"a": "the launcher's words"})
    assert reason == "failed: the launcher's words"  # nothing was written since


def test_the_chips_of_a_host_are_shared_by_all_its_users(tmp_path):
    compose([])  # Hydra loads its plugins first, as in every command
    queue = importlib.import_module("trm.study.queue")
    slots = [(0,), (1,)]
    old = os.umask(0o077)
    try:
        with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
            assert queue.take_slot(first, tmp_path / "chips", slots, shared=True) == 0
            assert queue.take_slot(second, tmp_path / "chips", slots, shared=True) == 1
        with contextlib.ExitStack() as again:
            assert queue.take_slot(again, tmp_path / "chips", slots, shared=True) == 0
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "chips").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "chips" / "device_0.lock").stat().st_mode) == 0o666


def test_sweeps_that_divide_a_gpu_in_different_ways_do_not_share_a_part_of_it(tmp_path):
    compose([])  # Hydra loads its plugins first, as in every command
    queue = importlib.import_module("trm.study.queue")

    def taken(stack, *slots):
        with contextlib.suppress(filelock.Timeout), pytest.MonkeyPatch.context() as patch:
            patch.setattr(queue.time, "sleep", lambda seconds: (_ for _ in ()).throw(filelock.Timeout("none is free")))
            return queue.take_slot(stack, tmp_path, [[slot] for slot in slots], shared=True)
        return None

    with contextlib.ExitStack() as half:
        assert taken(half, "0_0of2") == 0
        with contextlib.ExitStack() as others:
            assert taken(others, "0_0of1", "1_0of1") == 1  # the whole of another GPU
            assert taken(others, "0_0of3", "0_1of3", "0_2of3") == 2  # the middle third lies in both halves
            assert taken(others, "0_0of1", "0_1of2", "0_0of3", "1_5of8") is None
        assert taken(half, "0_0of1", "0_1of2") == 1
    with contextlib.ExitStack() as whole:
        assert taken(whole, "0_0of1") == 0


def test_a_process_of_a_pod_refuses_a_sweep_and_a_run_without_a_name(tmp_path):
    pod = {"TRM_RANK": "0", "TRM_RANKS": "2"}
    refused = run(tmp_path, "trm.train", "-m", "seed=0,1", "run_name=s", check=2, process=False, **pod)
    assert "hydra/launcher=submitit_slurm" in refused.stderr
    assert refused.stderr.count("\n") == 1
    refused = run(tmp_path, "trm.train", "data=sudoku_4x4", check=2, process=False, **pod)
    assert refused.stderr.startswith("error: run_name is missing")
    assert not (tmp_path / "outputs").exists()
    small = ["data=sudoku_4x4", "data.num_puzzles=8", "data.num_test_puzzles=4", "data.path=d"]
    run(tmp_path, "trm.build_data", *small, process=False, **pod)


def test_compiled_graphs_are_kept_in_a_folder_for_each_process(monkeypatch):
    monkeypatch.setenv("TPU_VISIBLE_CHIPS", "0,1")
    both, other = compile_cache("cache"), None
    monkeypatch.setenv("TPU_VISIBLE_CHIPS", "2")
    other = compile_cache("cache")
    assert both != other
    assert both.endswith("-chips_0_1")
