"""The page in a real browser: load, paint with the mouse, box, run, compare, download."""

import contextlib
import json
import zipfile
from importlib import resources

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import draw
from synthetic_cases import SHAPE, SUFFIXES, make_arrays, write_case
from tiny_inpainter import make_slice

from mbti_jax.web import painter

pytest.importorskip("gradio", reason="needs the extra `web`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from real_browser import PATIENCE_MS, Board, drop, fill_range, turn_to  # noqa: E402 (it needs playwright)
from tiny_server import tiny_server  # noqa: E402 (it needs Gradio)

SUBJECT = "BraTS2021_00001"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with tiny_server(tmp_path_factory.mktemp("server")) as url:
        yield url


def load_case(page, tmp_path):
    folder = write_case(tmp_path / "mine", SUBJECT)
    files = {name: folder / f"{SUBJECT}{suffix}.nii.gz" for name, suffix in SUFFIXES.items()}
    page.locator("input[type=file]").first.set_input_files(list(files.values()))
    page.locator("#check").wait_for()
    kinds = page.locator(".kind input")
    # Read from their names, in the order of the files.
    for kind, name in zip(kinds.all(), ["T1", "T1CE", "T2", "FLAIR"], strict=True):
        sync_api.expect(kind).to_have_value(name)
    page.get_by_role("button", name="Load files").click()
    return files


def sent(page, act):
    """What `act` makes the page send: slice -> labels [H, W]."""
    with page.expect_request(lambda request: '"edits"' in (request.post_data or "")) as waiting:
        act()
    edits = waiting.value.post_data_json["data"][0]["edits"]
    return {int(z): painter.from_runs(runs, (SHAPE[1], SHAPE[0])) for z, runs in edits.items()}


def distances(inside):
    """How far each pixel lies from what is not `inside`."""
    return np.asarray(ndimage.distance_transform_edt(inside))


def stored(path):
    return np.asarray(nib.load(path).dataobj.get_unscaled())


def test_from_files_to_download(open_page, tmp_path):
    page = open_page()
    assert page.get_by_text("Synthetic, research only.").first.is_visible()
    assert page.get_by_text("random weights").is_visible(), "the checkpoint's note"
    files = load_case(page, tmp_path)
    board = Board(page)
    turn_to(page, 2)
    board.says("Choose a tissue and paint where it shall be.")

    # One pixel wide: every pixel between the ends, and no other.
    board.choose("edema")
    board.drag((5, 6), (10, 6))
    board.says("edema: 6 px")
    # A disk of radius 2.5.
    board.choose("necrotic core", brush=5)
    board.drag((13, 12), (13, 12))
    disk = [(x, y) for x in range(24) for y in range(20) if (x - 13) ** 2 + (y - 12) ** 2 <= 2.5**2]
    board.says(f"edema: 6 px · necrotic core: {len(disk)} px")
    board.choose("eraser")
    board.drag((13, 12), (13, 12))
    board.says(f"edema: 6 px · necrotic core: {len(disk) - 1} px")
    board.press("Undo")
    board.says(f"edema: 6 px · necrotic core: {len(disk)} px")
    board.press("Redo")
    board.press("Undo")
    # Two strokes whose box is 2 x 3.
    board.choose("normal tissue")
    board.drag((16, 5), (16, 5))
    board.drag((17, 7), (17, 7))
    page.get_by_label("normal tissue as bounding box").check()
    board.says(f"normal tissue: box 2 x 3 · edema: 6 px · necrotic core: {len(disk)} px")

    # Another slice and back: the masks are kept, and each slice has its own.
    turn_to(page, 3)
    board.says("Choose a tissue and paint where it shall be.")
    board.choose("whole tumor")
    board.drag((8, 8), (8, 10))
    board.says("whole tumor: 3 px")
    turn_to(page, 2)
    board.says(f"normal tissue: box 2 x 3 · edema: 6 px · necrotic core: {len(disk)} px")
    # A stroke in air is refused with a word, and changes nothing.
    board.drag((1, 1), (1, 3))
    page.get_by_text("That is air").wait_for()
    board.says(f"normal tissue: box 2 x 3 · edema: 6 px · necrotic core: {len(disk)} px")
    small = page.locator("#painter .strip .small")
    sync_api.expect(small).to_have_text(["T1", "T1CE", "T2", "FLAIR"])
    small.nth(3).click()
    chosen = page.get_by_role("radio", name="FLAIR", exact=True)
    sync_api.expect(chosen).to_have_attribute("aria-checked", "true")

    sync_api.expect(page.locator("#cancel")).to_be_disabled()
    page.locator("#start").click()
    page.locator("#downloads").wait_for(state="visible")
    # The result is where one painted; held down, the button shows what was there before.
    layers = page.locator("#painter .layers button")
    sync_api.expect(layers).to_have_text(
        ["Before", "Sample 0", "Sample 1", "Difference", "Standard deviation"]
    )
    page.get_by_text("This is the result").wait_for()
    shown = "one => one.toDataURL()"
    hold = page.get_by_role("button", name="Hold for before")
    hold.hover()
    after = board.canvas.evaluate(shown)
    page.mouse.down()
    before = board.canvas.evaluate(shown)
    page.mouse.up()
    assert board.canvas.evaluate(shown) == after != before
    for name, unit in (("Standard deviation", "standard"), ("Difference", "after minus before")):
        page.get_by_role("radio", name=name).click()
        sync_api.expect(page.locator("#painter .bar-unit")).to_contain_text(unit)
    turn_to(page, 4)
    page.locator("#painter .bar").wait_for(state="hidden")
    sync_api.expect(page.locator("#start")).to_be_enabled()

    with page.expect_download() as waiting:
        page.locator("#downloads a", has_text="MB").or_(
            page.locator("#downloads a[download$='.zip']")
        ).first.click()
    target = tmp_path / "result.zip"
    waiting.value.save_as(target)
    with zipfile.ZipFile(target) as packed:
        packed.extractall(tmp_path / "out")

    expected = np.zeros(SHAPE, np.uint8)
    expected[5:11, 6, 2] = 2
    for x, y in disk:
        expected[x, y, 2] = 1
    expected[16:18, 5:8, 2] = 5
    expected[8, 8:11, 3] = 6
    for number in range(2):
        folder = tmp_path / "out" / f"sample_{number:03d}"
        np.testing.assert_array_equal(stored(folder / "rois.nii.gz"), expected)
        for source in files.values():
            after = folder / source.name.replace(".nii.gz", "-inpainted.nii.gz")
            outside = expected == 0
            np.testing.assert_array_equal(stored(after)[outside], stored(source)[outside])
            assert nib.load(after).header.binaryblock == nib.load(source).header.binaryblock
        record = json.loads((folder / "provenance.json").read_text())
        assert record["rois"]["normal"]["mode"] == "box"


def test_on_a_phone(open_page, tmp_path):
    """Everything fits the width, and a finger paints."""
    page = open_page(390, 844, has_touch=True, is_mobile=True, device_scale_factor=2)
    picture = tmp_path / "slice.png"
    Image.fromarray(make_slice(SHAPE[1::-1], dtype=np.uint16)).save(picture)
    page.locator("input[type=file]").first.set_input_files(picture)
    page.get_by_text("slice").first.wait_for()
    page.get_by_role("button", name="Load files").tap()
    board = Board(page)
    board.choose("edema")
    page.touchscreen.tap(*board.at(9, 9))
    board.says("edema: 1 px")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#start").tap()
    page.locator("#downloads").wait_for(state="visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_errors_are_shown_as_sentences(open_page):
    page = open_page()
    # Buttons that could do nothing are disabled.
    sync_api.expect(page.get_by_role("button", name="Load files")).to_be_disabled()
    page.get_by_role("button", name="Remove a tumor").click()
    board = Board(page)
    sync_api.expect(page.locator("#start")).to_be_enabled()
    # The preset where all that is painted is normal tissue.
    sync_api.expect(page.get_by_role("radio", name="Samples near the mean")).to_be_checked()
    board.press("Clear slice")
    sync_api.expect(page.locator("#start")).to_be_disabled()
    page.get_by_text("Or take the ROIs").click()
    take = page.get_by_role("button", name="Use these ROIs")
    sync_api.expect(take).to_be_disabled()
    page.get_by_label("Of the tumor in the segmentation make").click()
    page.get_by_role("option", name="remove:").click()
    fill_range(page, "3", "2")
    take.click()
    # Once, and where it is read out.
    message = page.get_by_text("slices 3 to 2 are no range of")
    message.wait_for()
    assert message.count() == 1
    assert message.evaluate("one => Boolean(one.closest('[role=alert], [aria-live]'))")
    # Gradio says the word to screen readers for a moment, too.
    shown = page.get_by_text("Error", exact=True).and_(page.locator(":not(.sr-only)"))
    assert shown.locator("visible=true").count() <= 1
    assert page.get_by_text("Traceback").count() == 0


def test_painting_by_keys_and_numbers(open_page):
    """Without a mouse: slices, tissues, a box, undo; and what is made of painted slices."""
    page = open_page()
    page.get_by_role("button", name="Grow another tumor").click()
    board = Board(page)
    board.press("Clear slice")
    board.canvas.focus()
    # From the slice with most of the tumor, 1, to 2; and the second tissue, edema.
    for key in ("ArrowUp", "2"):
        page.keyboard.press(key)
    sync_api.expect(page.get_by_label("Number of the slice")).to_have_value("2")
    page.get_by_text("Shapes and numbers").click()
    for name, value in (("x0", 6), ("x1", 8), ("y0", 7), ("y1", 8)):
        page.locator(f"#painter .box-{name}").fill(str(value))
    board.press("Set this box")
    board.says("edema: box 3 x 2")
    page.get_by_label("edema as bounding box").uncheck()
    board.says("edema: 6 px")
    # Six pixels and the ten beside them.
    board.press("Dilate by 1 px")
    board.says("edema: 16 px")
    page.get_by_text("Other slices").click()
    page.get_by_label("To how many slices").fill("1")
    board.press("Copy to the next")
    turn_to(page, 3)
    board.says("edema: 16 px")
    board.canvas.focus()
    page.keyboard.press("Control+z")
    board.says("Choose a tissue and paint where it shall be.")
    page.keyboard.press("Control+Shift+z")
    turn_to(page, 1)
    board.canvas.focus()
    page.keyboard.press("]")
    sync_api.expect(page.locator("#painter .brush-text")).to_have_text("11 px")
    # Wheel: one slice.
    board.canvas.hover()
    page.mouse.wheel(0, 100)
    sync_api.expect(page.get_by_label("Number of the slice")).to_have_value("2")
    board.says("edema: 16 px")


def test_tools_make_the_masks_of_other_programs(open_page):
    """Polygon, fill, interpolation and mirror against scikit-image and SciPy."""
    page = open_page()
    page.get_by_role("button", name="Grow another tumor").click()
    board = Board(page)
    board.press("Clear slice")
    images, _ = make_arrays(0)
    # As [z, y, x], like what is painted.
    brain = (images["t1"] > 0).T
    turn_to(page, 1)
    board.choose("edema")

    board.press("Polygon")
    corners = [(4, 2), (12, 5), (15, 13), (9, 9), (6, 15)]
    # The last click closes it.
    polygon = sent(page, lambda: board.click(*corners, corners[0]))[1]
    columns, rows = np.transpose(corners)
    expected = np.zeros(brain.shape[1:], bool)
    expected[draw.polygon(rows, columns)] = True
    assert (expected & ~brain[1]).any(), "some of it is air, which is left out"
    np.testing.assert_array_equal(polygon, 2 * (expected & brain[1]))

    turn_to(page, 3)
    board.press("Brush")
    # Its diagonals touch at corners only, through which nothing leaks.
    ring = sent(page, lambda: board.drag((10, 5), (14, 9), (10, 13), (6, 9), (10, 5)))[3]
    assert not ring[9, 10]
    board.press("Fill")
    board.click((4, 15))
    page.get_by_text("is not closed").wait_for()
    filled = sent(page, lambda: board.click((10, 9)))[3]
    np.testing.assert_array_equal(filled, 2 * ndimage.binary_fill_holes(ring))

    page.get_by_text("Other slices").click()
    made = sent(page, lambda: board.press("Interpolate"))
    signed = [distances(labels == 0) - distances(labels > 0) for labels in (polygon, filled)]
    np.testing.assert_array_equal(made[2], 2 * ((sum(signed) < 0) & brain[2]))
    assert made[2].any()
    np.testing.assert_array_equal(made[1], polygon)

    page.get_by_text("Shapes and numbers").click()
    mirrored = sent(page, lambda: board.press("Mirror"))[3]
    # The brain lies in columns 3 to 18.
    expected = np.zeros_like(filled)
    expected[:, 3:19] = filled[:, 3:19][:, ::-1]
    np.testing.assert_array_equal(mirrored, expected * brain[3])
    assert (mirrored != filled).any()


def test_a_folder_and_files_that_are_confirmed(open_page, tmp_path):
    """What a name does not say is asked for, and a file may be left out."""
    page = open_page()
    folder = write_case(tmp_path / "mine", SUBJECT)
    (folder / f"{SUBJECT}_t2.nii.gz").rename(folder / "scan_17.nii.gz")
    page.locator("input[webkitdirectory]").set_input_files(folder)
    page.locator("#check").wait_for()
    by_name = {
        name: page.get_by_role("combobox", name=name)
        for name in (f"{SUBJECT}_t1.nii.gz", f"{SUBJECT}_seg.nii.gz", "scan_17.nii.gz")
    }
    for name, value in zip(by_name, ["T1", "(left out)", ""], strict=True):
        sync_api.expect(by_name[name]).to_have_value(value)
    page.get_by_role("button", name="Load files").click()
    page.get_by_text("scan_17.nii.gz: choose which sequence it is").wait_for()
    by_name["scan_17.nii.gz"].click()
    page.get_by_role("option", name="T2", exact=True).click()
    page.get_by_role("button", name="Load files").click()
    Board(page)
    sync_api.expect(page.locator("#loaded")).to_contain_text("T2 (scan_17.nii.gz)")


def test_a_folder_is_dropped(open_page, tmp_path):
    """By the browser's own drag, with a folder in it and files of others beside the case's."""
    page = open_page()
    files, kinds = page.locator("#files"), page.locator(".kind input")
    (tmp_path / "empty").mkdir()
    drop(page, tmp_path / "empty", files)
    page.get_by_text("this folder has no PNG, npy or NIfTI files").wait_for()
    folder = write_case(tmp_path / "dropped" / "inside", SUBJECT)
    for name in ("notes.txt", ".hidden.nii.gz"):
        (folder / name).write_text("no image")
    drop(page, tmp_path / "dropped", files)
    sync_api.expect(kinds).to_have_count(5)
    said = {kind.get_attribute("aria-label"): kind.input_value() for kind in kinds.all()}
    names = {f"{SUBJECT}{suffix}.nii.gz": name.upper() for name, suffix in SUFFIXES.items()}
    assert said == {**names, f"{SUBJECT}_seg.nii.gz": "(left out)"}
    # Where files are, what is dropped takes their place; beside them the page stays where it is.
    drop(page, folder / f"{SUBJECT}_t2.nii.gz", page.locator("h1"))
    drop(page, folder / f"{SUBJECT}_t2.nii.gz", files)
    sync_api.expect(kinds).to_have_count(1)
    # More images than a case has are not even sent.
    (tmp_path / "many").mkdir()
    for number in range(12):
        (tmp_path / "many" / f"{number}.png").write_bytes(b"")
    drop(page, tmp_path / "many", files)
    page.get_by_text("more than 8 images").wait_for()
    sync_api.expect(kinds).to_have_count(1)


def test_a_cancelled_run_and_images_that_are_overtaken(open_page, capfd):
    """What is shown after it is said to be of the run before; newer images take over without a word."""
    page = open_page()
    page.get_by_role("button", name="Grow another tumor").click()
    Board(page)
    sync_api.expect(page.locator("#start")).to_be_enabled()
    page.locator("#start").click()
    page.get_by_text("This is the result of run 1").wait_for()
    outcome, start = page.locator("#outcome"), page.locator("#start")
    steps = page.get_by_label("number input for Steps")
    steps.fill("1000")
    # Long enough to be cancelled, however fast the machine is.
    page.get_by_label("number input for Samples").fill("8")
    # Until then it is enabled for the run before.
    sync_api.expect(page.locator("#cancel")).to_be_disabled()
    start.click()
    sync_api.expect(page.locator("#cancel")).to_be_enabled()
    # At once: Playwright's own click first waits for a still picture, of which a busy browser has few.
    page.locator("#cancel").dispatch_event("click")
    sync_api.expect(outcome).to_have_text(
        "Cancelled; nothing was kept. What is shown, and the files below, are still those of run 1.",
        timeout=PATIENCE_MS,
    )
    sync_api.expect(page.locator("#downloads")).to_contain_text("Phantom_0000")
    sync_api.expect(start).to_be_enabled()
    page.get_by_label("Seed", exact=True).fill("-1")
    start.click()
    page.get_by_text("Seed: Value -1 is less than minimum value 0.").wait_for()
    sync_api.expect(outcome).to_contain_text("Nothing was repainted.", timeout=PATIENCE_MS)

    # The arrays of the first images are held back until the second are there. (What a route holds goes
    # on without it.)
    held = []

    def hold(route):
        folder = route.request.url.rpartition("/")[0]
        if held and folder != held[0][0]:
            route.continue_()
        else:
            held.append((folder, route))

    page.route("**/*.bin", hold)
    page.get_by_role("button", name="Remove a tumor").click()
    while not held:
        page.wait_for_timeout(20)
    page.get_by_role("button", name="Grow another tumor").click()
    board = Board(page)
    board.press("Clear slice")
    board.says("Choose a tissue and paint where it shall be.")
    for _, route in held:
        with contextlib.suppress(sync_api.Error):  # The page has given it up.
            route.continue_()
    page.unroute("**/*.bin", hold)
    # Not that of the images before, where a tumor is removed.
    sync_api.expect(page.get_by_role("radio", name="Samples", exact=True)).to_be_checked()
    page.wait_for_load_state("networkidle")
    sync_api.expect(page.locator("#painter .loading")).to_have_text("Loading the images ...")
    assert "Traceback" not in "".join(capfd.readouterr())


def test_runs_stay_with_their_settings(open_page, tmp_path):
    page = open_page()
    page.get_by_role("button", name="Grow another tumor").click()
    board = Board(page)
    sync_api.expect(page.locator("#start")).to_be_enabled()
    seed = page.get_by_label("Seed", exact=True)
    pictures, runs = [], page.locator("#runs label")
    for number, value in enumerate(("3", "4"), 1):
        seed.fill(value)
        page.locator("#start").click()
        sync_api.expect(runs).to_have_count(number, timeout=PATIENCE_MS)
        page.get_by_text("This is the result").wait_for()
        page.locator("#downloads").hover()
        pictures.append(board.canvas.evaluate("one => one.toDataURL()"))
    assert pictures[0] != pictures[1]
    runs.filter(has_text="Run 1").click()
    page.wait_for_function(
        "shown => document.querySelector('#painter .view').toDataURL() === shown", arg=pictures[0]
    )
    page.get_by_role("button", name="Use its settings").click()
    sync_api.expect(seed).to_have_value("3")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save its settings").click()
    saved = tmp_path / "settings.json"
    waiting.value.save_as(saved)
    seed.fill("9")
    page.locator("input[data-testid^='Load saved settings']").set_input_files(saved)
    page.get_by_text("are in the form").wait_for()
    sync_api.expect(seed).to_have_value("3")
    held = json.loads(saved.read_text())
    held["settings"]["num_steps"] = "many"
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(held))
    page.locator("input[data-testid^='Load saved settings']").set_input_files(wrong)
    page.get_by_text("wrong.json: settings.num_steps").wait_for()
    # A reload would lose the runs: it asks.
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.reload()
    assert asked == ["beforeunload"]


def test_two_users_at_once_see_their_own_alone(open_page, tmp_path):
    one, other = open_page(), open_page()
    load_case(one, tmp_path)
    other.get_by_role("button", name="Grow another tumor").click()
    boards = Board(one), Board(other)
    for page, board, tissue in zip((one, other), boards, ("edema", "normal tissue"), strict=True):
        turn_to(page, 3)
        board.choose(tissue)
        board.drag((9, 9), (12, 9))
        sync_api.expect(page.locator("#start")).to_be_enabled()
    for page in (one, other):
        page.locator("#start").click()
    for page, board, name, tissue in (
        (one, boards[0], SUBJECT, "edema: 4 px"),
        (other, boards[1], "Phantom_0000", "normal tissue: 4 px"),
    ):
        page.get_by_text("This is the result").wait_for()
        turn_to(page, 3)
        board.says(tissue)
        sync_api.expect(page.locator("#loaded")).to_contain_text(name)
        sync_api.expect(page.locator("#downloads")).to_contain_text(name)
        sync_api.expect(page.locator("#runs label")).to_have_count(1)


@pytest.fixture(scope="module")
def axe():
    """The text of axe-core."""
    package = pytest.importorskip("axe_playwright_python", reason="needs axe-core")
    return (resources.files(package) / "axe.min.js").read_text(encoding="utf-8")


SERIOUS = """axe.run({resultTypes: ['violations']}).then(found => found.violations
    .filter(one => ['serious', 'critical'].includes(one.impact))
    .map(one => [one.id, one.nodes.map(node => node.html.slice(0, 200))]))"""
SMALL = """[...document.querySelectorAll('button, a[href], summary, [type=checkbox], [type=radio]')]
    .map(one => one.closest('label') ?? one)
    .filter(one => {
        const {width, height} = one.getBoundingClientRect();
        const shown = one.checkVisibility({opacityProperty: true, visibilityProperty: true});
        return shown && width > 0 && (width < 23.5 || height < 23.5);
    }).map(one => one.outerHTML.slice(0, 200))"""


def test_everybody_can_use_it(open_page, axe):
    """No serious violation, targets of 24 pixels, nothing wider than the screen; with a result shown."""
    page = open_page(1440, 1000)
    page.get_by_role("button", name="Grow another tumor").click()
    Board(page)
    sync_api.expect(page.locator("#start")).to_be_enabled()
    page.locator("#start").click()
    page.get_by_text("This is the result").wait_for()
    page.locator("#downloads").wait_for(state="visible")
    page.get_by_role("radio", name="Standard deviation").click()
    for region in ("#loaded", "#outcome"):
        sync_api.expect(page.locator(region)).to_have_attribute("aria-live", "polite")
    page.evaluate(axe)
    for theme in ("light", "dark"):
        page.evaluate("is => document.body.classList.toggle('dark', is)", theme == "dark")
        # Colors change over a moment.
        page.wait_for_timeout(600)
        for width, height in ((1440, 1000), (1024, 900), (390, 844)):
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
            assert page.evaluate(SERIOUS) == [], (theme, width)
            assert page.evaluate(SMALL) == [], (theme, width)
