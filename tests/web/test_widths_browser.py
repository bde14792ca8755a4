"""What the page promises, at the widths of a desk, a small window and a telephone, loaded once each."""

import json

import numpy as np
import pytest
from PIL import Image
from synthetic_cases import SHAPE, write_volume
from tiny_inpainter import make_slice

pytest.importorskip("gradio", reason="needs the extra `web`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from real_browser import (  # noqa: E402 (it needs playwright)
    Board,
    drop,
    fill_range,
    marks,
    opener,
    shown,
    turn_to,
)
from tiny_server import tiny_server  # noqa: E402 (it needs Gradio)

EMPTY = "Choose a tissue and paint where it shall be."
SCREENS = {1440: 1000, 1024: 900, 390: 844}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with tiny_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="module", params=SCREENS)
def page(request, browser, address):
    """One page for the tests of a width, in their order; each takes images of its own."""
    width = request.param
    settings = {"has_touch": True, "is_mobile": True} if width < 600 else {}
    with opener(browser, address) as opened:
        yield opened(width, SCREENS[width], **settings)


@pytest.fixture(autouse=True)
def nothing_is_wider_than_the_screen(page):
    yield
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def expect_marks(page, rows):
    """They are drawn with the next frame, after what is said."""
    for _ in range(100):
        if marks(page) == rows:
            return
        page.wait_for_timeout(100)
    assert marks(page) == rows


def example(page):
    """The painter with the example, and no longer with the images before, of which some may be late."""
    fetched = "() => performance.getEntriesByType('resource').map(one => one.name)"
    before = {url.rpartition("/")[0] for url in page.evaluate(fetched)}

    def is_new(response):
        folder, _, name = response.url.rpartition("/")
        return name.endswith(".bin") and folder not in before

    with page.expect_response(is_new):
        page.get_by_role("button", name="Grow another tumor").click()
    return Board(page)


def open_part(page, summary):
    """Opens a closed part of the page, which an earlier test may have opened."""
    if not page.get_by_text(summary).first.evaluate("one => one.closest('details')?.open"):
        page.get_by_text(summary).first.click()


def until_it_changes(board, picture):
    board.page.wait_for_function(
        "old => document.querySelector('#painter .view').toDataURL() !== old", arg=picture
    )


def exchanged_case(folder):
    """Tissues as bright as they are in each sequence, with two files under each other's name."""
    rng = np.random.default_rng(0)
    tissue = rng.choice(4, SHAPE, p=[0.2, 0.4, 0.35, 0.05])
    tissue[:2] = tissue[-2:] = 4
    # Fluid, gray and white matter, vessels; air.
    brightness = {
        "t1": (150, 400, 600, 400, 0),
        "t1ce": (150, 400, 600, 1100, 0),
        "flair": (900, 400, 300, 400, 0),
        "t2": (150, 500, 400, 450, 0),
    }
    for name, values in brightness.items():
        noisy = np.array(values)[tissue] + rng.integers(0, 40, SHAPE)
        write_volume(
            folder / f"mine_{name}.nii.gz", np.where(tissue == 4, 0, noisy).astype(np.int16)
        )
    return folder


def test_files(page, tmp_path):
    """What nobody loaded cannot be acted on; which file is what is asked for, and stays to be read."""
    first = page.get_by_role("button").filter(has_text="tumor")
    sync_api.expect(first).to_have_text(["Grow another tumor", "Remove a tumor"])
    load = page.get_by_role("button", name="Load files")
    sync_api.expect(load).to_be_disabled()
    sync_api.expect(page.locator("#start")).to_be_hidden()
    # Labels of two lines lie on nothing.
    label, icon = (
        page.locator(f"#files {part}").bounding_box()
        for part in ("[data-testid=block-label]", "[data-testid=upload-icon]")
    )
    assert label["y"] + label["height"] <= icon["y"]

    drop(page, exchanged_case(tmp_path / "mine"), page.locator("#files"))
    kinds = page.locator(".kind input")
    sync_api.expect(kinds).to_have_count(4)
    for kind in kinds.all():
        name = kind.get_attribute("aria-label").removeprefix("mine_").removesuffix(".nii.gz")
        sync_api.expect(kind).to_have_value(name.upper())
        sync_api.expect(kind).to_be_visible()
    load.click()
    Board(page)
    loaded = page.locator("#loaded")
    sync_api.expect(loaded).to_contain_text("T2 (mine_t2.nii.gz)")
    sync_api.expect(loaded).to_contain_text(
        "Note: the sequences may be exchanged: flair looks like t2"
    )

    # One picture is enough; it has neither sequences nor planes to show beside it.
    Image.fromarray(make_slice(SHAPE[1::-1], dtype=np.uint16)).save(tmp_path / "one.png")
    drop(page, tmp_path / "one.png", page.locator("#files"))
    sync_api.expect(kinds).to_have_count(1)
    load.click()
    sync_api.expect(loaded).to_contain_text("one")
    board = Board(page)
    board.choose("edema")
    board.click((9, 9))
    board.says("edema: 1 px")
    sync_api.expect(page.locator("#start")).to_be_enabled()
    for part in (".strip", ".planes", ".turn"):
        sync_api.expect(page.locator(f"#painter {part}")).to_be_hidden()


def test_a_slice_that_is_not_there_takes_no_stroke(page):
    """And says so; once it is there, it is turned at once."""
    held, are_held = [], True
    page.route("**/*.bin", lambda route: held.append(route) if are_held else route.continue_())
    page.get_by_role("button", name="Remove a tumor").click()
    page.locator("#painter .loading").wait_for(state="visible")
    canvas = page.locator("#painter .view")
    canvas.click()
    said = page.locator("#painter .say")
    sync_api.expect(said).to_have_text("This slice is not loaded yet; nothing was painted.")
    sync_api.expect(page.locator("#painter .undo")).to_be_disabled()
    are_held = False
    for route in held:
        route.continue_()
    board = Board(page)
    page.unroute("**/*.bin")
    expect_marks(page, [[1], []])
    # The preset where all that is painted is normal tissue.
    sync_api.expect(page.get_by_role("radio", name="Samples near the mean")).to_be_checked()
    turned = """one => [..."ududud"].map(way => {
        const begun = performance.now();
        one.dispatchEvent(new KeyboardEvent('keydown', {key: way === 'u' ? 'ArrowUp' : 'ArrowDown'}));
        return performance.now() - begun;
    })"""
    # The least of six: others use the machine.
    assert min(board.canvas.evaluate(turned)) < 150


def test_tools(page):
    board = example(page)
    board.press("Clear slice")
    said, readout = (page.locator(f"#painter .{name}") for name in ("say", "readout"))
    open_part(page, "Other slices")

    # A polygon of 5 x 5 pixels, its line included; a line around as many, which is filled.
    board.choose("edema")
    board.press("Polygon")
    board.click((6, 6), (10, 6), (10, 10), (6, 10), (6, 6))
    board.says("edema: 25 px")
    board.press("Brush")
    board.drag((12, 6), (16, 6), (16, 10), (12, 10), (12, 6))
    board.says("edema: 41 px")
    board.press("Fill")
    board.click((14, 8))
    board.says("edema: 50 px")
    board.press("Brush")
    board.drag((1, 1), (1, 3))
    sync_api.expect(said).to_contain_text("That is air")
    board.says("edema: 50 px")

    # How it is seen: opacity, hidden, outline of the brush.
    painted = shown(board)
    page.locator("#painter .opacity").fill("90")
    sync_api.expect(page.locator("#painter .opacity-text")).to_have_text("90%")
    assert shown(board) != painted
    page.locator("#painter .opacity").fill("45")
    assert shown(board) == painted
    board.press("Hide")
    assert shown(board) != painted
    board.press("Hide")
    page.locator("#painter .brush").fill("5")
    page.mouse.move(*board.at(9, 13))
    until_it_changes(board, painted)

    # What is under the pointer stays there when it is zoomed, and goes with it when it is moved.
    sync_api.expect(readout).to_contain_text("pixel 9, 13 · x -9.0, y 6.0, z 1.0 mm (RAS) · value")
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    sync_api.expect(page.get_by_role("button", name="Whole slice")).to_be_enabled()
    page.mouse.move(*board.at(9.05, 13))
    sync_api.expect(readout).to_contain_text("pixel 9, 13")
    page.keyboard.down("Shift")
    # Two of its pixels are now two and a half.
    board.drag((9, 13), (6.5, 13))
    page.keyboard.up("Shift")
    page.mouse.move(*board.at(6.55, 13))
    sync_api.expect(readout).to_contain_text("pixel 9, 13")
    board.press("Whole slice")
    assert shown(board) == painted
    board.press("Zoom in")
    assert shown(board) != painted
    board.press("Zoom out")
    assert shown(board) == painted

    # Brightness and contrast, in numbers and by the right button.
    low, high = (page.locator(f"#painter .window-{side}") for side in ("low", "high"))
    black, white = low.input_value(), high.input_value()
    high.fill(str(float(white) / 2))
    high.press("Enter")
    assert shown(board) != painted
    low.fill("5000")
    low.press("Enter")
    sync_api.expect(said).to_have_text("Black must lie below white.")
    board.press("Reset")
    assert (low.input_value(), high.input_value()) == (black, white) and shown(board) == painted
    page.mouse.move(*board.at(10, 10))
    page.mouse.down(button="right")
    page.mouse.move(*board.at(14, 6), steps=3)
    page.mouse.up(button="right")
    sync_api.expect(high).not_to_have_value(white)
    board.press("Reset")

    # Other slices, and what is marked of them, under the slider's thumb.
    page.get_by_label("To how many slices").fill("2")
    board.press("Copy to the next")
    turn_to(page, 2)
    board.says("edema: 50 px")
    board.press("Clear slice")
    expect_marks(page, [[1, 3], []])
    board.press("Interpolate")
    board.says("edema: 50 px")
    expect_marks(page, [[1, 2, 3], []])
    track, under = (
        page.locator(f"#painter {name}").bounding_box() for name in (".slice", ".marks")
    )
    assert (track["x"], track["width"]) == (under["x"], under["width"])
    assert under["y"] >= track["y"] + track["height"] - 1

    # By numbers, and by keys alone.
    open_part(page, "Shapes and numbers")
    board.press("Dilate by 1 px")
    # Twenty beside each square, of which five lie beside both.
    board.says("edema: 85 px")
    board.press("Undo")
    board.says("edema: 50 px")
    once = shown(board)
    board.press("Mirror")
    assert shown(board) != once
    board.press("Mirror")
    assert shown(board) == once
    board.canvas.focus()
    for key in ("ArrowUp", "ArrowUp", "4", "]", "["):
        page.keyboard.press(key)
    sync_api.expect(page.get_by_label("Number of the slice")).to_have_value("4")
    board.says(EMPTY)
    for name, value in (("x0", 6), ("x1", 8), ("y0", 7), ("y1", 8)):
        page.locator(f"#painter .box-{name}").fill(str(value))
    board.press("Set this box")
    board.says("necrotic core: box 3 x 2")
    # Another one of the same tissue takes its place: there is one in a slice.
    page.get_by_role("button", name="Box", exact=True).click()
    board.drag((9, 9), (12, 13))
    board.says("necrotic core: box 4 x 5")
    board.canvas.focus()
    page.keyboard.press("Control+z")
    board.says("necrotic core: box 3 x 2")
    board.press("Brush")
    # The wheel turns; so does a click on one of the other planes, whose lowest row is slice 0.
    board.canvas.hover()
    page.mouse.wheel(0, -100)
    sync_api.expect(page.get_by_label("Number of the slice")).to_have_value("3")
    planes = page.locator("#painter .planes canvas")
    sync_api.expect(planes).to_have_count(2)
    area = planes.first.bounding_box()
    planes.first.click(position={"x": area["width"] / 2, "y": area["height"] - 1})
    sync_api.expect(page.get_by_label("Number of the slice")).to_have_value("0")


def test_a_run_over_slices_of_the_own_tumor(page, tmp_path):
    board = example(page)
    board.press("Clear slice")
    sync_api.expect(page.locator("#start")).to_be_disabled()
    open_part(page, "Or take the ROIs")
    fill_range(page, "2", "3")
    page.get_by_label("Of the tumor in the segmentation make").click()
    page.get_by_role("option", name="replace:").click()
    page.get_by_role("button", name="Use these ROIs").click()
    page.get_by_text("ROIs in 2 slices: 2 to 3.").wait_for()
    expect_marks(page, [[2, 3], []])
    # For another tumor in the same slices.
    assert [page.locator(f"#{end} input").input_value() for end in ("first", "last")] == ["2", "3"]
    cost = page.locator("#cost")
    sync_api.expect(cost).to_contain_text("2 slices, 2 samples: 4 batches of 2 evaluations")
    sync_api.expect(page.locator("#cancel")).to_be_disabled()
    turn_to(page, 5)
    page.locator("#start").click()
    page.get_by_text("This is the result of run 1").wait_for()

    # It is shown at a slice of it, where one paints, and scrolled to.
    sync_api.expect(page.get_by_label("Number of the slice")).to_have_value("2")
    sync_api.expect(board.canvas).to_be_in_viewport(ratio=0.99)
    expect_marks(page, [[2, 3], [2, 3]])
    layers = page.locator("#painter .layers button")
    sync_api.expect(layers).to_have_text(
        ["Before", "Sample 0", "Sample 1", "Difference", "Standard deviation"]
    )
    after = shown(board)
    board.press("Hide")
    assert shown(board) != after, "its outline"
    board.press("Hide")
    page.get_by_role("button", name="Hold for before").hover()
    page.mouse.down()
    assert shown_while_held(board) != after
    page.mouse.up()
    assert shown(board) == after
    page.get_by_role("radio", name="Sample 1").click()
    assert shown(board) != after
    for name, unit in (
        ("Standard deviation", "standard deviation"),
        ("Difference", "after minus before"),
    ):
        page.get_by_role("radio", name=name).click()
        bar = page.locator("#painter .bar-unit")
        sync_api.expect(bar).to_have_text(f"{unit}, in the file's units")
        lowest, highest = (
            float(page.locator(f"#painter .bar-{side}").inner_text()) for side in ("low", "high")
        )
        assert highest > 0 and lowest == (0 if "deviation" in name else -highest)

    # All sequences, two of them at least in a row.
    small = page.locator("#painter .strip .small")
    sync_api.expect(small).to_have_text(["T1", "T1CE", "T2", "FLAIR"])
    one, other = (small.nth(number).bounding_box() for number in range(2))
    assert one["y"] == other["y"] and one["x"] + one["width"] <= other["x"]
    assert one["width"] >= 80

    # Files with their whole names.
    names = page.locator("#downloads .filename")
    sync_api.expect(names.filter(has_text="_flair-inpainted")).to_have_count(1)
    for stem in page.locator("#downloads .stem").all():
        assert stem.evaluate(
            "one => one.scrollWidth <= one.clientWidth + 1 || one.clientWidth === 0"
        )

    # Its settings, as JSON and back.
    seed = page.get_by_label("Seed", exact=True)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save its settings").click()
    saved = tmp_path / "settings.json"
    waiting.value.save_as(saved)
    assert json.loads(saved.read_text())["settings"]["seed"] == 0
    for fill in (
        lambda: page.get_by_role("button", name="Use its settings").click(),
        lambda: page.locator("input[data-testid^='Load saved settings']").set_input_files(saved),
    ):
        seed.fill("7")
        fill()
        sync_api.expect(seed).to_have_value("0")

    # What a run cannot be is said before it; one message for a fault, where it is read out.
    samples = page.get_by_label("number input for Samples")
    samples.fill("16")
    sync_api.expect(cost).to_contain_text("choose fewer samples or slices")
    samples.fill("2")
    seed.fill("-1")
    page.locator("#start").click()
    message = page.get_by_text("Seed: Value -1 is less than minimum value 0.")
    message.wait_for()
    assert message.count() == 1
    assert message.evaluate("one => Boolean(one.closest('[role=alert], [aria-live]'))")
    seed.fill("0")

    # One that is cancelled is no error, and leaves what was there.
    page.get_by_label("number input for Steps").fill("1000")
    samples.fill("4")
    sync_api.expect(page.locator("#start")).to_be_enabled()
    page.locator("#start").click()
    sync_api.expect(page.locator("#cancel")).to_be_enabled()
    page.locator("#cancel").dispatch_event("click")
    sync_api.expect(page.locator("#outcome")).to_contain_text("Cancelled; nothing was kept.")
    sync_api.expect(page.locator("#runs label")).to_have_count(1)
    sync_api.expect(page.locator("#cancel")).to_be_disabled()

    # All this would be lost with the page.
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.reload()
    assert asked == ["beforeunload"]


def shown_while_held(board):
    """The picture, with the pointer where it is."""
    return board.canvas.evaluate("one => one.toDataURL()")
