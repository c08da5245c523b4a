"""Check this machine before a long run: `python -m trm.doctor [GROUP=OPTION ...] [KEY=VALUE ...]`.

Takes the overrides of the run as `python -m trm.train` does and prints one line for each check: ok, warning or failure, what was
found, and the fix. Trains nothing and leaves nothing behind. Exit codes: 0 nothing failed, 1 a check failed, 2 wrong overrides.

  python -m trm.doctor hardware=v4_64 data=sudoku_extreme run_name=my_run
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import platform
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
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from trm.cli import EXIT_FAILED, Launch, compose_launch, plain_command
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
# Copies of the training state in host memory while a checkpoint is written: the initial one, the one fetched, and the file's bytes.
STATE_COPIES = 3
CPU_STATE_COPIES = 2  # the device's own, where the device is the CPU: a step's state and the next one's
# What XLA keeps of a step on a CPU was found to be up to 24 % above the estimate (MLP mixer) and 10 % below it (attention).
ESTIMATE_MARGIN = 1.25

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Check:
    """The result of one check, told in one line."""

    name: str
    level: Level
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<8} {self.name:<10} {self.found}" + (f"; fix: {self.fix}" if self.fix else "")
        return plain_line(line)


def _ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def _failure(name: str, found: str, fix: str) -> Check:
    return Check(name, "failure", found, fix)


# ------------------------------------------------------------------------------------------------------------------ versions


@dataclass(frozen=True)
class Versions:
    """What is installed; None = not there."""

    python: tuple[int, int, int]
    torch: str | None
    torch_xla: str | None
    libtpu: str | None
    libtpu_wanted: str | None  # by the installed torch_xla


def installed_versions() -> Versions:
    """The versions that the packages' metadata state: nothing is imported."""

    def of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    torch_xla = of("torch_xla")
    wanted = [re.fullmatch(r"libtpu==([\w.]+);.*", line) for line in (requires("torch_xla") or [] if torch_xla else [])]
    major, minor, micro = platform.python_version_tuple()
    return Versions(
        (int(major), int(minor), int(re.sub(r"\D.*", "", micro))),
        of("torch"),
        torch_xla,
        of("libtpu"),
        next((match[1] for match in wanted if match), None),
    )


def check_versions(found: Versions, hardware: HardwareConfig) -> Check:
    """Whether Python, torch, torch_xla and libtpu fit together, as far as `hardware` needs them."""
    named = {"torch": found.torch, "torch_xla": found.torch_xla, "libtpu": found.libtpu}
    text = f"python {'.'.join(map(str, found.python))}, " + ", ".join(f"{k} {v or 'missing'}" for k, v in named.items())
    if not PYTHONS[0] <= found.python[:2] < PYTHONS[1]:
        return _failure("versions", text, "Python 3.11 to 3.13: make clean setup PYTHON=python3.11")
    if found.torch is None:
        return _failure("versions", text, "make setup")
    if hardware.backend != "xla":
        return _ok("versions", text + f" (hardware.backend={hardware.backend} needs torch alone)")
    if found.torch_xla is None:
        return _failure("versions", text, "make setup installs torch_xla; hardware.backend=eager or inductor does without it")
    if _release(found.torch) != _release(found.torch_xla):
        wanted = ".".join(_release(found.torch_xla))
        fix = f"make setup installs the pair; torch_xla {found.torch_xla} needs torch {wanted}.*, hardware.backend=eager neither"
        return _failure("versions", text, fix)
    if hardware.platform != "tpu":
        return _ok("versions", text + (" (no TPU, not needed)" if found.libtpu is None else ""))
    if found.libtpu is None:
        return _failure("versions", text, "make setup EXTRAS=dev,tpu, or hardware=cpu")
    if found.libtpu_wanted is not None and found.libtpu != found.libtpu_wanted:
        fix = f"torch_xla asks for libtpu {found.libtpu_wanted}: make setup EXTRAS=dev,tpu"
        return Check("versions", "warning", text, fix)
    return _ok("versions", text)


def _release(version: str) -> list[str]:
    return version.split(".")[:2]


# ------------------------------------------------------------------------------------------------------- devices and compiling


@dataclass(frozen=True)
class Probe:
    """What a process of its own found when it started the backend and compiled; None = it did not get that far."""

    devices: int | None = None
    runtime: str = ""
    start_s: float = 0.0
    error: str | None = None  # the backend's own words, fix included
    compile_s: float | None = None
    right: bool | None = None
    peak_bytes: int | None = None
    limit_s: float | None = None  # set where the process was ended for taking longer
    died: str | None = None  # how the process ended where it should not have


def probe_devices(hardware: HardwareConfig, limit_s: float) -> Probe:
    """Start the backend in a process of its own, which a wrong platform can hang or abort, for at most `limit_s` seconds."""
    code = "from trm.doctor import run_probe; run_probe()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(dataclasses.asdict(hardware)).encode(),
            capture_output=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return dataclasses.replace(_read_probe(late.stdout or b""), limit_s=limit_s)
    found = _read_probe(done.stdout)
    if done.returncode == 0:
        return found
    ended = f"signal {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"exit code {done.returncode}"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return dataclasses.replace(found, died=ended + (f": {said[-1].strip()}" if said else ""))


def _read_probe(output: bytes) -> Probe:
    facts: dict[str, Any] = {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError):  # what a library prints beside the probe's own lines
            said = json.loads(line)
            facts |= said if isinstance(said, dict) and said.keys() <= Probe.__dataclass_fields__.keys() else {}
    return Probe(**facts)


def run_probe() -> None:
    """The probe's process: HardwareConfig as JSON on stdin; on stdout JSON lines, fields of `Probe` as soon as they are known."""

    def tell(**facts: object) -> None:
        print(json.dumps(facts), flush=True)

    hardware = HardwareConfig(**json.load(sys.stdin) | {"compile_cache": None})
    import numpy as np
    from torch import Tensor

    from trm.backends import start

    began = time.perf_counter()
    try:
        runtime = start(hardware)
    except UserError as error:
        tell(error=str(error))
        return
    tell(devices=runtime.num_devices, runtime=runtime.describe(), start_s=time.perf_counter() - began)

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
    expected = f"{hardware.num_devices} {hardware.platform} device(s) expected"
    if probe.error is not None:
        text, _, fix = probe.error.rpartition(": ")
        return _failure("devices", f"{expected}: {text}", fix)
    if probe.devices is None:
        if probe.limit_s is not None:
            together = f"start the doctor on all {hardware.processes} hosts at once (scripts/launch_pod.sh), or "
            fix = (together if hardware.processes > 1 else "") + "use hardware=cpu, or see what holds the devices"
            return _failure("devices", f"{expected}, no answer within {probe.limit_s:g} s", fix)
        fix = "make setup, or hardware.backend=eager" if hardware.platform == "cpu" else "hardware=cpu, or the right machine"
        return _failure("devices", f"{expected}, the process that started them ended with {probe.died}", fix)
    if probe.devices != hardware.num_devices:
        return _failure("devices", f"{expected}, {probe.devices} found", "the hardware= of this machine, such as hardware=cpu")
    return _ok("devices", f"{expected} and found: {probe.runtime}, started in {probe.start_s:.1f} s")


def check_compile(probe: Probe) -> Check:
    """Whether a trivial function compiles, runs on all devices and gives the right result."""
    fix = "make setup, or hardware.backend=eager on one device"
    if probe.devices is None:
        return _failure("compile", "not tried without devices", "see devices")
    if probe.compile_s is None:
        ended = f"not done within {probe.limit_s:g} s" if probe.limit_s is not None else f"the process ended with {probe.died}"
        return _failure("compile", f"a trivial function: {ended}", fix)
    if not probe.right:
        return _failure("compile", "a trivial function gave a wrong result", fix)
    return _ok("compile", f"a trivial function compiled and ran in {probe.compile_s:.1f} s")


# ------------------------------------------------------------------------------------------------------------------- dataset


@dataclass(frozen=True)
class DataFacts:
    """What later checks need of the dataset; from the settings alone where it is not there."""

    seq_len: int
    vocab_size: int
    num_puzzle_identifiers: int
    num_groups: int
    num_bytes: int = 0


def check_dataset(cfg: Config) -> tuple[Check, DataFacts]:
    """Whether the dataset folder is there, built with these settings, whole and undamaged; reads all of it."""
    data, path = cfg.data, Path(cfg.data.path)
    task = task_of(data)
    planned = DataFacts(**task.facts.sizes, num_groups=data.num_puzzles)
    build = build_command(data)
    if is_absent(path):
        if data.source == "generated":
            return Check("dataset", "warning", f"{path} is missing: the run builds it first", build), planned
        files = {"data.train_csv": data.train_csv, "data.test_csv": data.test_csv}
        missing = [f"{key}={file}" for key, file in files.items() if file and not Path(file).is_file()]
        if missing:
            fix = f"name files that are there, then {build}"
            return _failure("dataset", f"{path} is missing, and so is {missing[0]}", fix), planned
        if all(files.values()):
            return Check("dataset", "warning", f"{path} is missing: the run builds it first", build), planned
        return _failure("dataset", f"{path} is missing", build), planned
    try:
        ensure_dataset(data)
        splits = {split: load_dataset(path, split, task) for split in SPLITS}
        compared = _compare_checksums(path)
    except DataError as error:
        text, _, fix = str(error).rpartition(": ")
        return _failure("dataset", text, fix), planned
    except OSError as error:
        return _failure("dataset", f"{error.filename}: {error.strerror}", "make it readable"), planned
    train = splits["train"]
    num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    m = train.metadata
    facts = DataFacts(m.seq_len, m.vocab_size, m.num_puzzle_identifiers, train.num_groups, num_bytes)
    rows = ", ".join(f"{split} {dataset.num_groups:,} puzzles ({dataset.num_rows:,} rows)" for split, dataset in splits.items())
    sums = "checksums match" if compared else "no checksums (built elsewhere)"
    text = f"{path}: {rows}, {size(num_bytes)}, {sums}"
    try:
        total_steps(cfg, train.num_groups)
    except ConfigError as error:
        return _failure("dataset", text, str(error)), facts
    return _ok("dataset", text), facts


def _compare_checksums(path: Path) -> bool:
    """Compare every array with build.json; False where there is none. Raises DataError."""
    record = read_build_record(path)
    if record is None:
        return False
    known = record.get("sha256")
    for split in SPLITS:
        for name in ARRAYS:
            file = array_path(path, split, name)
            with file.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if not isinstance(known, dict) or known.get(f"{split}/{name}") != found:
                again = f"remove {path} and build it again with python -m trm.build_data data.path={path}"
                raise DataError(f"{file} is damaged (its checksum is not that of build.json): {again}")
    return True


# ----------------------------------------------------------------------------------------------------------- disk and memory


@dataclass(frozen=True)
class Needs:
    """What the run's state takes, in bytes, computed from its shapes."""

    state: int  # one checkpoint's tensors: weights, moments, EMA, puzzle embedding, carry of the global batch
    activations: int  # that a step of the global batch keeps for its gradients


def needs(cfg: Config, facts: DataFacts) -> Needs:
    """Make the state and trace a step on torch's meta device, which has shapes but no memory."""
    import torch

    from trm.core.losses import cell_cross_entropy
    from trm.core.model import architecture, forward, init_fixed
    from trm.core.step import init_state
    from trm.run.checkpoint import flatten

    arch = architecture(
        cfg, seq_len=facts.seq_len, vocab_size=facts.vocab_size, num_puzzle_identifiers=facts.num_puzzle_identifiers
    )
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.device("meta"):
        fixed = init_fixed(arch, cfg.seed)
        state = init_state(cfg, arch, fixed)
        saved = [*flatten(state).values(), *(t for name, t in fixed.items() if name.startswith("init."))]
        weights = {name: weight.requires_grad_() for name, weight in state.weights.items()}
        vectors = None if state.puzzle_embedding is None else state.puzzle_embedding[state.carry.puzzle_identifiers]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = forward(arch, weights, fixed, vectors, state.carry.latents, state.carry.inputs)
            cell_cross_entropy(out.logits, state.carry.labels, cfg.model.loss, arch.loss_dtype)
    own = {weight.untyped_storage()._cdata for weight in weights.values()}
    return Needs(
        state=sum(tensor.nbytes for tensor in saved),
        activations=sum(storage.nbytes() for key, storage in kept.items() if key not in own),
    )


def checkpoints_at_once(cfg: Config, num_groups: int) -> int:
    """Checkpoints that lie on the disk together at most: the newest, the best, and the one that is being written."""
    steps = total_steps(cfg, num_groups)
    saves = 1 + sum(steps // every for every in (cfg.train.checkpoint_every_steps, cfg.train.eval_every_steps) if every)
    return min(saves, cfg.train.keep_checkpoints + 2)


def check_disk(*, state_bytes: int, count: int, there_bytes: int, free_bytes: int, folder: Path) -> Check:
    """Whether `count` checkpoints fit where `free_bytes` are free and `there_bytes` are taken by this run's own."""
    needed = max(count * state_bytes - there_bytes, 0)
    there = f", {size(there_bytes)} of them there" if there_bytes else ""
    text = f"{count} checkpoint(s) of {size(state_bytes)} at once{there}; {size(free_bytes)} free for {folder}"
    fix = "make room, lower train.keep_checkpoints, or start in a folder on a larger disk"
    if free_bytes < needed:
        return _failure("disk", text, fix)
    if free_bytes < needed + SPARE_BYTES:
        return Check("disk", "warning", f"{text}, which leaves little for logs", fix)
    return _ok("disk", text)


def check_memory(cfg: Config, need: Needs, *, process_bytes: int | None, data_bytes: int, available_bytes: int) -> Check:
    """Whether the host's memory holds one process of the run: on a CPU that includes the activations, by an estimate."""
    on_cpu = cfg.hardware.platform == "cpu"
    fixed = (process_bytes or 0) + data_bytes
    scaled = (STATE_COPIES + CPU_STATE_COPIES * on_cpu) * need.state + need.activations * on_cpu
    about = f"about {size(need.activations)} of it activations" if on_cpu else "the devices' own not counted"
    beside = "" if process_bytes else " beside torch and its backend"
    text = f"{size(fixed + scaled)} needed{beside} ({about}), {size(available_bytes)} available"
    if available_bytes >= fixed + scaled * (ESTIMATE_MARGIN if on_cpu else 1):
        return _ok("memory", text)
    devices, batch = cfg.hardware.num_devices, cfg.train.global_batch_size
    fits = int(batch * (available_bytes - fixed) / (scaled * ESTIMATE_MARGIN)) // devices * devices
    fix = "use a machine with more memory"
    if on_cpu and fits > 0:
        fix = f"train.global_batch_size={fits} should fit, or {fix}"
    if available_bytes >= fixed + scaled:
        return Check("memory", "warning", f"{text}: close, for an estimate", fix)
    return _failure("memory", text, fix)


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


# -------------------------------------------------------------------------------------------------------------------- folder


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
        return _failure("folder", f"{run_dir} cannot be written ({parent}: {error.strerror})", fix)
    return _ok("folder", f"{run_dir} can be written")


# ----------------------------------------------------------------------------------------------------- tracking and launcher


@dataclass(frozen=True)
class WandbFacts:
    """What W&B's settings come to on this machine. Never the key itself."""

    mode: str | None = None  # online, offline, disabled; None where the choice is refused
    problem: str = ""  # why it is refused, or not what was asked for
    server: str = ""
    answers: bool = False  # whether the server takes connections (asked only where the mode is online)


def ask_wandb(tracking: TrackingConfig, run_dir: Path) -> WandbFacts:
    """The mode that the run would choose, and whether the server can be reached, in a few seconds at most."""
    warnings: list[str] = []
    try:
        mode = choose_wandb_mode(tracking.wandb, run_dir, warnings.append)
        if mode != "online":
            return WandbFacts(mode, "".join(warnings))
        import wandb
    except UserError as error:
        return WandbFacts(problem=str(error))
    except ImportError as error:
        return WandbFacts(problem=f"wandb does not import ({error}): make setup, or tracking=tensorboard")
    server = str(wandb.setup().settings.base_url)
    return WandbFacts(mode, "".join(warnings), server, answers(server, SERVER_LIMIT_S))


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


def check_wandb(found: WandbFacts, wanted: str) -> Check:
    """What W&B does in this run."""
    if found.mode is None:
        text, _, fix = found.problem.rpartition(": ")
        return _failure("wandb", text, fix)
    if found.mode == "disabled":
        return _ok("wandb", "off")
    login = "run `wandb login` or set WANDB_API_KEY, or choose tracking=offline"
    if found.mode == "offline":
        if found.problem:
            return Check("wandb", "warning", f"offline: {found.problem.rpartition(': ')[0]}", login)
        if wanted == "auto" and os.environ.get("WANDB_MODE") != "offline":
            return Check("wandb", "warning", "offline, on disk only: there is no key", login)
        return _ok("wandb", "offline, on disk only")
    if not found.answers:
        text = f"there is a key, but {found.server} does not answer within {SERVER_LIMIT_S:g} s: the run would log offline"
        return Check("wandb", "warning", text, "check the network, or choose tracking=offline")
    return _ok("wandb", f"online: there is a key, and {found.server} answers")


def check_tracking(tracking: TrackingConfig, wandb_mode: str | None, *, tensorboard_installed: bool) -> Check:
    """Where the metrics go."""
    kinds = ["metrics.jsonl"]
    if tracking.tensorboard:
        if not tensorboard_installed:
            return _failure("tracking", "TensorBoard is not installed", "make setup, or tracking=none")
        kinds.append("TensorBoard")
    if wandb_mode in ("online", "offline"):
        kinds.append(f"W&B ({wandb_mode})")
    return _ok("tracking", ", ".join(kinds))


def check_launcher(launcher: str, *, has_sbatch: bool, has_ray: bool) -> Check:
    """Whether what hydra/launcher needs is installed."""
    chosen = f"hydra/launcher={launcher}"
    if launcher == "submitit_slurm" and not has_sbatch:
        fix = "start on a Slurm login node, or leave hydra/launcher out"
        return _failure("launcher", f"{chosen}, but sbatch is not on PATH", fix)
    if launcher == "ray" and not has_ray:
        return _failure("launcher", f"{chosen}, but ray is not installed", "make setup EXTRAS=dev,ray, or leave hydra/launcher out")
    return _ok("launcher", f"{chosen} is available")


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
        need = needs(cfg, facts)
        count = checkpoints_at_once(cfg, facts.num_groups)
    except (ImportError, OSError) as error:  # OSError: a library that torch loads
        yield _failure("disk", f"checkpoints cannot be computed: torch does not import ({error})", "make setup")
    except ConfigError as error:
        yield _failure("disk", "the run has no steps", str(error))
    else:
        resumed = run_dir.glob("checkpoints/step_*/*") if cfg.train.resume == "auto" else ()
        yield check_disk(
            state_bytes=need.state,
            count=count,
            there_bytes=sum(file.stat().st_size for file in resumed),
            free_bytes=shutil.disk_usage(existing_parent(run_dir)).free,
            folder=run_dir,
        )
        yield check_memory(
            cfg,
            need,
            process_bytes=probe.peak_bytes,
            data_bytes=facts.num_bytes,
            available_bytes=available_memory(),
        )

    wandb = ask_wandb(cfg.tracking, run_dir)
    yield check_wandb(wandb, cfg.tracking.wandb)
    yield check_tracking(cfg.tracking, wandb.mode, tensorboard_installed=is_installed("tensorboard"))
    yield check_launcher(
        launch.launcher,
        has_sbatch=shutil.which("sbatch") is not None,
        has_ray=is_installed("ray", "hydra_plugins.hydra_ray_launcher"),
    )


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
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(f"{argument}: not understood: the doctor checks one run: give GROUP=OPTION and KEY=VALUE alone")
    cfg, launch = compose_launch(arguments)
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
