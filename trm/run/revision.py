"""Which code made a run: the git revision, whether the tree was changed, and the versions of what computes."""

import configparser
import functools
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # holds trm/; a checkout also .git and setup.cfg
PACKAGE = "trm-scaling-study"
CODE = ("trm", "conf", "hydra_plugins")  # what a run is computed by
GIT_LIMIT_S = 20


@functools.cache
def code() -> dict[str, Any]:
    """`revision` (None where nothing tells it), `dirty` (whether the code differs from it; None = not known) and `versions`.

    Asked once, as early as a run can: the tree may change while it runs.
    """
    revision = dirty = None
    if (ROOT / ".git").exists():  # else git would find another project's around an installed package
        revision, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", *CODE)
        dirty = None if changed is None else bool(changed)
    elif url := _installed_from():
        revision, dirty = json.loads(url).get("vcs_info", {}).get("commit_id"), False
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")  # before what is installed, which may be another checkout
    own = settings.get("metadata", "version", fallback=version(PACKAGE))
    versions = {PACKAGE: own, **{name: version(name) for name in ("torch", "torch_xla")}}
    return {"revision": revision, "dirty": dirty if revision else None, "versions": versions}


def version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed_from() -> str | None:
    """What pip keeps of where it installed this package from (PEP 610), the commit among it; None where it keeps nothing."""
    try:
        return importlib.metadata.distribution(PACKAGE).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says of this tree, whoever owns it and whatever repository the environment names; None where it does not."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-c", "safe.directory=*", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=GIT_LIMIT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
