"""Files that a command was asked for."""

from collections.abc import Mapping
from pathlib import Path

from trm.errors import UserError


def write_files(option: str, place: Path, files: Mapping[Path, str | bytes]) -> None:
    """Write all files, and folders where they are missing. Raises UserError naming the option and the place that it gave."""
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise UserError(f"{option} {place}: cannot be written to ({error.strerror}): choose another place") from error
