"""The page in a real browser, headless: what a reviewer does with mouse, finger and keys ends in the file.

Needs playwright and a chromium (`make test-browser` installs them); skipped without.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from proactor.review.app import build_app
from proactor.review.desk import Desk
from proactor.review.serving import listen
from tests.proactor.review.desk_files import ODD, SCRIPT, dialogue, lines_of, put, turns, window

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 20_000
"""Milliseconds that a busy machine may need."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium has none for root
        try:
            opened = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        except sync_api.Error as error:
            pytest.skip(f"no chromium that starts: make test-browser ({str(error).splitlines()[0]})")
        yield opened
        opened.close()


@contextmanager
def served(folder: Path, reviewer: str = "anna", beside: Path | None = None) -> Iterator[str]:
    listener = listen(0)
    port = listener.getsockname()[1]
    config = uvicorn.Config(build_app(Desk(folder, reviewer, beside), "t", port), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/t/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    script = dialogue(
        SCRIPT,
        window(
            f"id{SCRIPT}",
            params={"day": SCRIPT, SCRIPT: SCRIPT},
            review={"status": "edited", "by": SCRIPT, "at": SCRIPT},
        ),
        domain=SCRIPT,
        turns=turns(SCRIPT, SCRIPT, SCRIPT, SCRIPT, SCRIPT),
    )
    empty = dialogue("empty")
    empty["references"] = []
    put(
        tmp_path,
        dialogue(
            "one",
            window("a", coverage=[1, 5]),
            window("b", name="find", params={}, coverage=[7, 7], ready=[7, 7]),
        ),
        ODD,
        empty,
        script,
    )
    return tmp_path


class Page:
    """A tab on the review, and what the file holds."""

    def __init__(self, browser: Any, address: str, folder: Path, touch: bool = False) -> None:
        size = {"width": 390, "height": 844} if touch else {"width": 1280, "height": 800}
        self.context = browser.new_context(viewport=size, has_touch=touch, is_mobile=touch)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(WAIT)
        self.errors: list[str] = []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.folder = folder
        self.tab.goto(address)
        self.tab.wait_for_selector(".turn")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.context.close()
        assert self.errors == []

    def record(self, name: str = "one") -> dict[str, Any]:
        found = (json.loads(line) for line in lines_of(self.folder / "windows.jsonl"))
        return next(record for record in found if record["id"] == name)

    def until(self, *wanted: Any, name: str = "one", key: str = "ready") -> None:
        """Wait until the windows of a dialogue have these values under a key, and the page has been told."""
        self._wait(lambda: [w.get(key) for w in self.record(name)["references"]], list(wanted))
        self._wait(lambda: self.tab.evaluate("Boolean(state.saving || state.dirty)"), False)

    def decided(self, *wanted: str, name: str = "one") -> None:
        """Wait until the windows of a dialogue have these verdicts."""

        def verdicts() -> list[str]:
            return [w.get("review", {}).get("status", "") for w in self.record(name)["references"]]

        self._wait(verdicts, list(wanted))

    def _wait(self, look: Callable[[], Any], wanted: Any) -> None:
        end = time.monotonic() + WAIT / 1000
        while (found := look()) != wanted:
            assert time.monotonic() < end, f"{found} is not {wanted}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tab.keyboard.press(key)

    def sees(self, selector: str, words: str) -> None:
        sync_api.expect(self.tab.locator(selector)).to_contain_text(words, timeout=WAIT)

    def center(self, selector: str) -> tuple[float, float]:
        box = self.tab.locator(selector).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_keys_accept_reject_move_undo_and_go_on(browser: Any, folder: Path) -> None:
    before = (folder / "windows.jsonl").read_bytes()
    with served(folder) as address, Page(browser, address, folder) as page:
        page.press("ArrowDown")
        page.until([5, 5], [7, 7])
        page.press("ArrowLeft", "ArrowDown")  # the coverage's first end
        page.until([3, 5], [7, 7], key="coverage")
        page.press("a", "r")
        page.decided("accepted", "rejected")
        page.sees("#stage h2", "odd")  # both decided: on to the next dialogue
        page.sees("#progress-words", "1 of 4 reviewed")
        page.press("u", "u", "u", "u")
        page.until([3, 5], [7, 7])
        page.sees("#stage h2", "one")
        page.sees("#progress-words", "0 of 4 reviewed")
    assert (folder / "windows.jsonl").read_bytes() == before


def test_j_and_k_walk_through_windows_and_dialogues(browser: Any, folder: Path) -> None:
    with served(folder) as address, Page(browser, address, folder) as page:
        page.sees("#inspector .what", "book")
        page.press("j")
        page.sees("#inspector .what", "find")
        page.press("j")
        page.sees("#stage h2", "odd")
        page.press("k")
        page.sees("#inspector .what", "find")
        page.press("J", "J")
        page.sees("#stage h2", "empty")
        page.press("a")
        page.sees("#stage .row, #stage h2", "<script>")
        assert page.record("empty")["review"]["status"] == "accepted"
        page.press("?")
        page.sees("dialog[open]", "undo")


@pytest.mark.parametrize("touch", [False, True])
def test_ends_are_dragged(browser: Any, folder: Path, touch: bool) -> None:
    with served(folder) as address, Page(browser, address, folder, touch) as page:
        x, y = page.center(".grip.starts")
        _, target = page.center('.turn[data-turn="5"]')
        drag(page, (x, y), (x, target), touch)
        page.until([5, 5], [7, 7])
        assert page.record()["references"][0]["coverage"] == [1, 5]
        x, y = page.center(".grip.closes")
        _, target = page.center('.turn[data-turn="2"]')  # an agent's: the nearest user's is meant
        drag(page, (x, y), (x, target + 10), touch)
        page.until([1, 3], [7, 7], key="coverage")
        page.until([3, 3], [7, 7])


def drag(page: Page, start: tuple[float, float], end: tuple[float, float], touch: bool) -> None:
    if not touch:
        page.tab.mouse.move(*start)
        page.tab.mouse.down()
        page.tab.mouse.move(*end, steps=5)
        page.tab.mouse.up()
        return
    session = page.context.new_cdp_session(page.tab)
    for step, kind in enumerate(["touchStart", *["touchMove"] * 5, "touchEnd"]):
        share = min(step, 5) / 5
        point = {"x": start[0], "y": start[1] + share * (end[1] - start[1])}
        points = [] if kind == "touchEnd" else [point]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def test_escape_puts_a_dragged_end_back(browser: Any, folder: Path) -> None:
    before = (folder / "windows.jsonl").read_bytes()
    with served(folder) as address, Page(browser, address, folder) as page:
        page.tab.mouse.move(*page.center(".grip.starts"))
        page.tab.mouse.down()
        page.tab.mouse.move(*page.center('.turn[data-turn="5"]'), steps=3)
        page.press("Escape")
        page.tab.mouse.up()
        page.press("ArrowUp")  # saved after it: the end was where it had been
        page.until([1, 5], [7, 7])
    assert before != (folder / "windows.jsonl").read_bytes()


def test_values_tools_and_status_are_edited(browser: Any, folder: Path) -> None:
    with served(folder) as address, Page(browser, address, folder) as page:
        page.press("e")
        page.tab.keyboard.type("Tuesday ja")  # letters are no keys in a field
        page.tab.keyboard.press("Enter")
        page.until({"day": "Tuesday ja"}, {}, key="params")
        page.tab.select_option("#value-size", "large")
        page.until({"day": "Tuesday ja", "size": "large"}, {}, key="params")
        page.tab.select_option("#end-ends", "7")
        page.until([1, 7], [7, 7], key="coverage")
        page.tab.check("#unknown")
        page.until(None, [7, 7])
        page.tab.check("#withdrawn")
        page.until([7, 7])
        assert page.record()["withdrawn"][0]["null_reason"] == "withdrawn"
        page.tab.select_option("#tool", "find")
        page.press("n")
        page.decided("", "accepted")
        page.press("Delete")
        page.until([7, 7])
        (removed,) = page.record()["removed"]
        assert removed["review"]["status"] == "removed" and removed["id"] == "added-1"


def test_two_tabs_the_later_one_is_told_and_chooses(browser: Any, folder: Path) -> None:
    with (
        served(folder, "anna") as mine,
        served(folder, "bert") as theirs,
        Page(browser, mine, folder) as page,
        Page(browser, theirs, folder) as other,
    ):
        other.press("ArrowDown")
        other.until([5, 5], [7, 7])
        page.press("r")
        page.sees("#notice", "was changed meanwhile (last by bert")
        page.tab.click("#notice button >> text=Put mine")
        page.decided("rejected", "")
        page.until([3, 5], [7, 7])
        other.press("a")
        other.sees("#notice", "was changed meanwhile (last by anna")
        other.tab.click("#notice button >> text=Show theirs")
        other.sees("#inspector", "rejected by anna")
        assert other.record()["references"][0]["review"]["by"] == "anna"


def test_a_server_that_is_gone_keeps_the_change_on_the_page(browser: Any, folder: Path) -> None:
    with served(folder) as address:
        page = Page(browser, address, folder)
    page.press("ArrowDown")
    page.sees("#notice", "Not saved: the server cannot be reached")
    page.sees("#saved", "not saved")
    assert page.tab.locator("#end-starts").input_value() == "5"
    page.context.close()


def test_markup_in_transcripts_is_text_everywhere(browser: Any, folder: Path) -> None:
    with served(folder) as address, Page(browser, address, folder) as page:
        page.press("J", "J", "J")
        page.sees("#stage h2", SCRIPT)
        page.sees('.turn[data-turn="1"]', SCRIPT)
        page.sees("#inspector", SCRIPT)
        page.press("a")
        page.decided("accepted", name=SCRIPT)
        assert page.tab.locator("#desk script, #desk img").count() == 0
        assert page.tab.title().startswith("Review")


def test_filters_and_search(browser: Any, folder: Path) -> None:
    other = put(folder / "b", dialogue("one", window("a", ready=[5, 5])), ODD)
    with served(folder, beside=other) as address, Page(browser, address, folder) as page:
        page.sees("#rows li >> nth=0", "one")  # the least agreement comes first
        page.press("/")
        page.tab.keyboard.type("calm")
        page.sees("#found", "Nothing here")
        page.tab.fill("#filters input", "ODD")
        page.sees("#found", "1 dialogue")
        page.tab.fill("#filters input", "")
        page.tab.select_option("#filters [name=show]", "done")
        page.sees("#found", "Nothing here")


def test_it_fits_a_phone_and_follows_the_colour_scheme(browser: Any, folder: Path) -> None:
    with served(folder) as address, Page(browser, address, folder, touch=True) as page:
        wide = "document.documentElement.scrollWidth > innerWidth"
        assert not page.tab.evaluate(wide)
        light = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        page.tab.emulate_media(color_scheme="dark")
        assert page.tab.evaluate("getComputedStyle(document.body).backgroundColor") != light
        page.tab.click(".unfold")
        page.tab.click("#list-toggle")
        page.tab.click("#rows li:nth-child(2) button")
        page.sees("#stage h2", "odd")
        assert not page.tab.evaluate(wide)
