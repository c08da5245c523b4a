"""The state that a run starts from: new, or from its folder's newest whole checkpoint. All hosts start from the same state."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import torch
from torch import Tensor

from trm.backends.base import extremes_over_hosts
from trm.backends.machine import surroundings
from trm.config import differences, kept, resume_conflicts, to_plain
from trm.config import flatten as flat_settings
from trm.config.identity import LENGTH
from trm.core.step import TrainState
from trm.errors import CheckpointError, UserError
from trm.ground.folder import CHECKPOINTS, seconds_before
from trm.run import checkpoint
from trm.run.checkpoint import TABLE, Meta, cast, find_checkpoints, first_whole, flatten, part, saved_steps, unflatten
from trm.run.experiment import Experiment
from trm.run.record import Record
from trm.run.revision import code

log = logging.getLogger(__name__)

EVALUATIONS = ("evaluate", "inference")  # groups of settings
HEX_DIGITS = 7  # of a number below 2**31


def starting_point(exp: Experiment, run_dir: Path, record: Record) -> tuple[Experiment, TrainState]:
    """The state to start from, on the CPU, and the experiment with the latents' initial values of this state.

    Fills the record. All hosts must call it together. Raises CheckpointError if the checkpoint belongs to other settings or data,
    if all checkpoints are damaged, or if the hosts would start from different states.
    """
    error: UserError | OSError | None = None
    state: TrainState | None = None
    try:
        exp, state = _start(exp, run_dir, record)
    except (UserError, OSError) as wrong:
        error = wrong
    if exp.runtime.process_count > 1:
        _agree(exp, state, record, error)
    if error is not None:
        raise error
    assert state is not None
    return exp, state


def _start(exp: Experiment, run_dir: Path, record: Record) -> tuple[Experiment, TrainState]:
    """As `starting_point`, on this host alone."""
    found, state = _checkpoint(exp, run_dir, record), exp.first_state()
    if found is None:
        return _from_other_run(exp, state) if exp.cfg.train.init_from else (exp, state)
    folder, tensors, meta = found
    own = {k: t for k, t in tensors.items() if not k.startswith(("fixed/", "metrics/", "votes/"))}
    exp, state = _with_starts(exp, tensors, str(folder)), unflatten(state, own, str(folder))
    record.sums = part(tensors, "metrics/")
    record.votes = {name: tensor.numpy() for name, tensor in part(tensors, "votes/").items()}
    record.step = record.start_step = meta.step
    record.scores, record.wandb_run_id = meta.scores, meta.wandb_run_id
    record.seconds_before = seconds_before(run_dir)
    there, here = ({name: plain.get(name, {}) for name in EVALUATIONS} for plain in (meta.config, kept(to_plain(exp.cfg))))
    record.evaluated_otherwise = differences(there, here)
    log.info("resuming from %s", folder)
    if changed := meta.surroundings is not None and differences(meta.surroundings, surroundings(exp.cfg.hardware)):
        record.warn(f"{folder}: {'; '.join(changed)}: numbers may differ in their last bits from those of an unstopped run")
    return exp, state


def _with_starts(exp: Experiment, tensors: dict[str, Tensor], source: str) -> Experiment:
    """The experiment with a checkpoint's initial values of the latents. Raises CheckpointError if they do not fit."""
    own = {name: start for name, start in exp.buffers.items() if name.startswith("init.")}
    found = {name: start for name, start in part(tensors, "fixed/").items() if name in own}
    return dataclasses.replace(exp, buffers=exp.buffers | unflatten(own, own | found, source))


def _from_other_run(exp: Experiment, state: TrainState) -> tuple[Experiment, TrainState]:
    """A first state with the weights of train.init_from, and the experiment with its latents' initial values.

    The puzzle embedding is taken over if the identifiers are the same; otherwise each row is the mean of the other run's rows.
    Raises CheckpointError if the weights do not fit.
    """
    given = exp.cfg.train.init_from
    assert given is not None
    try:
        whole = first_whole(find_checkpoints(Path(given)), log.warning)
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"train.init_from={given}: {error}") from error
    if whole is None:
        raise CheckpointError(f"train.init_from={given}: every checkpoint there is damaged: give another run")
    folder, tensors, meta = whole
    tensors = cast(exp.arch, tensors)
    ema = part(tensors, "ema/")
    weights = part(tensors, "weights/") or ema
    parts = {"weights": weights} | ({"ema": ema or weights} if state.ema else {})
    named = {f"{kind}/{name}": tensor for kind, tree in parts.items() for name, tensor in tree.items()}
    own = flatten(state)
    named |= {name: tensor for name, tensor in own.items() if name.partition("/")[0] not in parts}
    table, fresh = tensors.get(TABLE), state.puzzle_embedding
    if table is not None and fresh is not None:
        same = table.shape == fresh.shape and (len(table) == 1 or meta.data_digest == exp.content.train_digest)
        if not same:
            log.info(
                "%s: its puzzle embedding has other identifiers (%s there, %s here): every row starts from the mean of its rows",
                folder,
                f"{len(table):,}",
                f"{len(fresh):,}",
            )
            table = table.mean(dim=0, keepdim=True).expand(len(fresh), -1).contiguous()
        named[TABLE] = table
    log.info("starting from the weights of %s (step %s); the rest of the state is new", folder, meta.step)
    source = f"train.init_from={given}: {folder}"
    return _with_starts(exp, tensors, source), unflatten(state, named, source)


def _checkpoint(exp: Experiment, run_dir: Path, record: Record) -> tuple[Path, dict[str, Tensor], Meta] | None:
    """The checkpoint to resume from, or None."""
    cfg = exp.cfg
    if cfg.train.resume == "never":
        if exp.runtime.is_main:
            checkpoint.set_aside(run_dir)
        return None
    if exp.runtime.is_main:
        checkpoint.mend_links(run_dir)
    folders = [run_dir / CHECKPOINTS / f"step_{step}" for step in reversed(saved_steps(run_dir))]
    if not folders:
        return None
    found = first_whole(folders, record.warn)
    if found is None:
        raise CheckpointError(f"{run_dir}: every checkpoint is damaged: train.resume=never starts again and keeps them elsewhere")
    folder, _, meta = found
    conflicts = resume_conflicts(meta.config, cfg)
    kinds = {"training": (meta.data_digest, exp.content.train_digest), "test": (meta.test_digest, exp.content.test_digest)}
    for kind, (there, here) in kinds.items():
        if there not in (None, here):  # None: imported weights
            conflicts.append(f"data.path={cfg.data.path} holds other {kind} puzzles: digest {there} there, {here} here")
    if conflicts:
        raise CheckpointError(
            f"{folder}: was trained with other settings ({'; '.join(conflicts)}): choose another run_name, or "
            "train.resume=never to start again in this folder"
        )
    if meta.step > exp.total_steps:
        name = next(name for name in LENGTH if getattr(cfg.train, name) is not None)
        raise CheckpointError(
            f"train.{name}={getattr(cfg.train, name)}: ends at step {exp.total_steps}, and {run_dir} is at step {meta.step} "
            "already: choose a longer run, or another run_name"
        )
    return found


def _agree(exp: Experiment, state: TrainState | None, record: Record, error: Exception | None) -> None:
    """Raise CheckpointError unless all hosts have the same settings, puzzles, step and state. Hosts with an error take part too."""
    plain = to_plain(exp.cfg)  # settings that change results, and steps and batches at which hosts compute together
    settings = flat_settings(kept(plain)) | {f"train.{k}": value for k, value in plain["train"].items() if k.endswith("_steps")}
    settings["evaluate.batch_size"] = exp.cfg.eval_batch_size
    state_hash = hashlib.sha256()
    for tensor in flatten((state, exp.buffers, {name: torch.from_numpy(v) for name, v in record.votes.items()})).values():
        state_hash.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    numbers = {
        **{key: _words(repr(value)) for key, value in settings.items()},
        "training puzzles": _words(exp.content.train_digest),
        "test puzzles": _words(exp.content.test_digest),
        "step": [-1 if error else record.step],
        "state": _words(state_hash.hexdigest()),
    }
    # first alone, since another revision may have other settings to compare
    wrong = _differing(exp, {"revision of the code": _words(json.dumps(code(), sort_keys=True))}) or _differing(exp, numbers)
    if wrong and error is None:
        raise CheckpointError(
            f"the hosts differ in their {', '.join(wrong)} (here: step {record.step}; another host's log may say more): "
            "give all hosts the same command and folders that they share, or train.resume=never to start again"
        )


def _differing(exp: Experiment, numbers: dict[str, list[int]]) -> list[str]:
    """The names of numbers that are not the same on all hosts."""
    least, largest = extremes_over_hosts(exp.runtime, [number for words in numbers.values() for number in words])
    names = [name for name, words in numbers.items() for _ in words]
    return list(dict.fromkeys(name for name, a, b in zip(names, least, largest, strict=True) if a != b))


def _words(text: str) -> list[int]:
    """A hash of the text as two numbers below 2**31."""
    found = hashlib.sha256(text.encode()).hexdigest()
    return [int(found[:HEX_DIGITS], 16), int(found[HEX_DIGITS : 2 * HEX_DIGITS], 16)]
