"""A run's folder: one process writes in it at a time, its summary is never half-written, and its checkpoints are found by step.

The newest and the best checkpoint follow from the folders' names and their metas. The links `latest` and `best` are for people:
tools that copy a folder follow, drop or keep them.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout

from trm.errors import UserError

SUMMARY_FILE, CONFIG_FILE, METRICS_FILE = "summary.json", "config.yaml", "metrics.jsonl"
CHECKPOINTS, META_FILE = "checkpoints", "meta.json"
LOCK_FILE = ".lock"
GRID_FILE = "grid.json"  # of a sweep, beside its jobs' folders
PREVIOUS_SUMMARY_FILE = ".summary.previous.json"  # of the start before this one, while a sweep's job has not written its own
LOOK_S = 0.5  # `in_use` holds a lock for a moment
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # what flock answers on file systems without locks
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
    errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


class InUseError(UserError):
    """Another process works in the folder. Nothing may be written there, not even that this process was refused."""


@contextlib.contextmanager
def locked(file: Path, *, limit_s: float = -1, mode: int = -1) -> Iterator[bool]:
    """Hold a lock, which ends with the process. Waits for another holder; raises Timeout after `limit_s` (-1 = never).

    It is the operating system's lock where the file system has locks. Elsewhere a file FILE.held is there while the lock is held,
    and the next process on that host removes it where the holder was killed. Yields whether the lock is the system's.
    """
    by_system = True
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(file, timeout=limit_s, mode=mode, fallback_to_soft=False))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            by_system = False
            stack.enter_context(SoftFileLock(f"{file}.held", timeout=limit_s))
        yield by_system


@contextlib.contextmanager
def held(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file. Raises InUseError where another process has it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, limit_s=LOOK_S))
        except Timeout as error:
            file = Path(f"{lock}.held")
            raise InUseError(refusal + (f"; remove {file} if its host was lost" if file.exists() else "")) from error
        yield


def exclusive(run_dir: Path) -> AbstractContextManager[None]:
    """Hold the run folder: a second process that trains there at the same time is refused (InUseError)."""
    words = f"{run_dir}: another process is training in this folder: wait for it, or choose another run_name"
    return held(run_dir / LOCK_FILE, words)


def refuse_in_use(run_dir: Path) -> None:
    """Raise InUseError where a process trains in the folder now."""
    if (run_dir / LOCK_FILE).exists():
        with exclusive(run_dir):
            pass


def in_use(run_dir: Path) -> bool:
    """Whether a process trains in the folder now."""
    if not (run_dir / LOCK_FILE).exists():
        return False
    try:
        with locked(run_dir / LOCK_FILE, limit_s=0):
            return False
    except Timeout:
        return True
    except PermissionError:  # the folder of another user, in which this process could not train
        return False


def make_folder(folder: Path, *, new: bool = False) -> bool:
    """Make a folder and write into it; False where a `new` one is there already. Raises UserError that says what is in the way."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=not new)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        if new and isinstance(error, FileExistsError) and folder.exists():  # perhaps another process made it just now
            return False
        raise unwritable(folder, error) from error
    return True


def unwritable(path: Path, error: OSError) -> UserError:
    """The error for a folder or file of a run that cannot be made or written: what is in the way, and the fix."""
    for part in (*reversed(path.absolute().parents), path):
        if part.is_symlink() and not part.exists():
            return UserError(f"{part} is a link to {os.readlink(part)}, which is not there: make that folder, or remove the link")
        if part.is_file() and (part != path or error.errno == errno.EEXIST):
            return UserError(f"{part} is a file where {path} needs a folder: move it away, or start in another folder")
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"{path}: {error.strerror}: choose a shorter run_name")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: {error.strerror}: make room, or start in a folder on another disk")
    if error.errno == errno.EISDIR:
        return UserError(f"{path} is a folder where a file is to be written: move it away, or choose another run_name")
    return UserError(f"{path}: {error.strerror}: make it writable, or start in another folder")


def write_whole(path: Path, text: str) -> None:
    """Replace a file as a whole or not at all, since other processes read it."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a machine that loses its power may keep the new name without the content
    temporary.replace(path)


def read_summary(run_dir: Path, name: str = SUMMARY_FILE) -> dict[str, Any] | None:
    """A run's summary.json; None where it is missing or not whole."""
    try:
        summary = json.loads((run_dir / name).read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def put_summary_away(run_dir: Path) -> None:
    """Rename the last start's summary.json; `seconds_before` still finds it."""
    if (run_dir / SUMMARY_FILE).exists():
        (run_dir / SUMMARY_FILE).replace(run_dir / PREVIOUS_SUMMARY_FILE)


def seconds_before(run_dir: Path) -> float:
    """Seconds of training that the earlier starts of a run took; 0.0 where no summary tells."""
    summary = read_summary(run_dir) or read_summary(run_dir, PREVIOUS_SUMMARY_FILE) or {}
    return float(summary.get("seconds") or 0.0)


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Replace summary.json as a whole."""
    write_whole(run_dir / SUMMARY_FILE, json.dumps(summary, indent=1) + "\n")


def steps_in(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints in a folder of them, ascending."""
    names = (re.fullmatch(r"step_(\d+)", p.name) for p in checkpoints.glob("step_*"))
    return sorted(int(match[1]) for match in names if match)


def best_step(checkpoints: Path) -> int | None:
    """Step of the best evaluation, as the newest whole meta says; None where no evaluation was made or its checkpoint is gone."""
    for step in reversed(steps_in(checkpoints)):
        with contextlib.suppress(OSError, ValueError):
            body = json.loads((checkpoints / f"step_{step}" / META_FILE).read_bytes())
            if isinstance(body, dict) and body.pop("meta_sha256", None) == checksum(body):
                best = body["scores"]["best_step"]
                return best if (checkpoints / f"step_{best}" / META_FILE).exists() else None
    return None


def checksum(body: dict[str, Any]) -> str:
    """The sha256 of the content of a meta.json."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
