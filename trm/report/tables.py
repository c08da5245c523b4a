"""The tables of a report as cells: what the terminal and the page show. Percent here; shares of 1 in CSV and JSON."""

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from trm.config import EXACT, paper
from trm.report.baseline import differences
from trm.report.frontier import ways
from trm.report.labels import show
from trm.report.records import time_to_target
from trm.report.runs import Run
from trm.report.variants import MEASURED_OTHERWISE, Comparison, Estimate
from trm.tasks.pairs import ANSWERS_FILE

NO_VALUE = "-"
UNLIKE_PAPER = "*"
TO_BE_READ = " !"
DECIDES = " (decides)"

EXACT_NOTE = (
    "exact accuracy: share of held-out puzzles with every cell right at the final evaluation, in percent; mean over the seeds of "
    "completed runs, ± half the width of the 95 % Student-t interval (a single seed has no interval)"
)
BEST_NOTE = "best: test exact accuracy of the best checkpoint of a run, mean over seeds; the checkpoint was chosen on {how}"
CHOSEN = {
    "selection": "selection puzzles, which are not test puzzles (evaluate.selection_puzzles)",
    "test": "the test puzzles themselves, so it is too high",
}
MEASURED_NOTE = (
    f"{MEASURED_OTHERWISE.strip()}: measured in another way than the other variants, so its numbers may not be compared; see the "
    "warnings"
)
FLOPS_NOTE = (
    "TFLOP trained: counted over all steps, where a pass with gradient counts as three passes without; GFLOP/puzzle: counted from "
    "the graph of the final evaluation"
)
BASELINE_NOTE = (
    "less {label}: the difference of exact accuracy over the seeds that both have, ± half the width of its 95 % interval; p: "
    "Student's paired t-test, two-sided, corrected by Holm for the {tests} variants that have one; there is no p for a single seed "
    "or for differences without a spread"
)
RATES_NOTE = (
    "steps, samples/s and seconds: mean over seeds; seconds are those of the training steps of all starts of a run, "
    "samples/s those of its last start"
)
PAPER_NOTE = (
    f"paper: {paper.CITATION}, {paper.DATASET_LABEL}; {UNLIKE_PAPER} = the same ablation, but the runs differ from the paper in "
    "other settings or data, so there is no difference"
)
CAVEATS_NOTE = (
    f"{TO_BE_READ.strip()} after an accuracy: the puzzles have a fault that affects the accuracy; the warnings describe it"
)
SCORES_NOTE = (
    "{names}: at the final evaluation, means over the same seeds; {decides} decides which checkpoint of a run "
    "is the best (evaluate.best_by)"
)
VOTES = {"checkpoint": "votes of the last evaluation's checkpoint", "run": "votes of all evaluations of the run, up to the last"}
TARGET_NOTE = (
    "samples and seconds to {target:g} %: rows and seconds of all training steps up to the first evaluation with at least that "
    "exact accuracy; mean ± half the width of the 95 % interval over the seeds that reached it"
)


class Cell(NamedTuple):
    """What stands in a cell of a table, and the number that its column sorts by."""

    text: str
    number: float | None = None
    numeric: bool = False  # else the column sorts as text
    small: Sequence[str] = ()  # lines below it, on the page
    look: str = ""  # on the page: "code" or "bad"


Row = list[tuple[str, Cell]]  # with the titles of the columns


def _number(form: str, value: float | None, scale: float = 1) -> Cell:
    return Cell(NO_VALUE if value is None else form.format(scale * value), value, numeric=True)


def _rounded(value: float | None, scale: float) -> Cell:
    """To three digits, and whole from a hundred on: never with an exponent."""
    return _number("{:,.0f}" if value is not None and scale * value >= 100 else "{:.3g}", value, scale)


def _code(text: str, small: Sequence[str] = ()) -> Cell:
    return Cell(text, small=small, look="code")


def _estimate(found: Estimate | None, scale: float = 100, form: str = ".1f") -> Cell:
    if found is None:
        return _number("", None)
    width = " (n=1)" if found.half_width is None else f" ± {scale * found.half_width:{form}}"
    return Cell(f"{scale * found.mean:{form}}{width}", found.mean, numeric=True)


def results(comparison: Comparison) -> list[Row]:
    """A row for each variant; with samples and seconds to --target, and the difference to --baseline, where they are given."""
    names, decides, published, found = _score_names(comparison), _deciding(comparison), _published(comparison), []
    marks = {name: DECIDES if names and decides == [name] else "" for name in (EXACT, *names)}  # behind a score's title
    less, baseline, target = differences(comparison), comparison.baseline, comparison.target
    own = all(row.source == paper.CITATION and "data.task" not in row.fixed for row in published)
    for variant in comparison.variants:
        seeds, best, match = len(variant.counted), variant.estimate(attrgetter("best_exact_accuracy")), variant.paper
        of = "" if seeds == variant.planned else f" of {variant.planned}"
        exact, scores = _estimate(variant.exact_accuracy), variant.scores
        title, small = comparison.title(variant), [variant.description] if variant.description != variant.label else []
        cells = [
            ("variant", Cell(title, small=small)),
            ("seeds", Cell(f"{seeds}{of}{' runs' if variant.pooled else ''}", seeds, numeric=True)),
            (f"exact accuracy %{marks[EXACT]}", exact._replace(text=exact.text + (TO_BE_READ if variant.caveats else ""))),
            *((f"{name} %{marks[name]}", _estimate(scores.get(name))) for name in names),
            ("best %", _number("{:.1f}", best.mean if best else None, 100)),
            ("puzzles", _number("{:,.0f}", variant.mean(attrgetter("evaluated_puzzles")))),
            ("TFLOP trained", _rounded(variant.mean(attrgetter("training_flops")), 1e-12)),
            ("GFLOP/puzzle", _rounded(variant.mean(attrgetter("flops_per_puzzle")), 1e-9)),
            ("steps", _number("{:,.0f}", variant.mean(attrgetter("steps")))),
            ("samples/s", _number("{:,.0f}", variant.mean(attrgetter("samples_per_s")))),
            ("seconds", _number("{:,.0f}", variant.mean(attrgetter("seconds")))),
        ]
        if published:
            form = "{:.1f}" if match is None or match.comparable else "{:.1f}" + UNLIKE_PAPER
            theirs = _number(form, match.row.exact_accuracy if match else None, 100)
            cells += [
                ("paper (9x9) %" if own else "published %", theirs),
                ("difference", _number("{:+.1f}", variant.difference, 100)),
            ]
        if target is not None:
            reached, *quantities = time_to_target(variant, target)
            of = f", {reached} of {seeds}" if reached < seeds else ""
            for name, quantity in zip(("samples", "seconds"), quantities, strict=True):
                cell = _estimate(quantity, 1, ",.0f")
                text = cell.text + of if quantity else cell.text if reached else f"not reached by {seeds}"
                cells.append((f"{name} to {100 * target:g} %", cell._replace(text=text)))
        if baseline is not None:
            difference = less.get(variant.label)
            cell = _estimate(difference.exact_accuracy if difference else None)
            sign = "+" if (cell.number or 0) > 0 else ""
            cells.append((f"less {baseline.label}", cell._replace(text=f"{sign}{cell.text}")))
            cells.append(("p", _number("{:.2g}", difference.corrected if difference else None)))
        found.append(cells)
    return found


def _score_names(comparison: Comparison) -> list[str]:
    """The scores of their own that the tasks of the counted runs have."""
    return list(dict.fromkeys(name for run in comparison.counted for name in run.scores))


def _deciding(comparison: Comparison) -> list[str]:
    """The scores by which the counted runs chose their best checkpoints."""
    return sorted({str(run.settings.get("evaluate.best_by", EXACT)) for run in comparison.counted})


def _published(comparison: Comparison) -> list[paper.PaperRow]:
    """The published values for the runs' own kind of puzzle: those for another kind say nothing here."""
    return [variant.paper.row for variant in comparison.variants if variant.paper and variant.paper.same_kind]


def inference(comparison: Comparison) -> list[Row]:
    """A row for each way of inference that runs were evaluated in."""
    return [
        [
            ("variant", Cell(comparison.title(way.variant))),
            ("inference", Cell(way.name)),
            ("seeds", _number("{:d}", way.exact_accuracy.n)),
            ("exact accuracy %", _estimate(way.exact_accuracy)),
            ("pass@K % (oracle)", _number("{:.1f}", way.means["oracle_exact_accuracy"], 100)),
            ("candidates run", _number("{:.3g}", way.means["candidates_run"])),
            ("GFLOP/puzzle", _number("{:.4g}", way.means["flops_per_puzzle"], 1e-9)),
            ("ms/puzzle", _number("{:.3g}", way.means["seconds_per_puzzle"], 1e3)),
        ]
        for way in ways(comparison)[0]
    ]


def inference_left_out(comparison: Comparison) -> list[Row]:
    """A row for each line of a run's frontier that does not count."""
    return [[("line", _code(line)), ("reason", Cell(reason))] for line, reason in ways(comparison)[1]]


def notes(comparison: Comparison) -> list[str]:
    """What the columns of the results mean."""
    runs, names, published, base = comparison.counted, _score_names(comparison), _published(comparison), comparison.baseline
    kinds = sorted({run.selected_on for run in runs} or {"test"})
    others = sorted({row.source for row in published} - {paper.CITATION})
    voted = sorted({votes_of(run) for variant in comparison.variants for run in variant.runs if run.has(ANSWERS_FILE)})
    tests = sum(found.p is not None for found in differences(comparison).values())
    found = [
        EXACT_NOTE,
        BEST_NOTE.format(how="; of other runs on ".join(CHOSEN[kind] for kind in kinds)),
        comparison.not_compared and MEASURED_NOTE,
        FLOPS_NOTE,
        base and BASELINE_NOTE.format(label=base.label, tests=tests),
        RATES_NOTE,
        published and PAPER_NOTE,
        others and f"published by others than the paper: {'; '.join(others)}; conditions: docs/explanation/variants.md",
        any(run.caveats for run in runs) and CAVEATS_NOTE,
        names and SCORES_NOTE.format(names=", ".join(names), decides=" or ".join(_deciding(comparison))),
        voted and f"Answers of variants are ranked by {' or '.join(voted)} (evaluate.votes).",
        comparison.target and TARGET_NOTE.format(target=100 * comparison.target),
    ]
    return [note for note in found if isinstance(note, str)]  # the others are of what these runs have not


def votes_of(run: Run) -> str:
    """Whose votes rank the answers of a run whose puzzles are judged by votes."""
    return VOTES.get(str(run.settings.get("evaluate.votes")), VOTES["checkpoint"])


def problems(comparison: Comparison) -> list[Row]:
    """A row for each job that is not in the means."""
    return [
        [
            ("status", Cell(kind(run), look="bad")),
            ("job", _code(run.name)),
            ("seed", _number("{:d}", run.seed)),
            ("reason", Cell(reason, small=[" ".join(run.overrides)] if run.status == "missing" and run.overrides else [])),
        ]
        for run, reason in comparison.not_counted
    ]


def kind(run: Run) -> str:
    """What a job that is not counted is called."""
    return "left out" if run.status == "completed" else run.status


def settings(comparison: Comparison) -> list[Row]:
    """A row for each setting that differs between the variants."""
    return [
        [("setting", _code(key)), *((v.label, _code(", ".join(map(show, v.settings[key])))) for v in comparison.variants)]
        for key in comparison.keys
    ]


def compared(comparison: Comparison) -> list[Row]:
    """A row for each variant that has a row in the paper."""
    found: list[Row] = []
    for label, match in ((variant.label, variant.paper) for variant in comparison.variants if variant.paper):
        source = "" if match.row.source == paper.CITATION else f" ({match.row.source})"
        words = f"{match.row.name}: {100 * match.row.exact_accuracy:.1f} %{source}"
        unlike = _code(", ".join(match.unlike)) if match.unlike else Cell("nothing")
        found.append([("variant", Cell(label)), ("the paper's row", Cell(words)), ("unlike the paper in", unlike)])
    return found


def runs(comparison: Comparison) -> list[Row]:
    """A row for each job that left settings."""
    counted = set(map(id, comparison.counted))
    return [
        [
            ("run", _code(run.name, run.warnings)),
            ("variant", Cell(variant.label)),
            ("seed", _number("{:d}", run.seed)),
            ("status", Cell("completed") if id(run) in counted else Cell(kind(run), look="bad")),
            ("final %", _number("{:.1f}", run.exact_accuracy, 100)),
            ("best %", _number("{:.1f}", run.best_exact_accuracy, 100)),
            ("best at step", _number("{:,d}", run.best_step)),
            ("steps", _number("{:,d}", run.steps)),
            ("samples/s", _number("{:,.0f}", run.samples_per_s)),
            ("seconds", _number("{:,.0f}", run.seconds)),
        ]
        for variant in comparison.variants
        for run in variant.runs
    ]
