"""The page in a real browser, with a model that says what it painted.

A module of its own: Gradio keeps one folder and one set of paths for all servers of a process.
"""

import base64
import io

import numpy as np
import pytest
from labeling_inpainter import labeling_inpainter
from PIL import Image
from synthetic_cases import SHAPE

from mbti_jax.rois.kinds import COLORS, COMPONENTS

pytest.importorskip("gradio", reason="needs the extra `web`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

import real_browser  # noqa: E402 (it needs playwright)
from real_browser import Board, turn_to  # noqa: E402
from tiny_server import running  # noqa: E402 (it needs Gradio)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("server")
    with running(root, inpainters=[labeling_inpainter()]) as server:
        yield server.local_url


def pixels(board):
    """What is on the screen, RGB [H, W, 3]."""
    board.page.mouse.move(0, 0)
    encoded = board.canvas.evaluate("one => one.toDataURL()").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


def bounds(picture, tissue):
    """(y0, x0, y1, x1) of a color in pixels of the slice; None where it is not."""
    found = np.argwhere((picture == COLORS[tissue]).all(-1))
    if not len(found):
        return None
    size = np.array(SHAPE[1::-1]) / picture.shape[:2]
    return tuple(np.rint([*(found.min(0) * size), *((found.max(0) + 1) * size)]).astype(int))


def test_every_run_is_outlined_by_its_own_rois(browser, address):
    with real_browser.opener(browser, address) as open_page:
        page = open_page()
        page.get_by_role("button", name="Grow another tumor").click()
        board = Board(page)
        start, runs = page.locator("#start"), page.locator("#runs label")
        board.press("Clear slice")
        turn_to(page, 2)
        # A removal: the label map has no outline of its own.
        board.choose("normal tissue", brush=1)
        board.press("Box")
        board.drag((5, 6), (8, 10))
        board.says("normal tissue: box 4 x 5")
        sync_api.expect(start).to_be_enabled()
        start.click()
        page.get_by_text("This is the result of run 1").wait_for()
        first = bounds(pixels(board), "normal")
        assert first == (6, 5, 11, 9)
        # Painting shows the images as they were; the next run has ROIs of its own.
        board.drag((10, 6), (12, 8))
        before = page.get_by_role("radio", name="Before")
        sync_api.expect(before).to_have_attribute("aria-checked", "true")
        board.says("normal tissue: box 3 x 3")
        start.click()
        page.get_by_text("This is the result of run 2").wait_for()
        assert bounds(pixels(board), "normal") == (6, 10, 9, 13)
        runs.filter(has_text="Run 1").click()
        page.get_by_text("This is the result of run 1").wait_for()
        assert bounds(pixels(board), "normal") == first
        board.says("normal tissue: box 4 x 5")
        turn_to(page, 3)
        board.says("Nothing was repainted in this slice.")
        turn_to(page, 2)
        # What the model says it painted is a layer more, in which the ROI keeps its outline.
        page.locator("#painter .opacity").fill("100")
        layers = page.locator("#painter .layers button")
        titles = ["Before", "Sample 0", "Sample 1", "Difference"]
        sync_api.expect(layers).to_have_text([*titles, "Labels painted", "Standard deviation"])
        assert not any(bounds(pixels(board), name) for name in COMPONENTS)
        layers.filter(has_text="Labels painted").click()
        painted = pixels(board)
        assert any(bounds(painted, name) for name in COMPONENTS)
        assert bounds(painted, "normal") == first
        hide = page.get_by_role("button", name="Hide")
        hide.click()
        assert bounds(pixels(board), "normal") is None
