"""The page of a model's thinking in a real browser: headless Chromium, with no network."""

from dataclasses import replace

import numpy as np
import pytest
from browsing import browser, needs_chromium, open_offline, requested
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.color import Color
from selenium.webdriver.support.ui import WebDriverWait
from thinking_fixtures import architecture, puzzle, thoughts
from toy_task import Sums

from trm.show.page import page
from trm.show.thinking import Frame, Puzzle
from trm.tasks.sudoku.task import SudokuTask as Sudoku

pytestmark = [needs_chromium, pytest.mark.long, pytest.mark.usefixtures("one_thread")]
__all__ = ["browser"]
SUDOKU = Sudoku(2, 3)
STEPS, RECURSIONS = 4, 3
EVIL = "</script><u>under</u>"


@pytest.fixture(scope="module")
def made():
    return puzzle(SUDOKU, name=EVIL)


@pytest.fixture(scope="module")
def frames(made):
    return thoughts(architecture(SUDOKU, n_sup=STEPS, T=RECURSIONS), made.question)


@pytest.fixture
def opened(browser, made, frames, tmp_path):
    (tmp_path / "thinking.html").write_text(page(made, frames, f"run {EVIL}"))
    open_offline(browser, tmp_path / "thinking.html")
    return browser


def cells(browser):
    return browser.find_elements(By.CSS_SELECTOR, ".cells td")


def of_cells(browser, expression: str):
    """What a JavaScript expression is of each cell, asked for in one message to the browser."""
    return browser.execute_script(f"return [...document.querySelectorAll('.cells td')].map(cell => {expression})")


def grid(browser) -> str:
    return "".join(of_cells(browser, "cell.innerText.trim()"))


def with_class(browser, name: str) -> list[bool]:
    return of_cells(browser, f"cell.classList.contains('{name}')")


def press(browser, slider: str, key: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f"input.{slider}").send_keys(key)


def test_loads_without_network_and_without_complaint(opened, tmp_path):
    assert opened.get_log("browser") == []
    assert requested(opened) == {(tmp_path / "thinking.html").as_uri()}
    assert opened.title == f"run {EVIL}"
    assert EVIL in opened.find_element(By.CSS_SELECTOR, "p.soft").text
    assert not opened.find_elements(By.TAG_NAME, "u")


def test_begins_with_the_final_answer(opened, made, frames):
    assert grid(opened) == SUDOKU.text(frames[-1].answer)
    shown = [item.text for item in opened.find_elements(By.CSS_SELECTOR, ".violations li")]
    assert shown == SUDOKU.violations(made.question, frames[-1].answer)
    assert shown
    assert "NOT a solution" in opened.find_element(By.TAG_NAME, "body").text


def test_the_sliders_reach_every_frame(opened, made, frames):
    marks = made.marks_of(frames)
    press(opened, "step", Keys.HOME)
    for step in range(STEPS):
        press(opened, "recursion", Keys.HOME)
        for recursion in range(RECURSIONS):
            i = step * RECURSIONS + recursion
            assert grid(opened) == SUDOKU.text(frames[i].answer)
            for name in ("given", "wrong", "changed", "conflict"):
                assert with_class(opened, name) == getattr(marks[i], name).tolist(), (i, name)
            status = opened.find_element(By.CLASS_NAME, "status").text
            assert (
                f"{marks[i].wrong.sum()} of 36 wrong, {marks[i].changed.sum()} changed; halting {frames[i].halting:.3f}" in status
            )
            assert [o.text for o in opened.find_elements(By.TAG_NAME, "output")] == [f"{step + 1} of 4", f"{recursion + 1} of 3"]
            press(opened, "recursion", Keys.ARROW_RIGHT)
        press(opened, "step", Keys.ARROW_RIGHT)
    assert len({frame.answer.tobytes() for frame in frames}) > 2


def test_cells_show_their_confidence(opened, frames):
    shares = [float(share) for share in of_cells(opened, "cell.style.getPropertyValue('--share')")]
    assert shares == pytest.approx(frames[-1].confidence.tolist(), abs=1e-4)
    longest, shortest = (shares.index(f(shares)) for f in (max, min))
    widths = [opened.execute_script("return arguments[0].lastChild.offsetWidth", cells(opened)[i]) for i in (longest, shortest)]
    assert widths[0] > widths[1]
    title = cells(opened)[longest].get_attribute("title")
    row, column = divmod(longest, SUDOKU.side)
    assert title.startswith(f"row {row + 1} column {column + 1}: ")
    assert f"confidence {100 * shares[longest]:.1f} %" in title


def test_curve_has_a_point_for_each_recursion_and_follows_the_slider(opened, frames):
    points = opened.find_element(By.CSS_SELECTOR, ".curve polyline").get_attribute("points").split()
    heights = [float(point.split(",")[1]) for point in points]
    assert len(points) == STEPS * RECURSIONS
    assert len(opened.find_elements(By.CSS_SELECTOR, ".curve .end")) == STEPS
    halting = [frame.halting for frame in frames]
    assert sorted(range(len(halting)), key=halting.__getitem__) == sorted(range(len(heights)), key=lambda i: -heights[i])
    press(opened, "step", Keys.HOME)
    now = opened.find_element(By.CLASS_NAME, "now")
    assert [now.get_attribute("cx"), now.get_attribute("cy")] == points[RECURSIONS - 1].split(",")


def test_play_runs_to_the_end(opened, frames):
    press(opened, "step", Keys.HOME)
    opened.find_element(By.CLASS_NAME, "play").click()
    assert opened.find_element(By.CLASS_NAME, "play").text == "Stop"
    WebDriverWait(opened, 60).until(lambda driver: driver.find_element(By.CLASS_NAME, "play").text == "Play")
    assert grid(opened) == SUDOKU.text(frames[-1].answer)


class Flat(Sums):
    """Two rows of eight cells."""

    view = property(lambda self: replace(super().view, rows=2, columns=8, heavy_rows=(), heavy_columns=()))


@pytest.mark.parametrize("task", [Sudoku(2, 2), Sudoku(5, 5), Flat(3)], ids=lambda task: task.title)
def test_cells_are_square_and_fit_a_narrow_window(browser, tmp_path, task):
    (question,), (answer,) = task.generate(1, 0) if isinstance(task, Flat) else ([[1] * task.num_cells], [[2] * task.num_cells])
    made, tokens = Puzzle("p", task, np.array(question), None), np.array(answer)
    (tmp_path / "p.html").write_text(page(made, [Frame(1, 1, tokens, np.full(tokens.shape, 0.5), 0.5)], "p"))
    browser.set_window_size(500, 900)
    try:
        open_offline(browser, tmp_path / "p.html")
        assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        size = browser.find_element(By.CLASS_NAME, "cells").rect
        assert size["width"] / task.view.columns == pytest.approx(size["height"] / task.view.rows, rel=0.03)
        shown = of_cells(browser, "getComputedStyle(cell).backgroundColor")
        for colour, token, given in zip(shown, tokens.tolist(), task.given(np.array(question)), strict=True):
            assert Color.from_string(colour).hex == (task.view.colours or {}).get(token, "#f1f3f5" if given else "#ffffff")
    finally:
        browser.set_window_size(1300, 1000)
