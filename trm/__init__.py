"""TRM Scaling Study: train and ablate Tiny Recursive Models (arXiv 2510.04871) on puzzles.

The commands are `python -m trm.train`, `trm.evaluate` and others (README.md). From a notebook or another program:

    import trm

    network = trm.load("models/NAME")                  # or a run folder, or a checkpoint file of the released code
    print(network.solve("puzzles.txt"))                # answers, and whether they solve the puzzles
    network.think("test:0")                            # the answers after each latent recursion; a notebook draws them
    trm.run(["experiment=quick_test", "run_name=x"])   # train as the command does
    trm.sweep(["+sweep=tn_sweep", "seed=0,1"])         # several runs
    trm.report("multirun/tn_sweep")                    # compare them, as pandas tables

Where a command would end with an error line, a function raises an exception with the same line: trm.errors.UserError, or
trm.errors.RunFailure if a run cannot continue.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing trm takes no time: torch is imported when something is called
    from trm.api import Network, Report, Sweep
    from trm.config import Config

__all__ = ["compose", "load", "report", "run", "sweep"]

# This must be set before torch loads libgomp. Threads that wait for each other then use the processor for some tens of
# microseconds, not for milliseconds. Otherwise two runs on the same cores would take time from each other
# (docs/explanation/backends.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def load(checkpoint: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Network:
    """A trained network: of models/, of a run folder, or of a checkpoint file of the released code.

    Args:
        checkpoint: "models/NAME", "outputs/NAME", "outputs/NAME/checkpoints/step_100", or a file such as step_65104.
        overrides: changes of the network's settings, such as "inference=votes8" or "inference.early_exit=true". A file of the
            released code has no settings, so give all settings that it was trained with.

    Raises:
        trm.errors.UserError: there is no such checkpoint, or the settings do not go with it.
    """
    from trm import api

    return api.load(checkpoint, _listed(overrides))


def run(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train one run in this process, as `python -m trm.train` does with the same overrides.

    If a run with the same run_name exists, it is resumed. An interruption (Ctrl-C, a notebook's stop button, SIGTERM) saves the run
    and raises KeyboardInterrupt. Only the main thread receives signals; in another thread the log says that no signal can stop it.

    Returns:
        The run's summary.json, and as `run_dir` the run's folder, which `load` takes.

    Raises:
        trm.errors.UserError: the settings are not valid, or of a sweep.
        trm.errors.RunFailure: the run cannot continue.
    """
    from trm import api

    return api.run(_listed(overrides))


def sweep(overrides: Sequence[str]) -> Sweep:
    """Train all runs of a grid, each in a separate process, as `python -m trm.train --multirun` does.

    If the same sweep is called again, it runs only the missing runs. An interruption saves the runs and raises KeyboardInterrupt.

    Args:
        overrides: values that are separated by commas make the grid: ["recursion=t2_n2,t3_n6", "seed=0,1"].

    Returns:
        The sweep's folder, which `report` takes, and the summary of each run by its name.

    Raises:
        trm.errors.UserError: the settings of a run are not valid; none is started then.
        trm.errors.RunFailure: a run did not complete.
    """
    from trm import api

    return api.sweep(_listed(overrides))


def report(
    *folders: str | os.PathLike[str],
    group: Sequence[str] | None = None,
    target: float | None = None,
    baseline: str | None = None,
) -> Report:
    """Compare runs from their folders, as `python -m trm.report` does, as pandas tables; writes nothing.

    Args:
        folders: run folders, sweep folders, or folders that hold such.
        group: settings or config groups that make runs variants; None = all that differ but the seed.
        target: an exact accuracy, 0..1. The report then has the time to reach it.
        baseline: a variant. The report then has the difference of every other variant from it.

    Raises:
        trm.errors.UserError: a folder holds no run, or an argument names nothing; or pandas is not installed.
    """
    from trm import api

    return api.report(folders, None if group is None else _listed(group), target, baseline)


def compose(overrides: Sequence[str] = ()) -> Config:
    """The typed settings that `python -m trm.train` would run with; runs nothing.

    Raises:
        trm.errors.ConfigError: a key or a value is not valid, or these are the settings of a sweep.
    """
    from trm.cli import compose_run

    return compose_run(_listed(overrides))[0]


def _listed(texts: Sequence[str]) -> list[str]:
    """The texts; one alone is not taken for its letters."""
    return [texts] if isinstance(texts, str) else list(texts)


class _Package(ModuleType):
    """A package that can be called: trm.run and trm.report are packages too, which take the functions' places when imported."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self.__wrapped__(*args, **settings)


def callable_package(name: str, function: Callable[..., Any]) -> None:
    """Have the imported package trm.NAME do what the function of the same name does, when it is called."""
    package = sys.modules[name]
    package.__class__ = _Package
    package.__wrapped__ = function  # type: ignore[attr-defined]  # where inspect, and so a notebook, finds the signature
