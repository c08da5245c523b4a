"""Files of a dataset on the Hugging Face hub, of a known revision or content: fetched once into its cache, resumed, checked."""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trm.errors import DataError
from trm.ground.folder import locked

TELL_EVERY_S = 15.0  # where there is no terminal
REACHED_WITHIN_S = 3.0  # else there is no network
# Variables of the environment by which connections go, the first in either case
_PROXIES = ("all_proxy", "https_proxy", "http_proxy", "no_proxy")
_OWN = re.compile(r"SSLKEYLOGFILE|HF_(ENDPOINT|TOKEN\w*|HUB_OFFLINE|HUB_\w+_TIMEOUT)")  # of the client itself
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

_log = logging.getLogger(__name__)


class _Progress(tqdm):  # type: ignore[misc]
    """Bytes and time left: a bar on a terminal, else a line in the log from time to time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)  # the hub client's own
        super().__init__(*args, **kwargs)
        if not self.fp.isatty():
            self.mininterval = TELL_EVERY_S

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show how far it is."""
        if self.fp.isatty():
            super().display(msg, pos)
        elif self.n:
            _log.info("%s", self)


def download(name: str, repository: str, revision: str, sha256: str | None = None) -> Path:
    """The file `name` of a dataset at a revision, in the hub's cache, with the content that the hub says it has.

    Where the revision is no commit, `sha256` is what the content must be. Raises DataError where the file cannot be had, soon where
    there is no network, and where it holds something else.
    """
    path = _cached_or_fetched(name, repository, revision)
    if sha256 is not None:
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != sha256:
            raise DataError(f"{name} of {repository} at {revision} has sha256 {found}, not {sha256}: it was changed there")
    return path


def _cached_or_fetched(name: str, repository: str, revision: str) -> Path:
    try:
        # here with the hub client, because they take a second to import
        import httpx
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        def cached(**where: bool) -> Path:
            return Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision, **where))

        try:
            return cached(local_files_only=True)
        except LocalEntryNotFoundError:
            # the hub client tries for half a minute, with two warnings a try, before it says that there is no network
            httpx.head(constants.ENDPOINT, timeout=REACHED_WITHIN_S)
            _log.info("downloading %s of %s at %s, once, into the hub's cache", name, repository, revision[:7])
            _fetch(name, repository, revision)
            return cached()
    except DataError:
        raise
    except Exception as error:  # what comes before a connection is of any kind: ValueError of a proxy, ImportError of SOCKS
        said = " ".join(str(error).split())[:120]
        raise DataError(f"cannot download {name} of {repository} ({type(error).__name__}: {said}{_variables(said)})") from error


def _variables(said: str) -> str:
    """Which variables of the environment keep a client from connecting, or might, in words; their values may hold passwords."""
    known = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES or name in _CERTIFICATES}
    given = {name: value for name, value in known.items() if value} | {n: v for n, v in os.environ.items() if _OWN.fullmatch(n)}
    wrong = [
        name for name in given if (name in _CERTIFICATES and not Path(given[name]).exists()) or not _makes_a_client(name, given)
    ]
    if wrong:
        return f"; the environment variable {' and '.join(wrong)} is wrong here: mend or unset it"
    if "CERTIFICATE" in said.upper():
        return "; SSL_CERT_FILE names the file with the certificates of the authorities to trust"
    proxies = [name for name in given if name not in _CERTIFICATES]
    return f"; the environment says {', '.join(proxies)}" if proxies else ""


def _makes_a_client(name: str, given: dict[str, str]) -> bool:
    """Whether a client can be made with one of the given variables alone."""
    try:
        import httpx

        for other in given.keys() - {name}:
            del os.environ[other]
        httpx.Client().close()
    except Exception:  # noqa: BLE001 - of any kind, as where it is used
        return False
    finally:
        os.environ.update(given)
    return True


def _fetch(name: str, repository: str, revision: str) -> None:
    """Put a file's content where the hub client looks for it; the client itself would start over after it was killed."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name

    found = get_hf_file_metadata(hf_hub_url(repository, name, repo_type="dataset", revision=revision))
    blob = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="dataset"), "blobs", str(found.etag))
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return  # a small file, which the hub knows by git's digest: its client fetches it
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{blob.name}.trm-partial")
    with locked(partial.with_name(f"{partial.name}.lock")):
        if not blob.exists():
            with partial.open("ab") as file:
                http_get(
                    found.location,
                    file,
                    resume_size=file.tell(),
                    expected_size=found.size,
                    displayed_filename=name,
                    tqdm_class=_Progress,
                )
            with partial.open("rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            if sha256 != blob.name:
                partial.unlink()
                raise DataError(f"{name} of {repository} came with sha256 {sha256}, not the hub's: try again")
            partial.rename(blob)
