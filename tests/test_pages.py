"""The pages of docs/results say what their files and commands say, and at which revision that was."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from composing import composed, corners, jobs_composed_once  # noqa: F401 - the last is a fixture
from running import script

from trm.cli import compose_jobs
from trm.config.groups import CONF_DIR
from trm.errors import UserError
from trm.report.__main__ import main as report
from trm.run.saved import open_run

ROOT = Path(__file__).parents[1]


pages = script("dev/pages.py")
BLOCKS = pages.blocks()
RUN, ALL, SWEEP = (
    f"{jobs} hardware=v4_64{more}"
    for jobs, more in (
        ("experiment=e1_1_baseline", ""),
        ("experiment=e1_1_baseline", " evaluate.max_puzzles=422786"),
        ("+sweep=all", ""),
    )
)
TEXTS = {page.stem: page.read_text() for page in pages.PAGES}
FILLED = [
    pytest.param(page, *found, marks=[pytest.mark.long] if found[0] == "costs" else [])  # it counts 34 graphs
    for page in pages.PAGES
    for found in pages.FILLED.findall(page.read_text())
    if found[0] != "experiments"
]
MEANT = {"STANDING,NEW": "record_6x6_adam,record_6x6_fast", "checkpoint=RUN": f"checkpoint={ROOT}/models/sudoku_6x6"}
COMMANDS = sorted(
    {
        " ".join(found.replace("\\\n", " ").split())
        for text in TEXTS.values()
        for pattern in (r"^((?:\w+=\S+ )?(?:python|bash|scripts/)(?:.*\\\n)*.*)$", r"`((?:python|bash) [^`]+)`")
        for found in re.findall(pattern, text, re.MULTILINE)
    }
)


@pytest.mark.parametrize(("page", "name", "file", "text"), FILLED, ids=lambda value: getattr(value, "stem", None))
def test_a_table_is_of_the_file_that_it_names(page, name, file, text):
    assert text == pages.table(name, page.parent / file), "run python scripts/dev/pages.py"


def test_the_two_forms_of_a_frontier_are_one():
    rows, texts = (pages.rows_of(pages.RESULTS / "inference_6x6" / f"frontier.{form}") for form in ("json", "csv"))
    assert [{key: "" if row[key] is None else str(row[key]) for key in texts[0]} for row in rows] == texts


@pytest.mark.parametrize(("page", "words"), pages.sentences().items())
def test_the_words_have_the_numbers_of_the_files(page, words):
    text = " ".join(TEXTS[page].split())
    assert [said for said in words if said not in text] == []


@pytest.mark.parametrize("page", TEXTS)
def test_a_table_that_no_file_holds_says_so(page):
    head, *sections = re.split(r"^(?=## )", pages.FILLED.sub("", TEXTS[page]), flags=re.MULTILINE)
    every = "All tables of this page were typed" in head
    for section in (head, *sections):
        before, *tables = re.split(r"\n\n(?=\| )", section)
        words = " ".join(before.split())
        assert every or not tables or "tables below were typed" in words or ("table below was typed" in words and len(tables) == 1)


@pytest.mark.parametrize("page", sorted(TEXTS.keys() - {"experiments"}))
def test_a_page_names_a_revision_that_is_there(page):
    named = re.findall(r"revisions?\s([0-9a-f]{7})\b", TEXTS[page])
    assert named
    if subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True).stdout == b"false\n":
        for revision in named:
            subprocess.run(["git", "merge-base", "--is-ancestor", revision, "HEAD"], cwd=ROOT, check=True)


def settings_of(module, words):
    """Have the settings of a command of trm checked, as the command does, without running it."""
    checkpoints = [word.partition("=")[2] for word in words if word.startswith("checkpoint=")]
    if module == "trm.report":
        with pytest.raises(UserError, match="multirun/"):  # which is not there
            report(words)
    elif module in ("trm.evaluate", "inference_study"):
        open_run(Path(checkpoints[0] if checkpoints else MEANT["checkpoint=RUN"].partition("=")[2]), words[len(checkpoints) :])
    elif module == "trm.train":
        words = [word for word in words if word not in ("-m", "--multirun")]
        few = [each for word in words if word.startswith("+sweep=") for each in corners(word.removeprefix("+sweep="))]
        assert compose_jobs([*few, *words, "seed=0"])
    else:
        assert module == "trm.plan"
        first = (word.partition(",")[0] for word in words)  # of a grid's values
        composed(*(word for word in first if not word.startswith(("+sweep=", "plan."))))


@pytest.mark.usefixtures("jobs_composed_once")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for name, meant in MEANT.items():
        command = command.replace(name, meant)
    words = shlex.split(re.sub(r"^\w+=\S+ ", "", command))
    if words[:2] == ["python", "-m"]:
        return settings_of(words[2], words[3:])
    program, *words = words if words[0].startswith("scripts/") else words[1:]
    assert (ROOT / program).exists()
    if program == "scripts/inference_study.py":
        settings_of("inference_study", [word for word in words[: words.index("--out")] if not word.startswith("multirun/")])
    else:
        assert not words


@pytest.mark.parametrize(
    "arguments", [pytest.param(words, marks=[pytest.mark.long] if "+sweep" in words else []) for words in BLOCKS]
)
def test_the_plans_page_says_what_its_commands_print(arguments):
    assert BLOCKS[arguments] == pages.printed(arguments), "run python scripts/dev/pages.py"


def test_the_tables_of_sweeps_say_what_the_runs_do():
    """So that what needs counting of 32 graphs to be made anew is held to what the quick test counts."""
    (chip,) = re.findall(r"^    chip .*", BLOCKS[RUN], re.MULTILINE)
    hours = chip.split()[7:10]
    (row,) = re.findall(r"^    e1_1_baseline .*", BLOCKS[SWEEP], re.MULTILINE)
    assert row.split()[-3:] == hours


def test_the_pods_page_has_the_hours_of_the_plan():
    text = (ROOT / "docs" / "tutorials" / "pod.md").read_text()
    job = re.compile(r"^    (\w+) +[\d,]+ +[\d.]+ +[\d,]+ +[\d.]+ +[\d.]+ +([\d.]+)", re.MULTILINE)
    hours = dict(job.findall(BLOCKS[SWEEP]))
    hours["e2_2_t3_n6"] = hours["e1_1_baseline"]  # the same settings, so that the sweep has them once
    told = dict(re.findall(r"^\| `(e\w+)` \|.*\| ([\d.]+) \|$", text, re.MULTILINE))
    assert told == {name: hour for name, hour in hours.items() if name.startswith("e")}
    words = " ".join(text.split())
    assert f"`paper_t3_n6` reached 87.4 %. It takes {hours['paper_t3_n6']} h on a chip." in words
    shares = [
        re.search(r"evaluation's share.*: chip (\d+) %, host (\d+) %, pod (\d+) %", BLOCKS[run]).groups() for run in (RUN, ALL)
    ]
    (sampled, _, pod), (whole, _, whole_pod) = shares
    assert f"{sampled} % of the baseline's hours on a chip or a host, and {pod} % on the pod" in words
    assert f"the shares would be {whole} % and {whole_pod} %" in words


@pytest.mark.parametrize("sweep", ["field_6x6_lr", "field_pilot", "search_4x4"])
def test_a_search_has_other_puzzles_than_tables_and_records(sweep):
    asked = yaml.safe_load((CONF_DIR / "sweep" / f"{sweep}.yaml").read_text())["hydra"]["sweeper"]["params"]
    table = composed("experiment=field_trm")
    assert asked["data.seed"] not in (table.data.seed, 1)  # 1: docs/results/records.md
    assert asked.get("seed", 0) < 100  # those of records begin there
