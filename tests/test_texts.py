"""A key that the schema calls text gets the text as it was typed; one that it calls a path, a file of this machine."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from running import TINY, refused, run

from trm.cli import compose, compose_jobs, compose_launch
from trm.config import Config, all_keys, from_plain, keys_of, load_yaml, to_plain
from trm.config.overrides import as_typed, parsed
from trm.config.schema import TextKind, text_kind
from trm.errors import ConfigError
from trm.plan.settings import split_arguments as plan_arguments
from trm.report.__main__ import main as report
from trm.run.early import RefuseEarly
from trm.run.saved import _with_overrides, split_arguments

WORDS = [
    "2026_11_30", "1e3", "true", "False", "12e4567", "98e7654", "0x10", "007", "1_000", "inf", "NaN", "+5", "1.", "yes", "off",
    "2026-11-30", "2026-11-30 12:00", "mon été", "a#b", "it's", "f(x)", "lr=3e-4", "数独", "~x",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_a_text_is_as_typed(word, tmp_path):
    assert parsed(f"run_name={word}") == ("run_name", word)
    assert parsed(f"tracking.tags=[a, {word},b]")[1] == ["a", word, "b"]
    assert parsed(f"tracking={{notes: {word}, tags: [{word}], tensorboard: false}}")[1] == {
        "notes": word, "tags": [word], "tensorboard": False,
    }  # fmt: skip
    (tmp_path / "a.yaml").write_text(f"notes: {word}\ntags: [a, {word}, b]\ntensorboard: off")
    assert load_yaml(tmp_path / "a.yaml", "tracking") == {"notes": word, "tags": ["a", word, "b"], "tensorboard": False}


def test_texts_are_as_typed_in_every_way_of_giving_them(tmp_path):
    (tmp_path / "experiment").mkdir()
    lines = "# @package _global_\ndefaults: [{override /ema: off}]\nrun_name: 2026_11_30\ntracking: {notes: yes, tags: [1e3]}\n"
    (tmp_path / "experiment" / "1e3.yaml").write_text(lines)
    in_yaml = compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=1e3"])
    typed = compose(["run_name=2026_11_30", "tracking.notes=yes", "tracking.tags=[1e3]", "ema=off"])
    saved = _with_overrides(to_plain(compose(["run_name=2026_11_30"])), ["tracking.notes=yes", "tracking.tags=[1e3]", "ema=off"])
    for cfg in (in_yaml, typed, saved):
        assert (cfg.run_name, cfg.tracking.notes, cfg.tracking.tags) == ("2026_11_30", "yes", ["1e3"])
        assert not cfg.ema.enabled


def test_a_sweep_of_texts_is_as_typed():
    jobs = compose_jobs(["tracking.notes=1e3,2_0,true,null,'a,b'", "hydra.sweep.dir=2026_11_30"])
    assert [cfg.tracking.notes for cfg in jobs.values()] == ["1e3", "2_0", "true", None, "a,b"]
    assert list(jobs)[:3] == ["notes=1e3", "notes=2_0", "notes=true"]
    jobs = compose_jobs(["tracking.job_type=choice(1e3,2e3)", "seed=0,1"])
    assert [(cfg.tracking.job_type, cfg.seed) for cfg in jobs.values()] == [("1e3", 0), ("1e3", 1), ("2e3", 0), ("2e3", 1)]


@pytest.mark.parametrize("key", ["hydra.sweep.dir", "hydra.run.dir", "hydra.launcher.partition", "data.task", "experiment", "data"])
def test_hydras_own_texts_and_options_are_as_typed(key):
    assert parsed(f"{key}=1_0") == (key, "1_0")


def test_null_is_none_where_there_may_be_none():
    cfg = compose(["run_name=null", "tracking.notes=null"])
    assert (cfg.run_name, cfg.tracking.notes) == ("null", None)


@pytest.mark.parametrize(
    "given",
    ["seed=1_0", "train.max_steps=null", "run_name=${seed}", "recursion=glob(*)", "ema.enabled=on", "run_name='a b'", "~ema"],
)
def test_what_is_no_bare_text_stays(given):
    assert as_typed(given) == given


def test_every_text_of_a_config_survives_its_file(tmp_path):
    plain = to_plain(compose([f"{key}=1_0" for key in ("run_name", "tracking.group", "data.path", "train.init_from")]))
    OmegaConf.save(OmegaConf.create(plain), tmp_path / "config.yaml")
    assert OmegaConf.to_container(load_yaml(tmp_path / "config.yaml")) == plain
    texts = all_keys()
    assert {key for key in texts if text_kind(key) == TextKind.LIST} >= {"tracking.tags", "inference.ladder", "data.subsets"}


def test_two_names_like_numbers_are_two_runs():
    """Both were `inf`, and the second had nothing to train."""
    for name in ("12e4567", "98e7654"):
        cfg, launch = compose_launch([f"run_name={name}"])
        assert (cfg.run_name, launch.run_dir) == (name, Path("outputs", name))


# paths -------------------------------------------------------------------------------------------------------------------------

PATHS = [
    f"{group}.{key}"
    for group, outer in keys_of(Config).items()
    for key, item in keys_of(outer.type).items()
    if item.metadata["path"]
]


@pytest.mark.parametrize("key", PATHS)
def test_a_path_begins_at_home_and_is_no_address(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    tpu = ["hardware=v4_8"] if key == "hardware.compile_cache" else []
    source = {"data.source_dir": ["data=arc_agi_1"], "data.train_csv": ["data.test_csv=b"], "data.test_csv": ["data.train_csv=b"]}

    plain, (group, name) = to_plain(compose([*tpu, *source.get(key, []), f"{key}=x"])), key.split(".")

    def value(text):
        plain[group][name] = text
        return to_plain(from_plain(plain, "config.yaml"))[group][name]

    assert value("~/x") == "/home/me/x"
    assert value("a~/x") == "a~/x"
    for address in ("gs://bucket/x", "s3://b", "file:///x", "hf://a/b"):
        refused(
            value,
            address,
            f"{key}={address} is an address, and only this machine's files are read and written: mount it or copy it",
        )
    refused(value, "~nobody_of_this_name/x", "no such user")


def test_every_key_of_a_place_is_a_path():
    assert PATHS == [
        "data.path", "data.train_csv", "data.test_csv", "data.source_dir", "hardware.compile_cache", "train.init_from",
    ]  # fmt: skip


def test_arguments_that_are_paths_begin_at_home_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert split_arguments(["checkpoint=~/a"])[0] == tmp_path / "a"
    assert plan_arguments(["plan.python=~/bin/python"])[0].python == f"{tmp_path}/bin/python"
    assert compose_launch(["hydra.run.dir=~/r"])[1].run_dir == tmp_path / "r"
    for command, arguments in ((split_arguments, ["checkpoint=gs://b/x"]), (report, ["gs://b/x"]), (report, ["x", "--out=s3://b"])):
        refused(command, arguments, "mount it or copy it")
    refused(report, ["~/runs"], f"{tmp_path}/runs")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "~/s"}}})
    RefuseEarly().on_multirun_start(config)
    assert config.hydra.sweep.dir == f"{tmp_path}/s"
    for option in ("hydra.run.dir=gs://b", "data.path=gs://b"):
        assert "mount it or copy it" in run(tmp_path, "trm.train", *TINY, option, check=2).stderr


def test_an_override_of_several_values_is_none_of_a_saved_run():
    with pytest.raises(ConfigError, match="seed=1,2 is not understood"):
        parsed("seed=1,2")
