"""Check this machine before a long run: `python -m trm.doctor [GROUP=OPTION ...] [KEY=VALUE ...]`.

Takes the overrides of the run as `python -m trm.train` does and prints one line for each check: ok, warning or failure, what was
found, and the fix. Trains nothing and leaves nothing behind. Exit codes: 0 nothing failed, 1 a check failed, 2 wrong overrides.

  python -m trm.doctor hardware=v4_64 data=NAME run_name=my_run
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from trm.cli import EXIT_FAILED, Launch, compose_launch, options, plain_command
from trm.config import Config, HardwareConfig, TrackingConfig, total_steps
from trm.data.build import SPLITS, build_command, ensure_dataset, is_absent
from trm.data.format import ARRAYS, array_path, load_dataset, read_build_record
from trm.errors import ConfigError, DataError, UserError, plain_line
from trm.tasks.base import task_of
from trm.tracking.wandb_view import choose_wandb_mode

PYTHONS = ((3, 11), (3, 14))  # from, and the first that is too new: python_requires of setup.cfg
PROBE_LIMIT_S = 180.0  # generous: the hosts of a pod wait for one another when they start
SERVER_LIMIT_S = 3.0
SPARE_BYTES = 2**30  # of disk, for metrics, TensorBoard and W&B
# Copies of the training state in host memory while a checkpoint is written: the initial one, the one fetched, and the file's bytes;
# on a CPU also the device's own, a step's state and the next one's.
STATE_COPIES, CPU_STATE_COPIES = 3, 5


@dataclass(frozen=True)
class Check:
    """The result of one check, told in one line."""

    name: str
    level: Literal["ok", "warning", "failure"]
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<8} {self.name:<10} {self.found}" + (f"; fix: {self.fix}" if self.fix else "")
        return plain_line(line)


def judged(name: str, found: str, failure: str | None, warning: str | None = None) -> Check:
    """A check that fails, or warns, where there is a fix for it."""
    if failure is not None:
        return Check(name, "failure", found, failure)
    return Check(name, "ok", found) if warning is None else Check(name, "warning", found, warning)


# ------------------------------------------------------------------------------------------------------------------ versions


def installed_versions() -> dict[str, str | None]:
    """What the packages' metadata state, None where one is missing; nothing is imported. libtpu_wanted is torch_xla's."""
    found: dict[str, str | None] = {}
    for name in ("torch", "torch_xla", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    asked = importlib.metadata.requires("torch_xla") or [] if found["torch_xla"] else []
    wanted = [match[1] for line in asked if (match := re.fullmatch(r"libtpu==([\w.]+);.*", line))]
    return {"python": sys.version.split()[0], **found, "libtpu_wanted": wanted[0] if wanted else None}


def check_versions(found: dict[str, str | None], hardware: HardwareConfig) -> Check:
    """Whether Python, torch, torch_xla and libtpu fit together, as far as `hardware` needs them."""
    torch, xla, libtpu, wanted = (found[name] for name in ("torch", "torch_xla", "libtpu", "libtpu_wanted"))
    text = ", ".join(f"{name} {found[name] or 'missing'}" for name in ("python", "torch", "torch_xla", "libtpu"))
    failure = warning = None
    if not PYTHONS[0] <= tuple(map(int, str(found["python"]).split(".")[:2])) < PYTHONS[1]:
        failure = "Python 3.11 to 3.13: make clean setup PYTHON=python3.11"
    elif torch is None:
        failure = "make setup"
    elif hardware.backend != "xla":
        text += f" (hardware.backend={hardware.backend} needs torch alone)"
    elif xla is None:
        failure = "make setup installs torch_xla; hardware.backend=eager or inductor does without it"
    elif torch.split(".")[:2] != xla.split(".")[:2]:
        wanted = ".".join(xla.split(".")[:2])
        failure = f"make setup installs the pair; torch_xla {xla} needs torch {wanted}.*, hardware.backend=eager neither"
    elif hardware.platform == "tpu":
        if libtpu is None:
            failure = "make setup EXTRAS=dev,tpu, or hardware=cpu"
        elif wanted not in (None, libtpu):
            warning = f"torch_xla asks for libtpu {wanted}: make setup EXTRAS=dev,tpu"
    elif libtpu is None:
        text += " (no TPU, not needed)"
    return judged("versions", text, failure, warning)


# ------------------------------------------------------------------------------------------------------- devices and compiling


@dataclass(frozen=True)
class Probe:
    """What a process of its own found when it started the backend and compiled; None = it did not get that far."""

    devices: int | None = None
    runtime: str = ""
    error: str | None = None  # the backend's own words, fix included
    compile_s: float | None = None
    right: bool = False
    peak_bytes: int = 0
    ended: str = ""  # how the process ended where it should not have
    late: bool = False  # whether it was ended for taking too long


def probe_devices(hardware: HardwareConfig, limit_s: float) -> Probe:
    """Start the backend in a process of its own, which a wrong platform can hang or abort, for at most `limit_s` seconds."""
    command = [sys.executable, "-c", "from trm.doctor import run_probe; run_probe()"]
    asked = json.dumps(dataclasses.asdict(hardware)).encode()
    ended = ""
    try:
        done = subprocess.run(command, input=asked, capture_output=True, timeout=limit_s, check=False)
        output = done.stdout
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            code = done.returncode
            ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            ended += f": {said[-1].strip()}" if said else ""
    except subprocess.TimeoutExpired as late:
        output, ended = late.stdout or b"", f"no answer within {limit_s:g} s"
    facts: dict[str, Any] = {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError):  # what a library prints beside the probe's own lines
            said = json.loads(line)
            facts |= said if isinstance(said, dict) and said.keys() <= Probe.__dataclass_fields__.keys() else {}
    return Probe(**facts | {"ended": ended, "late": ended.startswith("no answer")})


def run_probe() -> None:
    """The probe's process: HardwareConfig as JSON on stdin; on stdout JSON lines, fields of `Probe` as soon as they are known."""

    def tell(**facts: object) -> None:
        print(json.dumps(facts), flush=True)

    hardware = HardwareConfig(**json.load(sys.stdin) | {"compile_cache": None})
    import numpy as np
    from torch import Tensor

    from trm.backends import start

    try:
        runtime = start(hardware)
    except UserError as error:
        tell(error=str(error))
        return
    tell(devices=runtime.num_devices, runtime=runtime.describe())

    def double(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        doubled = 2 * batch["rows"]
        return doubled, doubled.sum()

    rows = hardware.local_devices
    began = time.perf_counter()
    _, total = runtime.compile(double, lambda results: results[0])(runtime.put_batch({"rows": np.ones(rows, dtype=np.int32)}))
    right = int(runtime.fetch(total)) == 2 * rows * runtime.process_count
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tell(compile_s=time.perf_counter() - began, right=right, peak_bytes=peak_bytes)


def check_devices(probe: Probe, hardware: HardwareConfig) -> Check:
    """Whether the backend starts and sees the devices that `hardware` expects."""
    text, fix = f"{hardware.num_devices} {hardware.platform} device(s) expected", None
    if probe.error is not None:
        found, _, fix = probe.error.rpartition(": ")
        text += f": {found}"
    elif probe.devices is None:
        text += f", the process that started them: {probe.ended}"
        fix = "make setup, or hardware.backend=eager" if hardware.platform == "cpu" else "hardware=cpu, or the right machine"
        if probe.late and hardware.processes > 1:
            fix = f"start the doctor on all {hardware.processes} hosts at once (scripts/launch_pod.sh), or hardware=cpu"
        elif probe.late:
            fix = "hardware=cpu, or see what holds the devices"
    elif probe.devices != hardware.num_devices:
        text, fix = f"{text}, {probe.devices} found", "the hardware= of this machine, such as hardware=cpu"
    else:
        text += f" and found: {probe.runtime}"
    return judged("devices", text, fix)


def check_compile(probe: Probe) -> Check:
    """Whether a trivial function compiles, runs on all devices and gives the right result."""
    fix = "make setup, or hardware.backend=eager on one device"
    if probe.devices is None:
        return Check("compile", "failure", "not tried without devices", "see devices")
    if probe.compile_s is None:
        return Check("compile", "failure", f"a trivial function: {probe.ended}", fix)
    if not probe.right:
        return Check("compile", "failure", "a trivial function gave a wrong result", fix)
    return Check("compile", "ok", f"a trivial function compiled and ran in {probe.compile_s:.1f} s")


# ------------------------------------------------------------------------------------------------------------------- dataset


@dataclass(frozen=True)
class DataFacts:
    """What later checks need of the dataset; from the settings alone where it is not there."""

    sizes: dict[str, int]  # as trm.core.model.architecture takes them
    num_groups: int
    num_bytes: int = 0


def check_dataset(cfg: Config) -> tuple[Check, DataFacts]:
    """Whether the dataset folder is there, built with these settings, whole and undamaged; reads all of it."""
    data, path = cfg.data, Path(cfg.data.path)
    task = task_of(data)
    facts = DataFacts(task.facts.sizes, data.num_puzzles)
    if is_absent(path):
        build, files = build_command(data), {"data.train_csv": data.train_csv, "data.test_csv": data.test_csv}
        gone = next((f"{key}={file}" for key, file in files.items() if file and not Path(file).is_file()), None)
        if data.source == "generated" or (gone is None and all(files.values())):
            return Check("dataset", "warning", f"{path} is missing: the run builds it first", build), facts
        if gone is None:
            return Check("dataset", "failure", f"{path} is missing", build), facts
        fix = f"name files that are there, then {build}"
        return Check("dataset", "failure", f"{path} is missing, and so is {gone}", fix), facts
    try:
        ensure_dataset(data)
        splits = {split: load_dataset(path, split, task) for split in SPLITS}
        sums = compare_checksums(path)
    except DataError as error:
        text, _, fix = str(error).rpartition(": ")
        return Check("dataset", "failure", text, fix), facts
    except OSError as error:
        return Check("dataset", "failure", f"{error.filename}: {error.strerror}", "make it readable"), facts
    train, m = splits["train"], splits["train"].metadata
    num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    facts = DataFacts(m.sizes, train.num_groups, num_bytes)
    rows = ", ".join(f"{split} {dataset.num_groups:,} puzzles ({dataset.num_rows:,} rows)" for split, dataset in splits.items())
    no_steps = None
    try:
        total_steps(cfg, train.num_groups)
    except ConfigError as error:
        no_steps = str(error)
    return judged("dataset", f"{path}: {rows}, {size(num_bytes)}, {sums}", no_steps), facts


def compare_checksums(path: Path) -> str:
    """Compare every array with build.json, and say whether there is one. Raises DataError where they differ."""
    record = read_build_record(path)
    if record is None:
        return "no checksums (built elsewhere)"
    known = record.get("sha256")
    for split in SPLITS:
        for name in ARRAYS:
            file = array_path(path, split, name)
            with file.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if not isinstance(known, dict) or known.get(f"{split}/{name}") != found:
                again = f"remove {path} and build it again with python -m trm.build_data data.path={path}"
                raise DataError(f"{file} is damaged (its checksum is not that of build.json): {again}")
    return "checksums match"


# --------------------------------------------------------------------------------------------------- disk, memory and folder


def state_bytes(cfg: Config, sizes: dict[str, int]) -> int:
    """Bytes of one checkpoint's tensors: weights, moments, EMA, puzzle embedding, carry of the global batch, initial latents."""
    from trm.core.flops import num_bytes, train_arguments
    from trm.core.model import architecture

    state, fixed, _ = train_arguments(cfg, architecture(cfg, **sizes))
    return num_bytes((state, [tensor for name, tensor in fixed.items() if name.startswith("init.")]))


def checkpoints_at_once(cfg: Config, num_groups: int) -> int:
    """Checkpoints that lie on the disk together at most: the newest, the best, and the one that is being written."""
    steps = total_steps(cfg, num_groups)
    saves = 1 + sum(steps // every for every in (cfg.train.checkpoint_every_steps, cfg.train.eval_every_steps) if every)
    return min(saves, cfg.train.keep_checkpoints + 2)


def check_disk(state: int, count: int, there: int, free: int, folder: Path) -> Check:
    """Whether `count` checkpoints of `state` bytes fit where `free` bytes are free and `there` are taken by this run's own."""
    needed = max(count * state - there, 0)
    text = f"{count} checkpoint(s) of {size(state)} at once" + (f", {size(there)} of them there" if there else "")
    text += f"; {size(free)} free for {folder}"
    fix = "make room, lower train.keep_checkpoints, or start in a folder on a larger disk"
    return judged("disk", text, fix if free < needed else None, fix if free < needed + SPARE_BYTES else None)


def check_memory(state: int, on_cpu: bool, process: int, data: int, available: int) -> Check:
    """Whether the host's memory holds one process of the run beside what its steps keep for their gradients."""
    needed = process + data + (CPU_STATE_COPIES if on_cpu else STATE_COPIES) * state
    text = f"{size(needed)} needed for process, dataset and state (what a step computes not counted), {size(available)} available"
    return judged("memory", text, "use a machine with more memory" if available < needed else None)


def available_memory() -> int:
    """Bytes that a new process could take: what the system has free, within this control group's limit."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert match, "/proc/meminfo without MemAvailable"
    available = 1024 * int(match[1])
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(FileNotFoundError):  # no limit: the root group, or the first version of control groups
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((group / "memory.current").read_text()))
    return available


def size(num_bytes: float) -> str:
    """A number of bytes in words: 386 MB, 1.9 GB."""
    power = min(int(math.log10(num_bytes) // 3), 4) if num_bytes >= 1 else 0
    return f"{num_bytes / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists: what making `path` would write into."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def check_folder(run_dir: Path) -> Check:
    """Whether the run folder can be made and written; tries it with a file that has no name."""
    parent = existing_parent(run_dir)
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        fix = f"make {parent} writable, or start in another folder"
        return Check("folder", "failure", f"{run_dir} cannot be written ({parent}: {error.strerror})", fix)
    return Check("folder", "ok", f"{run_dir} can be written")


# ----------------------------------------------------------------------------------------------------- tracking and launcher


def check_wandb(tracking: TrackingConfig, run_dir: Path) -> tuple[Check, str | None]:
    """What W&B does in this run, and the mode (None: its choice is refused). Asks its server for a few seconds; tells no key."""
    warnings: list[str] = []
    try:
        mode = choose_wandb_mode(tracking.wandb, run_dir, warnings.append)
    except UserError as error:
        text, _, fix = str(error).rpartition(": ")
        return Check("wandb", "failure", text, fix), None
    except ImportError as error:
        return Check("wandb", "failure", f"wandb does not import ({error})", "make setup, or tracking=tensorboard"), None
    text, warning = "off" if mode == "disabled" else "offline, on disk only", None
    if mode == "offline" and (warnings or (tracking.wandb == "auto" and os.environ.get("WANDB_MODE") != "offline")):
        text = f"offline: {warnings[0].rpartition(': ')[0]}" if warnings else f"{text}: there is no key"
        warning = "run `wandb login` or set WANDB_API_KEY, or choose tracking=offline"
    if mode == "online":
        import wandb

        server = str(wandb.setup().settings.base_url)
        text = f"online: there is a key, and {server} answers"
        if not answers(server, SERVER_LIMIT_S):
            text = f"there is a key, but {server} does not answer within {SERVER_LIMIT_S:g} s: the run would log offline"
            warning = "check the network, or choose tracking=offline"
    return judged("wandb", text, None, warning), mode


def answers(url: str, limit_s: float) -> bool:
    """Whether the host of a URL takes a connection within `limit_s` seconds, looking its name up included."""
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname or "", port), timeout=limit_s):
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)  # a look-up cannot be interrupted, only left alone
    thread.start()
    thread.join(limit_s)
    return connected.is_set()


def check_tracking(tracking: TrackingConfig, wandb_mode: str | None) -> Check:
    """Where the metrics go."""
    kinds = ["metrics.jsonl", *(["TensorBoard"] if tracking.tensorboard else [])]
    if tracking.tensorboard and not is_installed("tensorboard"):
        return Check("tracking", "failure", "TensorBoard is not installed", "make setup, or tracking=none")
    return Check("tracking", "ok", ", ".join([*kinds, *([f"W&B ({wandb_mode})"] if wandb_mode in ("online", "offline") else [])]))


def check_launcher(launcher: str) -> Check:
    """Whether what hydra/launcher needs is installed."""
    chosen, fix = f"hydra/launcher={launcher}", None
    if launcher == "submitit_slurm" and shutil.which("sbatch") is None:
        chosen, fix = f"{chosen}, but sbatch is not on PATH", "start on a Slurm login node, or leave hydra/launcher out"
    elif launcher == "ray" and not is_installed("ray", "hydra_plugins.hydra_ray_launcher"):
        chosen, fix = f"{chosen}, but ray is not installed", "make setup EXTRAS=dev,ray, or leave hydra/launcher out"
    return judged("launcher", f"{chosen} is available" if fix is None else chosen, fix)


def is_installed(*modules: str) -> bool:
    """Whether all these modules can be found, without importing them."""
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:  # the parent of a dotted name
        return False


# --------------------------------------------------------------------------------------------------------------- the command


def examine(cfg: Config, launch: Launch) -> Iterator[Check]:
    """Every check, each made when it is asked for."""
    hardware, run_dir = cfg.hardware, launch.run_dir
    yield check_versions(installed_versions(), hardware)
    probe = probe_devices(hardware, PROBE_LIMIT_S)
    yield check_devices(probe, hardware)
    yield check_compile(probe)
    dataset, facts = check_dataset(cfg)
    yield dataset
    yield check_folder(run_dir)
    try:
        state, count = state_bytes(cfg, facts.sizes), checkpoints_at_once(cfg, facts.num_groups)
    except (ImportError, OSError) as error:  # OSError: a library that torch loads
        yield Check("disk", "failure", f"checkpoints cannot be computed: torch does not import ({error})", "make setup")
    except ConfigError as error:
        yield Check("disk", "failure", "the run has no steps", str(error))
    else:
        resumed = run_dir.glob("checkpoints/step_*/*") if cfg.train.resume == "auto" else ()
        there = sum(file.stat().st_size for file in resumed)
        yield check_disk(state, count, there, shutil.disk_usage(existing_parent(run_dir)).free, run_dir)
        yield check_memory(state, hardware.platform == "cpu", probe.peak_bytes, facts.num_bytes, available_memory())
    wandb, mode = check_wandb(cfg.tracking, run_dir)
    yield wandb
    yield check_tracking(cfg.tracking, mode)
    yield check_launcher(launch.launcher)


def closing_line(checks: Sequence[Check], overrides: Sequence[str]) -> str:
    """How many of which level, and what comes next."""
    failed = [check.name for check in checks if check.level == "failure"]
    warnings = sum(check.level == "warning" for check in checks)
    text = f"{len(checks)} checks: {len(checks) - warnings - len(failed)} ok, {warnings} warning(s), {len(failed)} failure(s)"
    if failed:
        return f"{text}: mend {', '.join(failed)} first"
    return f"{text}: ready for {shlex.join(['python', '-m', 'trm.train', *overrides])}"


def main(arguments: list[str]) -> None:
    """The command. Exits with 1 where a check failed."""
    cfg, launch = compose_launch(options("trm.doctor", arguments, words=False).rest)
    if launch.multirun:
        raise ConfigError("+sweep=: the doctor checks one job: give the overrides of a job of the sweep, such as experiment=NAME")
    checks = []
    for check in examine(cfg, launch):
        checks.append(check)
        print(check, flush=True)
    print(closing_line(checks, arguments))
    if any(check.level == "failure" for check in checks):
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    plain_command(main, __doc__, needs_arguments=False)
