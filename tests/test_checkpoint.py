"""Checkpoints: round trips, links, what damage does, and what a crash leaves behind."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trm.run.checkpoint
from trm.errors import CheckpointError
from trm.run.checkpoint import (
    META_FILE,
    STATE_FILE,
    CheckpointWriter,
    Meta,
    Scores,
    find_checkpoints,
    flatten,
    load_checkpoint,
    mend_links,
    save_checkpoint,
    saved_steps,
    set_aside,
    unflatten,
)

TENSORS = {
    "weights/w": torch.tensor([[1.5, -0.0], [float("nan"), 1e-40]]),  # NaN, a negative zero and a denormal
    "carry/latents/z_H": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "carry/halted": torch.tensor([True, False, True]),
    "carry/steps": torch.tensor([1, 2**31 - 1], dtype=torch.int32),
    "v/w": torch.randn(3, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    "step": torch.tensor(7, dtype=torch.int32),
}


def make_meta(step, **changes):
    values = {
        "step": step,
        "config": {"seed": 3, "optimizer": {"lr": 1e-4, "beta1": 0.9}, "train": {"max_steps": None}},
        "digest": "0123456789abcdef",
        "data": {"seq_len": 81, "vocab_size": 11, "num_puzzle_identifiers": 1},
        "data_digest": "fedcba9876543210",
        "wandb_run_id": None,
        "scores": Scores(best_exact_accuracy=0.1 + 0.2, best_step=5, last_eval={"exact_accuracy": 1 / 3}, last_eval_step=5),
    }
    return Meta(**(values | changes))


def save(run_dir, step, *, best=5, keep=3, tensors=TENSORS):
    """Save a step whose scores say that `best` is the best until now."""
    meta = make_meta(step, scores=dataclasses.replace(make_meta(step).scores, best_step=best))
    return save_checkpoint(run_dir, tensors, meta, keep=keep)


def bits(tensor):
    return tensor.dtype, tensor.shape, bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def refusal(folder):
    """The one line that loading `folder` is refused with."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_round_trip_is_bit_exact(tmp_path):
    folder = save(tmp_path, 7)
    assert folder == tmp_path / "checkpoints" / "step_7"
    tensors, meta = load_checkpoint(folder)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert bits(tensors[name]) == bits(tensor), name
    assert meta == make_meta(7)  # floats survive JSON exactly
    assert isinstance(meta.config["optimizer"]["lr"], float)


def test_views_are_saved_by_value(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {"transposed": base.t(), "expanded": torch.tensor([1.0, 2.0]).expand(3, 2), "strided": torch.arange(8.0)[::2]}
    loaded, _ = load_checkpoint(save(tmp_path, 1, tensors=tensors))
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)


def test_equal_runs_write_equal_bytes(tmp_path):
    first = save(tmp_path / "a", 4)
    second = save(tmp_path / "elsewhere", 4, tensors=dict(reversed(TENSORS.items())))
    for name in (STATE_FILE, META_FILE):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert str(tmp_path) not in (first / META_FILE).read_text()


class Tree(NamedTuple):
    weights: dict
    embedding: torch.Tensor | None
    pair: tuple


def make_tree(value=0.0, embedding=True):
    return Tree(
        {"net.0.w": torch.full((2, 2), value), "b": torch.full((3,), value, dtype=torch.bfloat16)},
        torch.full((1,), value) if embedding else None,
        (torch.tensor(value), {"halted": torch.tensor([bool(value)])}),
    )


@pytest.mark.parametrize("embedding", [True, False])
def test_flatten_and_unflatten(embedding):
    tree = make_tree(1.0, embedding)
    named = flatten(tree)
    assert named.keys() == {"weights/net.0.w", "weights/b", "pair/0", "pair/1/halted"} | ({"embedding"} if embedding else set())
    back = unflatten(make_tree(0.0, embedding), dict(reversed(named.items())), "FILE")
    assert isinstance(back, Tree)
    assert (back.embedding is None) == (not embedding)
    assert flatten(back).keys() == named.keys()
    assert all(torch.equal(flatten(back)[name], tensor) for name, tensor in named.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights/b": None}, ["weights/b", "missing"]),
        ({"weights/extra": torch.zeros(1)}, ["weights/extra", "not expected"]),
        ({"weights/b": torch.zeros(4, dtype=torch.bfloat16)}, ["weights/b", "[4]", "[3]"]),
        ({"weights/b": torch.zeros(3)}, ["weights/b", "float32", "bfloat16"]),
        ({"embedding": None}, ["embedding", "missing"]),
    ],
)
def test_unflatten_names_what_does_not_fit(change, words):
    named = {k: t for k, t in (flatten(make_tree()) | change).items() if t is not None}
    with pytest.raises(CheckpointError) as caught:
        unflatten(make_tree(), named, "runs/x/step_3")
    for word in ["runs/x/step_3", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_newest_and_best_are_kept(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step, best=2, keep=3)
    assert saved_steps(tmp_path) == [2, 5, 6, 7]
    save(tmp_path, 10, best=10, keep=3)  # 10 sorts after 7 as a number
    assert saved_steps(tmp_path) == [6, 7, 10]
    save(tmp_path, 11, best=10, keep=1)
    assert saved_steps(tmp_path) == [10, 11]


def test_checkpoints_are_found_by_any_of_their_paths(tmp_path):
    save(tmp_path, 1, best=1)
    save(tmp_path, 2, best=1)
    folder = tmp_path / "checkpoints"
    found = {path.name: find_checkpoints(path)[0].name for path in (tmp_path, folder, *folder.iterdir())}
    assert found == dict.fromkeys((tmp_path.name, "checkpoints", "step_2", "latest"), "step_2") | dict.fromkeys(
        ("step_1", "best"), "step_1"
    )
    for path in (tmp_path / "nowhere", folder / "step_9"):
        with pytest.raises(CheckpointError, match=rf"^[^\n]*{path.name}[^\n]*$"):
            find_checkpoints(path)


def test_saved_steps_ignores_other_names(tmp_path):
    save(tmp_path, 3)
    for name in ("step_x", "step_4.old", ".writing_step_9", "step_"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert saved_steps(tmp_path) == [3]
    assert saved_steps(tmp_path / "nowhere") == []
    assert str(tmp_path / "step_1") in refusal(tmp_path / "step_1")


def test_set_aside_starts_over_without_losing_anything(tmp_path):
    set_aside(tmp_path)  # nothing there yet
    for number in (1, 2):
        save(tmp_path, number)
        (tmp_path / "metrics.jsonl").write_text(f"{number}\n")
        set_aside(tmp_path)
        assert saved_steps(tmp_path) == []
        assert not (tmp_path / "metrics.jsonl").exists()
        assert (tmp_path / f"metrics.jsonl.{number}").read_text() == f"{number}\n"
        assert load_checkpoint(tmp_path / f"checkpoints.{number}" / "latest")[1].step == number


# What tools make of a link with this target, once it is away.
TOOLS = {
    "scp -r, or zip without -y": lambda link, target: shutil.copytree(link.parent / target, link),
    "an object store, or FAT": lambda link, target: None,
    "version control on systems without links": lambda link, target: link.write_text(target),
    "copying links once and folders again and again": lambda link, target: link.symlink_to("step_1"),
    "links to nowhere": lambda link, target: link.symlink_to("/nowhere/step_3"),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_best_and_latest_are_what_the_checkpoints_say_whatever_tools_make_of_links(tmp_path, tool):
    for step, best in ((1, 1), (2, 2), (3, 2)):
        save(tmp_path, step, best=best)
    folder = tmp_path / "checkpoints"
    for link in [path for path in folder.iterdir() if path.is_symlink()]:
        target = os.readlink(link)
        link.unlink()
        TOOLS[tool](link, target)
    steps = {
        path.name: int(find_checkpoints(path)[0].name.removeprefix("step_"))
        for path in (tmp_path, folder / "latest", folder / "best")
    }
    assert steps == {tmp_path.name: 3, "latest": 3, "best": 2}
    save(tmp_path, 4, best=2, keep=1)
    assert saved_steps(tmp_path) == [2, 4]  # the best is not pruned
    mend_links(tmp_path)
    assert {path.name: os.readlink(path) for path in folder.iterdir() if path.is_symlink()} == {
        "latest": "step_4",
        "best": "step_2",
    }
    assert {path.name for path in folder.iterdir()} == {"step_2", "step_4", "latest", "best"}


def test_without_links_in_the_file_system_checkpoints_are_saved_and_found(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for step in (1, 2, 3, 4):
        save(tmp_path, step, best=1, keep=2)
    assert saved_steps(tmp_path) == [1, 3, 4]
    assert find_checkpoints(tmp_path / "checkpoints" / "best")[0].name == "step_1"
    assert find_checkpoints(tmp_path)[0].name == "step_4"


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("intact"), 7)
    return {name: (folder / name).read_bytes() for name in (STATE_FILE, META_FILE)}


@pytest.fixture
def damaged(tmp_path):
    """A function that writes a checkpoint folder of these files and returns it."""

    def write(files):
        folder = tmp_path / "step_7"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder

    return write


shared_folder = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@shared_folder
@given(data=st.data())
def test_any_flipped_bit_is_noticed(intact, damaged, data):
    """In the JSON it may also be one between words, which changes nothing."""
    name = data.draw(st.sampled_from([STATE_FILE, META_FILE]))
    content = bytearray(intact[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    folder = damaged({**intact, name: bytes(content)})
    if name == STATE_FILE:
        assert str(folder / name) in refusal(folder)
    else:
        with contextlib.suppress(CheckpointError):
            assert load_checkpoint(folder)[1] == make_meta(7)


@shared_folder
@given(data=st.data())
def test_any_cut_of_a_file_is_noticed(intact, damaged, data):
    name = data.draw(st.sampled_from([STATE_FILE, META_FILE]))
    length = data.draw(st.integers(0, len(intact[name]) - 2))  # the last byte of the JSON is a line end, which may be missing
    folder = damaged({**intact, name: intact[name][:length]})
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, lambda _: None) for name in (STATE_FILE, META_FILE)),
        (STATE_FILE, lambda whole: whole + b"\0"),
        *((META_FILE, lambda _, content=content: content) for content in (b"[]", b"{}", b'{"format_version": 2}', b"\xff\xfe")),
        (META_FILE, lambda whole: whole.replace(b'"step": 7', b'"step": 6')),
        (META_FILE, lambda whole: whole.replace(b'"step": 7', b'"step": "x"')),
        (META_FILE, lambda whole: whole.replace(b'"digest"', b'"digesu"')),
    ],
)
def test_a_file_that_is_missing_or_says_something_else_is_named(intact, damaged, name, change):
    changed = change(intact[name])
    assert changed != intact[name]
    folder = damaged({key: content for key, content in (intact | {name: changed}).items() if content is not None})
    assert str(folder / name) in refusal(folder)


def test_state_that_is_no_safetensors_file_is_refused_though_its_checksum_fits(damaged, intact):
    body = json.loads(intact[META_FILE]) | {"state_sha256": hashlib.sha256(b"junk").hexdigest()}
    folder = damaged({STATE_FILE: b"junk", META_FILE: json.dumps(body).encode()})
    assert str(folder) in refusal(folder)


class PowerCut(BaseException):
    pass


CRASHES = ["after the state is written", "before the rename", "before the links"]


@pytest.mark.parametrize("moment", CRASHES)
def test_a_crash_while_saving_leaves_the_previous_checkpoints(tmp_path, monkeypatch, moment):
    save(tmp_path, 1, best=1)
    save(tmp_path, 2, best=1)

    def cut(*_args, **_kwargs):
        raise PowerCut

    with monkeypatch.context() as patch:
        if moment == "after the state is written":
            write = trm.run.checkpoint._write
            patch.setattr(
                trm.run.checkpoint, "_write", lambda path, content: cut() if path.name == META_FILE else write(path, content)
            )
        elif moment == "before the rename":
            patch.setattr(Path, "rename", cut)
        else:
            patch.setattr(Path, "symlink_to", cut)
        with pytest.raises(PowerCut):
            save(tmp_path, 3, best=3)
    written = moment == "before the links"  # which nothing needs
    assert load_checkpoint(find_checkpoints(tmp_path)[0])[1].step == (3 if written else 2)
    assert load_checkpoint(find_checkpoints(tmp_path / "checkpoints" / "best")[0])[1].step == (3 if written else 1)
    for step in saved_steps(tmp_path):  # whatever has a checkpoint's name is whole
        load_checkpoint(tmp_path / "checkpoints" / f"step_{step}")
    assert saved_steps(tmp_path) == ([1, 2, 3] if written else [1, 2])
    save(tmp_path, 3, best=3)  # the same save goes through afterwards and leaves nothing behind
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step_1", "step_2", "step_3", "best", "latest"}
    assert load_checkpoint(find_checkpoints(tmp_path)[0])[1].step == 3


def test_files_are_on_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.rename

    def logged_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def logged_rename(self, target):
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "rename", logged_rename)
    save(tmp_path, 1)
    before = events[: events.index("rename")]
    assert {STATE_FILE, META_FILE, ".writing_step_1"} <= set(before)
    assert "checkpoints" in events[events.index("rename") :]


@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("damaged", [False, True])
def test_a_crash_while_a_step_is_saved_again_loses_nothing(tmp_path, monkeypatch, moment, damaged):
    """At each rename and removal in turn: the next start has the step, as it was or as it became, and nothing else is left."""
    save(tmp_path, 1)
    again = save(tmp_path, 2)
    if damaged:
        (again / STATE_FILE).write_bytes(b"")
    left = [moment]

    def until_the_cut(function):
        def call(*arguments):
            if not left[0]:
                raise PowerCut
            left[0] -= 1
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", until_the_cut(Path.rename))
        patch.setattr(shutil, "rmtree", until_the_cut(shutil.rmtree))
        with contextlib.suppress(PowerCut):
            save(tmp_path, 2, tensors=TENSORS | {"step": torch.tensor(8)})
    mend_links(tmp_path)
    tensors, meta = load_checkpoint(find_checkpoints(tmp_path)[0])
    assert (meta.step, int(tensors["step"])) == (2, 8)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step_1", "step_2", "latest"}


def test_an_unfinished_checkpoint_is_not_adopted(tmp_path):
    save(tmp_path, 1)
    half = save(tmp_path, 2).rename(tmp_path / "checkpoints" / ".writing_step_3")
    (half / META_FILE).unlink()
    mend_links(tmp_path)
    assert saved_steps(tmp_path) == [1]
    assert not half.exists()


def test_the_checkpoint_just_written_is_never_deleted(tmp_path):
    save(tmp_path, 100)
    save(tmp_path, 60, keep=1)
    assert load_checkpoint(find_checkpoints(tmp_path)[0])[1].step == 60
    assert saved_steps(tmp_path) == [60]
    load_checkpoint(tmp_path / "checkpoints" / "step_100.damaged")  # kept aside


def test_the_writer_writes_what_save_checkpoint_would(tmp_path):
    writer = CheckpointWriter(tmp_path / "background", keep=2)
    for step in (1, 2, 3):
        writer.save(TENSORS, make_meta(step, scores=Scores(best_step=1)))
        save_checkpoint(tmp_path / "direct", TENSORS, make_meta(step, scores=Scores(best_step=1)), keep=2)
    writer.close()
    files = [
        {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        for folder in (tmp_path / "background", tmp_path / "direct")
    ]
    assert files[0] == files[1]


def test_the_writer_does_not_hold_up_its_caller_and_tells_of_a_failure_later(tmp_path, monkeypatch):
    go_on = threading.Event()

    def slow(*args, **kwargs):
        go_on.wait(30)
        raise OSError("no room")

    monkeypatch.setattr("trm.run.checkpoint.save_checkpoint", slow)
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save(TENSORS, make_meta(1))  # comes back though the write has not ended
    writer.check()
    go_on.set()
    with pytest.raises(OSError, match="no room"):
        writer.close()
    writer.close()
