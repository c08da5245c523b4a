"""Hydra loads plugins from the package `hydra_plugins` only; the sweeper and the launchers are trm/study's."""

from trm.study import queue


class StudySweeper(queue.StudySweeper):
    """The grid of `--multirun` and `+sweep=`."""


class LocalLauncher(queue.LocalLauncher):
    """Jobs side by side on this machine."""


class SlurmLauncher(queue.SlurmLauncher):
    """Jobs as one Slurm array."""
