"""Make the pictures of docs/images anew, from real runs: `python scripts/gallery.py [--sweep DIR] [--out DIR]`.

  --sweep DIR  a finished sweep with tracking=tensorboard; without it `python -m trm.train +sweep=demo` runs first, or its missing
               jobs (three to five minutes on two idle cores)
  --out DIR    where the pictures go: docs/images

Screenshots need Chromium (scripts/install_chromium.sh); without it the script leaves them out and says so.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from trm.inference.samples import SAMPLES_FILE, Samples  # noqa: E402
from trm.tracking.event_files import MOST_PICTURED  # noqa: E402

DEMO = ROOT / "multirun" / "demo"
CHARTS = ("curves.png", "bars.png", "steps.png")
SCALARS = "eval/exact_accuracy|train/loss|train/accuracy|train/steps"
HPARAMS = ("recursion", "ema", "model", "seed")  # columns of the table; TensorBoard shows others by default
LARGEST_BYTES = {".png": 250_000, ".gif": 500_000}
SETTLED_S, PATIENCE_S = 3, 180

Browser = Any  # selenium's driver; it is imported only where Chromium is installed


def main(arguments: list[str]) -> None:
    """All pictures of one sweep."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--sweep", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    given = parser.parse_args(arguments)
    if given.sweep is None:
        _command("trm.train", "+sweep=demo")
    sweep, out = (given.sweep or DEMO).resolve(), given.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        _command("trm.report", str(sweep), "--out", str(files))
        for name in CHARTS:
            save(out / name, (files / name).read_bytes())
        run, puzzle, step = worth_seeing(sweep)
        page, gif = files / "thinking.html", files / "thinking.gif"
        _command("trm.solve", f"checkpoint={run}", f"test:{puzzle}", "--html", str(page), "--gif", str(gif))
        save(out / gif.name, gif.read_bytes())
        if not (shutil.which("chromium") and shutil.which("chromedriver")):
            print("left out: the screenshots, as chromium or chromedriver is not installed (scripts/install_chromium.sh)")
            return
        from browsing import launch

        browser = launch(files / "profile", "--no-proxy-server", "--hide-scrollbars", "--force-device-scale-factor=1.5")
        try:
            screenshots(browser, sweep, out, files / "index.html", page, step)
        finally:
            browser.quit()


def worth_seeing(sweep: Path, most: int | None = None) -> tuple[Path, int, int]:
    """The run of a sweep folder and its puzzle (from 0, below `most`) that took most steps, and a step (from 1) on the way."""
    found: list[tuple[int, Path, int]] = []
    for path in sorted(sweep.glob(f"*/{SAMPLES_FILE}")):
        samples = Samples.from_json(path.read_text(encoding="utf-8"))
        right = (samples.predictions == samples.labels).all(axis=-1)[:, :most]  # [S, K]
        steps = np.where(right[-1], (~right).sum(axis=0), -1)  # the number of wrong ones, where the last is right
        found.append((int(steps.max()), path.parent, int(steps.argmax())))
    wrong_steps, run, puzzle = max(found, key=lambda item: item[0])
    return run, puzzle, max((wrong_steps + 1) // 2, 1)


def screenshots(browser: Browser, sweep: Path, out: Path, report: Path, thinking: Path, step: int) -> None:
    """The report's page, the page of a puzzle at a supervision step (from 1), and TensorBoard."""
    browser.set_window_size(1280, 1200)
    browser.get(report.as_uri())
    save(out / "report.png", browser.get_screenshot_as_png())
    _move(browser, "section.thinking input.step", 2)
    browser.execute_script("document.getElementById('thinking').scrollIntoView()")
    save(out / "report_thinking.png", browser.get_screenshot_as_png())
    browser.set_window_size(1150, 1080)
    browser.get(thinking.as_uri())
    _move(browser, "input.step", step)
    save(out / "thinking_page.png", browser.get_screenshot_as_png())
    with tensorboard(sweep) as address:
        browser.set_window_size(1280, 1150)
        query = f"darkMode=false&smoothing=0&tagFilter={urllib.parse.quote(SCALARS)}"
        _open(browser, f"{address}/?{query}#timeseries", "/exact_accuracy")
        browser.execute_script(DEEP + "[...all(document)].find((e) => own(e) === 'Settings' && e.closest('button')).click()")
        save(out / "tensorboard_scalars.png", _settled(browser))
        browser.set_window_size(1280, 900)
        name = f"held_out/test:{worth_seeing(sweep, MOST_PICTURED)[1]}"
        _open(browser, f"{address}/?darkMode=false#images&tagFilter={urllib.parse.quote(name, safe='')}", name)
        save(out / "tensorboard_images.png", _settled(browser))
        browser.set_window_size(1560, 560)
        _open(browser, f"{address}/?darkMode=false#hparams", "Trial ID")
        names = browser.execute_script(DEEP + CHOOSE, list(HPARAMS))
        if not set(HPARAMS) <= set(names):
            raise ValueError(f"TensorBoard's HPARAMS has {names}, not {HPARAMS}")
        _wait_for(browser, "mlp ")  # the rows come after the titles
        save(out / "tensorboard_hparams.png", _settled(browser))


def save(path: Path, content: bytes) -> None:
    """Write a picture. A PNG gets 256 colours: it is a third of the size and looks the same. Too large a file is an error."""
    if path.suffix == ".png":
        buffer = io.BytesIO()
        Image.open(io.BytesIO(content)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        content = buffer.getvalue()
    if len(content) > LARGEST_BYTES[path.suffix]:
        raise ValueError(f"{path.name} has {len(content):,} bytes, more than {LARGEST_BYTES[path.suffix]:,}")
    path.write_bytes(content)
    print(f"written: {path} ({len(content):,} bytes)")


def _command(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=True)


# TensorBoard is made of web components, whose insides are found in shadow roots alone
DEEP = """
function* all(root) { for (const e of root.querySelectorAll("*")) { yield e; if (e.shadowRoot) yield* all(e.shadowRoot); } }
const own = (e) => [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("").trim();
"""
CHOOSE = """
const named = [...all(document)].filter((e) => e.classList.contains("hparam-checkbox"));
for (const box of named) if (box.checked !== arguments[0].includes(box.textContent.trim())) box.click();
return named.map((e) => e.textContent.trim());
"""


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard of the folder."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder.name, "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, cwd=folder.parent, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        try:
            found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stderr)))
            yield found[0]
        finally:
            server.terminate()
            server.communicate(timeout=30)


def _open(browser: Browser, url: str, text: str) -> None:
    """Open a page and wait until the text stands on it."""
    browser.get("about:blank")  # an address that differs in its fragment alone would not load anew
    browser.get(url)
    _wait_for(browser, text)


def _wait_for(browser: Browser, text: str) -> None:
    shown = DEEP + "return [...all(document)].some((e) => own(e).includes(arguments[0]) && e.getClientRects().length > 0)"
    _wait(lambda: browser.execute_script(shown, text), f"{text!r} on {browser.current_url}")


def _move(browser: Browser, slider: str, value: int) -> None:
    """Move all sliders that the selector names."""
    script = """
    for (const s of document.querySelectorAll(arguments[0])) { s.value = arguments[1]; s.dispatchEvent(new Event("input")); }
    """
    browser.execute_script(script, slider, value)


def _settled(browser: Browser) -> bytes:
    """A screenshot that equals those of the seconds before: charts have loaded and stopped moving."""
    shots = [browser.get_screenshot_as_png()]

    def same() -> bool:
        time.sleep(SETTLED_S)
        shots.append(browser.get_screenshot_as_png())
        return len(shots) > 3 and shots[-1] == shots[-2] == shots[-3]

    _wait(same, f"{browser.current_url} to stand still")
    return bytes(shots[-1])


def _wait(condition: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > PATIENCE_S:
            raise TimeoutError(f"waited {PATIENCE_S} s for {what}")
        time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1:])
