"""The report's page in a real browser: headless Chromium, with no network."""

import math
import shutil
from pathlib import Path

import pytest
from browsing import browser, needs_chromium, open_offline, requested
from report_fixtures import made_samples, write_tn_sweep
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from trm.report.__main__ import main
from trm.tasks.sudoku.task import SudokuTask as Sudoku

__all__ = ["browser"]
pytestmark = [needs_chromium, pytest.mark.long]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page")
    main([str(write_tn_sweep(out / "tn_sweep")), "--out", str(out)])
    (out / "alone").mkdir()
    # alone in its folder: nothing beside it can be loaded by accident
    return Path(shutil.copy(out / "index.html", out / "alone" / "index.html"))


@pytest.fixture
def opened(browser, page):
    open_offline(browser, page)
    return browser


def column(browser, table: str, index: int) -> list[str]:
    return [
        row.find_elements(By.TAG_NAME, "td")[index].text for row in browser.find_elements(By.CSS_SELECTOR, f"#{table} tbody tr")
    ]


def sort_by(browser, table: str, index: int):
    return browser.find_elements(By.CSS_SELECTOR, f"#{table} thead button")[index]


def test_loads_without_network_and_without_complaint(opened, page):
    assert opened.get_log("browser") == []
    assert requested(opened) == {page.as_uri()}
    assert opened.title == "TRM runs: tn_sweep"


def test_shows_the_pictures(opened):
    for name in ("curves", "bars", "steps"):
        size = opened.execute_script("const i = document.getElementById(arguments[0]); return [i.complete, i.naturalWidth]", name)
        assert size[0]
        assert size[1] > 1000
        assert opened.find_element(By.ID, name).is_displayed()


def test_shows_results_and_failures(opened):
    assert column(opened, "results", 0) == ["t2_n2", "t2_n6", "t3_n4", "t3_n6", "t4_n6"]
    assert column(opened, "results", 2)[3:] == ["93.0 ± 6.6", "87.0 (n=1)"]
    assert column(opened, "problems", 0) == ["failed", "preempted", "unfinished", "missing"]
    assert "RESOURCE_EXHAUSTED" in column(opened, "problems", 3)[0]
    assert len(column(opened, "runs", 0)) == 14
    assert opened.find_elements(By.CSS_SELECTOR, "#differences tbody td:first-child")[1].text == "recursion.n"


def test_sorts_by_click_numbers_best_first_and_back(opened):
    sort_by(opened, "results", 2).click()
    assert column(opened, "results", 0) == ["t3_n6", "t4_n6", "t2_n6", "t3_n4", "t2_n2"]
    assert opened.find_element(By.CSS_SELECTOR, "#results th[aria-sort]").get_attribute("aria-sort") == "descending"
    sort_by(opened, "results", 2).click()
    assert column(opened, "results", 0) == ["t2_n2", "t3_n4", "t2_n6", "t4_n6", "t3_n6"]


def test_sorts_with_the_keyboard(opened):
    sort_by(opened, "results", 0).send_keys(Keys.ENTER)
    sort_by(opened, "results", 0).send_keys(Keys.ENTER)
    assert column(opened, "results", 0) == ["t4_n6", "t3_n6", "t3_n4", "t2_n6", "t2_n2"]


def test_cells_without_a_value_stay_last(opened):
    for _ in range(2):
        sort_by(opened, "runs", 4).click()
        cells = column(opened, "runs", 4)
        without = cells.count("-")
        assert 0 < without < len(cells)
        assert cells[-without:] == ["-"] * without
    sort_by(opened, "runs", 0).click()
    assert column(opened, "runs", 0)[1].startswith("1-")  # 10- comes after 9-
    assert column(opened, "runs", 0)[-1].startswith("13-")


def test_each_run_has_a_slider_of_its_own(opened):
    """What a frame shows is in test_show_page.py."""
    sections = opened.find_elements(By.CSS_SELECTOR, "section.thinking")
    assert [section.find_element(By.TAG_NAME, "h3").text.split()[0] for section in sections] == ["t2_n2", "t3_n6"]
    samples, sudoku = made_samples(Sudoku(2, 2)), Sudoku(2, 2)

    def texts(section) -> list[str]:
        """The cells of each figure, asked for in one message to the browser."""
        cells = "[...figure.querySelectorAll('td')].map(cell => cell.innerText.trim()).join('')"
        return opened.execute_script(f"return [...arguments[0].querySelectorAll('figure')].map(figure => {cells})", section)

    slider = sections[1].find_element(By.CSS_SELECTOR, "input.step")
    slider.send_keys(Keys.HOME)
    for step, answers in enumerate(samples.predictions):
        assert sections[1].find_element(By.TAG_NAME, "output").text == f"{step + 1} of 4"
        assert texts(sections[1]) == [sudoku.text(answer) for answer in answers[:4]]
        status = [found.text for found in sections[1].find_elements(By.CLASS_NAME, "status")]
        for k, text in enumerate(status):
            assert text.startswith(f"test:{k} ")
            assert ("solved" in text) == (answers[k] == samples.labels[k]).all()
            assert text.endswith(f"halting {1 / (1 + math.exp(-samples.q_halt[step, k])):.3f}")
        slider.send_keys(Keys.ARROW_RIGHT)
        assert texts(sections[0]) == [sudoku.text(answer) for answer in samples.predictions[-1, :4]]
    assert not sections[0].find_element(By.CSS_SELECTOR, "input.recursion").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_follows_the_colour_scheme(opened, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    colour = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 27, 32)"}[scheme]
    wanted = opened.execute_script(
        "const i = document.getElementById('bars'); return arguments[0] ? i.parentNode.querySelector('source').srcset : i.src",
        scheme == "dark",
    )
    assert wanted.startswith("data:image/png;base64,")
    # the browser exchanges the picture a moment after the scheme
    shown = "return document.getElementById('bars').currentSrc"
    WebDriverWait(opened, 20).until(lambda driver: driver.execute_script(shown) == wanted)


def test_fits_a_narrow_window(opened):
    opened.set_window_size(500, 900)
    assert opened.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    opened.set_window_size(1300, 1000)
