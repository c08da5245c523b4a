"""The plan as text. Every figure says where it comes from:

counted   from the graph of the step, or from the settings
assumed   a data sheet, a utilisation, a price
compiled  from the TPU's own compiler
measured  on this machine: seconds of compiling
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trm.config import Config
from trm.plan.compiled import Compiled, TooBig, warnings
from trm.plan.settings import PlanSettings
from trm.plan.workload import PLACEMENTS, Chip, RunEstimate, Workload, all_reduce_seconds, chip_of, makespan
from trm.show.table import named
from trm.tasks.base import task_of

MESSAGE_LINES = 12  # of the compiler's own words, where a step does not fit


@dataclass(frozen=True)
class RunPlan:
    """Everything planned about one run."""

    name: str
    cfg: Config
    work: Workload
    estimates: dict[str, RunEstimate | str]  # by placement; a string says why there is none
    compiled: dict[str, Compiled | TooBig]  # by step, for the chosen placement

    @property
    def chosen(self) -> str:
        """The placement that the run's own settings ask for."""
        return self.cfg.hardware.placement or "pod"


def quantity(value: float, unit: str) -> str:
    """A number with a decimal prefix: 1.1e13, "FLOP" is 11 TFLOP."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:,.1f} MiB"


def plan_text(sweep: str | None, plans: Sequence[RunPlan], settings: PlanSettings) -> str:
    """The plan of a run, where `sweep` is None, or of the sweep of this name, and what the hours rest on."""
    chip = chip_of(plans[0].cfg.hardware)
    if sweep is None:
        lines = run_lines(plans[0], settings, chip)
    else:
        lines = [line for plan in plans if plan.compiled for line in [*run_lines(plan, settings, chip), ""]]
        lines += sweep_lines(sweep, plans, settings)
    percents = ", ".join(f"{p:g}" for p in settings.utilisation_percent)
    lines += [
        "",
        f"Assumed: {chip.name} with {quantity(chip.bf16_flops, 'FLOP/s')} in bfloat16, memory at "
        f"{quantity(chip.memory_bytes_per_s, 'B/s')}, links at {quantity(chip.links_bytes_per_s, 'B/s')} (data sheet);",
        f"  {percents} % of the peak reached (plan.utilisation_percent), at least {settings.host_ms_per_step:g} ms a step for the "
        "host (plan.host_ms_per_step).",
        "  Roofline: no step can be faster than the chips' peak, memory, links and the host allow. It predicts no real TPU's time.",
        "  Hours are without compiling and saving.",
    ]
    return "\n".join(lines)


def run_lines(plan: RunPlan, settings: PlanSettings, chip: Chip) -> list[str]:
    """One run: what it computes, and what it costs on each placement."""
    work, cfg = plan.work, plan.cfg
    assumed = "; puzzles assumed: data.num_test_puzzles or evaluate.max_puzzles sets them" if work.test_puzzles_assumed else ""
    candidates = f" x {cfg.inference.candidates} candidates" if cfg.inference.candidates > 1 else ""
    what = "puzzles" if task_of(cfg.data).facts.test_rows is None else "test inputs in variants"
    times = f"{work.evaluations} times {work.test_puzzles:,} {what}"
    if work.evaluations > 1 and work.sample_puzzles != work.test_puzzles:
        times = f"{work.evaluations - 1} times {work.sample_puzzles:,} puzzles and once {work.test_puzzles:,}"
    beside = f", each time with {work.selection_puzzles:,} that choose the best" if work.selection_puzzles else ""
    middle = settings.utilisations[len(settings.utilisations) // 2]
    runs = {placement: run for placement, run in plan.estimates.items() if isinstance(run, RunEstimate)}
    shares = [f"{placement} {100 * run.eval_hours(middle) / run.hours(middle):.0f} %" for placement, run in runs.items()]
    lines = [
        f"{plan.name}: {cfg.hardware.name}, {cfg.hardware.dtype}",
        f"  parameters            {work.parameters:,} [counted]",
        _flops_line("training step  ", work.train_flops, work.global_batch),
        _flops_line("evaluation step", work.eval_flops, cfg.eval_batch_size),
        f"  training              {work.train_steps:,} steps of {work.global_batch} rows, "
        f"{quantity(work.train_steps * work.train_flops, 'FLOP')} [counted]",
        f"  evaluation            {times}{beside}{candidates} x {cfg.inference_steps} steps, "
        f"{quantity(work.eval_calls * work.eval_flops, 'FLOP')} [counted{assumed}]",
        f"  on every chip         {_mebibytes(work.state_bytes)} of weights, moments and EMA; "
        f"gradient {_mebibytes(work.gradient_bytes)} [counted]",
        "",
        "  one run on each placement (* chosen): roofline of a training step, whole run at the roofline and at the utilisations "
        "[counted work, assumed speed]",
        *_placements([plan], settings, sweep=False),
        f"    evaluation's share of the hours at {100 * middle:g} %: {', '.join(shares)}",
    ]
    for step, compiled in plan.compiled.items():
        lines += ["", *_compiled_lines(step, compiled, work, chip)]
    return lines


def _flops_line(name: str, counted: int, batch: int) -> str:
    return f"  {name}       {quantity(counted, 'FLOP')}, {quantity(counted / batch, 'FLOP')} a row [counted from the graph]"


def _compiled_lines(step: str, compiled: Compiled | TooBig, work: Workload, chip: Chip) -> list[str]:
    if isinstance(compiled, TooBig):
        needed = "more" if compiled.needed is None else _mebibytes(compiled.needed)
        fits = f"; a global batch of {compiled.fits} should fit, in proportion to the rows" if compiled.fits else ""
        words = [line.rstrip()[:200] for line in compiled.message.splitlines() if line.strip()]
        return [
            f"  {step} step: out of memory [compiled]: {needed} needed of a chip, {_mebibytes(compiled.there)} there{fits}",
            *(f"    {line}" for line in words[:MESSAGE_LINES]),
        ]
    counts = Counter(item["op"] for item in compiled.collectives)
    moved = "; ".join(f"{count} {op} of {compiled.collective_bytes(op):,} bytes" for op, count in sorted(counts.items()))
    gradient = work.gradient_bytes if step == "training" and compiled.devices > 1 else None
    return [
        f"  {step} step compiled for {compiled.devices} x {compiled.device_kind} by libtpu {compiled.libtpu} in "
        f"{compiled.seconds:.0f} s [measured]",
        f"    HBM of a chip      {_mebibytes(compiled.memory_bytes)} of {_mebibytes(chip.memory_bytes)} "
        f"({100 * compiled.memory_bytes / chip.memory_bytes:.1f} %) [compiled]",
        "                       arguments {arguments} + outputs {outputs} - aliased {aliased} + temporaries {temporaries} + "
        "code {code}".format(**{kind: _mebibytes(size) for kind, size in compiled.memory.items()}),
        f"    donated            {compiled.aliases} outputs take the memory of {compiled.donated} donated arguments [compiled]",
        f"    collectives        {moved or 'none'} [compiled]",
        f"    of a chip          {quantity(compiled.flops, 'FLOP')}, {quantity(compiled.bytes_accessed, 'B')} accessed in all "
        f"memories [compiled]; at the peak {1e3 * compiled.flops / chip.bf16_flops:.2f} ms, "
        f"links {1e3 * all_reduce_seconds(compiled.collective_bytes('all-reduce'), compiled.devices, chip):.2f} ms [roofline]",
        *(f"    warning: {text}" for text in warnings(compiled, gradient, work.table_rows_bytes)),
    ]


def sweep_lines(name: str, plans: Sequence[RunPlan], settings: PlanSettings) -> list[str]:
    """A whole sweep: its jobs, and the hours and chip-hours of each placement."""
    chosen, rows = plans[0].chosen, []
    for plan in plans:
        work, run = plan.work, plan.estimates[chosen]
        row = {
            "job": plan.name,
            "parameters": f"{work.parameters:,}",
            "GFLOP a row": f"{work.train_flops / work.global_batch / 1e9:.2f}",
            "steps": f"{work.train_steps:,}",
        }
        if isinstance(run, RunEstimate):
            row |= {"roofline ms": f"{1e3 * run.train_step.roofline:.3f}"}
            row |= _at(settings, "h", map(run.hours, settings.utilisations), ".1f")
        for step, compiled in plan.compiled.items():
            memory, moved = "too big", "-"
            if isinstance(compiled, Compiled):
                memory, moved = f"{compiled.memory_bytes / 2**20:,.0f}", f"{compiled.collective_bytes('all-reduce'):,}"
            row |= {f"{step} MiB/chip": memory, f"{step} all-reduce bytes": moved}
        rows.append(row)
    return [
        f"{name}: {len(plans)} jobs, hours of each with placement={chosen} [counted work, assumed speed]",
        *(f"    {line}" for line in named(rows)),
        "",
        "  the whole sweep on each placement: hours to its end, chip-hours that its jobs use, chip-hours of the machine reserved "
        "meanwhile",
        *_placements(plans, settings, sweep=True),
    ]


def _placements(plans: Sequence[RunPlan], settings: PlanSettings, *, sweep: bool) -> list[str]:
    """What the runs take on each placement, and why one is impossible. A `sweep` pays for the machine until its last job ends."""
    rows, refused = [], []
    for placement in PLACEMENTS:
        found = [plan.estimates[placement] for plan in plans]
        runs = [each for each in found if isinstance(each, RunEstimate)]
        if len(runs) < len(found):
            refused.append(f"    {placement}: {next(each for each in found if isinstance(each, str))}")
            continue
        first = runs[0]
        hours = [makespan([run.hours(share) for run in runs], first.jobs_at_once) for share in settings.utilisations]
        used = [sum(run.chips * run.hours(share) for run in runs) for share in settings.utilisations]
        paid = [each * first.chips * first.jobs_at_once for each in hours] if sweep else used
        row = {"placement": placement + ("*" if placement == plans[0].chosen else ""), "jobs at once": str(first.jobs_at_once)}
        if not sweep:
            row |= {
                "chips": str(first.chips),
                "rows/chip": str(first.rows_per_chip),
                "roofline ms": f"{1e3 * first.train_step.roofline:.3f}",
                "bound by": first.train_step.bound_by,
                "h at peak": f"{first.hours(1.0):.1f}",
            }
        row |= _at(settings, "h", hours, ".1f") | _at(settings, "chip-h", used, ".0f")
        if sweep:
            row |= _at(settings, "reserved", paid, ".0f")
        if settings.price_per_chip_hour is not None:
            row |= _at(settings, "price", [each * settings.price_per_chip_hour for each in paid], ",.0f")
        rows.append(row)
    return [*(f"    {line}" for line in named(rows)), *refused]


def _at(settings: PlanSettings, what: str, values: Iterable[float], form: str) -> dict[str, str]:
    """The cells of a figure that each utilisation has its own value of."""
    return {f"{what} at {p:g} %": format(value, form) for p, value in zip(settings.utilisation_percent, values, strict=True)}
