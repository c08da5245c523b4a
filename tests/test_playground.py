"""The page on which trained networks can be tried: what it answers without gradio, and the whole of it in a real Chromium."""

import importlib.util
import re
import sys

import pytest

from trm import playground
from trm.errors import UserError

FIRST, SECOND = "models/sudoku_4x4", "models/sudoku_6x6"
PUZZLE = "1...|..1.|.1..|...1"
pytestmark = pytest.mark.usefixtures("one_thread")


def facts(answer):
    return dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", answer.facts))


def test_an_answer_has_its_verdict_its_cost_and_the_network_thinking():
    found = playground.answer(FIRST, "standard", PUZZLE)
    shown = facts(found)
    assert (shown["answer"], shown["why"], shown["candidates"]) == ("right", "valid solution", "1")
    assert 0.5 < float(shown["halting probability"]) <= 1
    assert int(shown["passes of the network"]) > 0
    assert 'sandbox="allow-scripts"' in found.page
    for way in ("votes8", "guided"):
        several = playground.answer(FIRST, way, PUZZLE)
        assert "gave this answer" in facts(several)["candidates"]
        assert several.page.startswith("<iframe" if way == "votes8" else "<pre>")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no puzzle"),
        ("12", "2 cells, but a 4x4 puzzle has 16"),
        ("<b>hello</b>", "&lt;"),
        ("11..............", "has no solution"),
        (f"{PUZZLE}\n\n{PUZZLE}", "2 puzzles were pasted"),
        ("/etc/hostname", "line 1 column 1: "),
        ("test:0", "line 1 column 1: "),
        ("1" * 30_000, "30,000 characters"),
    ],
)
def test_what_is_no_puzzle_is_answered_on_the_page(text, words):
    found = playground.answer(FIRST, "standard", text)
    assert "Not solved." in found.facts
    assert words in found.facts
    assert "<b>" not in found.facts
    assert found.page == ""


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_generated_puzzles_are_of_their_level(name):
    task = playground.network(name, "standard").task
    blanks = [sum(c == "." for c in playground.new_puzzle(name, level, 7)) for level in playground.LEVELS]
    assert blanks == sorted(blanks)
    puzzle = playground.new_puzzle(name, "hard", 3)
    assert puzzle == playground.new_puzzle(name, "hard", 3) != playground.new_puzzle(name, "hard", 4)
    assert task.parse(puzzle).shape == (task.facts.seq_len,)


def test_two_networks_answer_one_puzzle():
    one, page, two, other = playground.both(FIRST, SECOND, "standard", "standard", PUZZLE)
    assert "valid solution" in one
    assert page
    assert "16 cells, but a 6x6 puzzle has 36" in two
    assert other == ""
    assert playground.both(FIRST, playground.ALONE, "standard", "standard", PUZZLE)[2:] == ("", "")


def test_a_network_is_offered_beside_those_that_come_along(tmp_path):
    offered = playground.networks([f"checkpoint={FIRST}"])
    assert set(offered) >= {FIRST, SECOND, "models/maze_9x9"}
    assert "frontier" not in playground.ways()
    with pytest.raises(UserError, match="nowhere"):
        playground.networks(["checkpoint=nowhere"])


def test_without_gradio_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'trm-scaling-study\[playground\]'"):
        playground.main([])
    with pytest.raises(UserError, match="--port"):
        playground.main(["--port", "many"])


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed: pip install -e .[playground]")
def test_in_chromium(tmp_path):
    browsing = pytest.importorskip("browsing")
    if browsing.needs_chromium.args[0]:
        pytest.skip(browsing.needs_chromium.kwargs["reason"])
    import gradio
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    page = playground.build(playground.networks([]), gradio)
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    driver = browsing.launch(tmp_path / "profile")
    try:
        wait = WebDriverWait(driver, 90)
        driver.get(address)
        find = lambda css: wait.until(lambda d: d.find_element(By.CSS_SELECTOR, css))  # noqa: E731
        box = find("#puzzle textarea")
        find("#new").click()
        wait.until(lambda _: box.get_attribute("value").strip())
        find("#solve").click()
        wait.until(lambda d: "halting probability" in d.find_element(By.ID, "one-facts").text)
        assert "solution" in find("#one-facts").text
        driver.switch_to.frame(find("#one-page iframe"))
        assert len(find(".cells").find_elements(By.TAG_NAME, "td")) >= 16
        assert "supervision step" in find(".status").text.lower() or find("input.step")
        driver.switch_to.default_content()
        box.clear()
        box.send_keys("nonsense")
        find("#solve").click()
        wait.until(lambda d: "Not solved." in d.find_element(By.ID, "one-facts").text)
        hosts = {url.split("/")[2] for url in browsing.requested(driver) if url.startswith("http")}
        assert {host.partition(":")[0] for host in hosts} == {"127.0.0.1"}
    finally:
        driver.quit()
        page.close()
