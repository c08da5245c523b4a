"""Data that is not there: downloaded from a hub on loopback, once, or refused in one line where there is none."""

import hashlib
import json
import os
import re

import pytest
from fake_hub import fake_hub
from running import run

from trm.cli import compose
from trm.data.hub import download
from trm.errors import DataError
from trm.tasks.base import task_of
from trm.tasks.sudoku.generate import generate
from trm.tasks.sudoku.rules import BLANK, Sudoku
from trm.tasks.sudoku.task import HUB

NOTHING_LISTENS = "http://127.0.0.1:9"  # as good as no network, on any machine
SMALL = ["data.num_puzzles=8", "data.num_test_puzzles=8", "model=tiny", "recursion=t2_n2", "recursion.n_sup=1", "tracking=none"]
SMALL += ["train.global_batch_size=8", "train.max_steps=1", "hardware.backend=eager", "evaluate.max_puzzles=8"]


@pytest.fixture(scope="module")
def files():
    """train.csv and test.csv of the hub's dataset, eight puzzles each."""
    task = Sudoku(3, 3)
    puzzles = ["".join(map(str, row - BLANK)) for part in generate(task, 16, 0) for row in part]
    lines = [f"src,{question.replace('0', '.')},{answer},5" for question, answer in zip(puzzles[:16], puzzles[16:], strict=True)]
    header = "source,question,answer,rating"
    return {f"{name}.csv": "\n".join([header, *rows, ""]).encode() for name, rows in (("train", lines[:8]), ("test", lines[8:]))}


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
    """The hub, to which the client in this process turns."""
    from huggingface_hub import constants

    with fake_hub(files, HUB.revision) as served:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield served


def test_a_file_is_fetched_once(hub, files):
    for _ in range(2):
        assert download("train.csv", HUB.repository, HUB.revision).read_bytes() == files["train.csv"]
    assert hub.fetched() == ["train.csv"]


def test_a_branch_is_held_to_its_content(hub):
    known = hub.sha256["test.csv"]
    assert download("test.csv", HUB.repository, "main", known) == download("test.csv", HUB.repository, "main", known)
    with pytest.raises(DataError, match=rf"at main has sha256 {known}, not {'0' * 64}: it was changed there"):
        download("test.csv", HUB.repository, "main", "0" * 64)


def test_every_dataset_on_the_hub_is_pinned_by_a_commit_or_by_its_content(shared_data):
    for name in ("sudoku_extreme", "maze_hard"):
        hub = task_of(compose(["run_name=r", f"data={name}"]).data).hub
        assert re.fullmatch("[0-9a-f]{40}", hub.revision) or hub.sha256.keys() == {"train.csv", "test.csv"}
        for file, sha256 in hub.sha256.items():  # the mazes are the only ones so far
            content = (shared_data / f"maze_30x30_hard_{file}").read_bytes()
            assert hashlib.sha256(content).hexdigest() == sha256


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:9/"),
        ("all_proxy", "socks5://user:secret@127.0.0.1:9"),  # without the package that it needs
        ("HTTPS_PROXY", "http://127.0.0.1:port"),
        ("NO_PROXY", "localhost,[::1"),
        ("SSL_CERT_FILE", "/missing/certificates.pem"),
        ("SSL_CERT_DIR", "/missing"),
        ("REQUESTS_CA_BUNDLE", "/missing/bundle.pem"),
        ("SSL_CERT_FILE", __file__),
        ("HF_HUB_ETAG_TIMEOUT", "10"),
    ],
)
def test_a_variable_that_keeps_a_download_from_beginning_is_named(tmp_path, monkeypatch, name, value):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", NOTHING_LISTENS)
    for other in [other for other in os.environ if re.search("proxy|ca_bundle|^SSL_CERT|^HF_", other, re.IGNORECASE)]:
        monkeypatch.delenv(other)
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with pytest.raises(DataError) as caught:
        download("train.csv", HUB.repository, HUB.revision)
    assert str(caught.value).startswith("cannot download train.csv of sapientinc/sudoku-extreme (")
    assert f"; check the environment variable {name})" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert dict(os.environ) == before


@pytest.mark.long
def test_the_user_s_own_command_downloads_builds_and_trains(files, tmp_path):
    with fake_hub(files, HUB.revision) as hub:
        surroundings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        done = run(tmp_path, "trm.train", *SMALL, "run_name=r", **surroundings)
        run(tmp_path, "trm.train", *SMALL, "run_name=again", **surroundings)
    assert len(re.findall("does not exist: building it, once", done.stdout)) == 1
    assert hub.fetched() == ["train.csv", "test.csv"]
    assert json.loads((tmp_path / "outputs" / "again" / "summary.json").read_text())["status"] == "completed"


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", NOTHING_LISTENS)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOTHING_LISTENS + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.mark.usefixtures("no_network")
def test_without_a_network_one_line_names_the_ways_around(tmp_path):
    done = run(tmp_path, "trm.train", *SMALL, check=2, process=False)
    line = done.stderr.strip()
    assert "\n" not in line
    ways = ("train.csv and test.csv", "`python -m trm.build_data data=sudoku_extreme ", "data=sudoku_9x9")
    assert [words for words in ("data.path=data/sudoku_extreme", *ways) if words not in line] == []


@pytest.mark.long
def test_a_sweep_downloads_and_builds_once_before_its_first_job(files, tmp_path):
    with fake_hub(files, HUB.revision) as hub:
        surroundings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        done = run(tmp_path, "trm.train", "-m", "seed=0,1", *SMALL, "run_name=s", "hardware.jobs=2", **surroundings)
    assert hub.fetched() == ["train.csv", "test.csv"]
    assert done.stdout.index("building it, once") < done.stdout.index("seed=0: started")
    logs = [path.read_text() for path in tmp_path.glob("multirun/*/seed=*/train.log")]
    assert len(logs) == 2
    assert not any("building it" in log for log in logs)


@pytest.mark.usefixtures("no_network")
def test_a_sweep_without_a_network_says_it_once_and_starts_no_job(tmp_path):
    done = run(tmp_path, "trm.train", "-m", "recursion=glob(*)", *SMALL, check=2, process=False)
    assert done.stderr.count("\n") == 1
    assert "data=sudoku_9x9" in done.stderr
    assert "started" not in done.stdout
    assert not list(tmp_path.glob("multirun/*/recursion=*"))
