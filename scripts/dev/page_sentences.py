"""Words with numbers of committed files on the pages of docs/results: tests/test_pages.py looks for them in the text."""

import re
from collections.abc import Iterator

import yaml
from page_tables import DOCS, RESULTS, Row, at_width, exact_of, laws_of, rows_of, shown, ways_of_inference
from scipy import stats


def sentences() -> dict[str, list[str]]:
    """By page, its words with numbers of its files."""
    field = {row["variant"].removeprefix("field_"): row for row in rows_of(RESULTS / "field_6x6" / "report.csv")}
    gain = {name: 100 * float(row["less_baseline_mean"] or "nan") for name, row in field.items()}
    steps = {name: shown(row, "steps") for name, row in field.items()}
    mazes = {row["variant"]: row for row in rows_of(RESULTS / "maze_grid" / "report.csv")}
    adam, fast = rows_of(RESULTS / "records" / "2026-11-26_fast" / "report.csv")
    seconds, rows = (float(fast[key]) / float(adam[key]) for key in ("seconds_to_target_mean", "samples_to_target_mean"))
    entries = rows_of(RESULTS / "records" / "2026-11-30_first" / "report.csv")
    phis = [row for row in rows_of(RESULTS / "scaling_6x6" / "steps.csv") if row["quantity"] == "phi"]
    [shallow] = rows_of(RESULTS / "scaling_6x6" / "shallow.csv")
    return {
        "field_6x6": [
            f"for the {sum(bool(row['p_corrected']) for row in field.values())} rows that have one",
            f"the fast recipe ({gain['fast']:+.1f}), a single latent ({gain['single_z']:+.1f}) and the "
            f"curriculum ({gain['curriculum']:+.1f})",
            f"EqR's {gain['eqr']:+.1f} is",
            f"{shown(field['no_ema'], 'less_baseline_mean')} without it",
            f"it makes {steps['one_step']} of them",
            f"costs a third of the steps and {-gain['act']:.0f} points",
            f"T=3 n=6 had {steps['t3_n6']} steps for the baseline's {steps['trm']}, winner takes all {steps['wta']}",
        ],
        "maze_grid": [
            f"{shown(mazes['t2_n2'], 'parameters')} weights",
            f"T=3 n=6 lies {-gain['t3_n6']:.0f} points behind T=2 n=2",
        ],
        "inference_6x6": list(_inference()),
        "scaling_6x6": [
            f"buys {at_width(32)} % at width 32, {at_width(64)} % at width 64 and {at_width(128)} % at width 128",
            "At width 32, T=1 n=1 solves {} %, T=2 n=2 {} % and T=4 n=4 {} %".format(
                *(at_width(32, "recursion", "passes by T and n", passes) for passes in (2, 6, 20))
            ),
            f"T=1 n=1 solves {shown(shallow, 'exact_accuracy_mean')} % (three seeds, {shown(shallow, 'steps')} steps) and T=2 n=2 "
            f"{at_width(32)} %",
            "{} % with one step, {} % with four and {} % with sixteen".format(
                *(at_width(32, "nsup", "supervision steps", steps) for steps in (1, 4, 16))
            ),
            "T=2 n=2 solves {1} % and T=1 n=1 solves {0} %".format(
                *(at_width(32, "recursion", "passes by T and n", passes) for passes in (2, 6))
            ),
            "width 16 solves {} %, width 32 {} % and width 64 {} %".format(*(at_width(width, size=3e12) for width in (16, 32, 64))),
            "16 solve {1} % where 4 solve {0} %".format(*(at_width(32, "nsup", "supervision steps", steps) for steps in (4, 16))),
            "phi, the worth of a recursion, is {} for T and {} for n".format(
                *("{:.2f} ({:.2f} to {:.2f})".format(*(float(row[key]) for key in ("value", "low", "high"))) for row in phis)
            ),
            *_failed_laws(),
            *_data_and_votes(),
        ],
        "gpu": list(_gpu()),
        "records": [
            f"took {shown(adam, 'seconds')} and {shown(fast, 'seconds')} s, and ended at "
            f"{shown(adam, 'exact_accuracy_mean')} and {shown(fast, 'exact_accuracy_mean')} %",
            f"(one-sided p = {_above_99(adam):.2f} and {_above_99(fast):.2f})",
            f"the second takes {seconds:.2f} of the first's seconds and {rows:.2f} of its rows",
            f"{shown(entries[1], 'seconds')} s to {100 * float(entries[1]['exact_accuracy_mean']):.2f} %** (one-sided p of a mean "
            f"above 99 %: {_above_99(entries[1]):.2g}), {float(entries[1]['seconds']) / float(entries[0]['seconds']):.2f} of the",
            f"its mean is {100 * float(entries[0]['exact_accuracy_mean']):.2f} %, with p = {_above_99(entries[0]):.2g} where",
        ],
    }


def _failed_laws() -> Iterator[str]:
    """How many laws over training FLOPs predicted too much for the largest budget, and how many too little."""
    too_high: dict[str, list[bool]] = {"loss": [], "exact accuracy": []}
    for (axis, _, measure), of in laws_of(RESULTS / "scaling_6x6" / "isoflop.csv").items():
        if axis == "training FLOPs" and "predicted" in of and "failed" in of["predicted"]["verdict"]:
            too_high[measure].append(float(of["predicted"]["value"]) > float(of["measured"]["value"]))
    words = ["none", "one", "two", "three", "four", "five"]
    losses, shares = too_high.values()
    yield f"All {words[sum(losses)]} laws of the loss predict a larger loss at 6 TFLOP"
    yield f"fail at {words[len(shares)]} widths, {words[sum(shares)]} too high and {words[len(shares) - sum(shares)]} too low."


def _data_and_votes() -> Iterator[str]:
    """Exact accuracies by the number of training puzzles, and by votes and supervision steps at test time."""
    alone, with_copies = (exact_of("data", f"on_the_fly_aug={count}") for count in (0, 1000))
    yield f"train as well as 10,000**: {with_copies[0]} % and {with_copies[-1]} %"
    yield f"100 puzzles solve {alone[0]} %, 1,000 solve {alone[2]} % and 10,000 solve {alone[-1]} %"
    for held, words in (
        ("hidden_size=16, num_heads=1", "take width 16 from {} % to {} %; eight times the supervision steps take it to {} %"),
        ("hidden_size=64, num_heads=4", "Width 64 goes from {} % to {} % and {} %"),
        ("hidden_size=64, num_heads=4", "eight copies take width 64 from {} % to {} %, and eight times the steps to {} %"),
    ):
        one, *_, eight = exact_of("test_time", f"{held}, supervision_steps=4")
        yield words.format(one, eight, exact_of("test_time", f"{held}, copies=1")[-1])


def _above_99(row: Row) -> float:
    """The one-sided p of a mean above 99 %, from the mean and its 95 % interval."""
    others = int(row["seeds"]) - 1
    error = float(row["exact_accuracy_ci95_half_width"]) / stats.t.ppf(0.975, others)
    return float(stats.t.sf((float(row["exact_accuracy_mean"]) - 0.99) / error, others))


def _inference() -> Iterator[str]:
    by = ways_of_inference()

    def cells(key: str, *ways: str) -> list[str]:
        return [shown(by[way], key) for way in ways]

    def exact(*ways: str) -> list[str]:
        return [text.split(" ")[0] for text in cells("exact_accuracy", *ways)]

    def points(way: str) -> str:
        return shown(by[way], "difference").replace(" (", " points, ").rstrip(")")

    alone, *longer = exact(*(f"steps/last/1/{steps}" for steps in (16, 64, 256)))
    two, eight, many = exact(*(f"copies/vote/{count}/16" for count in (2, 8, 32)))
    yield f"Two copies solve {two}, eight {eight} and thirty-two {many} % ({points('copies/vote/32/16')})"
    yield f"one answer solves {alone} %"
    yield "{}, {} and {} %".format(*exact(*(f"noise{noise}/best_q/100/16" for noise in ("0.1", "0.3", "1"))))
    yield "{} % after 64 and {} % after 256".format(*longer)
    yield "restarts solve {} %".format(*exact("restarts/best_q/32/16"))
    shares = [
        100 * (1 - (1 - float(by[way]["oracle_exact_accuracy"])) / (1 - float(by["steps/last/1/16"]["exact_accuracy"])))
        for way in ("copies/vote/8/16", "noise0.3/best_q/100/16")
    ]
    yield "eight copies solve {:.0f} % and some of a hundred rollouts with noise 0.3 solve {:.0f} %".format(*shares)
    yield f"Two copies cost {float(by['copies/halt_first/2/16']['candidates_run']):.2f} of one answer"
    yield f"({points('copies/halt_first/2/16')})"
    yield f"eight cost {float(by['copies/halt_first/8/16']['candidates_run']):.2f} and solve"
    yield f"{exact('copies/halt_first/8/16')[0]} % ({points('copies/halt_first/8/16')})"
    gaps: dict[str, list[float]] = {}
    for row in by.values():
        if row["candidates"] != 1:
            gap = 100 * (float(row["oracle_exact_accuracy"]) - float(row["exact_accuracy"]))
            gaps.setdefault(row["selection"], []).append(gap)
    gaps_of = sorted((sum(gap) / len(gap), name) for name, gap in gaps.items())
    yield "asked for): " + "; ".join(f"`{name}` {gap:.1f}" for gap, name in gaps_of)


def _gpu() -> Iterator[str]:
    train, plain, *_ = rows_of(RESULTS / "gpu" / "beside.json")
    clock, every, *kernels = rows_of(RESULTS / "gpu" / "kernels.json")
    ms = {
        kind: sum(row["ms"] for row in kernels if re.search(pattern, row["kernel"]))
        for kind, pattern in (
            ("products", "nvjet|gemm"),
            ("pointwise", "triton_poi|elementwise"),
            ("reductions", "triton_(red|per)"),
        )
    }
    yield f"Peak memory of training {shown(train, 'peak GB')} GB (plain: {shown(plain, 'peak GB')})"
    yield f"(65,104 steps of 768) trains for {65104 * train['ms'] / 3.6e6:.1f} hours"
    yield f"the kernels fill {100 * every['ms'] / clock['ms']:.0f} % of the step"
    yield f"Products take {ms['products']:.0f} ms of {every['ms']:.0f}: at the rate of a plain 8192 product"
    rate = train["matmul GFLOP/s"]
    yield f"({rate / 1e3:.0f} TFLOP/s) they would take {1e3 * train['GFLOP a step'] / rate:.0f};"
    unaligned = [row["ms"] for row in kernels if "align1" in row["kernel"]]
    yield f"one kernel for unaligned rows is left, {unaligned[0]:.1f} ms"
    gate = {row["kernel"]: row["ms"] for row in kernels if "mul_silu" in row["kernel"]}
    forward = sum(value for kernel, value in gate.items() if "backward" not in kernel)
    yield f"Pointwise kernels take {ms['pointwise']:.0f} ms, {sum(gate.values()):.0f} of them SwiGLU's gate ({forward:.0f} forward)"
    yield f"Reductions (RMSNorm) take {ms['reductions']:.0f}"
    facts = yaml.safe_load((DOCS.parent / "models" / "sudoku_9x9" / "README.md").read_text().split("---\n")[1])
    yield f"{facts['steps']:,} steps in {facts['training_seconds']:.0f} s"
    yield f"({512 * facts['steps'] / facts['training_seconds']:,.0f} samples/s; "
    yield f"{1000 * facts['training_seconds'] / facts['steps']:.0f} ms a step"
