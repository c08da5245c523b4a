"""Readers of the files that people bring: text, JSON, and folders of files."""

import codecs
import gzip
import hashlib
import io
import json
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trm.errors import DataError

_GZIP = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MOST_NAMES = 5  # in a message

_log = logging.getLogger(__name__)


@contextmanager
def opened(path: Path, key: str = "") -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where it is a gzip file. Raises DataError that names the file, and its config `key` if given."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            yield io.BufferedReader(gzip.GzipFile(fileobj=file)) if packed else file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is damaged: gzip cannot unpack it ({error}): get it again") from error
    except OSError as error:
        raise DataError(f"{key and key + '='}{path} cannot be read ({error.strerror}): give the path of a file") from error


@contextmanager
def opened_text(path: Path, key: str = "") -> Iterator[io.TextIOWrapper]:
    """The file's text, UTF-8 or UTF-16 with its mark; every line ends in a line feed. Raises DataError that names the file."""
    with opened(path, key) as file:
        start = file.peek(2)  # type: ignore[attr-defined]
        text = io.TextIOWrapper(file, "utf-16" if start.startswith(_UTF_16) else "utf-8-sig")
        try:
            if b"\0" in start and text.encoding == "utf-8-sig":
                raise DataError(
                    f"{path}: is not UTF-8 text, since it begins with {start[:8]!r}: unpack it, or export it as UTF-8 text"
                )
            yield text
        except UnicodeError as error:
            raise DataError(f"{path}: is not UTF-8 text ({error}): save it as UTF-8") from error


def read_text(path: Path) -> str:
    """The whole text of a file. Raises DataError that names the file."""
    with opened_text(path) as text:
        return text.read()


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DataError that names the file and the line where it is not JSON or repeats a key."""
    try:
        return json.loads(read_text(path), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}): get the file again") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key} occurs twice")
        found[key] = value
    return found


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, unpacked where it is a gzip file."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def data_files(folder: Path, suffix: str) -> list[Path]:
    """The files with this suffix in a folder and the folders below it, in order; the log names the files that are not read.

    Hidden files, and those that macOS adds (`._NAME`, `__MACOSX`), are not data, whatever their suffix.
    """
    found: list[Path] = []
    skipped: list[Path] = []
    for file in sorted(file for file in folder.rglob("*") if not file.is_dir()):
        place = file.relative_to(folder)
        hidden = any(part.startswith((".", "__MACOSX")) for part in place.parts)
        (skipped if hidden or file.suffix.lower() != suffix else found).append(place)
    if skipped:
        more = f" and {len(skipped) - _MOST_NAMES} more" if len(skipped) > _MOST_NAMES else ""
        _log.info("%s: no data, not read: %s%s", folder, ", ".join(map(str, skipped[:_MOST_NAMES])), more)
    return [folder / place for place in found]
