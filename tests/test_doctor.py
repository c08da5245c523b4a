"""The doctor: every check's good and bad outcome, its estimates against the real thing, and the command as a user gives it."""

import configparser
import dataclasses
import json
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from running import TINY, environment, run
from safetensors import safe_open
from sweeping import children, is_gone, start, stopped, wait_for

from trm import doctor
from trm.cli import compose, compose_launch
from trm.config import HardwareConfig, TrackingConfig
from trm.core.architecture import architecture
from trm.core.initial import init_buffers
from trm.core.metrics import training_names
from trm.core.step import init_state
from trm.data.build import build_dataset
from trm.data.format import array_path
from trm.doctor import answers
from trm.errors import UserError
from trm.ground import cores as machine_cores
from trm.run import probe as probing
from trm.run.checkpoint import flatten
from trm.run.probe import Probe, last_words, probe_devices

ROOT = Path(__file__).parents[1]
CPU = HardwareConfig(name="cpu")
MESH = HardwareConfig(name="cpu_mesh", devices_per_host=8)
POD = HardwareConfig(name="v4_64", platform="tpu", num_hosts=8, devices_per_host=4, dtype="bfloat16", loss_dtype="float32")
EAGER = HardwareConfig(name="cpu", backend="eager")
RANKS = HardwareConfig(name="cpu_ranks", backend="eager", num_devices=2)
GOOD = {"python": "3.11.7", "torch": "2.9.1+cpu", "torch_xla": "2.9.0", "libtpu": "0.0.21", "libtpu_wanted": "0.0.21"}
STARTED = Probe(devices=1, runtime="torch_xla on one", compile_s=0.5, right=True, peak_bytes=10**9)
SMALL = {"seq_len": 16, "vocab_size": 6, "num_puzzle_identifiers": 1}


def outcome(check, *arguments):
    """The line of a check."""
    return doctor.judged("name", lambda: check(*arguments))


@pytest.mark.parametrize(
    ("error", "found", "fix"),
    [
        (doctor.Finding("nothing there", "put it there"), "nothing there", "put it there"),
        (UserError("a=1: too small: raise a"), "a=1: too small", "raise a"),
        (PermissionError(13, "Permission denied", "x/y"), "x/y: Permission denied", "make it readable"),
        (OSError("libcudart.so: cannot open shared object file"), "a package does not import (libcudart", "make setup"),
        (ImportError("No module named 'torch'"), "a package does not import (No module named 'torch')", "make setup"),
    ],
)
def test_what_a_check_raises_is_its_line(error, found, fix):
    def check():
        raise error

    line = outcome(check)
    assert (line.level, line.fix) == ("failure", fix)
    assert line.found.startswith(found)


# ------------------------------------------------------------------------------------------------------------------ versions


@pytest.mark.parametrize(
    ("changed", "hardware", "level", "says"),
    [
        ({}, POD, "ok", "torch_xla 2.9.0"),
        ({"libtpu": None}, CPU, "ok", "not needed"),
        ({"python": "3.10.2"}, CPU, "failure", "PYTHON=python3.11"),
        ({"python": "3.14.0"}, EAGER, "failure", "3.11 to 3.13"),
        ({"torch": None}, CPU, "failure", "make setup"),
        ({"torch_xla": None}, CPU, "failure", "make setup"),
        ({"torch_xla": None}, EAGER, "ok", "torch_xla missing"),
        ({"torch": "2.10.0"}, CPU, "failure", "needs torch 2.9.*"),
        ({"torch": "2.10.0"}, EAGER, "ok", "torch alone"),
        ({"libtpu": None}, POD, "failure", "hardware=cpu"),
        ({"libtpu": "0.0.17"}, POD, "warning", "libtpu 0.0.21"),
    ],
)
def test_versions(changed, hardware, level, says):
    check = outcome(doctor.check_versions, GOOD | changed, hardware)
    assert check.level == level
    assert says in str(check)


def test_versions_are_those_of_this_environment():
    found = doctor.installed_versions()
    assert (found["torch"], found["torch_xla"]) == (version("torch"), version("torch_xla"))
    assert re.fullmatch(r"[\d.]+", found["libtpu_wanted"])  # torch_xla's metadata still say it the way it is read here
    assert outcome(doctor.check_versions, found, CPU).level == "ok"


def test_pythons_are_those_of_setup_cfg():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    (oldest, too_new) = (".".join(map(str, bound)) for bound in doctor.PYTHONS)
    assert settings["options"]["python_requires"] == f">={oldest},<{too_new}"


# ------------------------------------------------------------------------------------------------------- devices and compiling


@pytest.mark.parametrize(
    ("probe", "hardware", "devices", "compiling", "says"),
    [
        (STARTED, CPU, "ok", "ok", "1 cpu device(s) expected"),
        (STARTED, MESH, "failure", "ok", "8 cpu device(s) expected, 1 found"),
        (STARTED, RANKS, "ok", "ok", "2 cpu device(s) expected"),
        (Probe(error="gives none (no: chip): use hardware=cpu"), POD, "failure", "failure", "; fix: use hardware=cpu"),
        (Probe(ended="no answer within 9 s"), POD, "failure", "failure", "9 s; fix: start the doctor on all 8 hosts"),
        (Probe(ended="no answer within 9 s"), CPU, "failure", "failure", "hardware=cpu"),
        (Probe(ended="signal SIGABRT: no chip"), POD, "failure", "failure", "signal SIGABRT: no chip; fix: hardware=cpu"),
        (dataclasses.replace(STARTED, compile_s=None, ended="no answer within 9 s"), CPU, "ok", "failure", "no answer within 9 s"),
        (dataclasses.replace(STARTED, compile_s=None, ended="exit code 1: x"), CPU, "ok", "failure", "exit code 1: x"),
        (dataclasses.replace(STARTED, right=False), CPU, "ok", "failure", "wrong result"),
    ],
)
def test_devices_and_compiling(probe, hardware, devices, compiling, says):
    checks = outcome(doctor.check_devices, probe, hardware), outcome(doctor.check_compile, probe)
    assert tuple(check.level for check in checks) == (devices, compiling)
    assert says in f"{checks[0]}\n{checks[1]}"


@pytest.mark.parametrize(("visible", "level"), [("0", "failure"), ("0,1", "ok"), ("0,1,2", "ok")])
def test_ranks_on_gpus_are_counted_without_starting_them(monkeypatch, visible, level):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = outcome(doctor.check_devices, STARTED, dataclasses.replace(RANKS, name="gpus", platform="cuda"))
    assert (found.level, "2 cuda device(s) expected" in found.found) == (level, True)


@pytest.mark.parametrize(("flags", "told"), [("avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True)])
def test_a_processor_that_multiplies_bfloat16_is_told(monkeypatch, tmp_path, flags, told):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    monkeypatch.setattr(machine_cores, "CPU_FACTS", tmp_path / "cpuinfo")
    assert ("hardware=cpu_bf16" in str(outcome(doctor.check_devices, STARTED, CPU))) == told
    assert "cpu_bf16" not in str(
        outcome(doctor.check_devices, STARTED, dataclasses.replace(CPU, name="cpu_bf16", dtype="bfloat16"))
    )


@pytest.mark.long
def test_probe_finds_the_devices_of_a_mesh():
    probe = probe_devices(MESH, 240)
    assert (probe.devices, probe.right, probe.ended) == (8, True, "")
    assert probe.peak_bytes > 10**8


XLA_DUMP = "Fatal Python error: Aborted\n\nCurrent thread 0x1:\n  File x\n\nExtension modules: yaml._yaml, torch._C"


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("", ""),
        ("warning\nno chip\n", "no chip"),
        (
            f"W x.cc:1] old\n2026-11-30 10:30:38.6: F x/y.cc:234] Unknown flag in XLA_FLAGS: --xla_no=true\n{XLA_DUMP}",
            "--xla_no=true",
        ),
        (f"F1130 10:30:38.657 77 parse.cc:9] Unknown flag in LIBTPU_INIT_ARGS: --xla_no\n{XLA_DUMP}", "LIBTPU_INIT_ARGS: --xla_no"),
        (
            "2026-11-30 10:31:49.5: E a/flags.cc:109] Couldn't interpret value maybe for flag xla_fast.\n"
            "2026-11-30 10:31:49.6: F a/env.cc:220] Check failed: Flag parsing failed.\nusage: --xla_fast=maybe\n\t--xla_a=1 int\n",
            "maybe for flag xla_fast.",
        ),
        (f"2026-11-30 10:31:49.5: F a/b.cc:1] no chip\nsomething after\n{XLA_DUMP}", "no chip"),
        (f"terminate called: what\n{XLA_DUMP}", "terminate called: what"),
    ],
)
def test_the_line_that_says_why_a_process_ended(stderr, words):
    assert last_words(stderr).endswith(words)


def test_a_bad_flag_is_to_be_mended_where_it_was_given(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_no=true")
    check = outcome(doctor.check_devices, Probe(ended="signal SIGABRT: Unknown flag in XLA_FLAGS: --xla_no=true"), CPU)
    assert (check.level, check.fix) == ("failure", "correct or unset XLA_FLAGS")


def test_the_quota_of_a_container_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "allowed", lambda: [0, 1, 2])
    assert "by the CPU quota" not in outcome(doctor.check_devices, STARTED, CPU).found
    monkeypatch.setattr(doctor, "quota", lambda: 1.5)
    monkeypatch.setattr(doctor, "cores", lambda: 1)
    assert "on 1 core(s) of 3, by the CPU quota of this container" in outcome(doctor.check_devices, STARTED, CPU).found


def process_that(monkeypatch, tmp_path, script):
    """Make the probe's process run a shell script in place of Python."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(probing.sys, "executable", str(python))


def test_of_several_ranks_the_probe_is_one(monkeypatch, tmp_path):
    process_that(monkeypatch, tmp_path, f"cat > {tmp_path}/asked; echo '{{\"devices\": 1}}'")
    assert probe_devices(RANKS, 30).devices == 1
    assert json.loads((tmp_path / "asked").read_text())["num_devices"] == 1


def test_probe_that_hangs_is_ended_with_its_children(monkeypatch, tmp_path):
    says = "echo noise; echo '{\"devices\": 1}'"
    process_that(monkeypatch, tmp_path, f"{says}; sleep 600 & echo $! > {tmp_path}/child; exec sleep 600")
    assert probe_devices(CPU, 1) == Probe(devices=1, ended="no answer within 1 s")
    wait_for(lambda: is_gone(int((tmp_path / "child").read_text())))


def test_probe_that_aborts_is_told(monkeypatch, tmp_path):
    process_that(monkeypatch, tmp_path, "echo '[1]'; echo 'F tpu.cc: no chip' >&2; kill -ABRT $$")
    probe = probe_devices(CPU, 30)
    assert probe.devices is None
    assert probe.ended == "signal SIGABRT: F tpu.cc: no chip"


# ------------------------------------------------------------------------------------------------------------------- dataset


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The tiny dataset, built once; tests that change it take a copy."""
    path = tmp_path_factory.mktemp("data") / "set"
    build_dataset(settings(path).data)
    return path


def settings(path, *overrides):
    return compose([*TINY, f"data.path={path}", "run_name=x", *overrides])


def copied(built, tmp_path):
    return shutil.copytree(built, tmp_path / "set")


def test_whole_dataset(built):
    check = outcome(doctor.check_dataset, settings(built))
    assert check.level == "ok", check
    assert "checksums match" in check.found
    assert doctor.sizes_and_groups(settings(built)) == (SMALL, 64)
    assert machine_cores.folder_bytes(built) > 64 * 2 * 16


def test_missing_dataset_that_the_run_builds(tmp_path):
    check = outcome(doctor.check_dataset, settings(tmp_path / "set"))
    assert check.level == "warning"
    assert check.fix.startswith("python -m trm.build_data data=sudoku_4x4")
    assert doctor.sizes_and_groups(settings(tmp_path / "set")) == (SMALL, 64)
    assert not list(tmp_path.iterdir())


def test_missing_dataset_that_must_be_built(tmp_path):
    csv = tmp_path / "there.csv"
    csv.touch()
    for given, level in (([], "warning"), ([f"data.train_csv={csv}", f"data.test_csv={tmp_path}/no.csv"], "failure")):
        check = outcome(doctor.check_dataset, settings(tmp_path / "set", "data=sudoku_extreme", *given))
        assert check.level == level
        assert "python -m trm.build_data data=sudoku_extreme" in check.fix
        assert ("no.csv" in check.found) == (level == "failure")


def flip(file):
    """Swap two rows: as plausible as before, and of the same size."""
    rows = np.load(file)
    rows[[0, 1]] = rows[[1, 0]]
    np.save(file, rows)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("labels", flip, "is damaged (its checksum"),
        ("inputs", lambda file: file.write_bytes(file.read_bytes()[:-8]), "all__inputs.npy"),
        ("group_indices", Path.unlink, "is missing"),
    ],
)
def test_damaged_dataset(built, tmp_path, name, damage, says):
    path = copied(built, tmp_path)
    damage(array_path(path, "train", name))
    check = outcome(doctor.check_dataset, settings(path))
    assert (check.level, says in check.found) == ("failure", True)
    assert check.fix.startswith(f"remove {path}")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.num_puzzles=65"], "data.num_puzzles=64"),
        (["train.max_steps=null", "train.epochs=1", "train.global_batch_size=65"], "raise train.epochs"),
    ],
)
def test_dataset_that_does_not_fit_the_settings(built, overrides, says):
    check = outcome(doctor.check_dataset, settings(built, *overrides))
    assert (check.level, says in str(check)) == ("failure", True)


def test_dataset_without_a_build_record(built, tmp_path):
    path = copied(built, tmp_path)
    (path / "build.json").unlink()
    check = outcome(doctor.check_dataset, settings(path))
    assert (check.level, "no checksums" in check.found) == ("ok", True)


# ----------------------------------------------------------------------------------------------------------- disk and memory


@pytest.mark.parametrize(
    "overrides",
    [
        ["ema=off", "model.puzzle_emb_ndim=0", "model.puzzle_emb_len=0", "train.global_batch_size=3"],
        ["model.mixer=attention", "model.positions=rope", "hardware.dtype=bfloat16"],
        ["model.separate_networks=true", "recursion.variant=multi_scale_z", "hardware.dtype=float64"],
    ],
)
def test_state_bytes_are_those_of_the_real_state(overrides):
    cfg = compose([*TINY, "run_name=x", *overrides])
    arch = architecture(cfg, **SMALL)
    buffers = init_buffers(arch, cfg.seed)
    state = init_state(cfg, arch, buffers)
    starts = [tensor for name, tensor in buffers.items() if name.startswith("init.")]
    sums = torch.zeros(len(training_names()), dtype=arch.master_dtype)
    assert doctor.state_bytes(cfg, SMALL) == sum(tensor.nbytes for tensor in [*flatten(state).values(), *starts, sums])


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        ([], 5),  # 3 kept, the best, one being written
        (["train.keep_checkpoints=10"], 7),  # steps 5, 10, 15, 20, of which 10 and 20 count twice, and the last
        (["train.eval_every_steps=null", "train.checkpoint_every_steps=null"], 1),
    ],
)
def test_checkpoints_at_once(overrides, count):
    assert doctor.checkpoints_at_once(compose([*TINY, "run_name=x", *overrides]), 64) == count


@pytest.mark.parametrize(
    ("state", "there", "free", "level"),
    [(100, 0, 499, "failure"), (100, 200, 299, "failure"), (100, 200, 300, "warning"), (10**8, 0, 10**10, "ok")],
)
def test_disk(state, there, free, level):
    check = outcome(doctor.check_disk, state, 5, there, free, Path("x"))
    assert check.level == level
    assert ("train.keep_checkpoints" in check.fix) == (level != "ok")


@pytest.mark.parametrize(
    ("hardware", "needed"),
    [(CPU, 25), (POD, 21), (RANKS, 50), (dataclasses.replace(RANKS, name="gpus", platform="cuda", num_devices=16), 63)],
)
def test_memory(monkeypatch, hardware, needed):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")  # of 16 ranks, three are on this host
    assert outcome(doctor.check_memory, 2, hardware, 10, 5, needed).level == "ok"
    assert outcome(doctor.check_memory, 2, hardware, 10, 5, needed - 1).level == "failure"


def test_available_memory_is_within_the_machine(monkeypatch):
    total = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024
    assert 0 < machine_cores.available_memory() <= total
    monkeypatch.setattr(machine_cores, "MEMORY_FACTS", Path("/no/such/file"))  # as on macOS
    assert 0 < machine_cores.available_memory() <= total


# -------------------------------------------------------------------------------------------------- folder, tracking, launcher


def test_folder(tmp_path):
    assert outcome(doctor.check_folder, tmp_path / "outputs/x").level == "ok"
    assert not list(tmp_path.iterdir())
    (tmp_path / "outputs").write_text("in the way")
    check = outcome(doctor.check_folder, tmp_path / "outputs/x")
    assert check.level == "failure"
    assert f"make {tmp_path}/outputs writable" in check.fix
    assert outcome(doctor.check_folder, Path("/proc/outputs/x")).level == "failure"  # read-only for root too


@pytest.mark.parametrize(
    ("chosen", "wanted", "level", "says"),
    [
        ("disabled", "disabled", "ok", "off"),
        ("offline", "offline", "ok", "on disk only"),
        ("offline", "auto", "warning", "there is no key; fix: run `wandb login`"),
        (("offline", "W&B cannot log in (key: bad): logging"), "auto", "warning", "cannot log in (key: bad); fix"),
        (UserError("needs a key: run `wandb login`"), "online", "failure", "needs a key; fix: run `wandb login`"),
    ],
)
def test_wandb(monkeypatch, chosen, wanted, level, says):
    def choose(_wanted, _run_dir, warn):
        if isinstance(chosen, Exception):
            raise chosen
        mode, *warnings = [chosen] if isinstance(chosen, str) else chosen
        for text in warnings:
            warn(text)
        return mode

    monkeypatch.setattr(doctor, "choose_wandb_mode", choose)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    check = outcome(doctor.check_wandb, TrackingConfig(wandb=wanted), Path("x"))
    assert check.level == level
    assert says in str(check)


def test_whether_a_server_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert answers(url, 10)
    assert not answers(url, 10)


def test_tracking(monkeypatch):
    assert outcome(doctor.check_tracking, TrackingConfig()).found.endswith("TensorBoard")
    monkeypatch.setattr(doctor, "version_of", lambda _: None)
    assert outcome(doctor.check_tracking, TrackingConfig()).level == "failure"
    plain = outcome(doctor.check_tracking, TrackingConfig(tensorboard=False))
    assert (plain.level, plain.found) == ("ok", "metrics.jsonl")


def test_launcher(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda package: None if package == "ray" else "1")
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert outcome(doctor.check_launcher, "submitit_local").level == "ok"
    assert "sbatch is not on PATH" in outcome(doctor.check_launcher, "submitit_slurm").found
    assert "EXTRAS=dev,ray" in outcome(doctor.check_launcher, "ray").fix
    monkeypatch.setattr(doctor, "version_of", lambda _: "1")
    assert outcome(doctor.check_launcher, "ray").level == "ok"


def test_launch_is_what_hydra_would_do():
    _, launch = compose_launch(["run_name=a", "hydra/launcher=submitit_slurm"])
    assert (launch.run_dir, launch.launcher, launch.multirun) == (Path("outputs/a"), "submitit_slurm", False)


# --------------------------------------------------------------------------------------------------------------- the command


def levels(output):
    """Check name -> level, of the lines before the closing one."""
    return {line.split()[1]: line.split()[0] for line in output.splitlines()[:-1]}


@pytest.mark.long
def test_command_before_and_after_a_run(tmp_path):
    """A fresh folder is fit for the run; then the run's real checkpoints against the estimate."""
    arguments = [*TINY, "run_name=a", "hardware.backend=eager"]
    before = run(tmp_path, "trm.doctor", *arguments)
    assert levels(before.stdout) == {
        **dict.fromkeys(("versions", "devices", "compile", "folder", "disk", "memory", "wandb", "tracking", "launcher"), "ok"),
        "dataset": "warning",
    }
    last = before.stdout.splitlines()[-1]
    assert last.startswith(
        "10 checks: 9 ok, 1 warning(s), 0 failure(s): ready for python -m trm.train hardware=cpu hardware.backend=eager"
    )
    assert not before.stderr
    assert not list(tmp_path.iterdir())

    run(tmp_path, "trm.train", *arguments)
    checkpoint = (tmp_path / "outputs/a/checkpoints/latest").resolve()
    cfg = compose([*arguments, f"data.path={tmp_path}/data/sudoku_4x4_n64_aug0_seed0"])
    estimate = doctor.state_bytes(cfg, doctor.sizes_and_groups(cfg)[0])
    with safe_open(checkpoint / "state.safetensors", "np") as file:
        assert estimate == sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118 - no dict
    on_disk = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert estimate < on_disk < 1.02 * estimate
    assert len(list(checkpoint.parent.glob("step_*"))) <= doctor.checkpoints_at_once(cfg, 64)
    after = run(tmp_path, "trm.doctor", *arguments)
    assert levels(after.stdout)["dataset"] == "ok"
    assert "of them there" in after.stdout

    array = tmp_path / "data/sudoku_4x4_n64_aug0_seed0/test/all__inputs.npy"
    array.write_bytes(array.read_bytes()[:100])
    damaged = run(tmp_path, "trm.doctor", *arguments, check=1)
    assert [name for name, level in levels(damaged.stdout).items() if level == "failure"] == ["dataset"]
    assert str(array.relative_to(tmp_path)) in damaged.stdout
    assert damaged.stdout.splitlines()[-1].endswith("1 failure(s): fix dataset first")
    assert "Traceback" not in damaged.stdout + damaged.stderr


def test_command_that_is_stopped_keeps_what_it_printed_and_leaves_no_process(tmp_path):
    process = start(tmp_path, *TINY, "run_name=a", command=("-m", "trm.doctor"))
    first = process.stdout.readline()  # as soon as it is known
    assert first.startswith("ok       versions")
    wait_for(lambda: children(process))
    (probe,) = children(process)
    code, rest, err = stopped(process)
    assert (code, rest) == (130, "")
    assert re.fullmatch(r"stopped: seconds waited for the devices: \d+ of 180; checks made: 1\n", err)
    wait_for(lambda: is_gone(probe))


WITHOUT_PROBE = """
import sys
from trm import doctor
from trm.run.probe import Probe
doctor.probe_devices = lambda *_: Probe(devices=1, runtime="torch", compile_s=0.5, right=True, peak_bytes=10**9)
doctor.main(sys.argv[1:])
"""


def test_command_never_shows_the_key(tmp_path):
    key = "k3y" + "a" * 37
    argv = [sys.executable, "-c", WITHOUT_PROBE, *TINY, "tracking=wandb", "hardware.backend=eager", "run_name=a"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        env = environment(WANDB_API_KEY=key, WANDB_BASE_URL=url)
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert f"online: there is a key, and {url} answers" in done.stdout
    assert "10 checks: 9 ok, 1 warning(s), 0 failure(s): ready for python -m trm.train hardware=cpu" in done.stdout
    assert key not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["hardware=v5"], "hardware=v5 is not an option"),
        (["train.global_batch_size=0"], "train.global_batch_size=0"),
        (["train.no_such=1"], "train.no_such is not a config key"),
        (["--multirun"], "--multirun"),
        (["+sweep=tn_sweep"], "experiment=NAME"),
    ],
)
def test_wrong_overrides(arguments, says):
    with pytest.raises(UserError, match=re.escape(says)):
        doctor.main(arguments)
