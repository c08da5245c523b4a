"""The documents say what is there."""

import re
import subprocess
from pathlib import Path

import pytest
from running import script

from trm.cli import compose, compose_jobs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", ["config_reference", "command_reference"])
def test_a_generated_page_is_current(name):
    module = script(f"dev/{name}.py")
    assert module.FILE.read_text() == module.reference(), f"run python scripts/dev/{name}.py"


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_says_first_who_needs_it(page):
    title, _, first = page.read_text().splitlines()[:3]
    assert title.startswith("# ")
    assert first.startswith("For ")


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]}


def test_the_lines_that_troubleshooting_explains_are_in_the_code():
    code = "".join(path.read_text() for path in (ROOT / "trm").rglob("*.py"))
    code = re.sub(r"\{[^{}]*\}", "…", re.sub(r'"\n\s+f?"', "", code))
    rows = re.findall(r"^\| `(.*?)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    parts = [part.strip(" :=") for row in rows for part in re.split("…|:", row)]
    assert len(rows) > 9
    assert [part for part in parts if part not in code] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    named = set(re.findall(r"`((?:trm|conf|scripts|tests|docs|bench|hydra_plugins)/[\w./]+\.(?:py|sh|md|yaml))`", text))
    named |= set(re.findall(r"\]\(((?!http)[^)#]+)(?:#[^)]*)?\)", text))
    named = {name for name in named if not re.search(r"\b[A-Z]{2,}\b", name)}  # NAME stands for any
    named -= set(re.findall(r"[Ww]rite `([^`]+)`", text))  # by the reader of a tutorial
    missing = [name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_make_targets_that_a_page_names_exist(page):
    named = set(re.findall(r"`make ([\w-]+)", page.read_text()))
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= rules


def test_the_commands_for_many_devices_compose():
    text = (ROOT / "docs" / "how-to" / "many_devices.md").read_text()
    found = {tuple(words.replace("…", "").split()) for words in re.findall(r"-m trm\.train ([^`]*)`", text)}
    assert len(found) > 7
    for words in found:
        given = [word for word in words if word != "-m"]
        if "-m" in words:
            assert compose_jobs([*given, "seed=0,1"]).keys() == {"seed=0", "seed=1"}
        else:
            assert compose([*given, *([] if any(word.startswith("run_name=") for word in given) else ["run_name=r"])])


def test_every_command_that_a_page_gives_is_a_module():
    named = {name for page in PAGES for name in re.findall(r"python -m (trm[\w.]*)", page.read_text())} - {"trm.NAME"}
    known = subprocess.run(["git", "ls-files", "trm"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in named:
        base = name.replace(".", "/")
        assert f"{base}.py" in known or f"{base}/__main__.py" in known, name
