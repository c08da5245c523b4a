"""What pip installs: built as a wheel, installed beside the dependencies of this environment, started in an empty folder."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from trm.cli import ROOT

COMMANDS = sorted(
    {path.stem for path in (ROOT / "trm").glob("[!_]*.py")} - {"api", "cli", "errors"}
    | {path.parent.name for path in (ROOT / "trm").glob("*/__main__.py")}
)


def copy_sources(folder):
    """What a package is built from, in a folder of its own: setuptools would leave a build folder in the checkout."""
    for name in ("trm", "conf", "hydra_plugins", "models"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def with_dependencies(environment):
    """The python of an environment, which finds the packages of this one, but not this checkout: a .pth there is not read."""
    python = environment / "bin" / "python"
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """bin/ of an environment that holds the installed wheel, with this environment's packages but not this checkout."""
    folder = tmp_path_factory.mktemp("package")
    source = copy_sources(folder / "source")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, cwd=folder)
    venv.create(folder / "venv", symlinks=True)
    python = with_dependencies(folder / "venv")
    wheel = next(folder.glob("*.whl"))
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)], check=True)
    return python.parent


def started(package, folder, *command, check=0):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [package / command[0], *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done


def test_every_command_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    scripts = config["options.entry_points"]["console_scripts"].split("\n")
    assert sorted(line.split(" = ")[0] for line in scripts if line) == [f"trm-{name.replace('_', '-')}" for name in COMMANDS]


def test_every_place_has_the_same_version():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = config["metadata"]["version"]
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version
    assert re.search(r"^## (\S+) \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version
    readme = (ROOT / "README.md").read_text()
    assert f"version {version}." in readme
    assert f"version={{{version}}}" in readme


@pytest.mark.long
def test_the_package_is_built_and_its_metadata_is_whole(tmp_path):
    for name in ("build", "twine"):
        pytest.importorskip(name, reason=f"{name} is not installed: make setup EXTRAS=dev")
    copy_sources(tmp_path / "source")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(tmp_path / "source")]
    subprocess.run(build, check=True, capture_output=True)
    made = [str(path) for path in (tmp_path / "dist").iterdir()]
    assert len(made) == 2  # the wheel and the source
    check = [sys.executable, "-m", "twine", "check", "--strict", *made]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.long
def test_the_installed_commands_work_in_an_empty_folder(package, tmp_path):
    where = started(package, tmp_path, "python", "-c", "import trm; print(trm.__file__)").stdout
    assert str(package.parent) in where
    small = ["data=sudoku_4x4", "data.num_puzzles=20", "data.num_test_puzzles=20", "model=tiny", "recursion=t2_n2", "tracking=none"]
    small += ["train.max_steps=1", "train.global_batch_size=16", "hardware.backend=eager"]
    started(package, tmp_path, "trm-train", *small, "run_name=r")
    started(package, tmp_path, "trm-train", "-m", *small, "seed=0,1", "hardware.jobs=2")
    assert (tmp_path / "outputs" / "r" / "summary.json").exists()
    assert "exact_accuracy" in started(package, tmp_path, "trm-evaluate", "checkpoint=outputs/r").stdout
    assert "t2_n2" in started(package, tmp_path, "trm-report", "outputs/r").stdout
    assert "valid solution" in started(package, tmp_path, "trm-solve", "1...|..1.|.1..|...1").stdout
    for name in COMMANDS:
        if name != "bench":
            assert started(package, tmp_path, f"trm-{name.replace('_', '-')}", "--help").stdout
    assert "a checkout" in started(package, tmp_path, "trm-bench", check=2).stderr
