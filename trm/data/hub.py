"""Files of a dataset on the Hugging Face hub at a known revision or with known content, downloaded once into the client's cache."""

import functools
import logging
import os
import re
from pathlib import Path

from trm.errors import DataError
from trm.ground.files import sha256_of

REACHED_WITHIN_S = 3.0  # otherwise there is no network
# The environment variables that decide how the client connects
_CONNECTION = re.compile(
    r"(ALL|HTTPS?|NO)_PROXY|SSL_CERT_(FILE|DIR)|(REQUESTS_CA|CURL_CA)_BUNDLE|SSLKEYLOGFILE"
    r"|HF_(ENDPOINT|TOKEN\w*|HUB_OFFLINE|HUB_\w+_TIMEOUT)",
    re.IGNORECASE,
)

_log = logging.getLogger(__name__)


def download(name: str, repository: str, revision: str, sha256: str | None = None) -> Path:
    """The file `name` of a dataset at a revision, in the hub client's cache.

    `sha256` is the content's digest, needed where the revision is not a commit. Raises DataError where the file cannot be
    downloaded (soon, where there is no network) and where its content is different.
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
            path = Path(fetch())
    except Exception as error:  # before it connects a client raises any kind: ValueError for a proxy, ImportError for SOCKS
        said = " ".join(str(error).split())[:120]
        given = [name for name, value in os.environ.items() if value and _CONNECTION.fullmatch(name)]
        variables = f"; check the environment variable {' and '.join(sorted(given))}" if given else ""
        raise DataError(f"cannot download {name} of {repository} ({type(error).__name__}: {said}{variables})") from error
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise DataError(f"{name} of {repository} at {revision} has sha256 {found}, not {sha256}: it was changed there")
    return path
