"""The script that makes the pictures of the README and the documentation, and the pictures that are there."""

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_fixtures import made_samples, write_run

from trm.tasks.sudoku.task import SudokuTask as Sudoku

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "scripts" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pictures_are_shown_small_and_made_by_the_script(gallery):
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {name for page in pages for name in re.findall(r"\]\([./\w]*images/([^)]+)\)", page.read_text())}
    there = {path.name for path in IMAGES.iterdir()}
    script = (ROOT / "scripts" / "gallery.py").read_text()
    assert there == shown
    for name in there:
        assert f'"{name}"' in script
        assert (IMAGES / name).stat().st_size <= gallery.LARGEST_BYTES[Path(name).suffix]
        Image.open(IMAGES / name).verify()


def test_a_picture_gets_smaller_or_is_refused(gallery, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (400, 400), "#a0b0c0").save(buffer, "PNG", compress_level=0)
    gallery.save(tmp_path / "a.png", buffer.getvalue())
    assert (tmp_path / "a.png").stat().st_size < len(buffer.getvalue()) / 10
    with pytest.raises(ValueError, match=r"a\.gif has 600,000 bytes"):
        gallery.save(tmp_path / "a.gif", bytes(600_000))


def test_the_puzzle_that_took_longest_is_worth_seeing(gallery, tmp_path):
    samples = made_samples(Sudoku(2, 2), steps=8)
    samples.predictions[:] = samples.labels
    samples.predictions[:5, 3, 0] = 1  # wrong until the fifth step
    samples.predictions[:7, 4, 0] = 1
    samples.predictions[:, 1, 0] = 1  # never solved
    write_run(tmp_path / "a", samples=made_samples(Sudoku(2, 2), steps=2))
    write_run(tmp_path / "b", samples=samples)
    assert gallery.worth_seeing(tmp_path) == (tmp_path / "b", 4, 4)
    assert gallery.worth_seeing(tmp_path, 4) == (tmp_path / "b", 3, 3)
    assert not np.array_equal(samples.predictions[3, 4], samples.labels[4])


def test_without_chromium_the_screenshots_are_left_out(gallery, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "sweep" / "a", samples=made_samples(Sudoku(2, 2)))
    asked = []

    def command(module, *arguments):
        asked.append(module)
        for name in arguments:
            if name == "--out":
                folder = Path(arguments[-1])
                for chart in gallery.CHARTS:
                    Image.new("RGB", (8, 8)).save(folder / chart)
            if name == "--gif":
                Path(arguments[-1]).write_bytes(b"GIF")

    monkeypatch.setattr(gallery, "_command", command)
    monkeypatch.setattr(gallery.shutil, "which", lambda name: None)
    gallery.main(["--sweep", str(tmp_path / "sweep"), "--out", str(tmp_path / "out")])
    assert asked == ["trm.report", "trm.solve"]
    assert "left out: the screenshots" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*gallery.CHARTS, "thinking.gif"}
