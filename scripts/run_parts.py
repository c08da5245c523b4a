"""A run's newest checkpoint in files of a few MiB, with what else the run needs to go on on another machine."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from trm.errors import CheckpointError, UserError
from trm.ground.folder import CHECKPOINTS, read_summary, write_summary
from trm.run.checkpoint import Meta, Scores, find_checkpoints, first_whole, saved_steps, write_checkpoint

MIB = 2**20
PART_BYTES = 15 * MIB
ABOUT_FILE, METRICS_FILE = "state.json", "metrics.jsonl"


def split(run_dir: Path, folder: Path, most_mib: float) -> dict[str, Any]:
    """Write state.json and state.0, state.1, ... of at most PART_BYTES each; returns what is kept and the sizes in MiB.

    Where all of it is more than `most_mib`, the rows' latents are left out first, so that every row starts its next puzzle; then
    the averaged weights, which training does not read, are kept as their differences from the weights in bfloat16. Raises
    CheckpointError where that is too much still.
    """
    whole = first_whole(find_checkpoints(run_dir), print)
    if whole is None:
        raise CheckpointError(f"{run_dir}: every checkpoint is damaged")
    _, tensors, meta = whole
    latents = {name: tensor for name, tensor in tensors.items() if name.startswith("carry/latents/")}
    fresh = {name: tensor for name, tensor in tensors.items() if name not in latents}
    fresh["carry/halted"] = torch.ones_like(tensors["carry/halted"])
    near = {name: (t - tensors[_weight(name)]).bfloat16() if name.startswith("ema/") else t for name, t in fresh.items()}
    about: dict[str, Any] = {}
    for words, kept in (("all", tensors), ("rows start anew", fresh), ("rows start anew, average in bfloat16", near)):
        blob = save({name: tensor.contiguous() for name, tensor in kept.items()})
        packed = blob if len(blob) > 2 * most_mib * MIB else _packed(blob)  # it is more than half as large when compressed
        about = {"kept": words, "bytes": len(blob)}
        about["latents"] = {} if kept is tensors else {name: [str(t.dtype), list(t.shape)] for name, t in latents.items()}
        if len(packed) <= most_mib * MIB:
            break
    else:
        raise CheckpointError(f"{run_dir}: its checkpoint takes {len(packed) / MIB:.1f} MiB, more than {most_mib:g}")
    parts = [packed[at : at + PART_BYTES] for at in range(0, len(packed), PART_BYTES)]
    for old in folder.glob("state.*"):
        old.unlink()
    for number, part in enumerate(parts):
        (folder / f"state.{number}").write_bytes(part)
    about |= {"meta": asdict(meta), "summary": read_summary(run_dir), "metrics": (run_dir / METRICS_FILE).read_text()}
    about |= {"parts": len(parts), "sha256": hashlib.sha256(packed).hexdigest()}
    (folder / ABOUT_FILE).write_text(json.dumps(about) + "\n")
    unpacked = sum(tensor.nbytes for tensor in tensors.values())
    return {"step": meta.step, "kept": about["kept"], "unpacked MiB": _mib(unpacked), "MiB": [_mib(len(part)) for part in parts]}


def join(folder: Path, run_dir: Path) -> bool:
    """Write what `split` wrote into a run folder; False where that has a checkpoint of this step or a later one."""
    try:
        about = json.loads((folder / ABOUT_FILE).read_text())
        packed = b"".join((folder / f"state.{number}").read_bytes() for number in range(about["parts"]))
        whole = hashlib.sha256(packed).hexdigest() == about["sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: {error}: give the folder of results of an earlier command") from error
    if not whole:
        raise UserError(f"{folder}: its parts are not those in {ABOUT_FILE}: copy all of them")
    meta = Meta(**about["meta"] | {"scores": Scores(**about["meta"]["scores"])})
    if meta.step <= max(saved_steps(run_dir), default=-1):
        return False
    tensors: dict[str, Tensor] = load(_unpacked(packed)[: about["bytes"]])
    for name, (dtype, shape) in about["latents"].items():
        tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
    for name, tensor in tensors.items():
        if name.startswith("ema/") and tensor.dtype == torch.bfloat16:
            tensors[name] = tensors[_weight(name)] + tensor
    (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    write_checkpoint(run_dir / CHECKPOINTS / f"step_{meta.step}", tensors, meta)
    (run_dir / METRICS_FILE).write_text(about["metrics"])
    write_summary(run_dir, about["summary"])
    return True


def _packed(blob: bytes) -> bytes:
    """Compressed, with the first bytes of all numbers of four beside one another, then the second, ...: exponents are alike."""
    return zlib.compress(np.frombuffer(blob + bytes(-len(blob) % 4), np.uint8).reshape(-1, 4).T.tobytes(), 1)


def _unpacked(packed: bytes) -> bytes:
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(4, -1).T.tobytes()


def _weight(name: str) -> str:
    return f"weights/{name.removeprefix('ema/')}"


def _mib(count: int) -> float:
    return round(count / MIB, 1)
