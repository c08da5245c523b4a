"""Settings composed once for all tests of a process: composing takes a third of a second."""

import importlib

import pytest
import yaml

from trm.cli import compose
from trm.config.groups import CONF_DIR

COMPOSED, OF_SWEEPS = {}, {}  # by overrides


def composed(*overrides):
    if overrides not in COMPOSED:
        COMPOSED[overrides] = compose([*overrides, "run_name=r"])
    return COMPOSED[overrides]


def corners(sweep):
    """Overrides that leave of a sweep's grid the jobs at its corners, of one seed; none where it is over experiments alone."""
    sweeper = yaml.safe_load((CONF_DIR / "sweep" / f"{sweep}.yaml").read_text())["hydra"]["sweeper"]
    if set(sweeper["params"]) == {"experiment"}:
        return []
    found = ["hydra.sweeper.trials=2"] if "trials" in sweeper else []
    few = {"seed": "0", "experiment": "field_trm,field_wta", "recursion": "t2_n2,t4_n6"}
    for key, text in sweeper["params"].items():
        values = str(text).split(",")
        if "glob" in str(text) or (len(values) > 1 and "(" not in text):
            found.append(f"{key}={few.get(key) or f'{values[0]},{values[-1]}'}")
    return found


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
