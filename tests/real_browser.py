"""Chromium for the tests of the page, and the painter as a user sees it."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright import sync_api
from synthetic_cases import SHAPE

# Generous: the machine may be busy with something else.
PATIENCE_MS = 120_000
sync_api.expect.set_options(timeout=PATIENCE_MS)


@contextlib.contextmanager
def chromium() -> Iterator[sync_api.Browser]:
    """`MBTI_CHROMIUM`, or the one of the path."""
    found = os.environ.get("MBTI_CHROMIUM") or shutil.which("chromium")
    if not found:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        # Without its own sandbox, which containers do not allow.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opener(browser: sync_api.Browser, address: str) -> Iterator[Callable[..., sync_api.Page]]:
    """Opens the page in a window; checks at the end that it talked to its own server alone."""
    contexts, hosts, problems = [], set(), []

    def opened(width: int = 1280, height: int = 900, **settings: Any) -> sync_api.Page:
        contexts.append(
            browser.new_context(viewport={"width": width, "height": height}, **settings)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: hosts.add(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.get_by_role("button", name="Load files").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    local = (address, "data:", "blob:")
    assert not [url for url in hosts if not url.startswith(local)]
    assert not problems


class Board:
    """The painter, in pixels of the slice."""

    def __init__(self, page):
        self.page = page
        self.canvas = page.locator("#painter .view")
        self.canvas.wait_for(state="visible")
        page.locator("#painter .loading").wait_for(state="hidden")
        self.hint = page.locator("#painter .hint")

    def at(self, x, y):
        """Middle of a pixel on the screen."""
        self.canvas.scroll_into_view_if_needed()
        area = self.canvas.bounding_box()
        return (
            area["x"] + (x + 0.5) / SHAPE[0] * area["width"],
            area["y"] + (y + 0.5) / SHAPE[1] * area["height"],
        )

    def choose(self, tissue, brush=1):
        self.page.locator("#painter .tissue", has_text=tissue).locator("input[type=radio]").check()
        self.page.locator("#painter .brush").fill(str(brush))

    def drag(self, *points):
        self.page.mouse.move(*self.at(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(*point), steps=7)
        self.page.mouse.up()

    def click(self, *points):
        for point in points:
            self.page.mouse.click(*self.at(*point))

    def press(self, name):
        self.page.locator("#painter").get_by_role("button", name=name).click()

    def says(self, text):
        sync_api.expect(self.hint).to_have_text(text, timeout=PATIENCE_MS)


def turn_to(page, number):
    page.get_by_label("Number of the slice").fill(str(number))


def fill_range(page, first, last):
    """The range of slices, which new images set anew, a moment after the painter has them."""
    boxes = page.locator("#first input"), page.locator("#last input")
    for _ in range(20):
        for box, number in zip(boxes, (first, last), strict=True):
            box.fill(number)
        page.wait_for_timeout(1000)
        if [box.input_value() for box in boxes] == [first, last]:
            return
    raise AssertionError("the range of slices does not stay as it was typed")


def drop(page, path, target):
    """Drags a file or folder of this machine onto the page."""
    target.scroll_into_view_if_needed()
    area = target.bounding_box()
    at = {"x": area["x"] + area["width"] / 2, "y": area["y"] + 20}
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})


def shown(board):
    """The picture, without the brush on it."""
    board.page.mouse.move(0, 0)
    return board.canvas.evaluate("one => one.toDataURL()")


def marks(page):
    """Which colors the marks have under the slider's places of the slices: [orange, green]."""
    read = """one => { const pen = one.getContext('2d'), each = (one.width - 16) / 5; return [2, 6].map(
        y => [0, 1, 2, 3, 4, 5].map(z => pen.getImageData(8 + z * each, y, 1, 1).data[3] > 0))}"""
    rows = page.locator("#painter .marks").evaluate(read)
    return [[z for z in range(SHAPE[2]) if row[z]] for row in rows]
