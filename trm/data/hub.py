"""Files of a dataset on the Hugging Face hub, of a known revision or content: fetched once into the client's cache."""

import functools
import logging
import os
import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trm.errors import DataError
from trm.ground.files import sha256_of

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
    """The file `name` of a dataset at a revision, in the hub client's cache.

    Where the revision is no commit, `sha256` is what the content must be. Raises DataError where the file cannot be had, soon where
    there is no network, and where it holds something else.
    """
    try:
        # here, because they take a second to import
        import httpx
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        fetch = functools.partial(hf_hub_download, repository, name, repo_type="dataset", revision=revision)
        try:
            path = Path(fetch(local_files_only=True))
        except LocalEntryNotFoundError:
            # the hub client tries for half a minute, with two warnings a try, before it says that there is no network
            httpx.head(constants.ENDPOINT, timeout=REACHED_WITHIN_S)
            _log.info("downloading %s of %s at %s, once, into the hub's cache", name, repository, revision[:7])
            path = Path(fetch(tqdm_class=_Progress))
    except Exception as error:  # what comes before a connection is of any kind: ValueError of a proxy, ImportError of SOCKS
        said = " ".join(str(error).split())[:120]
        raise DataError(f"cannot download {name} of {repository} ({type(error).__name__}: {said}{_variables(said)})") from error
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise DataError(f"{name} of {repository} at {revision} has sha256 {found}, not {sha256}: it was changed there")
    return path


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
