"""Real commands against a W&B server on this machine: what runs send, and the workspace that shows it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_wandb import KEY, FakeWandb
from running import TINY, command, environment, metrics, summary, warnings
from sweeping import wait_for

from trm.cli import compose
from trm.config import paper
from trm.dashboard import paper_table, parse
from trm.errors import UserError
from trm.tracking.labels import labels

pytestmark = pytest.mark.long
RUN = [
    *(argument for argument in TINY if not argument.startswith("tracking=")),
    "hardware=cpu", "hardware.backend=eager", "model.hidden_size=16", "train.max_steps=6", "train.eval_every_steps=3",
]  # fmt: skip

# A run on the paper's puzzles, as train.py logs it but without the hours.
PAPER_RUN = """
import sys
from pathlib import Path
from trm.cli import compose
from trm.tracking.evaluation import Evaluation
from trm.tracking.trackers import open_trackers
cfg = compose(["experiment=paper_no_ema", "tracking=wandb", "tracking.tensorboard=false", "run_name=paper"])
trackers = open_trackers(cfg, Path(sys.argv[1]), is_main=True, resume_step=None, wandb_run_id="paper001")
trackers.log("eval", 1, {"exact_accuracy": 0.75})
trackers.show(1, lambda: Evaluation([{"exact_accuracy": 0.75}], []))
trackers.finish("completed", 0, {})
assert trackers.warnings == [], trackers.warnings
"""


class Account:
    """A user's machine: an empty home, a key for a server, and all that the commands said."""

    def __init__(self, folder, url):
        self.folder, self.said = folder, ""
        (folder / "home").mkdir()
        own = {"HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(Path(__file__).parents[1])}
        self.env = environment(**own, WANDB_BASE_URL=url, WANDB_API_KEY=KEY, OMP_NUM_THREADS="1")

    def call(self, *arguments, check=0, **env):
        done = subprocess.run(
            [str(argument) for argument in arguments],
            cwd=self.folder, env=self.env | env, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        self.said += done.stdout + done.stderr
        assert done.returncode == check, done.stdout + done.stderr
        return done

    def push(self, *arguments, **options):
        return self.call(*command("trm.dashboard", "push", *arguments), **options)


@pytest.fixture(scope="module")
def server():
    with FakeWandb() as server:
        yield server


@pytest.fixture(scope="module")
def study(tmp_path_factory, server):
    """Two runs online, of which one went on, one offline that is uploaded afterwards, and one of a row of the paper's."""
    account = Account(tmp_path_factory.mktemp("account"), server.url)
    first, *others = ["seed=0", "tracking=wandb"], ["seed=1", "tracking=wandb"], ["seed=2", "tracking=offline", "ema=off"]
    for run in ([*first, "train.max_steps=3"], first, *others):
        account.call(*command("trm.train", *RUN, *run, "tracking.group=pair", f"run_name=seed_{run[0][-1]}"))
    assert len(server.runs) == 2
    [offline] = account.folder.glob("outputs/seed_2/wandb/offline-run-*")
    account.call(Path(sys.executable).parent / "wandb", "sync", offline)
    (account.folder / "paper").mkdir()
    account.call(sys.executable, "-c", PAPER_RUN, account.folder / "paper")
    return account


def test_runs_arrive_whole_online_and_synced_later(study, server):
    runs = {run.config["seed"]: run for run in server.runs.values() if run.settings["displayName"] != "paper"}
    assert sorted(runs) == [0, 1, 2]
    digests = {}
    for seed, run in runs.items():
        folder = study.folder / f"outputs/seed_{seed}"
        rows = {kind: [row for row in run.history if any(key.startswith(f"{kind}/") for key in row)] for kind in ("train", "eval")}
        assert [row["global_step"] for row in rows["train"]] == list(range(1, 7))
        assert [row["train/loss"] for row in rows["train"]] == pytest.approx([row["loss"] for row in metrics(folder, "train")])
        evaluations = [(row["global_step"], row["eval/exact_accuracy"]) for row in rows["eval"] if "eval/exact_accuracy" in row]
        assert evaluations == [(row["global_step"], pytest.approx(row["exact_accuracy"])) for row in metrics(folder, "eval")]
        assert {row["global_step"] for row in rows["eval"]} == {3, 6}
        own = summary(folder)
        assert (own["wandb_mode"], warnings(folder)) == ("offline" if seed == 2 else "online", [])
        for key in ("status", "steps", "best_exact_accuracy", "config_digest", "parameters"):
            assert run.summary[key] == own[key], key
        assert run.exit_code == 0
        assert run.starts == 2 or seed > 0  # which is the same run to W&B
        assert {key: run.settings[key] for key in ("project", "groupName", "jobType", "displayName")} == {
            "project": "trm-scaling-study",
            "groupName": "pair",
            "jobType": "train",
            "displayName": f"seed_{seed}",
        }
        assert (run.config["recursion"]["T"], run.config["ema"]["enabled"]) == (2, seed != 2)
        ema = ", no EMA" if seed == 2 else ""
        shown = run.config["labels"]
        digests[seed] = shown["digest"]
        assert run.config["data_read"] == own["data"]
        assert run.summary["data_caveats"] == own["data"]["caveats"]
        assert shown == {
            "recursion": "t2_n2",
            "variant": f"t2_n2, sudoku_4x4, 64 puzzles, N_sup 4{ema}, width 16, batch 16, 6 steps #{shown['digest']}",
            "digest": shown["digest"],
            "paper_exact_accuracy": None,
        }
    assert server.unknown == []


def test_push_creates_the_workspace_then_updates_it(study, server):
    shown = json.loads(study.push("--dry-run", "entity=tester").stdout)
    assert server.views == {}
    first = study.push()
    [(view_id, view)] = server.views.items()
    assert first.stdout.startswith(f"created {server.url}/tester/trm-scaling-study?nw=")
    assert first.stderr == ""
    assert view.spec == shown["spec"]
    assert {key: view.variables[key] for key in ("entityName", "projectName", "displayName", "type")} == {
        "entityName": "tester",
        "projectName": "trm-scaling-study",
        "displayName": "TRM scaling study",
        "type": "project-view",
    }
    # What someone set in the browser: colours and a hidden run stay, a section that was thrown away comes back.
    edited = view.spec
    edited["section"]["customRunColors"] = {"run0": "#ff0000"}
    edited["section"]["runSets"][0]["selections"]["tree"] = ["run1"]
    del edited["section"]["panelBankConfig"]["sections"][2:]
    view.variables["spec"] = json.dumps(edited)
    second = study.push()
    assert second.stdout == first.stdout.replace("created", "updated")
    assert list(server.views) == [view_id]
    assert view.writes == 2
    assert view.spec["section"]["panelBankConfig"]["sections"] == shown["spec"]["section"]["panelBankConfig"]["sections"]
    assert view.spec["section"]["customRunColors"]["run0"] == "#ff0000"
    assert view.spec["section"]["runSets"][0]["selections"]["tree"] == ["run1"]

    study.push("name=Another")
    assert [view.variables["displayName"] for view in server.views.values()] == ["TRM scaling study", "Another"]
    assert server.unknown == []


def panels(spec):
    return [panel for section in spec["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


def test_what_the_workspace_shows_is_what_runs_send(study, server):
    spec = json.loads(study.push("--dry-run").stdout)["spec"]
    history = {key for run in server.runs.values() for row in run.history for key in row}
    summaries = {f"summary:{key}" for run in server.runs.values() for key in run.summary}
    configs = [run.config for run in server.runs.values()]

    def in_config(path):  # recursion.value.T: W&B keeps every top-level entry as {"value": ...}
        group, value, *rest = path.split(".")
        assert value == "value"
        found = configs[0][group]
        for key in rest:
            found = found[key]
        return found is not None

    grouped = set()
    for panel in panels(spec):
        config = panel["config"]
        assert {*config.get("metrics", []), *config.get("mediaKeys", [])} <= history, config
        for column in config.get("columns", []):
            name = column["accessor"]
            assert name in summaries or in_config(name.removeprefix("config:")), name
        if "groupBy" in config:
            assert in_config(config["groupBy"])
            grouped.add((panel["viewType"], config["groupBy"]))
        if panel["viewType"] == "Run History Line Plot":
            assert config["xAxis"] == "global_step"
    assert grouped == {("Run History Line Plot", "labels.value.recursion"), ("Bar Chart", "labels.value.variant")}
    [run] = [run for run in server.runs.values() if run.settings["displayName"] == "paper"]
    assert (run.summary["eval/exact_accuracy"], run.summary["paper/exact_accuracy"]) == (0.75, 0.799)


def test_the_key_is_written_nowhere(study, server):
    study.push()
    files = [path for path in study.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in study.said
    received = [run.settings | run.streams for run in server.runs.values()] + [view.variables for view in server.views.values()]
    assert KEY not in json.dumps(received)
    assert not any(KEY.encode() in content for run in server.runs.values() for content in run.files.values())


@pytest.mark.parametrize(
    ("arguments", "env", "check", "says"),
    [
        ([], {"WANDB_API_KEY": ""}, 2, "error: push needs a W&B key (there is none): run `wandb login`"),
        ([], {"WANDB_API_KEY": "secretbutshort"}, 2, "error: push needs a W&B key (WANDB_API_KEY invalid"),
        ([], {"WANDB_API_KEY": "x" * 40}, 2, "does not accept this W&B key"),
        (["project=none"], {}, 2, "error: W&B has no project tester/none"),
        (["name=T=3"], {}, 2, "error: name=T=3: W&B allows no symbols"),
        ([], {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_HTTP_TIMEOUT": "2"}, 1, "error: http://127.0.0.1:9 does not answer"),
    ],
)
def test_what_cannot_be_pushed_is_told_in_one_line(study, server, arguments, env, check, says):
    before = json.dumps([view.variables for view in server.views.values()])
    done = study.push(*arguments, check=check, **env)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert "secret" not in done.stderr
    assert json.dumps([view.variables for view in server.views.values()]) == before


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("entity=a/b", "entity=a/b: not a name for W&B"),
        ("project=", "project is empty, which W&B refuses"),
        ("nam=x", "nam=x: not understood"),
        ("--dry", "arguments: --dry (did you mean --dry-run?); `python -m trm.dashboard --help`"),
    ],
)
def test_wrong_arguments(argument, says):
    with pytest.raises(UserError, match=re.escape(says)):
        parse(["push", argument])


def test_a_dry_run_needs_neither_network_nor_key(study):
    done = study.push("--dry-run", "project=mine", WANDB_API_KEY="", WANDB_BASE_URL="http://127.0.0.1:9")
    shown = json.loads(done.stdout)
    assert (shown["entity"], shown["project"], shown["name"], done.stderr) == (None, "mine", None, "")
    [markdown] = [panel for panel in panels(shown["spec"]) if panel["viewType"] == "Markdown Panel"]
    assert markdown["config"]["value"] == paper_table()
    assert all(f"| {row.name} | {100 * row.exact_accuracy:.1f} |" in paper_table() for row in paper.ROWS)


def test_a_server_that_dies_and_comes_back_gets_every_row(tmp_path):
    with FakeWandb() as server:
        account = Account(tmp_path, server.url)
        process = subprocess.Popen(
            command("trm.train", *RUN, "tracking=wandb", "train.max_steps=100", "train.eval_every_steps=null", "run_name=away"),
            cwd=tmp_path, env=account.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            run_dir = tmp_path / "outputs/away"
            wait_for(lambda: any(run.history for run in server.runs.values()))
            server.stop()
            seen = len(metrics(run_dir, "train"))
            [run] = server.runs.values()
            received = len(run.history)
            wait_for(lambda: len(metrics(run_dir, "train")) >= min(seen + 20, 100))
            assert len(run.history) == received
            server.come_back()
            _, err = process.communicate(timeout=200)
        finally:
            process.kill()
        assert process.returncode == 0, err
        assert [row["global_step"] for row in run.history if "train/loss" in row] == list(range(1, 101))
        assert (run.exit_code, run.summary["status"], run.summary["steps"]) == (0, "completed", 100)
        assert (summary(run_dir)["wandb_mode"], warnings(run_dir)) == ("online", [])
        assert KEY not in err


@pytest.mark.parametrize(
    ("overrides", "recursion", "variant", "value"),
    [
        (["experiment=paper_t3_n6"], "t3_n6", "t3_n6", 0.874),
        (["experiment=paper_no_ema"], "t3_n6", "t3_n6, no EMA", 0.799),
        (["experiment=paper_4_layers_n3"], "t3_n3", "t3_n3, 4 layers", 0.795),
        (["experiment=e1_1_baseline", "seed=3"], "t3_n6", "t3_n6, batch 256", 0.874),
        (["experiment=e3_1_large_model"], "t3_n6", "t3_n6, 4 layers, width 1024, batch 256", None),
        (["experiment=paper_t3_n6", "data.num_puzzles=500"], "t3_n6", "t3_n6, 500 puzzles", None),
        (["data=sudoku_4x4", "model=tiny", "recursion=t2_n2"], "t2_n2", "t2_n2, sudoku_4x4, width 64", None),
    ],
)
def test_labels(overrides, recursion, variant, value):
    found = labels(compose(overrides))
    assert (found.recursion, found.variant, found.paper_exact_accuracy) == (recursion, variant, value)
