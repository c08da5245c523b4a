"""The documents say what is there."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_config_reference_is_current():
    path = ROOT / "scripts" / "dev" / "config_reference.py"
    spec = importlib.util.spec_from_file_location("config_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FILE.read_text() == module.reference(), "run python scripts/dev/config_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    named = set(re.findall(r"`((?:trm|conf|scripts|tests|docs|bench|hydra_plugins)/[\w./]+\.(?:py|sh|md|yaml))`", text))
    named |= {f"{target}" for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text)}
    named = {name for name in named if not re.search(r"\b[A-Z]{2,}\b", name)}  # NAME stands for any
    missing = [name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_that_a_page_names_exist(page):
    named = set(re.findall(r"`make ([\w-]+)", page.read_text()))
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= rules


def test_every_command_that_a_page_gives_is_a_module():
    named = {name for page in PAGES for name in re.findall(r"python -m (trm[\w.]*)", page.read_text())}
    known = subprocess.run(["git", "ls-files", "trm"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in named:
        base = name.replace(".", "/")
        assert f"{base}.py" in known or f"{base}/__main__.py" in known, name
