"""Hydra loads plugins from the package `hydra_plugins` only; the sweeper and the launchers are trm/study's."""

from trm.study import local, on_ray, slurm, sweeper


class StudySweeper(sweeper.StudySweeper):
    """The grid of `--multirun` and `+sweep=`."""


class OptunaSweeper(sweeper.OptunaSweeper):
    """The search of hydra/sweeper=optuna."""


class LocalLauncher(local.LocalLauncher):
    """Jobs side by side on this machine."""


class SlurmLauncher(slurm.SlurmLauncher):
    """Jobs as one Slurm array."""


class RayLauncher(on_ray.RayLauncher):
    """Jobs as tasks of a Ray cluster."""
