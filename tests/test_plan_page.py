"""docs/results/plan_v4_64.md and docs/pod.md say what trm.plan prints."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("plan_page", ROOT / "scripts" / "dev" / "plan_page.py")
plan_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plan_page)
BLOCKS = plan_page.blocks()
RUN, ALL, SWEEP = (
    f"{jobs} hardware=v4_64{more}"
    for jobs, more in (
        ("experiment=e1_1_baseline", ""),
        ("experiment=e1_1_baseline", " evaluate.max_puzzles=422786"),
        ("+sweep=all", ""),
    )
)


@pytest.mark.parametrize(
    "arguments", [pytest.param(words, marks=[pytest.mark.long] if "+sweep" in words else []) for words in BLOCKS]
)
def test_the_page_says_what_its_commands_print(arguments):
    assert BLOCKS[arguments] == plan_page.printed(arguments), "run python scripts/dev/plan_page.py"


def test_the_tables_of_sweeps_say_what_the_runs_do():
    """So that what needs counting of 32 graphs to be made anew is held to what the quick test counts."""
    (chip,) = re.findall(r"^    chip .*", BLOCKS[RUN], re.MULTILINE)
    hours = chip.split()[7:10]
    (row,) = re.findall(r"^    e1_1_baseline .*", BLOCKS[SWEEP], re.MULTILINE)
    assert row.split()[-3:] == hours


def test_the_pods_page_has_the_hours_of_the_plan():
    text = (ROOT / "docs" / "pod.md").read_text()
    job = re.compile(r"^    (\w+) +[\d,]+ +[\d.]+ +[\d,]+ +[\d.]+ +[\d.]+ +([\d.]+)", re.MULTILINE)
    hours = dict(job.findall(BLOCKS[SWEEP]))
    hours["e2_2_t3_n6"] = hours["e1_1_baseline"]  # the same settings, so that the sweep has them once
    told = dict(re.findall(r"^\| `(e\w+)` \|.*\| ([\d.]+) \|$", text, re.MULTILINE))
    assert told == {name: hour for name, hour in hours.items() if name.startswith("e")}
    assert f"`paper_t3_n6` reached 87.4 % there ({hours['paper_t3_n6']} h" in text
    shares = [
        re.search(r"evaluation's share.*: chip (\d+) %, host (\d+) %, pod (\d+) %", BLOCKS[run]).groups() for run in (RUN, ALL)
    ]
    (sampled, _, pod), (whole, _, whole_pod) = shares
    assert f"{sampled} % of the baseline's hours on a\nchip or a host, {pod} % on the pod" in text
    assert f"all of them each time would be {whole} and {whole_pod} %" in text
