"""The painter in a real browser: what it refuses, disables, undoes, and shows."""

import pytest

pytest.importorskip("gradio", reason="needs the extra `web`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

import real_browser  # noqa: E402 (it needs playwright)
from real_browser import Board, turn_to  # noqa: E402
from tiny_server import tiny_server  # noqa: E402 (it needs Gradio)

EMPTY = "Choose a tissue and paint where it shall be."


@pytest.fixture(scope="module")
def browser():
    with real_browser.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with tiny_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture
def open_page(browser, address):
    with real_browser.opener(browser, address) as opened:
        yield opened


def grown(open_page, *size):
    """The page with an example whose slice 3 is empty, and its painter."""
    page = open_page(*size)
    page.get_by_role("button", name="Grow another tumor").click()
    board = Board(page)
    turn_to(page, 3)
    board.says(EMPTY)
    return page, board


def type_box(page, board, x0, x1, y0, y1):
    for name, value in (("x0", x0), ("x1", x1), ("y0", y0), ("y1", y1)):
        page.locator(f"#painter .box-{name}").fill(str(value))
    board.press("Set this box")


def test_a_box_in_air_is_refused_with_a_word(open_page):
    page, board = grown(open_page)
    board.choose("edema")
    said = page.locator("#painter .say")
    board.press("Box")
    board.drag((0, 0), (2, 2))
    sync_api.expect(said).to_contain_text("That is air")
    board.says(EMPTY)
    # One that reaches into the brain is taken.
    board.drag((0, 0), (6, 6))
    board.says("edema: box 7 x 7")
    page.get_by_text("Shapes and numbers").click()
    type_box(page, board, 20, 23, 0, 2)
    sync_api.expect(said).to_contain_text("That is air")
    board.says("edema: box 7 x 7")
    page.get_by_label("Paint inside the brain only").uncheck()
    type_box(page, board, 20, 23, 0, 2)
    board.says("edema: box 4 x 3")
