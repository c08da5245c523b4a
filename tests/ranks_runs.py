"""Whole runs that the ranks of tests/test_ranks.py train together, one after another in the same processes.

Each function is called on every rank with a folder that all of them see, and returns what came of it there. Where one rank has
something else than the others, it is the second one. The end of a run is 0, an exit code, or the words of an error.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from running import TINY

from trm.cli import compose
from trm.errors import RunFailure, UserError
from trm.ground.folder import steps_in
from trm.ground.signals import StopSignal
from trm.run.experiment import build
from trm.run.failures import explained
from trm.train import execute

# Attention, since the token mixer amplifies the last bits in which several ranks and one process differ.
SMALL = [
    *TINY, "hardware=cpu_ranks", "hardware.backend=eager", "hardware.dtype=float64", "model=tiny_attention", "model.hidden_size=32",
    "model.num_heads=2", "recursion.T=1", "recursion.n=1", "train.max_steps=12", "train.eval_every_steps=4",
    "train.checkpoint_every_steps=4", "run_name=r", "data.path=data",
]  # fmt: skip
WHOLE = Path("whole/0")  # the folder of the first run on rank 0
DISK = "full_disk"  # where a tmpfs may be mounted
SETTINGS = ("seed=1", "train.checkpoint_every_steps=7")


def ended(folder, *more, batches=0):
    """How a run in the folder ends on this rank, which gets SIGINT once it has made so many batches."""
    cfg = compose([*SMALL, *more])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with StopSignal() as stop, explained(cfg, folder):
            exp = build(cfg)
            if batches:
                interrupt(exp.runtime, batches)
            execute(exp, folder, stop)
    except SystemExit as end:
        return end.code
    except (RunFailure, UserError) as error:
        return str(error)
    return 0


def interrupt(runtime, batches):
    """Have this process get SIGINT when so many batches have been given to the runtime."""
    shard_batch, given = runtime.shard_batch, itertools.count(1)

    def shard(batch):
        if next(given) == batches:
            os.kill(os.getpid(), signal.SIGINT)
        return shard_batch(batch)

    runtime.shard_batch = shard


def steps(folder):
    return steps_in(folder / "checkpoints")


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------------------------- the runs


def whole(folder, rank):
    """From the first step to the last, in a folder for each rank."""
    return {"end": ended(folder / str(rank)), "files": list(content(folder / str(rank)))}


def resumed(folder, rank):
    """From a checkpoint that the test has put there, which another number of processes saved."""
    return {"end": ended(folder)}


def interrupted(folder, rank):
    """The second rank gets SIGINT. Then the same run again."""
    end = ended(folder, batches=3 if rank == 1 else 0)
    step = steps(folder)[-1]
    torch.distributed.barrier()
    return {"end": end, "step": step, "again": ended(folder)}


def not_finite(folder, rank):
    """Weight decay of factor -999 a step: the weights overflow."""
    wild = ["optimizer.lr=1", "optimizer.weight_decay=1000", "optimizer.warmup_steps=0", "train.max_steps=20"]
    return {
        "end": ended(folder, *wild, "hardware.dtype=float32", "train.eval_every_steps=null", "train.checkpoint_every_steps=null")
    }


def other_settings(folder, rank):
    """The second rank is given another value."""
    return {"ends": [ended(folder / str(rank), *([word] if rank == 1 else [])) for word in SETTINGS]}


def other_revision(folder, rank):
    """The second rank runs the code of another revision."""
    with mock.patch("trm.run.resume.code", return_value={"revision": "x"}) if rank == 1 else contextlib.nullcontext():
        return {"end": ended(folder / str(rank))}


def other_data(folder, rank):
    """Each rank has a dataset, built from the same settings, but two training puzzles of the second one's have changed places."""
    own = folder / f"data_{rank}"
    shutil.copytree("data", own)
    for name in ("inputs", "labels") if rank == 1 else ():
        path = own / "train" / f"all__{name}.npy"
        rows = np.load(path)
        np.save(path, np.concatenate([rows[1::-1], rows[2:]]))
    return {"end": ended(folder / str(rank), f"data.path={own}")}


def other_checkpoint(folder, rank):
    """Each rank has a folder with the same checkpoints, but the second one cannot read the newest."""
    own = folder / str(rank)
    shutil.copytree(WHOLE, own, symlinks=True)
    if rank == 1:
        state = own / "checkpoints" / f"step_{steps(own)[-1]}" / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-1])
    before = content(own)
    return {"end": ended(own, "train.max_steps=16"), "unchanged": content(own) == before}


def no_checkpoint(folder, rank):
    """The second rank's folder has one checkpoint, which holds nothing."""
    own = folder / str(rank)
    if rank == 1:
        (own / "checkpoints" / "step_3").mkdir(parents=True)
    return {"end": ended(own)}


def other_weights(folder, rank):
    """The second rank reads other weights from another run, or too few."""

    def changed(arch, tensors):
        return tensors | {"weights/lm_head": tensors["weights/lm_head"] + 1}

    def missing(arch, tensors):
        return {name: tensor for name, tensor in tensors.items() if name != "weights/lm_head"}

    found = {}
    for read in (changed, missing):
        with mock.patch("trm.run.resume.cast", read) if rank == 1 else contextlib.nullcontext():
            found[read.__name__] = ended(folder / read.__name__ / str(rank), f"train.init_from={WHOLE}")
    return found | {"checkpoints": [str(path) for path in folder.rglob("checkpoints")]}


def full_disk(folder, rank):
    """On a disk that has room for one checkpoint and no second, then the same run with room. None where no disk is mounted."""
    if not folder.is_mount():
        return None

    def resize(num_bytes):
        torch.distributed.barrier()
        if rank == 0:
            subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(folder)], check=True)
        torch.distributed.barrier()

    longer = ["train.max_steps=24", "train.eval_every_steps=null"]
    resize(int(1.7 * (WHOLE / "checkpoints/latest/state.safetensors").stat().st_size))
    end, left = ended(folder, *longer), steps(folder)
    resize(100 * 2**20)
    return {"end": end, "left": left, "again": ended(folder, *longer)}


RUNS = (
    resumed, whole, interrupted, not_finite, other_settings, other_revision, other_data, other_checkpoint, no_checkpoint,
    other_weights, full_disk,
)  # fmt: skip


def all_runs(root, rank, runs):
    os.chdir(root)
    found = {}
    for run in runs:
        folder = Path(run.__name__)
        folder.mkdir(exist_ok=True)
        torch.distributed.barrier()  # nobody reads what another one has not yet written
        found[run.__name__] = run(folder, rank)
    return found
