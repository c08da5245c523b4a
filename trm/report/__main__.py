"""Compare runs from their folders alone: `python -m trm.report DIR... [--group KEY,...] [--target SHARE] [--records]
[--baseline VARIANT] [--scaling] [--out DIR]`.

DIR is a run folder (outputs/NAME), a sweep folder (multirun/NAME) or a folder of such folders. Completed runs that differ only in
the seed are one variant. The command prints a table and writes report.csv, report.json, curves.png, bars.png, steps.png and
index.html, a page that also shows how the best run of each variant solves puzzles. The command needs no account and no network. It
lists jobs that failed, are missing or still run, with the reason.

  --group KEY,...  group runs by these config keys or groups (recursion,ema or optimizer.lr), by `experiment` or by `sweep`
                   (the folder that holds the runs); other differences are ignored
  --target SHARE   also report the samples and seconds that each variant needs to reach this exact accuracy, such as 0.8
  --records        report whether a variant is a new record of the seconds to --target (default 0.99), by the rule of
                   docs/results/records.md
  --baseline VARIANT
                   report each variant's difference from this one over the seeds that both have, with corrected p values
  --scaling        fit scaling laws instead, over the settings that vary (parameters, training FLOPs, puzzles, passes, and FLOPs of
                   a puzzle in several ways of inference), with intervals; then predict the largest size from the smaller ones
  --out DIR        the folder for the files; default: DIR/report (with --scaling DIR/scaling) for a single DIR, otherwise ./report
"""

if __name__ == "__main__":  # before what takes seconds to import
    from trm.cli import plain_command

    plain_command("trm.report.__main__:main", __doc__)
    raise SystemExit

import io
import sys
from pathlib import Path
from typing import Any

from trm.cli import options
from trm.config import local_path
from trm.errors import UserError
from trm.report import plots, records
from trm.report.output import csv_text, json_text, terminal
from trm.report.page import page
from trm.report.runs import collect
from trm.report.variants import check_asked, compare
from trm.show.files import write_files


def main(arguments: list[str]) -> None:
    """The command; see the module's docstring."""
    keys = {"type": lambda text: [key.strip() for key in text.split(",") if key.strip()]}
    kinds: dict[str, Any] = {"target": {"type": float}, "records": {"action": "store_true"}, "baseline": {}, "out": {"type": Path}}
    given = options("trm.report", arguments, group=keys, scaling={"action": "store_true"}, **kinds)
    folders = [Path(local_path("DIR", folder)) for folder in given.rest]
    if not folders:
        raise UserError("give at least one folder of runs, such as outputs/NAME or multirun/NAME")
    check_asked(given.group, given.target)
    if given.scaling and (given.group or given.target or given.records or given.baseline):
        raise UserError("--scaling finds by itself what varies: leave out --group, --target, --records and --baseline")
    target: float | None = given.target or (records.TARGET if given.records else None)
    name = "scaling" if given.scaling else "report"
    out = given.out or (folders[0] / name if len(folders) == 1 else Path(name))
    title = f"{'Scaling' if given.scaling else 'TRM runs'}: {', '.join(folder.resolve().name for folder in folders)}"
    try:
        comparison = compare(collect(folders), given.group, target, given.baseline)
        if given.scaling:
            from trm.report import scaling, scaling_output  # scipy's fits take a second to import

            files, said = scaling_output.written(scaling.study(comparison), title)
        else:
            drawn, said = plots.drawn(comparison), terminal(comparison)
            files = {"report.csv": csv_text(comparison), "report.json": json_text(comparison)}
            files |= {f"{name}.png": picture["light"] for name, picture in drawn.items()}
            files["index.html"] = page(comparison, title, drawn)
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"{out} is as it was")
        raise
    if given.records and target is not None:
        said += f"\n\n{records.text(comparison, target)}"
    paths = {out / name: content for name, content in files.items()}
    write_files("--out", out, paths)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a character shows ? instead
        sys.stdout.reconfigure(errors="replace")
    print(said)
    print("\nwritten:", *paths, sep="\n  ")
