"""Fill pages of docs/ from their files and commands: `python scripts/dev/pages.py`.

A table between `<!-- NAME, from FILE -->` and `<!-- end -->` is made from that file. The plan's page has the output of a command
below each heading that is one. `sentences` has words with numbers of such files, which are tested but not filled.
tests/test_pages.py and tests/test_readme.py compare the pages with all of it.
"""

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from trm.cli import compose
from trm.config import digest
from trm.config.groups import CONF_DIR
from trm.config.paper import ROWS

sys.path.insert(0, str(Path(__file__).parent))  # where tests load this file
import page_tables
from page_sentences import sentences
from page_tables import DOCS, RESULTS, at_width, exact_of, markdown, rows_of, shown, ways_of_inference

__all__ = ["sentences"]
PAGES = sorted(RESULTS.glob("*.md"))
README = DOCS.parent / "README.md"
BLOCK = re.compile(r"^## `python -m trm\.plan ([^\n`]*)`\n```\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
FILLED = re.compile(r"^<!-- (\w+), from (\S+) -->\n(.*?)^<!-- end -->\n", re.MULTILINE | re.DOTALL)

CARDS = {
    "sudoku_6x6": "6x6 Sudoku, 1 network, CPU",
    "maze_9x9": "mazes of side 9, 1 network, CPU",
    "sudoku_9x9": "9x9 Sudoku, generated, 1 network, one GPU",
}


def table(name: str, path: Path) -> str:
    """The table of that name as Markdown."""
    if name in OTHERS:
        return OTHERS[name](path)
    return page_tables.of_rows(name, path)


def overview() -> str:
    """The README's table of results, each from the committed file that its last column links, and of what was not run."""
    field = {row["variant"]: row for row in rows_of(RESULTS / "field_6x6" / "report.csv")}
    mazes = {row["variant"]: row for row in rows_of(RESULTS / "maze_grid" / "report.csv")}
    ways = ways_of_inference()
    alone, best = ways["steps/last/1/16"], ways["copies/vote/8/16"]
    arc = re.findall(r"^\| 31 variants, votes \|.*\*\*(.*?)\*\* \|$", (RESULTS / "arc_small.md").read_text(), re.MULTILINE)
    grid = f"mazes of side 9, {mazes['t2_n2']['seeds']} seeds"
    few = f"6x6 Sudoku, 3,000 puzzles, {field['field_trm']['seeds']} seeds"
    equal, less = (f"6x6 Sudoku, {budget} TFLOP of training, 3 seeds" for budget in (6, 2))
    depths = "; ".join(at_width(32, "recursion", "passes by T and n", passes) for passes in (2, 6))
    puzzles = "; ".join(exact_of("data", f"on_the_fly_aug={count}")[0] for count in (1000, 0))
    few_puzzles = "6x6 Sudoku, 100 training puzzles, 3 TFLOP, 3 seeds"
    votes_of = f"6x6 Sudoku, width 16, {best['seeds']} seeds, {best['count']} puzzles"
    paper, absent = f"{100 * ROWS[0].exact_accuracy:.1f}", "**not run yet**"
    lines = [
        (few, "TRM, T=2 n=2", shown(field["field_trm"], "exact_accuracy_mean"), "", _link("field_6x6.md")),
        (few, "the fast recipe", shown(field["field_fast"], "exact_accuracy_mean"), "", _link("field_6x6.md")),
        (equal, "TRM of width 32; 128", f"{at_width(32)}; {at_width(128)}", "", _link("scaling_6x6.md")),
        (less, "width 32, T=1 n=1; T=2 n=2", depths, "", _link("scaling_6x6.md")),
        (few_puzzles, "width 32, with symmetric copies; without", puzzles, "", _link("scaling_6x6.md")),
        (votes_of, "TRM; one answer", shown(alone, "exact_accuracy"), "", _link("inference_6x6.md")),
        (votes_of, f"votes of {best['candidates']} copies", shown(best, "exact_accuracy"), "", _link("inference_6x6.md")),
        (grid, "TRM, T=2 n=2", shown(mazes["t2_n2"], "exact_accuracy_mean"), "", _link("maze_grid.md")),
        (grid, "TRM, T=4 n=6", shown(mazes["t4_n6"], "exact_accuracy_mean"), "", _link("maze_grid.md")),
        ("20 ARC tasks, 3 seeds, pass@2", "31 variants vote", arc[0], "", _link("arc_small.md")),
        *[_card(name, title) for name, title in CARDS.items()],
        ("Sudoku-Extreme", "D=512, T=3 n=6, MLP", absent, paper, _link("experiments.md")),
        ("Maze-Hard", "D=512, attention", absent, "85.3", _link("experiments.md")),
        ("ARC-AGI-1, ARC-AGI-2, pass@2", "D=512, attention", absent, "44.6, 7.8", _link("experiments.md")),
        ("any of them on a TPU", "", absent, "", _link("plan_v4_64.md")),
    ]
    head = "| task | network | here, exact % | the paper | from |\n| --- | --- | ---: | ---: | --- |\n"
    return head + markdown(lines)


def _link(page: str) -> str:
    return f"[page](docs/results/{page})"


def _card(name: str, title: str) -> tuple[str, ...]:
    """The overview's line of a network of models/, from its card."""
    facts = yaml.safe_load((DOCS.parent / "models" / name / "README.md").read_text().split("---\n")[1])
    low, high = (100 * value for value in facts["interval_95"])
    exact = f"{100 * facts['exact_accuracy']:.1f} ({low:.1f} to {high:.1f})"
    return title, f"{facts['parameters']:,} weights", exact, "", f"[card](models/{name}/README.md)"


def experiments(names: str) -> str:
    """The table of the experiments that match a glob, with their digests at full size and tiny."""
    lines = ["| experiment | changes | digest | tiny |", "| --- | --- | --- | --- |"]
    for path in sorted((CONF_DIR / "experiment").glob(f"{names}.yaml")):
        text = re.sub(r"\n#   (?=\S+ (?:up|down|=))", " ", path.read_text(encoding="utf-8"))
        found = re.search(r"^# Changes: (.*)$", text, re.MULTILINE)
        alias = re.search(r"^# Alias of: (\S+)$", text, re.MULTILINE)
        changes = f"= `{alias[1]}`" if alias else found[1] if found else "-"
        sizes: tuple[list[str], ...] = ([], ["recipe=tiny", "data=sudoku_6x6"])
        digests = [digest(compose([f"experiment={path.stem}", "run_name=r", *size])) for size in sizes]
        lines.append(f"| `{path.stem}` | {changes} | `{digests[0]}` | `{digests[1]}` |")
    return "\n".join(lines) + "\n"


OTHERS: dict[str, Callable[[Path], str]] = {
    "experiments": lambda _: experiments("[!_]*"),
    "overview": lambda _: overview(),
    "sizes": page_tables.sizes,
    "votes": page_tables.votes,
    "choice": page_tables.choice,
    "by_setting": page_tables.by_setting,
    "laws": page_tables.fitted,
    "rates": page_tables.rates,
    "phi": page_tables.phi,
    "costs": page_tables.costs,
    "spread": page_tables.spread,
}


def blocks() -> dict[str, str]:
    """The output on the plan's page below each command, by the command's arguments."""
    return {block[1]: block[2] for block in BLOCK.finditer((RESULTS / "plan_v4_64.md").read_text())}


def printed(arguments: str) -> str:
    """The output of a command of trm.plan."""
    from trm.plan.__main__ import main

    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(shlex.split(arguments))
    return out.getvalue()


def filled(page: Path) -> str:
    """The page with new tables and outputs."""

    def anew(found: re.Match[str]) -> str:
        return f"<!-- {found[1]}, from {found[2]} -->\n{table(found[1], page.parent / found[2])}<!-- end -->\n"

    text = FILLED.sub(anew, page.read_text(encoding="utf-8"))
    return BLOCK.sub(lambda found: f"## `python -m trm.plan {found[1]}`\n```\n{printed(found[1])}```\n", text)


if __name__ == "__main__":
    for page in [*PAGES, README]:
        page.write_text(filled(page), encoding="utf-8")
        print(f"written: {page}")
