"""Check this machine before a long run: `python -m trm.doctor [GROUP=OPTION ...] [KEY=VALUE ...]`.

The command takes the same overrides as `python -m trm.train` and prints one line for each check: ok, warning or failure, what was
found, and the fix. It trains nothing and writes nothing. Exit codes: 0 nothing failed, 1 a check failed, 2 wrong overrides.

  python -m trm.doctor hardware=v4_64 data=NAME run_name=my_run
"""

import contextlib
import functools
import importlib.metadata
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from rich.filesize import decimal

from trm.cli import Launch, compose_run, options, plain_command
from trm.config import Config, HardwareConfig, TrackingConfig, total_steps
from trm.data.build import build_command, ensure_dataset, is_absent
from trm.data.content import content_of
from trm.data.format import ARRAYS, SPLITS, array_path, load_dataset, read_build_record
from trm.errors import EXIT_FAILED, DataError, UserError, plain_line
from trm.ground.cores import (
    allowed,
    available_memory,
    cores,
    existing_parent,
    folder_bytes,
    multiplies_bfloat16,
    quota,
    visible_gpus,
)
from trm.ground.files import sha256_of
from trm.ground.folder import LOCK_FILE, locked
from trm.run.probe import NO_ANSWER, Probe, probe_devices
from trm.run.revision import version as version_of
from trm.tasks.base import task_of
from trm.tracking.wandb_view import choose_wandb_mode, told_mode

Level = Literal["ok", "warning", "failure"]
PYTHONS = ((3, 11), (3, 14))  # the oldest, and the first that is too new: python_requires of setup.cfg
PROBE_LIMIT_S = 180.0  # long, since the hosts of a pod wait for one another when they start
SERVER_LIMIT_S = 3.0
SPARE_BYTES = 2**30  # disk for metrics, TensorBoard and W&B
# Copies of the training state in host memory while a checkpoint is written: the initial state, the fetched one, and the file's
# bytes; on a CPU also the states of a step and of the next one.
STATE_COPIES, CPU_STATE_COPIES = 3, 5


@dataclass(frozen=True)
class Check:
    """The result of one check, which is printed on one line."""

    name: str
    level: Level
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<8} {self.name:<10} {self.found}" + (f"; fix: {self.fix}" if self.fix else "")
        return plain_line(line)


class Finding(Exception):
    """A check raises this if it fails; otherwise it returns its text."""

    def __init__(self, found: str, fix: str, level: Level = "failure") -> None:
        super().__init__(found)
        self.found, self.fix, self.level = found, fix, level


def judged(name: str, check: Callable[[], str]) -> Check:
    """Run a check, and turn its text or its exception into a line."""
    try:
        return Check(name, "ok", check())
    except Finding as wrong:
        return Check(name, wrong.level, wrong.found, wrong.fix)
    except UserError as error:  # "fault: fix"
        found, _, fix = str(error).rpartition(": ")
        return Check(name, "failure", found, fix)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            return Check(name, "failure", f"{error.filename}: {error.strerror}", "make it readable")
        return Check(name, "failure", f"a package does not import ({error})", "make setup")  # OSError: a library that torch loads


def installed_versions() -> dict[str, str | None]:
    """Versions of the packages that a run computes with; libtpu_wanted is the one that torch_xla requires."""
    found = {name: version_of(name) for name in ("torch", "torch_xla", "libtpu")}
    asked = importlib.metadata.requires("torch_xla") or [] if found["torch_xla"] else []
    wanted = [match[1] for line in asked if (match := re.fullmatch(r"libtpu==([\w.]+);.*", line))]
    return {"python": sys.version.split()[0], **found, "libtpu_wanted": wanted[0] if wanted else None}


def check_versions(found: dict[str, str | None], hardware: HardwareConfig) -> str:
    """Whether the versions that `hardware` needs go together."""
    torch, xla, libtpu, wanted = (found[name] for name in ("torch", "torch_xla", "libtpu", "libtpu_wanted"))
    text = ", ".join(f"{name} {found[name] or 'missing'}" for name in ("python", "torch", "torch_xla", "libtpu"))
    python = tuple(map(int, str(found["python"]).split(".")[:2]))
    pair = ".".join(str(xla).split(".")[:2])  # torch and torch_xla of one minor version
    on_xla = "torch_xla" in hardware.can.packages
    on_tpu = on_xla and hardware.platform == "tpu"
    wrong = {
        "Python 3.11 to 3.13: make clean setup PYTHON=python3.11": not PYTHONS[0] <= python < PYTHONS[1],
        "make setup": torch is None,
        "make setup installs torch_xla; hardware.backend=eager and inductor do not need it": on_xla and xla is None,
        f"make setup installs both; torch_xla {xla} needs torch {pair}.*, and hardware.backend=eager needs no torch_xla": (
            on_xla and pair != ".".join(str(torch).split(".")[:2])
        ),
        "make setup EXTRAS=dev,tpu, or hardware=cpu": on_tpu and libtpu is None,
    }
    for fix in (fix for fix, is_so in wrong.items() if is_so):
        raise Finding(text, fix)
    if on_tpu and wanted not in (None, libtpu):
        raise Finding(text, f"torch_xla asks for libtpu {wanted}: make setup EXTRAS=dev,tpu", "warning")
    if not on_xla:
        return f"{text} (hardware.backend={hardware.backend} needs torch alone)"
    return text if libtpu else f"{text} (no TPU, not needed)"


def check_devices(probe: Probe, hardware: HardwareConfig) -> str:
    """Whether the backend starts and sees the devices that `hardware` expects."""
    text = f"{hardware.devices} {hardware.platform} device(s) expected"
    if probe.error is not None:
        found, _, fix = probe.error.rpartition(": ")
        raise Finding(f"{text}: {found}", fix)
    if probe.devices is None:
        fix = "make setup, or hardware.backend=eager" if hardware.platform == "cpu" else "hardware=cpu, or the right machine"
        if variables := [name for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") if name in os.environ]:
            fix = f"correct or unset {' and '.join(variables)}" if "flag" in probe.ended.lower() else fix
        if probe.ended.startswith(NO_ANSWER):
            fix = "hardware=cpu, or find the process that uses the devices"
            if hardware.hosts > 1:
                fix = f"start the doctor on all {hardware.hosts} hosts at once (scripts/launch_pod.sh), or hardware=cpu"
        raise Finding(f"{text}, the process that started them: {probe.ended}", fix)
    there = max(len(visible_gpus()), probe.devices) if hardware.platform == "cuda" else hardware.devices
    count = min(there, hardware.devices) if hardware.can.ranks else probe.devices  # the probe starts only one of several ranks
    if count != hardware.devices:
        raise Finding(f"{text}, {count} found", "the hardware= of this machine, such as hardware=cpu")
    faster = hardware.name == "cpu" and hardware.dtype == "float32" and multiplies_bfloat16()
    hint = "; this processor multiplies bfloat16 itself: hardware=cpu_bf16 is faster" if faster else ""
    if hardware.platform == "cpu":
        bound = f" of {len(allowed())}, by the CPU quota of this container" if quota() < len(allowed()) else ""
        text = f"{text} on {cores()} core(s){bound}"
    return f"{text} and found: {probe.runtime}{hint}"


def check_compile(probe: Probe) -> str:
    """Whether a trivial function compiles, runs and gives the right result."""
    if probe.devices is None:
        raise Finding("not tested without devices", "see the line of devices")
    if probe.compile_s is None or not probe.right:
        found = f"a trivial function: {probe.ended}" if probe.compile_s is None else "a trivial function gave a wrong result"
        raise Finding(found, "make setup, or hardware.backend=eager on one device")
    return f"a trivial function compiled and ran in {probe.compile_s:.1f} s"


def check_dataset(cfg: Config) -> str:
    """Whether the dataset folder exists, has these settings and is undamaged; reads all of it."""
    data, path = cfg.data, Path(cfg.data.path)
    if is_absent(path):
        build, files = build_command(data), {"data.train_csv": data.train_csv, "data.test_csv": data.test_csv}
        gone = [f"{key}={file}" for key, file in files.items() if file and not Path(file).is_file()]
        folder = getattr(data, "source_dir", None)  # only some tasks have this key
        if data.source == "json" and folder and not Path(folder).is_dir():
            raise Finding(f"{path} is missing, and so is data.source_dir={folder}", f"name a folder, then {build}")
        if data.source in ("generated", "json") or (all(files.values()) and not gone):
            raise Finding(f"{path} is missing: the run builds it first", build, "warning")
        if gone:
            raise Finding(f"{path} is missing, and so is {gone[0]}", f"name files that are there, then {build}")
        raise Finding(f"{path} is missing: the run downloads and builds it first", build, "warning")
    ensure_dataset(data)
    splits = {split: load_dataset(path, split, task_of(data)) for split in SPLITS}
    record = read_build_record(path)
    known = record.get("sha256") if record else None
    arrays = {f"{split}/{name}": array_path(path, split, name) for split in SPLITS for name in ARRAYS}
    for name, file in arrays.items() if record is not None else ():
        if not isinstance(known, dict) or known.get(name) != sha256_of(file):
            again = f"remove {path} and build it again with python -m trm.build_data data.path={path}"
            raise DataError(f"{file} is damaged (its checksum does not match build.json): {again}")
    sums = "no checksums (built elsewhere)" if record is None else "checksums match"
    if cfg.train.max_flops is None:
        total_steps(cfg, splits["train"].rows_of_epoch)
    rows = ", ".join(f"{split} {dataset.num_groups:,} puzzles ({dataset.num_rows:,} rows)" for split, dataset in splits.items())
    return f"{path}: {rows}, {decimal(folder_bytes(path))}, {sums}"


def sizes_and_groups(cfg: Config) -> tuple[dict[str, int], float]:
    """The dataset's sizes, as trm.core.architecture takes them, and the rows of an epoch; without a dataset, by the settings."""
    task = task_of(cfg.data)
    try:
        train = load_dataset(Path(cfg.data.path), "train", task)
    except (DataError, OSError):  # check_dataset reports it
        return task.facts.sizes, cfg.data.num_puzzles * task.facts.rows_of_puzzle
    return train.metadata.sizes, train.rows_of_epoch


def check_puzzles(cfg: Config) -> Iterator[Check]:
    """The caveats of the dataset, one line each; none if the dataset is missing or damaged."""
    if is_absent(Path(cfg.data.path)):
        return
    with contextlib.suppress(DataError, OSError):  # check_dataset reports it
        for caveat in content_of(cfg.data).caveats:
            yield Check("puzzles", "warning", caveat, "use other puzzles, or mention this beside the accuracy")


def state_bytes(cfg: Config, sizes: dict[str, int]) -> int:
    """Bytes of one checkpoint's tensors: weights, moments, EMA, puzzle embedding, carry of the global batch, initial latents."""
    from trm.core.architecture import architecture
    from trm.core.flops import num_bytes, train_arguments

    state, buffers, _ = train_arguments(cfg, architecture(cfg, **sizes))
    return num_bytes((state, [tensor for name, tensor in buffers.items() if name.startswith("init.")]))


def checkpoints_at_once(cfg: Config, num_groups: float) -> int:
    """The largest number of checkpoints on the disk at once: the newest, the best, and the one that is being written."""
    if cfg.train.max_flops is not None:  # the number of steps is not known yet
        return cfg.train.keep_checkpoints + 2
    steps = total_steps(cfg, num_groups)
    saves = 1 + sum(steps // every for every in (cfg.train.checkpoint_every_steps, cfg.train.eval_every_steps) if every)
    return min(saves, cfg.train.keep_checkpoints + 2)


def check_disk(state: int, count: int, there: int, free: int, folder: Path) -> str:
    """Whether `count` checkpoints of `state` bytes fit into `free` bytes; this run's checkpoints already have `there` bytes."""
    needed = max(count * state - there, 0)
    text = f"{count} checkpoint(s) of {decimal(state)} at once" + (f", {decimal(there)} of them there" if there else "")
    text += f"; {decimal(free)} free for {folder}"
    if free < needed + SPARE_BYTES:
        fix = "make room, lower train.keep_checkpoints, or start in a folder on a larger disk"
        raise Finding(text, fix, "failure" if free < needed else "warning")
    return text


def check_memory(state: int, hardware: HardwareConfig, process: int, data: int, available: int) -> str:
    """Whether this host's memory holds the processes of the run that are on it, without what their steps keep for the gradients."""
    places = len(visible_gpus()) if hardware.platform == "cuda" else hardware.processes
    processes = max(min(hardware.processes, places), 1) if hardware.can.ranks else 1  # each rank has its own dataset and state
    needed = processes * (process + data + (CPU_STATE_COPIES if hardware.platform == "cpu" else STATE_COPIES) * state)
    several = f"{processes} processes, each with its" if processes > 1 else "process,"
    text = f"{decimal(needed)} needed for {several} dataset and state (without the values that a step computes)"
    text += f", {decimal(available)} available"
    if available < needed:
        raise Finding(text, "use a machine with more memory" + (", or fewer devices" if processes > 1 else ""))
    return text


def check_folder(run_dir: Path) -> str:
    """Whether the run folder can be made, written and locked; tries it in a temporary folder."""
    parent = existing_parent(run_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=".trm-doctor-", dir=parent) as folder, locked(Path(folder, LOCK_FILE)) as by_system:
            Path(folder, "written").write_bytes(b"x")
    except OSError as error:
        fix = f"make {parent} writable, or start in another folder"
        raise Finding(f"{run_dir} cannot be written ({parent}: {error.strerror})", fix) from error
    return f"{run_dir} can be written and locked" + ("" if by_system else " (by a file: its file system has no locks)")


def answers(url: str, limit_s: float) -> bool:
    """Whether the host of a URL accepts a connection within `limit_s` seconds, including the look-up of its name."""
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname or "", port), timeout=limit_s):
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)  # a look-up cannot be interrupted
    thread.start()
    thread.join(limit_s)
    return connected.is_set()


def check_wandb(tracking: TrackingConfig, run_dir: Path) -> str:
    """The mode of W&B in this run, and whether its server answers; never prints the key."""
    warnings: list[str] = []
    try:
        mode = choose_wandb_mode(tracking.wandb, run_dir, warnings.append)
    except ImportError as error:
        raise Finding(f"wandb does not import ({error})", "make setup, or tracking=tensorboard") from error
    if mode == "disabled":
        return "off"
    if mode == "offline":
        fix = "run `wandb login` or set WANDB_API_KEY, or choose tracking=offline"
        if warnings:
            raise Finding(f"offline: {warnings[0].rpartition(': ')[0]}", fix, "warning")
        if tracking.wandb == "auto" and told_mode() != "offline":
            raise Finding("offline, on disk only: there is no key", fix, "warning")
        return "offline, on disk only"
    import wandb

    server = str(wandb.setup().settings.base_url)
    if not answers(server, SERVER_LIMIT_S):
        found = f"there is a key, but {server} does not answer within {SERVER_LIMIT_S:g} s: the run would log offline"
        raise Finding(found, "check the network, or choose tracking=offline", "warning")
    return f"online: there is a key, and {server} answers"


def check_tracking(tracking: TrackingConfig) -> str:
    """Where the metrics go, in addition to W&B."""
    if not tracking.tensorboard:
        return "metrics.jsonl"
    if version_of("tensorboard") is None:
        raise Finding("TensorBoard is not installed", "make setup, or tracking=none")
    return "metrics.jsonl, TensorBoard"


def check_launcher(launcher: str) -> str:
    """Whether the software of hydra/launcher is installed."""
    text = f"hydra/launcher={launcher}"
    if launcher == "submitit_slurm" and shutil.which("sbatch") is None:
        raise Finding(f"{text}, but sbatch is not on PATH", "start on a Slurm login node, or leave hydra/launcher out")
    if launcher == "ray" and version_of("ray") is None:
        raise Finding(f"{text}, but ray is not installed", "make setup EXTRAS=dev,ray, or leave hydra/launcher out")
    return f"{text} is available"


def examine(cfg: Config, launch: Launch) -> Iterator[Check]:
    """All checks; each one runs when its line is requested."""
    hardware, run_dir = cfg.hardware, launch.run_dir
    probe = functools.cache(lambda: probe_devices(hardware, PROBE_LIMIT_S))
    facts = functools.cache(lambda: sizes_and_groups(cfg))
    state = functools.cache(lambda: state_bytes(cfg, facts()[0]))

    def disk() -> str:
        there = folder_bytes(run_dir / "checkpoints") if cfg.train.resume == "auto" else 0
        free = shutil.disk_usage(existing_parent(run_dir)).free
        return check_disk(state(), checkpoints_at_once(cfg, facts()[1]), there, free, run_dir)

    checks: dict[str, Callable[[], str]] = {
        "versions": lambda: check_versions(installed_versions(), hardware),
        "devices": lambda: check_devices(probe(), hardware),
        "compile": lambda: check_compile(probe()),
        "dataset": lambda: check_dataset(cfg),
        "folder": lambda: check_folder(run_dir),
        "disk": disk,
        "memory": lambda: check_memory(
            state(), hardware, probe().peak_bytes, folder_bytes(Path(cfg.data.path)), available_memory()
        ),
        "wandb": lambda: check_wandb(cfg.tracking, run_dir),
        "tracking": lambda: check_tracking(cfg.tracking),
        "launcher": lambda: check_launcher(launch.launcher),
    }
    for name, check in checks.items():
        yield judged(name, check)
        if name == "dataset":
            yield from check_puzzles(cfg)


def main(arguments: list[str]) -> None:
    """The command. Exits with 1 if a check failed."""
    cfg, launch = compose_run(options("trm.doctor", arguments, words=False).rest)
    checks = []
    try:
        for check in examine(cfg, launch):
            checks.append(check)
            print(check, flush=True)
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"checks made: {len(checks)}")
        raise
    failed = [check.name for check in checks if check.level == "failure"]
    warnings = sum(check.level == "warning" for check in checks)
    text = f"{len(checks)} checks: {len(checks) - warnings - len(failed)} ok, {warnings} warning(s), {len(failed)} failure(s)"
    if failed:
        print(f"{text}: fix {', '.join(failed)} first")
        sys.exit(EXIT_FAILED)
    print(f"{text}: ready for {shlex.join(['python', '-m', 'trm.train', *arguments])}")


if __name__ == "__main__":
    plain_command(main, __doc__, needs_arguments=False)
