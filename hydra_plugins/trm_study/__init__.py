"""Hydra loads plugins from the package `hydra_plugins` only; the sweeper and the launchers are trm/study's."""

from trm.study import launchers


class StudySweeper(launchers.StudySweeper):
    """The grid of `--multirun` and `+sweep=`."""


class LocalLauncher(launchers.LocalLauncher):
    """Jobs side by side on this machine."""


class SlurmLauncher(launchers.SlurmLauncher):
    """Jobs as one Slurm array."""
