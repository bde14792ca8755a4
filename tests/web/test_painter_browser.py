"""The painter in a real browser: what it refuses, disables, undoes, and shows."""

import re

import pytest
from synthetic_cases import make_arrays

pytest.importorskip("gradio", reason="needs the extra `web`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from real_browser import Board, fill_range, marks, shown, turn_to  # noqa: E402 (it needs playwright)
from tiny_server import tiny_server  # noqa: E402 (it needs Gradio)

EMPTY = "Choose a tissue and paint where it shall be."


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with tiny_server(tmp_path_factory.mktemp("server")) as url:
        yield url


def grown(open_page):
    """The page with an example whose slice 3 is empty, and its painter."""
    page = open_page()
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


def use_tumor(page, mode="remove"):
    """Takes ROIs of the example's own tumor."""
    page.get_by_label("Of the tumor in the segmentation make").click()
    page.get_by_role("option", name=f"{mode}:").click()
    page.get_by_role("button", name="Use these ROIs").click()


def test_rois_of_the_tumor_can_be_undone_and_are_asked_for(open_page):
    page, board = grown(open_page)
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.reload()
    assert asked == [], "nothing was made here"
    page, board = grown(open_page)
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    board.choose("edema")
    board.drag((15, 5), (17, 5))
    page.get_by_label("edema as bounding box").check()
    board.says("edema: box 3 x 1")
    page.get_by_text("Or take the ROIs").click()
    use_tumor(page)
    sync_api.expect(board.hint).to_contain_text("normal tissue:")
    turn_to(page, 3)
    sync_api.expect(board.hint).to_contain_text("normal tissue:")
    box = page.get_by_label("edema as bounding box")
    sync_api.expect(box).not_to_be_checked()
    board.press("Undo")
    board.says("edema: box 3 x 1")
    sync_api.expect(box).to_be_checked()
    board.press("Redo")
    sync_api.expect(board.hint).to_contain_text("normal tissue:")
    # What the server has is what is shown, also after it gave ROIs itself.
    board.press("Undo")
    board.press("Undo")
    board.says("edema: 3 px")
    sync_api.expect(page.locator("#start")).to_be_enabled()
    page.reload()
    assert asked == ["beforeunload"]
    # ROIs that were taken, and nothing else, are lost with the page, too.
    page, board = grown(open_page)
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.get_by_text("Or take the ROIs").click()
    use_tumor(page)
    sync_api.expect(board.hint).to_contain_text("normal tissue:")
    # The browser asks only on a page that was used.
    board.press("Undo")
    board.press("Redo")
    page.reload()
    assert asked == ["beforeunload"] * 2


def test_buttons_that_cannot_act_are_disabled(open_page):
    page, board = grown(open_page)
    for summary in ("Other slices", "Shapes and numbers", "Or take the ROIs"):
        page.get_by_text(summary).click()

    def can(name, yes):
        button = page.get_by_role("button", name=name)
        (sync_api.expect(button).to_be_enabled if yes else sync_api.expect(button).to_be_disabled)()

    board.choose("edema")
    for name, yes in (("Dilate", False), ("Copy to the next", False), ("Set this box", True)):
        can(name, yes)
    board.drag((9, 9), (12, 9))
    for name in ("Dilate", "Copy to the next"):
        can(name, True)
    # The tissue that is chosen has no pixel here; the eraser has none anywhere.
    board.choose("necrotic core")
    can("Dilate", False)
    board.choose("eraser")
    for name in ("Dilate", "Set this box"):
        can(name, False)
    board.choose("edema")
    board.press("Copy to the next")
    turn_to(page, 5)
    can("Copy to the next", False)
    board.says(EMPTY)
    turn_to(page, 4)
    can("Copy to the next", True)
    # Nothing is chosen of which ROIs could be made.
    can("Use these ROIs", False)
    page.get_by_label("Of the tumor in the segmentation make").click()
    page.get_by_role("option", name="remove:").click()
    can("Use these ROIs", True)
    page.get_by_label("Of the tumor in the segmentation make").click()
    page.get_by_role("option", name="(the ROIs").click()
    can("Use these ROIs", False)


def test_what_a_run_takes_stands_above_its_button(open_page):
    page, board = grown(open_page)
    cost, start = page.locator("#cost"), page.locator("#start")
    sync_api.expect(cost).to_contain_text("1 slice, 2 samples: 2 batches of 2 evaluations")
    # As it is before the first run of the server; other tests may have had one.
    sync_api.expect(cost).to_contain_text(re.compile("first run|pace of the last run"))
    board.choose("edema")
    board.drag((9, 9), (12, 9))
    sync_api.expect(cost).to_contain_text("2 slices, 2 samples: 4 batches")
    page.get_by_label("number input for Samples").fill("1")
    sync_api.expect(cost).to_contain_text("2 slices, 1 sample: 2 batches of 2")
    start.click()
    page.get_by_text("This is the result of run 1").wait_for()
    sync_api.expect(cost).to_contain_text("at the pace of the last run")
    page.get_by_label("number input for Steps").fill("3")
    sync_api.expect(cost).to_contain_text("2 batches of 3 evaluations, about")
    page.get_by_label("number input for Samples").fill("16")
    sync_api.expect(cost).to_contain_text("choose fewer samples or slices")
    for tissue in (3, 1):
        turn_to(page, tissue)
        board.press("Clear slice")
    sync_api.expect(cost).to_have_text("")


def test_the_preset_for_normal_tissue_gives_way_to_a_choice(open_page):
    page, board = grown(open_page)
    turn_to(page, 1)
    board.press("Clear slice")
    result = {
        name: page.get_by_role("radio", name=name, exact=True)
        for name in ("Samples", "Samples near the mean", "Mean")
    }
    cost, said = page.locator("#cost"), "so the result is set to samples near the mean"
    sync_api.expect(result["Samples"]).to_be_checked()
    board.choose("normal tissue")
    board.drag((9, 9), (12, 9))
    sync_api.expect(result["Samples near the mean"]).to_be_checked()
    sync_api.expect(cost).to_contain_text(said)
    board.choose("edema")
    board.drag((9, 11), (12, 11))
    sync_api.expect(result["Samples"]).to_be_checked()
    sync_api.expect(cost).not_to_contain_text(said)
    # What the user chose stays, whatever is painted or taken.
    result["Mean"].check()
    page.get_by_text("Or take the ROIs").click()
    use_tumor(page)
    # The hint says "normal tissue" already; what has come is the edema's end.
    sync_api.expect(board.hint).not_to_contain_text("edema")
    sync_api.expect(board.hint).to_contain_text("normal tissue:")
    board.press("Clear slice")
    sync_api.expect(cost).to_contain_text("samples:")
    sync_api.expect(result["Mean"]).to_be_checked()
    sync_api.expect(cost).not_to_contain_text(said)


def test_keys_wheel_marks_and_read_out(open_page):
    """Of a run over a range of slices of the case's own tumor."""
    page, board = grown(open_page)
    turn_to(page, 1)
    board.press("Clear slice")
    page.get_by_text("Or take the ROIs").click()
    fill_range(page, "2", "3")
    use_tumor(page, "replace")
    page.get_by_text("ROIs in 2 slices: 2 to 3.").wait_for()
    sync_api.expect(board.hint).to_contain_text("edema")
    assert marks(page) == [[2, 3], []]
    # H hides what is painted.
    board.canvas.focus()
    painted = shown(board)
    page.keyboard.press("h")
    hidden = shown(board)
    assert hidden != painted
    page.keyboard.press("h")
    assert shown(board) == painted
    page.get_by_label("number input for Samples").fill("1")
    page.locator("#start").click()
    page.get_by_text("This is the result of run 1").wait_for()
    board.canvas.focus()
    page.keyboard.press("ArrowUp")
    sync_api.expect(page.get_by_label("Number of the slice")).to_have_value("3")
    board.press("Clear slice")
    assert marks(page) == [[2], [2, 3]]
    page.get_by_role("radio", name="Sample 0").click()
    # Held, the space bar shows what was there before, without ROIs.
    board.canvas.focus()
    after = shown(board)
    page.keyboard.down(" ")
    before = shown(board)
    page.keyboard.up(" ")
    assert shown(board) == after != before
    # The wheel turns a slice, each way.
    board.canvas.hover()
    for delta, number in ((-100, "2"), (100, "3"), (100, "4")):
        page.mouse.wheel(0, delta)
        sync_api.expect(page.get_by_label("Number of the slice")).to_have_value(number)
    # Pixel, millimeters and value; what is air is said. Rows begin in front, where y is lowest.
    page.mouse.move(*board.at(8, 7))
    images, _ = make_arrays(0)
    value = images["t1"][8, 7, 4]
    readout = page.locator("#painter .readout")
    millimeters = "x -8.0, y 12.0, z 4.0 mm (RAS)"
    sync_api.expect(readout).to_have_text(f"pixel 8, 7 · {millimeters} · value {value}")
    page.mouse.move(*board.at(1, 1))
    sync_api.expect(readout).to_contain_text("air, value 0")
