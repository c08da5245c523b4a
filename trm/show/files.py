"""Writing the files that a command was asked for."""

import os
from collections.abc import Mapping
from pathlib import Path

from trm.errors import UserError


def write_files(option: str, place: Path, files: Mapping[Path, str | bytes]) -> None:
    """Write all files and missing folders. Older files are replaced, each by a whole one, after all new ones are written.

    Raises UserError naming the option and the place that it gave.
    """
    beside: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_symlink() and (path.is_file() or not path.exists()):  # others are written to directly
                beside[path] = path.with_name(f".{path.name}.{os.getpid()}")
            beside.get(path, path).write_bytes(content if isinstance(content, bytes) else content.encode())
        for path, file in beside.items():
            file.replace(path)
    except OSError as error:
        raise UserError(f"{option} {place}: cannot be written to ({error.strerror}): choose another place") from error
    finally:
        for file in beside.values():
            file.unlink(missing_ok=True)
