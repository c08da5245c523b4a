"""scripts/gpu_record.py, tried at a tiny size on a CPU: its parts, its checkpoint in files, going on elsewhere."""

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import running
import torch

from trm.errors import CheckpointError, RunFailure, UserError
from trm.run.checkpoint import find_checkpoints, load_checkpoint

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("gpu_record", ROOT / "scripts" / "gpu_record.py")
gpu_record = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gpu_record)

TINY = [
    *("recipe=tiny", "recursion=t2_n2", "recursion.T=1", "recursion.n=1", "recursion.n_sup=3", "model.hidden_size=16"),
    *("train.global_batch_size=8", "optimizer.schedule=constant", "ema.start_step=1", "hardware.backend=eager"),
    *(
        "inference.supervision_steps=4",
        "data.num_puzzles=12",
        "evaluate.max_puzzles=3",
        "train.eval_every_steps=2",
        "train.log_every_steps=1",
    ),
]
BENCH_ROWS = [
    {"step": "train", "way": "configured", "ms": 100.0, "samples/s": 3840.0, "peak GB": 20.0},
    {"step": "eval", "way": "configured", "ms": 60.0, "samples/s": 6400.0},
]


@pytest.fixture
def puzzles(tmp_path):
    """A folder with the two csv files, of a few made puzzles."""
    folder = tmp_path / "csv"
    folder.mkdir()
    grid = [[(row * 3 + row // 3 + column) % 9 + 1 for column in range(9)] for row in range(9)]
    for name, shift, count in ((gpu_record.CSV["train_csv"], 0, 12), (gpu_record.CSV["test_csv"], 40, 5)):
        lines = ["source,question,answer,rating"]
        for number in range(count):
            answer = "".join(str(value) for row in grid for value in row)
            question = "".join("." if (i + number) % 3 == 0 or i == number + shift else c for i, c in enumerate(answer))
            lines.append(f"made,{question},{answer},9")
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def started(monkeypatch):
    """The names of what was started. Training and evaluation run in this process, parity and speed are said to be done.

    `names.ends` has exit codes that replace those of training.
    """

    class Names(list):
        ends = ()

    names = Names()

    def run(job, name, words, limit_s, **variables):
        names.append(name)
        assert limit_s <= job.given.limit_s
        if name == "parity":
            return 0, "attention_rope: largest relative error 1.5e-15\n18 passed in 60.0s"
        if name.startswith("speed"):
            faster = "hardware.token_multiple=1" not in words
            rows = [row | {"samples/s": row["samples/s"] * (1 + faster)} for row in BENCH_ROWS]
            Path(words[words.index("--json") + 1]).write_text(json.dumps({"rows": rows}))
            return 0, ""
        if name.startswith("train") and names.ends:
            code, *names.ends = names.ends
            if code != -signal.SIGKILL:
                return code, "error: out of memory"
            running.run(Path.cwd(), *words, process=False)
            (gpu_record.RUN / "summary.json").unlink()  # which a killed run does not write
            return code, ""
        done = running.run(Path.cwd(), *words, process=False)
        return done.returncode, done.stdout

    monkeypatch.setattr(gpu_record.Job, "run", run)
    return names


def record(folder, puzzles, monkeypatch, *arguments):
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    gpu_record.main(["--out", "out", "--hardware", "cpu", "--data", str(puzzles), *TINY, *arguments])
    return json.loads((folder / "out" / "record.json").read_text())


def state_of(folder):
    return load_checkpoint(find_checkpoints(folder / gpu_record.RUN)[0])


def test_one_command_then_another_machine_to_the_same_numbers(tmp_path, puzzles, started, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gpu_record, "FINAL", {})
        whole = record(tmp_path / "whole", puzzles, monkeypatch, "--parts", "train", "train.max_steps=6")
    started.clear()
    first = record(tmp_path / "first", puzzles, monkeypatch, "train.max_steps=4")
    assert started == [*("parity", "speed: tokens", "speed: plain", "train, tokens", "evaluation, standard", "evaluation, votes8")]
    assert first["parity"] == {
        "passed": True,
        "says": "18 passed in 60.0s",
        "errors": ["attention_rope: largest relative error 1.5e-15"],
    }
    assert first["way"] == "tokens"
    assert first["checkpoint"]["kept"] == "all"
    started.clear()
    second = record(tmp_path / "second", puzzles, monkeypatch, "--go-on", str(tmp_path / "first" / "out"), "train.max_steps=6")
    assert started == ["train, tokens", "evaluation, standard", "evaluation, votes8"]  # what was measured is not measured again
    assert [(start["from_step"], start["to_step"]) for start in second["starts"]] == [(0, 4), (4, 6)]
    (ours, meta), (reference, _) = state_of(tmp_path / "second"), state_of(tmp_path / "whole")
    assert meta.step == 6
    assert [row["supervision_steps"] for row in second["final"][-2:]] == [4, 4]  # not as in training
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[name], reference[name]) for name in reference if not name.startswith("metrics/"))
    ways = [(row["step"], row["inference"]) for row in second["curve"]]
    assert ways == [(step, way) for step in (2, 4, 6) for way in ("standard", "votes8")]
    assert all(row["exact_accuracy_low"] <= row["exact_accuracy"] <= row["exact_accuracy_high"] for row in second["curve"])
    assert [row["exact_accuracy"] for row in second["curve"]] == [row["exact_accuracy"] for row in whole["curve"]]
    page = (tmp_path / "second" / "out" / "record.md").read_text()
    assert "Parity: passed" in page
    assert "steps 4 to 6 of 6" in page
    assert len((tmp_path / "second" / "out" / "curve.csv").read_text().splitlines()) == 7
    assert len(list((tmp_path / "second" / "out").iterdir())) <= 8  # as many files as the device's machine sends back
    loses_latents_first_then_the_averages_last_bits(tmp_path / "first", tmp_path, monkeypatch)


def loses_latents_first_then_the_averages_last_bits(folder, tmp_path, monkeypatch):
    """What is left out of a checkpoint that is too large."""
    monkeypatch.chdir(folder)
    out, (tensors, meta) = Path("out"), state_of(folder)
    monkeypatch.setattr(gpu_record, "PART_BYTES", 50_000)
    sizes, mib = [], 100.0
    for words in ("all", "rows start anew", "rows start anew, average in bfloat16"):
        told = gpu_record.split(gpu_record.RUN, out, mib)
        files = [(out / f"state.{number}").stat().st_size for number in range(len(told["MiB"]))]
        assert told["kept"] == words
        assert max(files) <= 50_000
        sizes.append(sum(files))
        mib = (sum(files) - 1) / 2**20
        elsewhere = tmp_path / words.replace(" ", "_")
        assert gpu_record.join(out, elsewhere)
        joined, there = load_checkpoint(find_checkpoints(elsewhere)[0])
        assert there == meta
        assert joined.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert joined[name].dtype == tensor.dtype
            if name.startswith("ema/") and "average" in words:
                assert (joined[name] - tensor).abs().max() <= 2**-8 * (tensor - tensors[f"weights/{name[4:]}"]).abs().max()
            elif words == "all" or name.split("/")[0] != "carry":
                assert torch.equal(joined[name], tensor)
        assert words == "all" or joined["carry/halted"].all()
        assert not gpu_record.join(out, elsewhere)  # it is there
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(CheckpointError, match="more than"):
        gpu_record.split(gpu_record.RUN, out, mib)
    (out / "state.0").write_bytes(b"damaged")
    with pytest.raises(UserError, match="copy all of them"):
        gpu_record.join(out, tmp_path / "new")


def test_wrong_arguments_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    running.refused(gpu_record.main, ["--parts", "parity,sped"], "--parts parity,sped: sped is none of parity, speed, train")
    elsewhere = ["--go-on", str(tmp_path), "--parts", "parity"]
    running.refused(gpu_record.main, elsewhere, "give the folder of results of an earlier command")
    (tmp_path / "state.json").write_text('{"parts": 0}')
    running.refused(gpu_record.main, elsewhere, "give the folder of results of an earlier command")


def test_a_curve_of_one_copy_says_its_accuracy_twice(tmp_path):
    """inference.copies=1 leaves no other candidates whose mean an evaluation would say."""
    entry = {"kind": "eval", "global_step": 3, "exact_accuracy": 0.25, "count": 4}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(entry) + "\n")
    assert [row["exact_accuracy"] for row in gpu_record.curve(tmp_path / "metrics.jsonl")] == [0.25, 0.25]


def test_training_that_fails_is_tried_in_the_plain_way_and_the_other_parts_run(tmp_path, puzzles, started, monkeypatch):
    started.ends = [1, 1]
    with pytest.raises(RunFailure, match=r"exit code 1: error: out of memory; out/log\.txt .* no step was done"):
        record(tmp_path, puzzles, monkeypatch, "--parts", "train,parity")
    assert started == ["train, tokens", "train, plain", "parity"]
    assert "FAILED: training ended with exit code 1" in Path("out/record.md").read_text()
    started.clear()
    started.ends = [2]
    with pytest.raises(RunFailure, match="exit code 2"):
        record(tmp_path, puzzles, monkeypatch, "--parts", "train")
    assert started == ["train, tokens"]  # wrong settings are wrong in every way


def test_training_that_is_killed_leaves_its_results(tmp_path, puzzles, started, monkeypatch):
    started.ends = [-signal.SIGKILL]
    monkeypatch.setattr(gpu_record, "END_S", 1000)  # too late for another try
    with pytest.raises(RunFailure, match="exit code -9"):
        record(tmp_path, puzzles, monkeypatch, "--parts", "train", "train.max_steps=2")
    assert started == ["train, tokens", "evaluation, standard", "evaluation, votes8"]
    found = json.loads(Path("out/record.json").read_text())
    assert (found["starts"][0]["to_step"], found["starts"][0]["exit_code"]) == (2, -9)
    assert found["curve"]
    assert Path("out/state.0").exists()


@pytest.mark.parametrize(("passed", "way"), [(True, gpu_record.GRAPH), (False, gpu_record.TOKENS), (None, gpu_record.TOKENS)])
def test_a_graph_trains_only_where_its_parity_was_shown(tmp_path, monkeypatch, passed, way):
    monkeypatch.chdir(tmp_path)
    speeds = {gpu_record.PLAIN: 1.0, gpu_record.TOKENS: 2.0, gpu_record.GRAPH: 3.0, "the paper's step": 9.0}

    def run(job, name, words, limit_s, **variables):
        row = {"step": "train", "way": "configured", "samples/s": speeds[name.removeprefix("speed: ")]}
        Path(words[words.index("--json") + 1]).write_text(json.dumps({"rows": [row]}))
        return 0, ""

    monkeypatch.setattr(gpu_record.Job, "run", run)
    given = argparse.Namespace(limit_s=600.0, hardware="gpu", rest=[], reference=None)
    job = gpu_record.Job(given, tmp_path, {} if passed is None else {"parity": {"passed": passed}})
    gpu_record.speed(job)
    assert job.record["way"] == way


def test_parts_without_time_or_result_are_not_done(tmp_path, puzzles, started, monkeypatch):
    with pytest.raises(RunFailure, match="parity: no time was left"):
        record(tmp_path, puzzles, monkeypatch, "--parts", "parity", "--limit-s", "20")
    monkeypatch.setattr(gpu_record.Job, "run", lambda job, *_, **variables: (-signal.SIGTERM, "collected 24 items"))
    with pytest.raises(RunFailure, match=r"parity was stopped by signal 15 .*24 items; speed: nothing was measured"):
        record(tmp_path, puzzles, monkeypatch, "--parts", "parity,speed")
    assert json.loads(Path("out/record.json").read_text()) == {}  # the next command tries again


def test_the_curve_leaves_out_a_line_that_is_being_written(tmp_path):
    entry = {"kind": "eval", "global_step": 3, "exact_accuracy": 0.25, "count": 4}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(entry)}\n{json.dumps(entry)[:20]}")
    assert len(gpu_record.curve(tmp_path / "metrics.jsonl")) == 2


def test_what_takes_too_long_is_asked_to_end_and_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpu_record.RUN.mkdir(parents=True)
    job, once = gpu_record.Job(argparse.Namespace(limit_s=60.0), tmp_path, {}), ["timeit", "-n", "1", "-r", "1"]
    code, _ = job.run("sleep", [*once, "import time; time.sleep(60)"], 0.1)
    assert code == -signal.SIGTERM
    code, text = job.run("leave", [*once, "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"], 60)
    assert code == 0
    stat = Path(f"/proc/{text.split()[0]}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX":  # dead, if not yet collected
        time.sleep(0.05)
    log = (tmp_path / "log.txt").read_text()
    assert "== exit code -15" in log
    assert text in log


@pytest.mark.long
def test_the_command_itself_on_a_cpu(tmp_path, puzzles):
    """Training and evaluations as processes, started as a user does."""
    words = ["--out", "out", "--hardware", "cpu", "--data", str(puzzles), "--limit-s", "600", "--parts", "train", *TINY]
    script = [sys.executable, str(ROOT / "scripts" / "gpu_record.py"), *words, "train.max_steps=4"]
    environment = running.environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "record.json").read_text())
    assert found["starts"][0]["to_step"] == 4
    assert [row["inference"] for row in found["final"]] == ["standard", "votes8"]
    assert (tmp_path / "out" / "state.0").exists()
