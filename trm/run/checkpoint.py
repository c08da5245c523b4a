"""Checkpoints: the full training state as safetensors plus JSON, written atomically and verified when read.

RUN/checkpoints/step_N/ holds `state.safetensors` and `meta.json`. A puzzle embedding of several identifiers, which can be larger
than all other tensors, has its own file, which only the newest and the best checkpoint keep. `latest` and `best` are relative links
for people; the code does not read them (trm/ground/folder.py). Nothing in a checkpoint depends on the clock or on a path, so equal
runs write equal bytes, and nothing in it can run code.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch.utils._pytree as pytree
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from trm.core.architecture import Architecture
from trm.errors import CheckpointError
from trm.ground.folder import CHECKPOINTS, CONFIG_FILE, META_FILE, best_step, checksum, steps_in

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT_VERSION = 5
STATE_FILE = "state.safetensors"
TABLE_FILE, TABLE = "puzzle_embedding.safetensors", "puzzle_embedding"
LATEST, BEST = "latest", "best"
WRITING = ".writing_"  # prefix of a folder that is not complete yet


@dataclass
class Scores:
    """The results of a run's evaluations up to a step."""

    best_exact_accuracy: float | None = None  # on the test puzzles, at best_step
    best_step: int | None = None  # step of the evaluation with the highest score `selected_by` on the puzzles `selected_on`
    best_puzzles: int | None = None  # the number of these puzzles
    last_eval: dict[str, float] | None = None  # metrics of the last evaluation
    last_eval_step: int | None = None
    exact_accuracy_by_step: list[float] | None = None  # of the last evaluation, after each supervision step
    shown_scores: list[str] = field(default_factory=list)  # of the last evaluation: the scores to show beside exact accuracy
    best_scores: dict[str, float] = field(default_factory=dict)  # the task's own scores on the test puzzles, at best_step
    selected_on: str | None = None  # "selection" puzzles or "test" puzzles
    selected_by: str | None = None  # evaluate.best_by
    selection_score: float | None = None  # the highest score; on "test" puzzles it is too high as a result


@dataclass(frozen=True)
class Meta:
    """The content of a checkpoint's meta.json."""

    step: int  # updates done
    config: dict[str, Any]  # the resolved config, without names and paths
    digest: str  # trm.config.digest: equal if two runs compute the same numbers
    data: dict[str, int]  # seq_len, vocab_size, num_puzzle_identifiers
    scores: Scores = field(default_factory=Scores)
    wandb_run_id: str | None = None  # the W&B run that a resumed run continues; None without W&B
    # None if the weights were imported:
    data_digest: str | None = None  # of the training puzzles
    test_digest: str | None = None  # of the test puzzles that the scores were measured on
    puzzles: dict[str, int] | None = None  # how many, of "train" and "test"
    caveats: list[str] | None = None  # of the dataset (trm/data/content.py)
    training_range: dict[str, int] | None = None  # the generated training puzzles (trm/data/content.py)
    surroundings: dict[str, Any] | None = None  # threads and variables that change numbers (trm/backends/machine.py)
    code: dict[str, Any] | None = None  # revision and versions (trm/run/revision.py): equal for equal code


def flatten(tree: Any) -> dict[str, Tensor]:
    """The tensors of a tree by their paths in it, such as "weights/lm_head" or "carry/latents/z_H"."""
    leaves, _ = pytree.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves if leaf is not None}


def unflatten(template: T, tensors: dict[str, Tensor], source: str) -> T:
    """A tree like `template` with the named tensors in it. Raises CheckpointError if names, shapes or dtypes do not fit."""
    leaves, structure = pytree.tree_flatten_with_path(template)
    expected = {_name(path): leaf for path, leaf in leaves if leaf is not None}
    wrong = sorted(expected.keys() ^ tensors.keys())
    if wrong:
        raise CheckpointError(f"{source}: tensor {wrong[0]} is {'missing' if wrong[0] in expected else 'not expected'}")
    for name, tensor in expected.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{source}: tensor {name} is {found.dtype} {list(found.shape)}, the configuration needs {tensor.dtype} "
                f"{list(tensor.shape)}"
            )
    tree: T = pytree.tree_unflatten([None if leaf is None else tensors[_name(path)] for path, leaf in leaves], structure)
    return tree


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def cast(arch: Architecture, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors in the architecture's dtypes, which the run may not have had.

    Initial latents get its forward dtype; weights, their average and the puzzle embedding its master dtype.
    """
    types = {"fixed": arch.dtype, "weights": arch.master_dtype, "ema": arch.master_dtype, TABLE: arch.master_dtype}
    return {name: tensor.to(types.get(name.partition("/")[0], tensor.dtype)) for name, tensor in tensors.items()}


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", None)))) for entry in path)


def save_checkpoint(run_dir: Path, tensors: dict[str, Tensor], meta: Meta, *, keep: int) -> Path:
    """Write RUN/checkpoints/step_N and link `latest` and `best`; keep the newest `keep` checkpoints and the best one.

    The folder gets its name when it is complete and on disk. After a crash at any moment, the previous checkpoints are whole, or
    `adopt` completes the new one.
    """
    folder = run_dir / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    adopt(folder)
    temporary = folder / f"{WRITING}step_{meta.step}"
    write_checkpoint(temporary, tensors, meta)
    final = _name_it(temporary)
    for later in steps_in(folder):
        if later > meta.step:  # it is damaged, since the run was resumed from an earlier one
            aside = folder / f"step_{later}.damaged"
            _remove(aside)
            (folder / f"step_{later}").rename(aside)
    _link(folder)
    kept = steps_in(folder)[-keep:]
    for old in steps_in(folder):
        if old not in (meta.scores.best_step, meta.step):
            _remove(folder / f"step_{old}" / TABLE_FILE if old in kept else folder / f"step_{old}")
    return final


def adopt(folder: Path) -> None:
    """Finish the work of a process that was killed while it saved: a whole checkpoint gets its name, a partial one is removed."""
    for temporary in folder.glob(f"{WRITING}*"):
        try:
            load_checkpoint(temporary)
        except CheckpointError:
            _remove(temporary)
        else:
            _name_it(temporary)


def _name_it(temporary: Path) -> Path:
    """Give a checkpoint that is whole and on disk its name; one of an earlier start with this name is removed."""
    final = temporary.with_name(temporary.name.removeprefix(WRITING))
    _remove(final)
    temporary.rename(final)
    _sync_folder(final.parent)
    return final


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], meta: Meta) -> None:
    """Write the files of one checkpoint into a new folder, and flush them to disk."""
    folder.mkdir(parents=True)
    table = tensors.get(TABLE)
    apart = table is not None and len(table) > 1
    blob = save({name: tensor.contiguous() for name, tensor in sorted(tensors.items()) if not (apart and name == TABLE)})
    _write(folder / STATE_FILE, blob)
    body = {"format_version": FORMAT_VERSION, "state_sha256": hashlib.sha256(blob).hexdigest()} | asdict(meta)
    if table is not None and apart:
        save_file({TABLE: table.contiguous()}, folder / TABLE_FILE)
        with (folder / TABLE_FILE).open("rb+") as file:
            os.fsync(file.fileno())
            body["table_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    _write(folder / META_FILE, (json.dumps(body | {"meta_sha256": checksum(body)}, indent=1, sort_keys=True) + "\n").encode())
    _sync_folder(folder)


def mend_links(run_dir: Path) -> None:
    """Finish the work of a killed process, and make the links again, since tools that copy a run turn links into folders."""
    adopt(run_dir / CHECKPOINTS)
    _link(run_dir / CHECKPOINTS)


def _link(folder: Path) -> None:
    """Have `latest` and `best` point to the checkpoints that they name. File systems without links (FAT) do without them."""
    steps = steps_in(folder)
    for name, step in {LATEST: steps[-1] if steps else None, BEST: best_step(folder)}.items():
        link, temporary = folder / name, folder / f".{name}.new"
        if step is None:
            continue
        try:
            _remove(temporary)
            if not link.is_symlink():
                _remove(link)
            temporary.symlink_to(f"step_{step}")
            temporary.replace(link)
        except OSError as error:
            log.info("%s: not linked to step_%s (%s); checkpoints are found without", link, step, error.strerror)


class CheckpointWriter:
    """Writes a run's checkpoints in a thread, one at a time. The next call of any method raises an error of the thread."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self._run_dir, self._keep = run_dir, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, tensors: dict[str, Tensor], meta: Meta) -> None:
        """Start writing `tensors`, which must not be changed any more; first waits for the previous checkpoint."""
        self.wait()
        self._writing = self._pool.submit(save_checkpoint, self._run_dir, tensors, meta, keep=self._keep)

    def check(self) -> None:
        """Raise the error of a write that has failed."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint is on disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait, then end the thread."""
        with self._pool:
            self.wait()


def saved_steps(run_dir: Path) -> list[int]:
    """The steps of a run's checkpoints, ascending."""
    return steps_in(run_dir / CHECKPOINTS)


def set_aside(run_dir: Path) -> None:
    """Rename the files of an earlier start (checkpoints, metrics, settings) to NAME.N, so that a run can start again."""
    names = [name for name in (CHECKPOINTS, "metrics.jsonl", CONFIG_FILE) if (run_dir / name).exists()]
    number = 1
    while any((run_dir / f"{name}.{number}").exists() for name in names):
        number += 1
    for name in names:
        (run_dir / name).rename(run_dir / f"{name}.{number}")


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Meta]:
    """Read and verify one checkpoint folder. Raises CheckpointError, which names the file and what is wrong with it."""
    meta_path, state_path = folder / META_FILE, folder / STATE_FILE
    try:
        blob = state_path.read_bytes()
        body = json.loads(meta_path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such file: {folder} is not a complete checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename}: not readable ({error.strerror}): use another checkpoint") from error
    except ValueError as error:
        raise CheckpointError(f"{meta_path}: not readable as JSON ({error}): use another checkpoint") from error
    version = body.get("format_version") if isinstance(body, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{meta_path}: has format version {version}, not {FORMAT_VERSION}: this checkpoint has an older format: train it "
            "again, or use the revision that made it"
        )
    if body.pop("meta_sha256", None) != checksum(body):
        raise CheckpointError(f"{meta_path}: damaged (its checksum does not match): use another checkpoint")
    if hashlib.sha256(blob).hexdigest() != body.get("state_sha256"):
        raise CheckpointError(f"{state_path}: damaged (its checksum does not match {META_FILE}): use another checkpoint")
    try:
        meta = Meta(**{item.name: body[item.name] for item in fields(Meta)} | {"scores": Scores(**body["scores"])})
        tensors = load(blob)
        if (sha256 := body.get("table_sha256")) is None:
            return tensors, meta
        with (table_path := folder / TABLE_FILE).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a checkpoint ({error})") from error
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename}: no such file: only the newest and the best checkpoint of a run keep it: use one of these"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{error.filename}: not readable ({error.strerror}): use another checkpoint") from error
    if found != sha256:
        raise CheckpointError(f"{table_path}: damaged (its checksum does not match {META_FILE}): use another checkpoint")
    return tensors | load_file(table_path), meta


def first_whole(folders: list[Path], tell: Callable[[str], None]) -> tuple[Path, dict[str, Tensor], Meta] | None:
    """The first checkpoint that is not damaged, or None; `tell` is called with the errors of those before it."""
    for folder in folders:
        try:
            return folder, *load_checkpoint(folder)
        except CheckpointError as error:
            tell(f"{error}; the checkpoint before it is used")
    return None


def find_checkpoints(path: Path) -> list[Path]:
    """The checkpoint folders that a path means, the newest first. Raises CheckpointError if there is none.

    The path is a run folder or its `checkpoints` (all of them), `latest` or `best` in it, or one checkpoint folder.
    """
    word = path.name if path.name in (LATEST, BEST) and steps_in(path.parent) else None
    if word is None and (path / META_FILE).exists():
        return [path.resolve()]
    for place in [path.parent] if word else [path, path / CHECKPOINTS]:
        folders = [place / f"step_{step}" for step in reversed(steps_in(place))]
        if word == BEST:
            folders = [place / f"step_{best_step(place)}"]
        if found := [folder.resolve() for folder in folders if (folder / META_FILE).exists()]:
            return found
    raise CheckpointError(f"checkpoint={path}: no checkpoint there: give a run folder (outputs/NAME) or its checkpoints/step_N")


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file, a link (not its target) or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
