"""The code of a run: the git revision, whether files were changed, and the versions of packages."""

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
CODE = ("trm", "conf", "hydra_plugins")  # folders that a run's numbers depend on
GIT_LIMIT_S = 20


@functools.cache
def code() -> dict[str, Any]:
    """`revision` (None if it is not known), `dirty` (whether the code differs from it; None = not known) and `versions`.

    The result is cached, since files may change while a run goes on.
    """
    revision = dirty = None
    if (ROOT / ".git").exists():  # otherwise git would find a project around an installed package
        revision, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", *CODE)
        dirty = None if changed is None else bool(changed)
    elif url := _installed_from():
        revision, dirty = json.loads(url).get("vcs_info", {}).get("commit_id"), False
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")  # the installed package may be another checkout
    own = settings.get("metadata", "version", fallback=version(PACKAGE))
    versions = {PACKAGE: own, **{name: version(name) for name in ("torch", "torch_xla")}}
    return {"revision": revision, "dirty": dirty if revision else None, "versions": versions}


def version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed_from() -> str | None:
    """The JSON text in which pip keeps where it installed this package from, with the commit (PEP 610), or None."""
    try:
        return importlib.metadata.distribution(PACKAGE).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """The output of git for this tree, whoever owns it and whatever repository the environment names; None if git fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-c", "safe.directory=*", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=GIT_LIMIT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
