"""The script that makes the pictures of the README and the documentation, and the pictures that are there."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image
from running import script

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
gallery = script("gallery.py")


def test_the_pictures_are_shown_small_and_made_by_the_script():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {name for page in pages for name in re.findall(r"\]\([./\w]*images/([^)]+)\)", page.read_text())}
    there = {path.name for path in IMAGES.iterdir()}
    source = (ROOT / "scripts" / "gallery.py").read_text()
    assert there == shown
    for name in there:
        assert f'"{name}"' in source
        assert (IMAGES / name).stat().st_size <= gallery.LARGEST_BYTES[Path(name).suffix]
        Image.open(IMAGES / name).verify()


def test_a_picture_gets_smaller_or_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (400, 400), "#a0b0c0").save(buffer, "PNG", compress_level=0)
    gallery.save(tmp_path / "a.png", buffer.getvalue())
    assert (tmp_path / "a.png").stat().st_size < len(buffer.getvalue()) / 10
    with pytest.raises(ValueError, match=r"a\.gif has 600,000 bytes"):
        gallery.save(tmp_path / "a.gif", bytes(600_000))
