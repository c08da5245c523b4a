"""Ways of inference over the seeds of each variant: what `trm.evaluate checkpoint=RUN inference=frontier` left in the runs."""

import json
import math
from dataclasses import dataclass
from typing import Any

from trm.report.runs import Run
from trm.report.variants import Comparison, Estimate, Variant, estimate

FRONTIER_FILE = "evaluation/frontier.json"  # of a run folder
NUMBERS = ("exact_accuracy", "oracle_exact_accuracy", "flops_per_puzzle", "seconds_per_puzzle", "candidates_run")


@dataclass(frozen=True)
class Way:
    """One way of inference of a variant, over the runs that have it."""

    variant: Variant
    number: int  # of the variant in the comparison
    name: str
    exact_accuracy: Estimate
    means: dict[str, float]  # of the other NUMBERS


def ways(comparison: Comparison) -> list[Way]:
    """By variant and then FLOPs; none where no run has a frontier."""
    found = []
    for number, variant in enumerate(comparison.variants):
        rows: dict[str, list[dict[str, float]]] = {}
        for run in variant.counted:
            for row in frontier_of(run):
                rows.setdefault(str(row["inference"]), []).append(row)
        for name, of_seeds in rows.items():
            exact = estimate(row["exact_accuracy"] for row in of_seeds)
            assert exact is not None
            means = {key: sum(row[key] for row in of_seeds) / len(of_seeds) for key in NUMBERS}
            found.append(Way(variant, number, name, exact, means))
    return sorted(found, key=lambda way: (way.number, way.means["flops_per_puzzle"]))


def frontier_of(run: Run) -> list[dict[str, Any]]:
    """The rows of the run's frontier; none where it has none, or the file is not one."""
    if run.folder is None:
        return []
    try:
        rows = json.loads((run.folder / FRONTIER_FILE).read_bytes())["rows"]
        return [row for row in rows if all(math.isfinite(row[key]) for key in NUMBERS) and row["inference"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []
