import copy
import functools
import importlib
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra._internal import defaults_list, hydra
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource as Importlib
from hydra.core.config_store import ConfigStore
from hypothesis import settings
from omegaconf import grammar_parser

from trm.config import reading

settings.register_profile("repeatable", derandomize=True)  # a failure that comes and goes helps nobody
settings.load_profile("repeatable")

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_ARC = Path(__file__).parent / "golden_arc"
SHARED = Path(__file__).parents[1].parent / "shared"

# Cases that take seconds (with a compiler a quarter of a minute) and are like those beside them: `make nightly` (TRM_MATRIX=all).
NIGHTLY = re.compile(
    r"test_parity\.py::.*\[xla-(urm|eqr)|test_(first_step_float32|evaluation_float64)\[xla-mlp"
    r"|test_compiled_it_computes_the_same\[\w+-(urm|winner)"
    r"|test_losses_equal_on_one_and_several_devices\[attention"
    r"|test_on_a_mesh_the_same\[guided"
    r"|test_host_time_of_the_real_step\[loop"
    r"|_compiles_for_a_v4_64\[float32"
    r"|test_a_stopped_sweep_lets_its_jobs_save_and_goes_on_later\[(1|2|10)\]"
    r"|test_a_signal_saves_and_exits_143\[12\]"
    r"|test_all_engines_learn_the_same|test_a_trace_of_some_steps_is_written\[xla"
    r"|test_options_train\.py::test_a_run_that_goes_on_from_any_checkpoint"
    r"|test_a_stop_inside_an_evaluation_does_not_wait_for_its_end"
    r"|test_losses_equal_on_one_and_several_devices\[variants|test_inference\.py::test_on_a_mesh_the_same"
    r"|test_a_cards_figures_are_repeated\[sudoku_9x9"
    r"|test_any_ranks_compute_what_one_process_does\[2|test_torchrun_starts_the_ranks_again_and_the_run_goes_on"
    r"|test_the_jobs_of_a_sweep_are_several_ranks_each"
    r"|test_coordinates_are_flat_over_all_widths\[(adamw|muon)"
    r"|test_the_plans_page_says_what_its_commands_print\[\+sweep=all hardware=v4_64\]"
    r"|test_compiled_it_computes_the_same\[(inductor-fast|xla-eqr)"
)


# The slowest files: of `make test`, and of `make test-long`.
SLOWEST = (
    (
        "experiments", "parity", "sweep", "ranks", "train", "inference", "solve", "adding", "tracking", "cli", "report_scaling",
        "plan", "data_maze", "which_puzzles", "api", "arc", "report", "doctor", "build_data", "pages",
    ),
    (
        "kill", "ranks_faults", "ranks", "plan", "engines", "programs", "bad_input", "bench", "dashboards", "mesh", "readme",
        "faults", "dashboard", "published", "doctor", "quickstart", "package", "search", "tracking", "runtime", "options_train",
        "evaluate", "puzzle_embedding", "api", "hub", "inference", "variants", "arc", "gpu_record", "parametrization", "sweep",
    ),
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--golden-dir", type=Path, help="folder of parity cases: NAME.json + NAME.npz, or of ARC")


def pytest_generate_tests(metafunc):
    if "golden_case" in metafunc.fixturenames and not any(metafunc.definition.iter_markers("parametrize")):
        folder = metafunc.config.getoption("--golden-dir") or GOLDEN
        names = sorted(p.stem for p in folder.glob("*.json") if p.with_suffix(".npz").exists())
        if not names:
            raise pytest.UsageError(f"--golden-dir {folder} holds no NAME.json with NAME.npz")
        metafunc.parametrize("golden_case", [folder / name for name in names], ids=names)
    if "arc_case" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden-dir") or GOLDEN_ARC
        cases = sorted(path.parent for path in folder.glob("*/tasks.json"))
        if not cases:
            raise pytest.UsageError(f"--golden-dir {folder} holds no NAME/tasks.json")
        metafunc.parametrize("arc_case", cases, ids=lambda path: path.name)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Leave out what only `make nightly` runs; the slowest files first, so that two workers end together."""
    if os.environ.get("TRM_MATRIX") != "all":
        nightly = [item for item in items if NIGHTLY.search(item.nodeid)]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]
    slow = [f"test_{name}.py" for name in SLOWEST[config.option.markexpr == "long"]]
    items.sort(key=lambda item: slow.index(item.path.name) if item.path.name in slow else len(slow))


def pytest_collection_finish(session):
    """Start torch_xla before the first test that calls backward: autograd makes one queue a device then, and never again."""
    if find_spec("torch_xla") and any("runtime" in getattr(item, "fixturenames", ()) for item in session.items):
        from trm.backends import start
        from trm.config import HardwareConfig

        start(HardwareConfig(name="cpu"))


@pytest.fixture(scope="module")
def one_thread():
    """For modules of tiny tensors: handing them to threads takes longer than computing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data():
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the shared puzzle data is not beside this checkout")
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without pictures, which take most of a report's time."""
    empty = {name: {"light": b"", "dark": b""} for name in ("curves", "bars")}
    for module, name, nothing in (("plots", "drawn", empty), ("scaling_output", "pictures", {})):
        monkeypatch.setattr(importlib.import_module(f"trm.report.{module}"), name, lambda _, nothing=nothing: nothing)


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk():
    """No test cuts the power: what is written need not have reached the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def composed_soon():
    """Most tests compose settings, and half of the time Hydra does what is not needed here.

    It copies all settings of all plugins for each composition, reads its own files and parses each interpolation anew, notes for
    every file what was chosen so far, and composes the settings of a run twice, first to see whether they name a sweep.
    """
    get_mode, parse = hydra.Hydra.get_mode, functools.cache(grammar_parser.parse)
    choices, own_file, schema_of = defaults_list._create_interpolation_map, Importlib.load_config, reading.register_schema
    read, tasks = {}, []

    def chosen(overrides, found, added):
        return choices(overrides, found, added) if any(each.is_interpolation() for each in found) else None

    def load_own(self, config_path):
        if (self.path, config_path) not in read:
            read[self.path, config_path] = own_file(self, config_path)
        return copy.deepcopy(read[self.path, config_path])

    def register_schema():
        if tasks != [*reading.TASKS.items()]:
            schema_of()
            tasks[:] = reading.TASKS.items()

    def mode(self, config_name, overrides):
        return get_mode(self, config_name, overrides) if any("sweep=" in o or "hydra.mode" in o for o in overrides) else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigStore, "__deepcopy__", lambda self, memo: self, raising=False)  # the one that there is
        patch.setattr("omegaconf.base.parse", parse)
        patch.setattr("omegaconf._utils.parse", parse)
        patch.setattr(hydra.Hydra, "get_mode", mode)
        patch.setattr(defaults_list, "_create_interpolation_map", chosen)
        patch.setattr(Importlib, "load_config", load_own)
        patch.setattr("trm.config.register_schema", register_schema)
        yield
