import io
import json
import logging
import os
import re
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from composing import composed
from fake_wandb import KEY, FakeWandb
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from thinking_fixtures import architecture
from tracking_fixtures import SUDOKU, evaluation, samples

from trm.config import Config, TrackingConfig
from trm.core.initial import init_buffers, init_weights
from trm.core.metrics import METRICS, training_names
from trm.core.programs import eval_program
from trm.core.step import empty_carry
from trm.ground.progress import Lap
from trm.inference.samples import Samples
from trm.inference.selection import over
from trm.show.think import think
from trm.tasks.sudoku.rules import BLANK
from trm.tracking.evaluation import held_out
from trm.tracking.trackers import JsonlTracker, open_trackers
from trm.tracking.training import training_values

ROOT = Path(__file__).parents[1]


def rows_of(path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def local_trackers(run, resume_step=None, tensorboard=True):
    cfg = Config(run_name="r1", tracking=TrackingConfig(wandb="disabled", tensorboard=tensorboard))
    return open_trackers(cfg, run, is_main=True, resume_step=resume_step, wandb_run_id=None)


@contextmanager
def file_size_limit(size):
    """A disk that is full: writing any file past `size` bytes raises OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def logged_warnings():
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    logging.getLogger("trm.tracking").addHandler(handler)
    try:
        yield records
    finally:
        logging.getLogger("trm.tracking").removeHandler(handler)


# ---- metrics.jsonl ----


def test_lines_are_strict_json_and_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    tracker.log("train", 1, {"loss": 0.1, "samples": 64})
    tracker.log("eval", 1, {"a": float("nan"), "b": float("inf"), "c": -float("inf")})
    assert rows_of(path) == [
        {"kind": "train", "global_step": 1, "loss": 0.1, "samples": 64},
        {"kind": "eval", "global_step": 1, "a": None, "b": None, "c": None},
    ]
    assert list(rows_of(path)[0]) == ["kind", "global_step", "loss", "samples"]
    with pytest.raises(AssertionError):
        tracker.log("train", 2, {"global_step": 3})
    tracker.close()
    with pytest.raises(ValueError, match="closed"):
        tracker.log("train", 2, {"loss": 1.0})


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=8).map(lambda gaps: [sum(gaps[: i + 1]) for i in range(len(gaps))]),
    data=st.data(),
)
def test_a_killed_and_resumed_file_equals_an_uninterrupted_one(tmp_path_factory, steps, data):
    folder = tmp_path_factory.mktemp("jsonl")

    def log_from(path, resume_step):
        tracker = JsonlTracker(path, resume_step)
        for step in steps:
            if resume_step is None or step > resume_step:
                tracker.log("train", step, {"loss": 1 / step, "ä": 2.5})
                tracker.log("eval", step, {"exact_accuracy": step / 100})
        tracker.close()

    log_from(folder / "whole", None)
    whole = (folder / "whole").read_bytes()
    resume_step = data.draw(st.sampled_from([None, 0, *steps]), label="resume_step")
    # Everything up to the checkpoint was flushed; the kill comes at any byte after that, or leaves garbage there.
    flushed = sum(len(line) for line in whole.splitlines(keepends=True) if json.loads(line)["global_step"] <= (resume_step or 0))
    killed_at = data.draw(st.integers(flushed, len(whole)), label="killed_at")
    garbage = data.draw(st.sampled_from([b"", b"\0\0\0", b"\xff{", b'{"global_step": "1"}\n', b"7\n"]), label="garbage")
    (folder / "killed").write_bytes(whole[:killed_at] + garbage)
    log_from(folder / "killed", resume_step)
    assert (folder / "killed").read_bytes() == whole
    assert sorted(p.name for p in folder.iterdir()) == ["killed", "whole"]


def test_a_file_that_cannot_be_cut_is_left_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    for step in range(20):
        tracker.log("train", step, {"loss": 1.0})
    before = path.read_bytes()
    with file_size_limit(100), pytest.raises(OSError, match="too large"):
        JsonlTracker(path, 15)
    assert path.read_bytes() == before
    with path.open("rb") as old:  # replaced, not written over: there is no moment at which it is half cut
        JsonlTracker(path, 15)
        assert old.read() == before
    assert [row["global_step"] for row in rows_of(path)] == list(range(16))


def test_an_error_of_the_record_ends_the_run(tmp_path):
    trackers = local_trackers(tmp_path, tensorboard=False)
    with file_size_limit(100):
        for step in range(2):
            trackers.log("train", step, {"loss": 1.0})
        with pytest.raises(OSError, match="too large"):
            trackers.log("train", 2, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").stat().st_size == 100
    # The line torn by the full disk must not cost more than itself.
    resumed = local_trackers(tmp_path, resume_step=100, tensorboard=False)
    resumed.finish("failed", 1, {})
    assert [row["global_step"] for row in rows_of(tmp_path / "metrics.jsonl")] == [0, 1]


# ---- TensorBoard ----


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_back_and_resuming_purges(tmp_path):
    first = local_trackers(tmp_path)
    for step in range(1, 6):
        first.log("train", step, {"loss": step / 4})
    first.log("eval", 5, {"exact_accuracy": 0.5})
    # No finish: what a killed process logged is on disk.
    losses = [(step, step / 4) for step in range(1, 6)]
    assert scalars(tmp_path / "tensorboard") == {"train/loss": losses, "eval/exact_accuracy": [(5, 0.5)]}
    second = local_trackers(tmp_path, resume_step=3)
    second.log("train", 4, {"loss": 40.0})
    second.finish("completed", 0, {})
    losses = [*losses[:3], (4, 40.0)]
    assert scalars(tmp_path / "tensorboard") == {"train/loss": losses, "eval/exact_accuracy": []}
    assert [(row["global_step"], row.get("loss")) for row in rows_of(tmp_path / "metrics.jsonl")] == losses
    assert (first.warnings, second.warnings) == ([], [])


def test_tensorboard_that_cannot_open_is_left_out_with_a_warning(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with logged_warnings() as records:
        trackers = local_trackers(tmp_path)
        trackers.log("train", 1, {"loss": 1.0})
        trackers.finish("completed", 0, {})
    assert len(trackers.warnings) == 1
    assert "TensorBoard cannot write" in trackers.warnings[0]
    assert [r.getMessage() for r in records] == trackers.warnings
    assert len(rows_of(tmp_path / "metrics.jsonl")) == 1


def test_tensorboard_that_breaks_is_dropped_with_one_warning(tmp_path):
    """And no thread prints a traceback beside it, which pytest would warn of in a later test."""
    threads = threading.active_count()
    with logged_warnings() as records:
        trackers = local_trackers(tmp_path)
        trackers.log("train", 0, {"loss": 1.0})
        assert threading.active_count() == threads
        [events] = (tmp_path / "tensorboard").iterdir()
        with file_size_limit(events.stat().st_size + 10):
            trackers.log("train", 1, {"loss": 1.0})
            trackers.show(1, evaluation)
        for step in range(2, 5):
            trackers.log("train", step, {"loss": 1.0})
        trackers.finish("completed", 0, {})
    assert len(trackers.warnings) == 1
    assert trackers.warnings[0].startswith("TensorBoard failed at step 1 (")
    assert [r.getMessage() for r in records] == trackers.warnings
    assert [r["global_step"] for r in rows_of(tmp_path / "metrics.jsonl")] == list(range(5))
    assert scalars(tmp_path / "tensorboard")["train/loss"] == [(0, 1.0)]  # the torn record is the last one


# ---- training ----


@pytest.mark.parametrize("halted", [0, 4])
def test_means_of_rows_that_halted_are_logged_only_where_one_did(halted):
    cfg = Config()
    rows = 2.0 * cfg.train.global_batch_size
    sums = dict.fromkeys(training_names(), 0.0) | {"rows": rows, "count": halted, "steps": 3.0 * halted}
    values = training_values(cfg, sums, Lap(2, 1.0, 0.1), (0.1, 0.0), 100, 1000, 1)
    assert values["halted_rows"] == halted
    of_halted = {name for name, metric in METRICS.items() if not metric.every_row}
    assert {name for name in of_halted if name in values} == (of_halted if halted else set())
    assert values.get("steps") == (3 if halted else None)


# ---- evaluations ----


def test_held_out_puzzles_in_words():
    solved, wrong = held_out(samples(), SUDOKU)
    assert solved.puzzle.name == "test:0"
    answer = " 1  2  3  4 \n 3  4  1  2 \n 2  1  4  3 \n 4  3  2  1 "
    assert solved.texts == [" 1  .  .  . \n .  .  1  . \n .  1  .  . \n .  .  .  1 ", answer, answer]
    assert wrong.texts[1] == " 1 [1] 3  4 \n 3  4  1  2 \n 2  1  4  3 \n 4  3  2 [.]"
    assert [(p.wrong_cells, p.steps_used) for p in (solved, wrong)] == [(0, 2), (2, 3)]
    width, height = Image.open(io.BytesIO(solved.png)).size
    assert width > 1.3 * height  # three grids side by side, with two lines above each
    assert held_out(samples(), None) == []  # puzzles of another kind


def test_steps_used_are_those_after_which_the_model_wants_to_halt():
    """With a continue logit, which the halting logit must exceed."""
    arch = architecture(SUDOKU, act_continue=True)
    weights, buffers = init_weights(arch, 0), init_buffers(arch, 0)
    weights["q_head.weight"] = torch.randn(weights["q_head.weight"].shape, generator=torch.Generator().manual_seed(1))
    weights["q_head.bias"] = torch.tensor([-1.0, 0.0])
    labels = np.repeat(samples().labels[:1], 8, axis=0)
    rows = {"inputs": np.where(np.random.default_rng(0).random(labels.shape) < 0.5, labels, BLANK), "labels": labels}
    rows["puzzle_identifiers"] = np.zeros(8, np.int32)
    batch = {name: torch.from_numpy(array) for name, array in rows.items()}
    step, carry, shown = eval_program(arch).function, empty_carry(arch, buffers, 8), []
    for _ in range(arch.recursion.n_sup):
        carry, found = step(weights, buffers, None, carry, batch)
        shown.append(found)
    shown = over(lambda *values: torch.stack(values).numpy(), *shown)
    halts = shown.halting > 0
    puzzles = held_out(Samples.of(rows, shown), SUDOKU)
    first = np.where(np.any(halts, axis=0), np.argmax(halts, axis=0), arch.recursion.n_sup - 1)
    assert set(first) == {0, 1, 2, 3}, "the cases that matter"
    assert [p.steps_used for p in puzzles] == (first + 1).tolist()
    # python -m trm.solve shows the same probability of halting
    thought = [frames[-1] for frames in think(arch, weights, buffers, None, rows["inputs"][0])]
    assert [frame.halting for frame in thought] == pytest.approx([frame.halting for frame in puzzles[0].frames], rel=1e-5)


def test_an_evaluation_is_made_only_where_someone_looks(tmp_path):
    def unexpected():
        raise AssertionError("nobody looks")

    trackers = local_trackers(tmp_path, tensorboard=False)
    trackers.show(1, unexpected)
    trackers.finish("completed", 0, {})
    assert rows_of(tmp_path / "metrics.jsonl") == []


# ---- hosts and config group ----


def test_hosts_other_than_rank_0_write_nothing(tmp_path):
    cfg = Config(run_name="r1", tracking=TrackingConfig(wandb="online"))
    trackers = open_trackers(cfg, tmp_path, is_main=False, resume_step=3, wandb_run_id="abc")
    trackers.log("train", 1, {"loss": 1.0})
    trackers.finish("completed", 0, {})
    assert list(tmp_path.iterdir()) == []
    assert (trackers.wandb_run_id, trackers.wandb_mode, trackers.warnings) == ("abc", "disabled", [])


def test_config_group():
    group = {
        "auto": ("auto", True), "wandb": ("online", True), "offline": ("offline", True), "tensorboard": ("disabled", True),
        "none": ("disabled", False),
    }  # fmt: skip
    assert {path.stem for path in (ROOT / "conf/tracking").iterdir()} == group.keys()
    for option, expected in group.items():
        tracking = composed(f"tracking={option}").tracking
        assert (tracking.wandb, tracking.tensorboard) == expected
        assert (ROOT / "conf/tracking" / f"{option}.yaml").read_text().startswith("# ")


# ---- W&B: the real client in its own process, as it keeps global state ----

CLIENT = """
import json, logging, os, signal, sys, time
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
import trm.tracking.trackers as trackers
import trm.tracking.wandb_view as tracking
from trm.config import Config, TrackingConfig
from trm.errors import UserError

run, mode = Path(sys.argv[1]), sys.argv[2]

def start(run=run, resume_step=None, run_id=None, name="the-run-name", **more):
    cfg = Config(run_name=name, tracking=TrackingConfig(wandb=mode, tensorboard=False, **more))
    cfg.data.name, cfg.data.path, cfg.hardware.name = "tiny", "data/tiny", "cpu"
    cfg.recursion.T = 5
    return trackers.open_trackers(cfg, run, is_main=True, resume_step=resume_step, wandb_run_id=run_id)

def report(t):
    print(json.dumps({"id": t.wandb_run_id, "mode": t.wandb_mode, "warnings": t.warnings}))
"""


@pytest.fixture
def client(tmp_path):
    """Runs a script after CLIENT with an empty home and only the W&B variables given; returns what it reported."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "home").mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "XDG_")) and k != "NETRC"}
    base = {**clean, "HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}

    def call(command, env):
        done = subprocess.run(command, env=base | env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def run_script(mode, script, **env):
        done = call([sys.executable, "-c", CLIENT + script, str(run), mode], env)
        for noise in ("wandb:", "Traceback", KEY):
            assert noise not in done.stdout + done.stderr, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    def sync(server, told_to_user):
        [command] = re.findall("`(wandb sync [^`]*)`", told_to_user)
        call(["bash", "-c", command], {**online(server), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})

    run_script.run, run_script.sync, run_script.home = run, sync, tmp_path / "home"
    return run_script


def online(server):
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}


def files_with(folder, text):
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


LOG_3 = """
for step in (1, 2, 3):
    t.log("train", step, {"loss": 1 / step})
"""
ROWS_3 = [{"global_step": step, "train/loss": pytest.approx(1 / step)} for step in (1, 2, 3)]


@pytest.mark.long
def test_online_run_is_preempted_and_resumed(client):
    with FakeWandb() as server:
        script = f"""
t = start(group="the-group", tags=["one", "two"], notes="a note")
{LOG_3}
t.log("eval", 3, {{"exact_accuracy": 0.75}})
t.finish("preempted", 143, {{"status": "preempted"}})
report(t)
"""
        [told], _ = client("auto", script, **online(server))
        assert (told["mode"], told["warnings"]) == ("online", [])
        [(run_id, run)] = server.runs.items()
        assert told["id"] == run_id
        assert (run.preempting, run.exit_code, run.summary["status"]) == (True, 143, "preempted")
        assert run.history == [*ROWS_3, {"global_step": 3, "eval/exact_accuracy": 0.75}]
        assert {k: run.settings[k] for k in ("project", "groupName", "tags", "notes", "displayName")} == {
            "project": "trm-scaling-study",
            "groupName": "the-group",
            "tags": ["one", "two"],
            "notes": "a note",
            "displayName": "the-run-name",
        }
        # W&B's code for metrics, in any order: 1 = name, 2 = glob, 5 = which of the list is the x axis, counted from 1.
        metrics = json.loads(run.settings["config"])["_wandb"]["value"]["m"]
        axis = {m.get("1") or m["2"]: metrics[m["5"] - 1]["1"] if "5" in m else None for m in metrics}
        assert axis == {"global_step": None, "*": "global_step"}
        assert run.config["recursion"]["T"] == 5
        assert run.config["optimizer"]["weight_decay"] == 1.0

        script = f"""
t = start(resume_step=3, run_id={run_id!r})
t.log("train", 4, {{"loss": 0.2}})
t.log("eval", 4, {{"exact_accuracy": 0.5}})
t.log("eval", 5, {{"exact_accuracy": 0.25}})
t.finish("completed", 0, {{"status": "completed", "best_exact_accuracy": 0.75}})
report(t)
"""
        [told], _ = client("online", script, **online(server))
        assert (told["id"], told["mode"], told["warnings"]) == (run_id, "online", [])
        assert list(server.runs) == [run_id]
        assert (run.starts, run.exit_code, len(run.history)) == (2, 0, 7)
        assert run.history[:3] == ROWS_3
        assert run.history[4] == {"global_step": 4, "train/loss": 0.2}
        assert (run.summary["status"], run.summary["best_exact_accuracy"]) == ("completed", 0.75)
        assert run.summary["eval/exact_accuracy"] in (0.25, {"last": 0.25})  # of 0.5, then 0.25
    assert [row["global_step"] for row in rows_of(client.run / "metrics.jsonl")] == [1, 2, 3, 3, 4, 4, 5]
    assert files_with(client.run, "the-run-name")  # the search finds what is there
    assert files_with(client.run, KEY) + files_with(client.home, KEY) == []
    assert not any(KEY.encode() in body for body in run.files.values())
    assert KEY not in json.dumps(run.settings) + json.dumps(run.streams)


def test_an_evaluation_is_a_table_pictures_and_a_curve_and_jobs_of_one_process_do_not_mix(client):
    """Long names are shortened; a sweep's job after one that died without finishing has its own name and the sweep's group."""
    script = """
from tracking_fixtures import evaluation
first = start(job_type="ablation")
first.log("eval", 2, {"exact_accuracy": 0.5})
first.show(2, evaluation)
(run / "next").mkdir()
(run / "grid.json").touch()
del os.environ["WANDB_RUN_GROUP"]
second = start(run=run / "next")
second.log("train", 2, {"loss": 2.0})
second.finish("completed", 0, {})
report(first)
report(second)
"""
    own = {"WANDB_NAME": "x" * 140, "WANDB_RUN_GROUP": "y" * 140, "WANDB_RUN_ID": "one"}
    with FakeWandb() as server:
        found, _ = client("online", script, **own, **online(server))
        assert [(told["mode"], told["warnings"]) for told in found] == [("online", [])] * 2
        run, job = (server.runs[told["id"]] for told in found)
        assert found[0]["id"] == "one" != found[1]["id"]
        assert job.history == [{"global_step": 2, "train/loss": 2.0}]
        for key, character in (("displayName", "x"), ("groupName", "y")):
            assert re.fullmatch(character + r"{119}-[0-9a-f]{8}", run.settings[key])
        assert {"jobType": "ablation"}.items() <= run.settings.items()
        of_job = {"jobType": "train", "displayName": "the-run-name", "groupName": client.run.name, "project": "trm-scaling-study"}
        assert of_job.items() <= job.settings.items()
        _, shown = run.history
        assert shown["global_step"] == 2
        assert not any("best" in key for key in (*shown, *run.summary))  # which is a chosen one: the last one is shown
        table = json.loads(run.files[shown["held_out/puzzles"]["path"]])
        assert [column.split(" (")[0] for column in table["columns"]] == [
            "puzzle", "question", "prediction", "answer", "wrong cells", "supervision steps used",
        ]  # fmt: skip
        puzzles = evaluation().puzzles
        assert table["data"] == [[p.puzzle.name, *p.texts, p.wrong_cells, p.steps_used] for p in puzzles]
        pictures = shown["held_out/thinking"]
        assert pictures["captions"] == ["test:0", "test:1"]
        assert all(run.files[name].startswith(b"\x89PNG") for name in pictures["filenames"])
        curve = json.loads(run.files[shown["eval/accuracy_by_supervision_step_table"]["path"]])
        assert curve["data"] == [[1, 0.0], [2, 0.5], [3, 0.5]]
        chart = json.loads(run.settings["config"])["_wandb"]["value"]["visualize"]["eval/accuracy_by_supervision_step"]
        assert chart["panel_config"]["panelDefId"] == "wandb/line/v0"
        assert server.artifacts == []  # the client would ask the server, and wait, in the middle of training


def test_auto_without_a_key_is_offline(client):
    """The long tests upload what such a run left, by the command that it names."""
    script = f"""
t = start()
{LOG_3}
t.finish("failed", 1, {{"status": "failed"}})
report(t)
"""
    [told], err = client("auto", script)
    assert (told["mode"], told["warnings"]) == ("offline", [])
    folder = f"{client.run}/wandb"
    assert f"INFO no W&B key: logging offline to {folder}; `wandb sync {folder}/offline-run-*` uploads it" in err
    assert "WARNING" not in err
    [written] = (client.run / "wandb").glob(f"offline-run-*-{told['id']}/*.wandb")
    assert written.stat().st_size > 500


def test_what_tracking_does_not_say_is_wandbs_own(client, tmp_path):
    """Of its variables and its settings files, where `wandb offline` writes a mode. What is given wins."""
    variables = {"PROJECT": "p", "TAGS": "a,b", "JOB_TYPE": "j", "ENTITY": "e", "NOTES": "x", "RUN_GROUP": "g"}
    of_variables = {"project": "p", "tags": ["a", "b"], "job_type": "j", "entity": "e", "notes": "x", "group": "g"}
    given = {"project": "q", "tags": ["c"], "job_type": "k", "entity": "f", "notes": "y", "group": "h"}
    default = {"project": "trm-scaling-study", "tags": [], "job_type": "train", "entity": None, "notes": None, "group": None}
    file = tmp_path / "home/.config/wandb/settings"
    file.parent.mkdir(parents=True)
    script = f"""
def tell(**given):
    mode = tracking.choose_wandb_mode(given.pop("mode", "auto"), run, print)
    found = vars(tracking.with_wandbs_own(TrackingConfig(**given)))
    print(json.dumps({{"mode": mode, "home": str(tracking.wandb_home(run))}} | {{key: found[key] for key in {list(given)}}}))
def environment(text="", **variables):
    tracking.teardown_wandb()  # which has read variables and file
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update({{"WANDB_" + name: value for name, value in variables.items()}})
    Path({str(file)!r}).write_text("[default]\\n" + text + "\\n")
environment(MODE="offline", DIR="elsewhere", **{variables})
tell()
tell(**{given})
environment("mode = disabled", API_KEY={KEY!r})
tell()
environment("mode = offline\\nproject = p\\nentity = e", API_KEY={KEY!r})
tell()
tell(mode="online")
for variables, given in (({{}}, "two"), ({{"SWEEP_ID": "sweep001"}}, "of0earlier")):
    environment(RUN_ID="of0agent", **variables)
    mode = "offline"
    t = start(run_id=given)
    t.finish("completed", 0, {{}})
    report(t)
"""
    found, _ = client("auto", script)
    own, said, disabled, of_file, asked, resumed, agents = found
    assert own == of_variables | {"mode": "offline", "home": "elsewhere"}
    assert said == given | {"mode": "offline", "home": "elsewhere"}
    assert disabled == default | {"mode": "disabled", "home": str(client.run)}
    assert of_file == disabled | {"mode": "offline", "project": "p", "entity": "e"}
    assert asked == of_file | {"mode": "online"}
    assert (resumed["id"], agents["id"]) == ("two", "of0agent")  # W&B's own id is that of a new run; an agent's run keeps its own
    assert list((client.run / "wandb").glob("offline-run-*-of0agent/*.wandb"))


def test_what_wandb_refuses_is_the_users_error(client):
    """A key that is missing or malformed where one is asked for, and in every mode a variable that the client does not accept."""
    wrong = {"TAGS": ("a,,b", "run_tags"), "BASE_URL": ("nonsense", "base_url"), "PROJECT": ("a/b", "'a/b'")}
    script = f"""
def refused(mode_of_run, **variables):
    global mode
    mode = mode_of_run
    os.environ.update(variables)
    try:
        report(start())
    except UserError as error:
        print(json.dumps({{"error": str(error), "left": os.listdir(run)}}))
    for name in variables:
        del os.environ[name]
    tracking.teardown_wandb()  # which has read the environment
refused("online")
refused("online", WANDB_API_KEY="secretbutshort")
for name, value in {[(f"WANDB_{name}", value) for name, (value, _) in wrong.items()]}:
    refused("auto", **{{name: value}})
refused("offline", WANDB_TAGS="a,,b")
refused("auto", WANDB_API_KEY="secretbutshort")
"""
    [missing, malformed, *variables, auto], err = client("online", script)
    assert all(told["left"] == [] and "\n" not in told["error"] for told in (missing, malformed, *variables))
    for told in (missing, malformed):
        assert "tracking.wandb=online" in told["error"]
        assert "wandb login" in told["error"]
    for told, says in zip(variables, [*(says for _, says in wrong.values()), "run_tags"], strict=True):
        assert says in told["error"]
        assert told["error"].endswith(": correct or unset it")
    assert auto["mode"] == "offline"
    assert len(auto["warnings"]) == 1
    assert "WANDB_API_KEY invalid" in auto["warnings"][0]
    assert "secret" not in err + malformed["error"] + auto["warnings"][0]


@pytest.mark.long
def test_online_falls_back_to_offline(client):
    script = f"""
tracking.WANDB_INIT_TIMEOUT_S = 1.0
t = start(run_id="myrun001")
{LOG_3}
t.finish("completed", 0, {{}})
report(t)
"""
    with FakeWandb() as server:
        refusing, dead = server.url, None
        [told], err = client("online", script, WANDB_BASE_URL=refusing, WANDB_API_KEY="x" * 40)
        assert server.refused > 0
        assert server.runs == {}
        dead = online(server)
    [unreachable], _ = client("auto", script, **dead)
    for answer, cause in ((told, "401"), (unreachable, "")):
        assert (answer["mode"], answer["id"], len(answer["warnings"])) == ("offline", "myrun001", 1)
        assert answer["warnings"][0].startswith("W&B cannot start online (")
        assert cause in answer["warnings"][0]
    assert err.count("WARNING") == 1
    assert len(list((client.run / "wandb").glob("offline-run-*-myrun001"))) >= 1
    with FakeWandb() as server:
        client.sync(server, unreachable["warnings"][0])
        assert server.runs["myrun001"].history[:3] == ROWS_3


@pytest.mark.long
def test_a_dead_wandb_process_is_dropped(client):
    script = """
def core_pid():
    pids = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    # The one that was killed before is a zombie without a command line.
    [pid] = [pid for pid in pids if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]
    return int(pid)
t = start()
t.log("train", 1, {"loss": 1.0})
time.sleep(1.5)  # W&B writes to disk every second
os.kill(core_pid(), signal.SIGKILL)
for step in range(2, 50):
    t.log("train", step, {"loss": 1.0})
    time.sleep(0.03)  # the client learns of the end from its socket
t.finish("completed", 0, {})
report(t)
(run / "next").mkdir()
t = start(run=run / "next")  # a sweep's next job in the same process
t.log("train", 1, {"loss": 1.0})
t.finish("completed", 0, {})
report(t)
(run / "last").mkdir()
t = start(run=run / "last")  # nothing comes after this one, so the client's own exit is next
os.kill(core_pid(), signal.SIGKILL)
for step in range(2, 50):
    t.log("train", step, {"loss": 1.0})
    time.sleep(0.03)  # the client learns of the end from its socket
report(t)
"""
    [told, after, last], err = client("offline", script)
    assert len(last["warnings"]) == 1
    assert len(told["warnings"]) == 1
    assert told["warnings"][0].startswith("W&B failed ")  # "at step 3", or on a busy machine "while finishing"
    with FakeWandb() as server:
        client.sync(server, told["warnings"][0])
        assert server.runs[told["id"]].history == [{"global_step": 1, "train/loss": 1.0}]
    assert err.count("WARNING") == 2
    assert [row["global_step"] for row in rows_of(client.run / "metrics.jsonl")] == list(range(1, 50))
    assert (after["mode"], after["warnings"]) == ("offline", [])
    assert list((client.run / "next/wandb").glob(f"offline-run-*-{after['id']}/*.wandb"))


@pytest.mark.long
def test_a_server_that_dies_holds_the_end_up_only_so_long(client):
    script = f"""
tracking.WANDB_FINISH_TIMEOUT_S = 2.0
t = start()
print(json.dumps(t.wandb_run_id), flush=True)
{LOG_3}
server_stops = Path(run, "stop")
server_stops.touch()
while server_stops.exists():
    time.sleep(0.05)
t.log("train", 4, {{"loss": 0.25}})
from tracking_fixtures import evaluation
t.show(4, evaluation)
began = time.monotonic()
t.finish("completed", 0, {{}})
print(time.monotonic() - began)
report(t)
"""
    with FakeWandb() as server:

        def stop_when_asked():
            flag = client.run / "stop"
            while not flag.exists():
                time.sleep(0.05)
            server.stop()
            flag.unlink()

        threading.Thread(target=stop_when_asked, daemon=True).start()
        [run_id, waited, told], err = client("online", script, **online(server))
    assert 1.5 < waited < 10
    assert len(told["warnings"]) == 1
    assert told["warnings"][0].startswith("W&B failed while finishing (Timed out")
    assert err.count("WARNING") == 1
    with FakeWandb() as second:
        client.sync(second, told["warnings"][0])
        *rows, shown = second.runs[run_id].history
        assert rows == [*ROWS_3, {"global_step": 4, "train/loss": 0.25}]
        assert shown["held_out/puzzles"]["path"] in second.runs[run_id].files


def test_without_trackers_their_libraries_are_not_imported(client):
    script = """
for mode in ("disabled", "auto"):
    t = start()
    t.log("train", 1, {"loss": 1.0})
    t.finish("completed", 0, {})
    report(t)
print(json.dumps([name for name in ("wandb", "tensorboard", "torch.utils.tensorboard") if name in sys.modules]))
"""
    *found, imported = client("disabled", script, WANDB_API_KEY=KEY, WANDB_MODE="disabled")[0]
    assert imported == []
    assert found == [{"id": None, "mode": "disabled", "warnings": []}] * 2
    assert os.listdir(client.run) == ["metrics.jsonl"]
