"""docs/quickstart.ipynb runs from top to bottom in a kernel of its own, as a reader runs it."""

import json
import os
import sys
from pathlib import Path

import pytest
from running import environment

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
SOURCES = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"]]


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell for cell in cells if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"])] == []
    assert SOURCES[0].splitlines()[2].startswith("For everyone who")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_cell_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install -e .[dev]")
    for package in ("nbformat", "ipykernel", "pandas"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e .[dev]")
    import nbformat

    # the kernel is this Python, whatever kernels this machine has installed
    kernel = tmp_path / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "here", "language": "python"}))
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    for name, value in (environment(JUPYTER_PATH=str(tmp_path), PYTHONPATH=paths, OMP_NUM_THREADS="1")).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = nbformat.v4.new_code_cell  # two more: what training twice logs, and an interruption of the kernel
    notebook.cells.append(
        cell('trm.run([*overrides, "run_name=second", "train.max_steps=2", "train.log_every_steps=1"])["status"]')
    )
    stop = "import os, signal, threading, time; threading.Timer(15, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
    stop += (
        'try:\n    trm.run([*overrides, "run_name=third", "train.max_steps=100000"])\nexcept KeyboardInterrupt as s:\n    print(s)'
    )
    notebook.cells.append(cell(stop))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    def said(number):
        return "".join(str(out.get("text", "")) + str(out.get("data", "")) for out in notebook.cells[number].get("outputs", []))

    assert "completed 60 steps" in said(3)
    assert "it/s" in said(3) or "step" in said(3)
    assert "valid solution" in said(5)
    assert "<iframe" in said(6)
    assert "'T=1': 'completed'" in said(8)
    assert "exact_accuracy_mean" in said(10)
    assert "image/png" in said(12)
    assert said(14).count("Step 2: loss=") == 1
    assert "saved; the same call" in said(15)
