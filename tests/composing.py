"""Settings composed once for all tests of a process: composing takes a third of a second."""

import importlib

import pytest

from trm.cli import compose

COMPOSED, OF_SWEEPS = {}, {}  # by overrides


def composed(*overrides):
    if overrides not in COMPOSED:
        COMPOSED[overrides] = compose([*overrides, "run_name=r"])
    return COMPOSED[overrides]


@pytest.fixture
def jobs_composed_once(monkeypatch):
    """The jobs of a sweep that this test or another one has composed are not composed again."""
    composed()  # Hydra loads its plugins first, as in every command
    sweeper = importlib.import_module("trm.study.sweeper").StudySweeper
    compose_job = sweeper._composed

    def once(self, overrides, words):
        known = tuple(overrides)
        if known not in COMPOSED and known not in OF_SWEEPS:
            OF_SWEEPS[known] = compose_job(self, overrides, words)
        return COMPOSED.get(known) or OF_SWEEPS[known]

    monkeypatch.setattr(sweeper, "_composed", once)
