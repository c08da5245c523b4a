"""The plan as text. Every figure says where it comes from.

counted   from the graph of the step, or from the settings
assumed   a data sheet, a utilisation, a price: not from this machine or that one
compiled  what the TPU's own compiler says about the module it made
measured  on this machine: seconds of compiling
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trm.config import Config
from trm.plan.compiled import Compiled, TooBig, warnings
from trm.plan.estimate import PLACEMENTS, Chip, RunEstimate, all_reduce_seconds, makespan
from trm.plan.settings import PlanSettings
from trm.plan.workload import Workload

LARGE_DIFFERENCE = 0.02  # between the counted and the analytic FLOPs, from which on the plan warns


@dataclass(frozen=True)
class RunPlan:
    """Everything planned about one run."""

    name: str
    cfg: Config
    work: Workload
    estimates: dict[str, RunEstimate | str]  # by placement; a string says why there is none
    compiled: dict[str, Compiled | TooBig]  # by step, for the chosen placement


def quantity(value: float, unit: str) -> str:
    """A number with a decimal prefix: 1.1e13, "FLOP" is 11 TFLOP."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"


def mebibytes(value: float) -> str:
    """Bytes in MiB."""
    return f"{value / 2**20:,.1f} MiB"


def assumptions(chip: Chip, settings: PlanSettings) -> list[str]:
    """What the hours rest on."""
    percents = ", ".join(f"{p:g}" for p in settings.utilisation_percent)
    return [
        f"Assumed: {chip.name} with {quantity(chip.bf16_flops, 'FLOP/s')} in bfloat16, memory at "
        f"{quantity(chip.memory_bytes_per_s, 'B/s')}, links at {quantity(chip.links_bytes_per_s, 'B/s')} (data sheet);",
        f"  {percents} % of the peak reached (plan.utilisation_percent), at least {settings.host_ms_per_step:g} ms a step for the "
        "host (plan.host_ms_per_step).",
        "  Roofline: no step can be faster than the chips' peak, memory, links and the host allow. It predicts no real TPU's time.",
        "  Hours are without compiling and saving.",
    ]


def evaluations_words(work: Workload) -> str:
    """How often, and on how many puzzles: a sample during training, all at the end."""
    if work.evaluations == 1 or work.sample_puzzles == work.test_puzzles:
        return f"{work.evaluations} times {work.test_puzzles:,} puzzles"
    return f"{work.evaluations - 1} times {work.sample_puzzles:,} puzzles and once {work.test_puzzles:,}"


def run_lines(plan: RunPlan, settings: PlanSettings, chip: Chip) -> list[str]:
    """One run: what it computes, and what it costs on each placement."""
    work, cfg = plan.work, plan.cfg
    lines = [
        f"{plan.name}: {cfg.hardware.name}, {cfg.hardware.dtype}",
        f"  parameters            {work.parameters:,} [counted]",
        *_flops_lines("training step  ", work.train_flops, work.analytic_train_flops, work.global_batch),
        *_flops_lines("evaluation step", work.eval_flops, work.analytic_eval_flops, cfg.eval_batch_size),
        f"  training              {work.train_steps:,} steps of {work.global_batch} rows, "
        f"{quantity(work.train_steps * work.train_flops, 'FLOP')} [counted]",
        f"  evaluation            {evaluations_words(work)} x {cfg.recursion.n_sup} steps, "
        f"{quantity(work.eval_calls * work.eval_flops, 'FLOP')} "
        + (
            "[counted; puzzles assumed: data.num_test_puzzles or evaluate.max_puzzles sets them]"
            if work.test_puzzles_assumed
            else "[counted]"
        ),
        f"  on every chip         {mebibytes(work.state_bytes)} of weights, moments and EMA; "
        f"gradient {mebibytes(work.gradient_bytes)} [counted]",
        "",
        *_placement_table(plan, settings),
    ]
    for step, compiled in plan.compiled.items():
        lines += ["", *_compiled_lines(step, compiled, work, chip)]
    return lines


def _flops_lines(name: str, counted: int, analytic: int | None, batch: int) -> list[str]:
    line = f"  {name}       {quantity(counted, 'FLOP')}, {quantity(counted / batch, 'FLOP')} a row [counted from the graph]"
    if analytic is None:
        return [f"{line}; no analytic count for this recursion"]
    lines = [f"{line}; {quantity(analytic, 'FLOP')} [analytic], ratio {counted / analytic:.4f}"]
    if abs(counted / analytic - 1) > LARGE_DIFFERENCE:
        lines.append("  warning: the graph and the analytic count differ: one of them misses a part of the step")
    return lines


def _placement_table(plan: RunPlan, settings: PlanSettings) -> list[str]:
    percents = settings.utilisation_percent
    header = ["placement", "chips", "jobs at once", "rows/chip", "roofline ms", "bound by", "h at peak"]
    header += [f"h at {p:g} %" for p in percents] + [f"chip-h at {p:g} %" for p in percents]
    if settings.price_per_chip_hour is not None:
        header += [f"price at {p:g} %" for p in percents]
    rows = [header]
    refused = []
    for placement in PLACEMENTS:
        found = plan.estimates[placement]
        mark = "*" if placement == (plan.cfg.hardware.placement or "pod") else ""
        if isinstance(found, str):
            refused.append(f"    {placement}: {found}")
            continue
        hours = [found.hours(p / 100) for p in percents]
        row = [placement + mark, str(found.chips), str(found.jobs_at_once), str(found.rows_per_chip)]
        row += [f"{1e3 * found.train_step.roofline:.3f}", found.train_step.bound_by, f"{found.hours(1.0):.1f}"]
        row += [f"{h:.1f}" for h in hours] + [f"{h * found.chips:.0f}" for h in hours]
        if settings.price_per_chip_hour is not None:
            row += [f"{h * found.chips * settings.price_per_chip_hour:,.0f}" for h in hours]
        rows.append(row)
    middle = percents[len(percents) // 2]
    share = [
        f"{placement} {100 * found.eval_hours(middle / 100) / found.hours(middle / 100):.0f} %"
        for placement, found in plan.estimates.items()
        if isinstance(found, RunEstimate)
    ]
    return [
        "  one run on each placement (* chosen): roofline of a training step, whole run at the roofline and at the utilisations "
        "[counted work, assumed speed]",
        *table(rows),
        *refused,
        f"    evaluation's share of the hours at {middle:g} %: {', '.join(share)}",
    ]


def _compiled_lines(step: str, compiled: Compiled | TooBig, work: Workload, chip: Chip) -> list[str]:
    if isinstance(compiled, TooBig):
        needed = "more" if compiled.needed is None else mebibytes(compiled.needed)
        fits = f"; a global batch of {compiled.fits} should fit, in proportion to the rows" if compiled.fits else ""
        return [
            f"  {step} step: out of memory [compiled]: {needed} needed of a chip, {mebibytes(compiled.there)} there{fits}",
            *(f"    {line}" for line in shortened(compiled.message)),
        ]
    memory = compiled.memory
    counts: dict[str, list[int]] = {}
    for item in compiled.collectives:
        counts.setdefault(item["op"], []).append(item["bytes"])
    moved = "; ".join(f"{len(sizes)} {op} of {sum(sizes):,} bytes" for op, sizes in sorted(counts.items())) or "none"
    gradient = work.gradient_bytes if step == "training" and compiled.devices > 1 else None
    lines = [
        f"  {step} step compiled for {compiled.devices} x {compiled.device_kind} by libtpu {compiled.libtpu} in "
        f"{compiled.seconds:.0f} s [measured]",
        f"    HBM of a chip      {mebibytes(compiled.memory_bytes)} of {mebibytes(chip.memory_bytes)} "
        f"({100 * compiled.memory_bytes / chip.memory_bytes:.1f} %) [compiled]",
        "                       arguments {arguments} + outputs {outputs} - aliased {aliased} + temporaries {temporaries} + "
        "code {code}".format(**{kind: mebibytes(size) for kind, size in memory.items()}),
        f"    donated            {compiled.aliases} outputs take the memory of {compiled.donated} donated arguments [compiled]",
        f"    collectives        {moved} [compiled]",
        f"    of a chip          {quantity(compiled.flops, 'FLOP')}, {quantity(compiled.bytes_accessed, 'B')} accessed in all "
        f"memories [compiled]; at the peak {1e3 * compiled.flops / chip.bf16_flops:.2f} ms, "
        f"links {1e3 * all_reduce_seconds(compiled.collective_bytes('all-reduce'), compiled.devices, chip):.2f} ms [roofline]",
    ]
    return lines + [f"    warning: {text}" for text in warnings(compiled, gradient)]


def shortened(message: str, lines: int = 12) -> list[str]:
    """The first lines of a compiler's message that say something."""
    return [line.rstrip()[:200] for line in message.splitlines() if line.strip()][:lines]


def sweep_lines(name: str, plans: Sequence[RunPlan], settings: PlanSettings) -> list[str]:
    """A whole sweep: its jobs, and the hours and chip-hours of each placement."""
    percents = settings.utilisation_percent
    chosen = plans[0].cfg.hardware.placement or "pod"
    rows = [
        ["job", "parameters", "GFLOP a row", "steps", "roofline ms", *(f"h at {p:g} %" for p in percents), *_compiled_header(plans)]
    ]
    for plan in plans:
        found = plan.estimates[chosen]
        work = plan.work
        row = [plan.name, f"{work.parameters:,}", f"{work.train_flops / work.global_batch / 1e9:.2f}", f"{work.train_steps:,}"]
        if isinstance(found, str):
            row += ["-"] * (1 + len(percents))
        else:
            row += [f"{1e3 * found.train_step.roofline:.3f}", *(f"{found.hours(p / 100):.1f}" for p in percents)]
        rows.append(row + [cell for step in plan.compiled for cell in _compiled_cells(plan.compiled[step])])
    lines = [f"{name}: {len(plans)} jobs, hours of each with placement={chosen} [counted work, assumed speed]", *table(rows), ""]

    header = ["placement", "jobs at once", *(f"h at {p:g} %" for p in percents), *(f"chip-h at {p:g} %" for p in percents)]
    header += [f"reserved at {p:g} %" for p in percents]
    if settings.price_per_chip_hour is not None:
        header += [f"price at {p:g} %" for p in percents]
    rows, refused = [header], []
    for placement in PLACEMENTS:
        found_all = [plan.estimates[placement] for plan in plans]
        reasons = [found for found in found_all if isinstance(found, str)]
        if reasons:
            refused.append(f"    {placement}: {reasons[0]}")
            continue
        estimates = [found for found in found_all if isinstance(found, RunEstimate)]
        hours = [makespan([e.hours(p / 100) for e in estimates], estimates[0].jobs_at_once) for p in percents]
        used = [sum(e.hours(p / 100) * e.chips for e in estimates) for p in percents]
        machine = estimates[0].chips * estimates[0].jobs_at_once
        row = [placement + ("*" if placement == chosen else ""), str(estimates[0].jobs_at_once)]
        row += [f"{h:.1f}" for h in hours] + [f"{u:.0f}" for u in used] + [f"{h * machine:.0f}" for h in hours]
        if settings.price_per_chip_hour is not None:
            row += [f"{h * machine * settings.price_per_chip_hour:,.0f}" for h in hours]
        rows.append(row)
    lines += [
        "  the whole sweep on each placement: hours to its end, chip-hours that its jobs use, chip-hours of the machine reserved "
        "meanwhile",
        *table(rows),
        *refused,
    ]
    return lines


def _compiled_header(plans: Sequence[RunPlan]) -> list[str]:
    return [name for step in plans[0].compiled for name in (f"{step} MiB/chip", "all-reduce bytes")]


def _compiled_cells(compiled: Compiled | TooBig) -> list[str]:
    if isinstance(compiled, Compiled):
        return [f"{compiled.memory_bytes / 2**20:,.0f}", f"{compiled.collective_bytes('all-reduce'):,}"]
    return ["too big", "-"]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in aligned columns: the first to the left, the others to the right."""
    grid = Table(box=None, pad_edge=False, show_header=False)
    for number in range(len(rows[0])):
        grid.add_column(justify="right" if number else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(Text, row))
    text = io.StringIO()
    Console(width=10_000, file=text, no_color=True).print(grid)
    return [f"    {line.rstrip()}" for line in text.getvalue().splitlines()]
