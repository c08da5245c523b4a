"""Which code made a run: in its summary, its checkpoints and the report."""

import json
import subprocess

import pytest
from running import SMALLEST, run, summary

from trm.run import revision


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder that holds trm/, as ROOT does; returns what `code` says of it."""
    (tmp_path / "trm").mkdir()
    (tmp_path / "trm" / "a.py").write_text("1")
    monkeypatch.setattr(revision, "ROOT", tmp_path)
    return tmp_path, revision.code.__wrapped__


def git(folder, *arguments):
    me = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *me, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_says_its_revision_and_whether_it_was_changed(tree, monkeypatch):
    folder, code = tree
    git(folder, "init")
    assert (code()["revision"], code()["dirty"]) == (None, None)  # no commit yet
    git(folder, "add", "trm")
    git(folder, "commit", "-m", "first")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # of a hook
    (folder / "outputs").mkdir()
    (folder / "outputs" / "a").write_text("what a run leaves is no change of the code")
    monkeypatch.delenv("GIT_DIR")
    head = git(folder, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert (code()["revision"], code()["dirty"]) == (head, False)
    (folder / "trm" / "b.py").write_text("2")
    assert (code()["revision"], code()["dirty"]) == (head, True)


def test_without_git_or_a_checkout_the_versions_are_there(tree, monkeypatch):
    folder, code = tree
    (folder / "setup.cfg").write_text("[metadata]\nversion = 9.8\n")
    monkeypatch.setattr(revision, "_installed_from", lambda: None)
    found = code()
    assert (found["revision"], found["dirty"]) == (None, None)
    assert found["versions"].keys() == {"trm-scaling-study", "torch", "torch_xla"}
    assert found["versions"]["trm-scaling-study"] == "9.8"
    assert found["versions"]["torch"]
    (folder / ".git").mkdir()
    monkeypatch.setenv("PATH", "/nowhere")
    assert code()["revision"] is None


def test_a_package_installed_from_a_repository_says_its_commit(tree, monkeypatch):
    _, code = tree
    monkeypatch.setattr(revision, "_installed_from", lambda: json.dumps({"vcs_info": {"commit_id": "abc"}}))
    assert (code()["revision"], code()["dirty"]) == ("abc", False)
    monkeypatch.setattr(revision, "_installed_from", lambda: json.dumps({"url": "file:///a.whl"}))
    assert code()["revision"] is None


@pytest.mark.usefixtures("undrawn")
def test_a_run_and_its_report_say_it(tmp_path):
    run(tmp_path, "trm.train", *SMALLEST, "run_name=a")
    run(tmp_path, "trm.report", "outputs/a")
    folder = tmp_path / "outputs" / "a"
    code = summary(folder)["code"]
    assert code == revision.code()
    assert json.loads((folder / "checkpoints" / "step_1" / "meta.json").read_text())["code"] == code
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["code"] == report["runs"][0]["code"] == code
