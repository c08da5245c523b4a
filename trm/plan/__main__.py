"""What a run or a sweep will cost on a TPU, without a TPU: `python -m trm.plan [KEY=VALUE ...] [plan.KEY=VALUE ...]`.

    python -m trm.plan experiment=e1_1_baseline hardware=v4_64
    python -m trm.plan +sweep=all_ablations hardware=v4_64 plan.price_per_chip_hour=3.22
    python -m trm.plan experiment=e1_1_baseline hardware=v4_64 hardware.placement=chip plan.compile=true

The arguments are those of trm.train. A sweep is +sweep=NAME, or --multirun with a grid. The command prints the parameters, FLOPs
counted from the graph of the step, the roofline of a step, and hours and chip-hours on one chip, one host and the pod.

  plan.compile=true              compile the training and the evaluation step for the TPU, ahead of time: memory of a chip by kind,
                                 collectives and their bytes. It takes about a minute for each step and
                                 needs jax and libtpu: make setup-plan, or make setup EXTRAS=dev,plan. It does not work
                                 with inference.early_exit=true, which has another step
  plan.python=PATH               the interpreter with jax and libtpu; default: this one, or that of .venv-plan
  plan.utilisation_percent=[20,40,60]  shares of the chips' peak for which hours are given
  plan.host_ms_per_step=3        the least time of a step, however fast the chips are
  plan.price_per_chip_hour=3.22  also print the price of each placement
"""

if __name__ == "__main__":  # before what takes seconds to import
    from trm.cli import plain_command

    plain_command("trm.plan.__main__:main", __doc__)
    raise SystemExit

import functools
import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from trm.cli import compose, compose_jobs
from trm.config import Config
from trm.errors import ConfigError
from trm.ground.progress import work
from trm.plan.compiled import STEPS, Compiler, find_python
from trm.plan.output import RunPlan, plan_text
from trm.plan.settings import PlanSettings, split_arguments
from trm.plan.workload import PLACEMENTS, RunEstimate, Workload, estimate, workload


def jobs_of(overrides: list[str], multirun: bool) -> tuple[str | None, dict[str, Config]]:
    """The name of the sweep, None for a single run, and the settings of every job."""
    sweeps = [a.partition("=")[2] for a in overrides if a.startswith(("+sweep=", "sweep="))]
    if multirun or sweeps:
        return ",".join(sweeps) or "sweep", compose_jobs(overrides)
    cfg = compose(overrides)
    experiments = [a.removeprefix("experiment=") for a in overrides if a.startswith("experiment=")]
    return None, {",".join(experiments) or "run": cfg}


def estimates(counted: Workload, cfg: Config, settings: PlanSettings) -> dict[str, RunEstimate | str]:
    """The run on each placement of its machine; where one is impossible, the reason."""
    found: dict[str, RunEstimate | str] = {}
    for placement in PLACEMENTS:
        try:
            found[placement] = estimate(counted, replace(cfg.hardware, placement=placement), settings.host_ms_per_step / 1e3)
        except ConfigError as error:
            found[placement] = str(error)
    return found


def main(arguments: list[str]) -> None:
    """The command; see the module's docstring."""
    settings, overrides, multirun = split_arguments(arguments)
    sweep, jobs = jobs_of(overrides, multirun)
    if settings.compile and any(cfg.inference.early_exit for cfg in jobs.values()):
        raise ConfigError(
            "inference.early_exit=true: plan.compile=true cannot compile the step of this run: leave it out of the plan"
        )
    python = find_python(settings.python) if settings.compile else None
    plans: list[RunPlan] = []
    compiler = None
    try:
        with work("jobs counted", len(jobs), "job") as done:
            for name, cfg in jobs.items():
                counted = workload(cfg)
                plans.append(RunPlan(name, cfg, counted, estimates(counted, cfg, settings), {}))
                done(len(plans))
        if python:
            with tempfile.TemporaryDirectory(prefix="trm-plan-") as folder:
                say = functools.partial(print, file=sys.stderr, flush=True)
                compiler = Compiler(python, Path(folder), say, len(plans) * len(STEPS))
                for plan, step in itertools.product(plans, STEPS):
                    plan.compiled[step] = compiler.compile(plan.cfg, step, plan.name)
    except KeyboardInterrupt as stopped:
        if compiler:
            stopped.add_note(f"programs compiled: {compiler.done} of {compiler.programs}")
        if plans:
            print(plan_text(sweep, plans, settings))
        raise
    print(plan_text(sweep, plans, settings))
