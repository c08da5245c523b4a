"""Running the real commands in a folder, as a user does.

A command that computes with plain torch, or not at all, runs in this process: importing torch takes longer than most of these runs.
Everything else (torch_xla, inductor, sweeps) is a process of its own, and so is whatever asks for one.
"""

import contextlib
import importlib.util
import io
import json
import logging
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from trm import cli
from trm.errors import UserError

# The smallest run that has everything: evaluations, checkpoints, halting, EMA.
TINY = [
    "hardware=cpu", "hardware.backend=eager", "tracking=none", "data=sudoku_4x4", "model=tiny", "recursion=t2_n2",
    "recursion.n_sup=4", "train.global_batch_size=16", "train.max_steps=20", "train.log_every_steps=1", "train.eval_every_steps=10",
    "train.checkpoint_every_steps=5", "evaluate.max_puzzles=40", "data.num_puzzles=64", "data.num_test_puzzles=64",
]  # fmt: skip
# As little as a run can be: one step, one supervision step of one recursion, four puzzles to evaluate.
SMALLEST = [
    *TINY, "train.max_steps=1", "recursion.T=1", "recursion.n=1", "recursion.n_sup=1", "data.num_puzzles=16",
    "data.num_test_puzzles=16", "evaluate.max_puzzles=4", "evaluate.selection_puzzles=0",
]  # fmt: skip
# The same on other engines: through torch_xla as on a TPU, on eight virtual devices, compiled by inductor.
XLA = ["hardware=cpu_xla", "hardware.backend=xla"]
MESH = ["hardware=cpu_mesh", "hardware.backend=xla"]
INDUCTOR = ["hardware=cpu", "hardware.backend=inductor"]

# Values of metrics.jsonl that differ between two runs of the same.
TIMES = ("samples_per_s", "step_time_s", "host_time_s", "loader_wait_s", "compiles")
HYDRA_COMMANDS = {"trm.train": "train", "trm.build_data": "run"}
PLAIN_COMMANDS = {"trm.evaluate", "trm.solve", "trm.interop", "trm.report.__main__", "trm.plan.__main__"}


def environment(**extra: str) -> dict[str, str]:
    """The environment of a command under test: no W&B account, whatever this machine has."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k != "HYDRA_FULL_ERROR"}
    return inherited | extra


def xla_dump(folder: Path) -> str:
    """XLA_FLAGS with which XLA writes its modules to a folder, beside what the variable holds."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} --xla_dump_hlo_as_text".strip()


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def run(
    folder: Path, module: str, *arguments: str, check: int | None = 0, timeout: int = 240, process: bool | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in `folder` with extra environment variables; its exit code must be `check`.

    `process` says whether in a process of its own; None = where it must be. In this one (False) it must compute by plain torch, or
    be refused before it computes or starts a job.
    """
    here = None if process or (extra and process is None) else _entry(folder, module, arguments, process is False)
    if here is None:
        argv = command(module, *arguments)
        done = subprocess.run(
            argv, cwd=folder, env=environment(**extra), capture_output=True, text=True, timeout=timeout, check=False
        )
    else:
        done = _run_here(folder, *here, command(module, *arguments), extra)
    assert check is None or done.returncode == check, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    if module == "trm.train":
        assert "compiled again after the first step" not in done.stdout
    return done


def _entry(folder, module, arguments, refused):
    """The module to run in this process and what to call in it; None where the command must be a process."""
    if module in HYDRA_COMMANDS:
        backend = ([a for a in arguments if a.startswith("hardware.backend=")] or [""])[-1]
        sweeps = {"-m", "--multirun", "--help", "--cfg", "--info"} & set(arguments) or any("sweep=" in a for a in arguments)
        if not refused and (sweeps or (module == "trm.train" and backend != "hardware.backend=eager")):
            return None
        loaded = importlib.import_module(module)
        options = {} if module == "trm.train" else {"run_folder": False}
        return loaded, lambda: cli.hydra_command(getattr(loaded, HYDRA_COMMANDS[module]), **options)
    name = module if module in PLAIN_COMMANDS else f"{module}.__main__"
    if name not in PLAIN_COMMANDS or (module == "trm.evaluate" and not refused and not _is_eager(folder, arguments)):
        return None
    loaded = importlib.import_module(name)
    return loaded, lambda: cli.plain_command(loaded.main, loaded.__doc__)


def _is_eager(folder, arguments):
    """Whether an evaluation computes with plain torch: as the run did, or as it is told to."""
    told = [a.partition("=")[2] for a in arguments if a.startswith("hardware.backend=")]
    if told or any(a.startswith("hardware=") for a in arguments):
        return told[-1:] == ["eager"]
    paths = [folder / a.removeprefix("checkpoint=") for a in arguments if a.startswith("checkpoint=")]
    configs = [place / "config.yaml" for path in paths for place in (path, *path.parents) if (place / "config.yaml").exists()]
    if not configs:
        return True
    try:
        return yaml.safe_load(configs[0].read_text())["hardware"]["backend"] == "eager"
    except (TypeError, KeyError, ValueError, yaml.YAMLError):
        return True  # refused before anything is computed


def _run_here(folder, module, call, argv, extra):
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = Path.cwd(), sys.argv, sys.modules["__main__"], dict(os.environ), logging.root.handlers[:], logging.root.level
    raising = logging.raiseExceptions
    logging.root.handlers[:] = []  # a library's warning in an earlier test leaves one behind
    os.chdir(folder)
    sys.argv, sys.modules["__main__"] = [argv[2], *argv[3:]], module
    inherited = environment(**extra)
    os.environ.clear()
    os.environ.update(inherited)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                call()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(bool(end.code))
            except Exception:  # noqa: BLE001 - as the interpreter does with what nobody caught
                traceback.print_exc()
                code = 1
    finally:
        os.chdir(before[0])
        sys.argv, sys.modules["__main__"] = before[1:3]
        os.environ.clear()
        os.environ.update(before[3])
        logging.root.handlers[:], logging.raiseExceptions = before[4], raising
        logging.root.setLevel(before[5])
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def script(path: str) -> ModuleType:
    """A file of scripts/ as a module."""
    file = Path(__file__).parents[1] / "scripts" / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def small_disk(folder: Path):
    """A function that mounts a tmpfs with its options at a new folder and says whether it could; in the end it is unmounted."""
    folder.mkdir()

    def mount(*options: str) -> bool:
        argv = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    try:
        yield mount
    finally:
        while subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode == 0:
            pass


def metrics(run_dir: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def warnings(run_dir: Path) -> list[str]:
    """The summary's warnings but for what is found in every 4x4 dataset: that test puzzles are copies of training puzzles."""
    return [warning for warning in summary(run_dir)["warnings"] if "may be symmetric copies" not in warning]


def numbers(run_dir: Path, kind: str = "train") -> list[dict]:
    """The metrics without those that depend on the clock."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in metrics(run_dir, kind)]


def values_of(run_dir: Path, kind: str = "train") -> list[dict]:
    """The same without words, to be compared by pytest.approx."""
    return [{name: value for name, value in line.items() if not isinstance(value, str)} for line in numbers(run_dir, kind)]


def refused(command, arguments, words):
    """Call a command, which refuses its arguments in one line with these words."""
    with pytest.raises(UserError) as caught:
        command(arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
