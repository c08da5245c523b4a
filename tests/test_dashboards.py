"""A real sweep of two jobs side by side, seen through the real TensorBoard server and uploaded by the real `wandb sync`."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_wandb import KEY, FakeWandb
from running import TINY, command, environment, metrics, run, summary
from tracking_fixtures import evaluation

from trm.cli import compose
from trm.tracking.trackers import open_trackers

pytestmark = pytest.mark.long
EAGER = ["hardware=cpu", "hardware.backend=eager", "hardware.jobs=2", "train.eval_every_steps=2", "train.max_steps=4"]
SEEDS = ("seed=0", "seed=1")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    run(folder, "trm.train", "--multirun", "seed=0,1", *TINY, *EAGER, "tracking=offline", "tracking.artifact=last", "run_name=pair")
    return folder / "multirun" / "pair"


@contextmanager
def tensorboard(folder):
    """The address of a TensorBoard of the folder."""
    server = subprocess.Popen(
        command("tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0"),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stderr)))
        yield found[0]
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


def get(address, path, body=None, **query):
    url = f"{address}/data/plugin/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return answer.read()


def preempted_and_resumed(run_dir):
    """What a run leaves for TensorBoard that was stopped after step 4, went on from its checkpoint of step 2 and completed."""
    run_dir.mkdir()
    cfg = compose([*TINY, "tracking=tensorboard", "seed=7", "run_name=resumed"])
    first = open_trackers(cfg, run_dir, is_main=True, resume_step=None, wandb_run_id=None)
    for step in (1, 2, 3, 4):
        first.log("train", step, {"loss": 1.0})
    first.finish("preempted", 143, {})
    second = open_trackers(cfg, run_dir, is_main=True, resume_step=2, wandb_run_id=None)
    second.log("train", 3, {"loss": 2.0})
    second.log("eval", 3, {"exact_accuracy": 0.5})
    second.show(3, evaluation)
    second.finish("completed", 0, {})


def test_tensorboard_serves_scalars_pictures_and_a_row_for_each_run(sweep):
    preempted_and_resumed(sweep / "resumed")
    runs = {f"{folder}/tensorboard" for folder in (*SEEDS, "resumed")}
    with tensorboard(sweep) as address:
        tags = json.loads(get(address, "scalars/tags"))
        assert tags.keys() == runs
        written = {f"train/{name}" for name in metrics(sweep / "seed=0", "train")[-1]} - {"train/kind", "train/global_step"}
        assert written | {"eval/exact_accuracy", "selection/exact_accuracy"} <= tags["seed=0/tensorboard"].keys()
        for seed in SEEDS:
            for kind, name in (("train", "loss"), ("train", "grad_norm"), ("eval", "accuracy")):
                served = json.loads(get(address, "scalars/scalars", run=f"{seed}/tensorboard", tag=f"{kind}/{name}"))
                recorded = [(row["global_step"], row[name]) for row in metrics(sweep / seed, kind)]
                assert [(step, value) for _, step, value in served] == [(s, pytest.approx(v, rel=1e-6)) for s, v in recorded]

        pictures = json.loads(get(address, "images/tags"))["seed=1/tensorboard"]
        assert {"eval/accuracy_by_supervision_step", "held_out/test:0", "held_out/test:1"} <= pictures.keys()
        for tag in ("eval/accuracy_by_supervision_step", "held_out/test:0"):
            shown = json.loads(get(address, "images/images", run="seed=1/tensorboard", tag=tag, sample=0))
            assert [entry["step"] for entry in shown] == [2, 4]
            assert get(address, f"images/individualImage?{shown[-1]['query']}").startswith(b"\x89PNG")

        resumed = json.loads(get(address, "scalars/scalars", run="resumed/tensorboard", tag="train/loss"))
        assert [(step, value) for _, step, value in resumed] == [(1, 1.0), (2, 1.0), (3, 2.0)]

        asked = {"startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS"], "colParams": []}
        rows = json.loads(get(address, "hparams/session_groups", asked))["sessionGroups"]
        assert {row["name"] for row in rows} == runs
        final = {row["name"].partition("/")[0]: row["metricValues"][0]["value"] for row in rows if "resumed" not in row["name"]}
        assert final == {seed: pytest.approx(summary(sweep / seed)["exact_accuracy"]) for seed in SEEDS}
        for row in rows:
            seed = row["name"].partition("/")[0].replace("resumed", "seed=7")
            expected = {"recursion": "t2_n2", "variant": "trm", "T": 2, "n": 2, "n_sup": 4, "ema": "on", "batch": 16}
            expected["seed"] = int(seed[-1])
            assert row["hparams"].items() >= expected.items()
            assert [metric["name"]["tag"] for metric in row["metricValues"]] == ["eval/exact_accuracy"]


def test_a_sweeps_runs_are_one_group_in_one_wandb_folder(sweep):
    assert not list(sweep.glob("*/wandb"))
    assert len(list(sweep.glob("wandb/offline-run-*/run-*.wandb"))) == 2
    hints = {re.search("`(wandb sync [^`]*)`", (sweep / seed / "train.log").read_text())[1] for seed in SEEDS}
    assert len(hints) == 1  # one command for all runs
    with FakeWandb() as server:
        binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = environment(WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY, NO_PROXY="127.0.0.1", PATH=binaries)
        subprocess.run(["bash", "-c", hints.pop()], env=env, cwd=sweep, check=True, capture_output=True, timeout=120)
        runs = {r.settings["displayName"]: r for r in server.runs.values()}
        assert runs.keys() == set(SEEDS)
        for name, uploaded in runs.items():
            assert (uploaded.settings["groupName"], uploaded.settings["jobType"]) == ("pair", "train")
            assert uploaded.config["seed"] == int(name[-1])
            assert uploaded.summary["best_exact_accuracy"] == summary(sweep / name)["best_exact_accuracy"]
            losses = [row["train/loss"] for row in uploaded.history if "train/loss" in row]
            assert losses == pytest.approx([row["loss"] for row in metrics(sweep / name, "train")])
        saved = {a.settings["runName"]: a for a in server.artifacts if a.settings["artifactTypeName"] == "model"}
        assert saved.keys() == server.runs.keys()
        for run_id, artifact in saved.items():
            folder = sweep / server.runs[run_id].settings["displayName"] / "checkpoints/latest"
            assert artifact.committed
            assert artifact.files == {path.name: path.read_bytes() for path in folder.iterdir()}
