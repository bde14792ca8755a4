"""Gray values, colors of the ROIs, sheets, and figures that are whole or not there."""

import itertools

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from mbti_jax.io import pictures
from mbti_jax.rois.kinds import CHANNELS


def test_gray_maps_the_range_linearly_and_clips():
    shown = pictures.gray(np.array([[-2.0, -1.0, 0.0, 1.0, 3.0]]))
    assert shown.dtype == np.uint8
    assert shown.shape == (1, 5, 3)
    assert shown[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert (shown == shown[..., :1]).all()
    assert pictures.gray(np.array([[5.0, 15.0]]), low=5, high=15)[0, :, 1].tolist() == [0, 255]


def test_every_channel_has_a_color_of_its_own():
    assert set(pictures.COLORS) == set(CHANNELS)
    assert len(set(pictures.COLORS.values())) == len(CHANNELS)


@pytest.mark.parametrize("channel", range(5))
def test_rois_are_tinted_and_outlined_and_the_rest_is_left(channel):
    picture = np.full((20, 20, 3), 100, np.uint8)
    masks = np.zeros((20, 20, 5), np.float32)
    masks[5:12, 6:14, channel] = 1
    marked = pictures.with_rois(picture, masks, fill=0.5)
    inside = masks[..., channel] > 0
    np.testing.assert_array_equal(marked[~inside], picture[~inside])
    color = np.array(pictures.COLORS[CHANNELS[channel]])
    np.testing.assert_array_equal(marked[5, 6:14], np.broadcast_to(color, (8, 3)))
    np.testing.assert_array_equal(marked[8, 10], (0.5 * 100 + 0.5 * color).astype(np.uint8))
    assert (picture == 100).all()


def test_enlarging_repeats_pixels():
    picture = np.random.default_rng(0).integers(0, 256, (50, 64, 3)).astype(np.uint8)
    large = pictures.enlarge(picture, least=192)
    assert large.shape == (200, 256, 3)
    np.testing.assert_array_equal(large, np.kron(picture, np.ones((4, 4, 1), np.uint8)))
    np.testing.assert_array_equal(pictures.enlarge(large, least=192), large)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_sheet_has_a_row_an_example_and_three_cells_a_sequence(channels):
    rng = np.random.default_rng(1)
    images, samples = rng.uniform(-1, 1, (2, 3, 192, 200, channels))
    masks = np.zeros((3, 192, 200, 5), np.float32)
    masks[:, 20:40, 20:40, 0] = 1
    sheet = pictures.sheet(images, masks, samples)
    assert sheet.shape == (3 * 192, 3 * channels * 200, 3)
    for b in range(3):
        for c in range(channels):
            row, left = slice(192 * b, 192 * (b + 1)), 600 * c
            before, marked, sample = (
                sheet[row, left + 200 * k : left + 200 * (k + 1)] for k in range(3)
            )
            np.testing.assert_array_equal(before, pictures.gray(images[b, ..., c]))
            np.testing.assert_array_equal(sample, pictures.gray(samples[b, ..., c]))
            np.testing.assert_array_equal(marked[60:], before[60:])
            assert (marked[20, 20:40] == pictures.COLORS["normal"]).all()


def write_figure(path):
    red, blue = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    return pictures.figure(
        path,
        [[red, blue], [blue, red]],
        rows=["a", "b"],
        columns=["c", "d"],
        title="t",
        footnote="f",
    )


def test_a_figure_shows_its_cells_in_order(tmp_path):
    path = write_figure(tmp_path / "new" / "figure.png")
    shown = np.asarray(PIL.Image.open(path).convert("RGB")).astype(int)
    for color, (first, second) in {
        (255, 0, 0): ((0, 0), (1, 1)),
        (0, 0, 255): ((0, 1), (1, 0)),
    }.items():
        ys, xs = np.nonzero((shown == color).all(-1))
        assert len(ys) > 2 * 100 * 100
        lower, right = (n > (n.min() + n.max()) / 2 for n in (ys, xs))
        halves = set(map(tuple, np.unique(np.stack([lower, right]).astype(int), axis=1).T.tolist()))
        assert halves == {first, second}
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_a_figure_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_figure(tmp_path / "figure.png")
    before = path.read_bytes()

    def cut_short(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", cut_short)
    with pytest.raises(OSError, match="disk full"):
        write_figure(path)
    assert path.read_bytes() == before


def test_long_titles_and_labels_are_wrapped_and_not_cut_off(tmp_path):
    cell = np.zeros((16, 16, 3), np.uint8)
    path = pictures.figure(
        tmp_path / "figure.png",
        [[cell] * 3],
        rows=["T1"],
        columns=["input", "prediction 1, box: necrotic core, edema, enhancement\nseed 0", "x"],
        title="Components in given ROIs\n" + "This model knows digital phantoms only. " * 3,
        footnote="synthetic inside the ROIs, not for diagnosis; 1000 steps",
    )
    shown = np.asarray(PIL.Image.open(path).convert("L"))
    # Nothing is drawn on the margins, so no letter is cut.
    for margin in (shown[:3], shown[-3:], shown[:, :3], shown[:, -3:]):
        assert (margin == 255).all()


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (np.s_[30:34, 40:42], np.s_[22:42, 31:51]),  # 4 + 2 * 8 pixels, around its middle.
        (np.s_[0:2, 62:64], np.s_[0:20, 44:64]),  # Moved into the image.
        (np.s_[5:60, 3:60], np.s_[0:64, 0:64]),  # As far as the image goes.
    ],
)
def test_a_window_around_a_region(region, expected):
    inside = np.zeros((64, 64), bool)
    inside[region] = True
    assert pictures.around(inside, margin=8, least=20) == expected


def test_a_figure_shows_outlines_one_pixel_thin(tmp_path):
    cell = np.zeros((256, 256, 3), np.uint8)
    places = np.arange(3, 256, 25)
    cell[:, places, 0] = 255
    names = [f"{n}" for n in range(6)]
    path = pictures.figure(tmp_path / "figure.png", [[cell] * 6] * 2, rows=["", ""], columns=names)
    shown = np.asarray(PIL.Image.open(path).convert("RGB")).astype(int)
    red = (shown == (255, 0, 0)).all(-1)
    line = red[np.flatnonzero(red.sum(1) > 60)[0]]
    assert np.count_nonzero(np.diff(line.astype(int)) == 1) == 6 * len(places)


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize(
    "name",
    ["BraTS2021_00005, slice 33", "A_long_name_of_a_case_without_any_gap_in_it, slice 7", "W" * 60],
)
def test_row_labels_neither_overlap_nor_leave_the_figure(tmp_path, monkeypatch, count, name):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda fig, file, **_: file.touch() or drawn.append(fig))
    cell = np.zeros((16, 12, 3), np.uint8)
    rows = [f"{name} {row}" for row in range(count)]
    pictures.figure(tmp_path / "figure.png", [[cell] * 2] * count, rows=rows, columns=["a", "b"])
    (fig,) = drawn
    labels = [axis.yaxis.label for axis in fig.axes[::2]]
    # No letter is lost by wrapping.
    assert ["".join(label.get_text().split()) for label in labels] == [
        "".join(row.split()) for row in rows
    ]
    fig.canvas.draw()
    boxes = [label.get_window_extent() for label in labels]
    for box, below in itertools.pairwise(boxes):
        assert box.y0 > below.y1
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.y1 <= fig.bbox.height


def test_a_figure_says_what_is_used_where_left_is_and_which_panel(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda fig, file, **_: file.touch() or drawn.append(fig))
    cell = np.zeros((16, 16, 3), np.uint8)
    masks = np.zeros((4, 4, 5), bool)
    masks[1, 1, 3] = True
    marks = pictures.Marks(pictures.kinds_in(masks), ["RL", "", "AP"], letters=True)
    path = pictures.figure(
        tmp_path / "figure.png",
        [[cell] * 3] * 2,
        rows=["T1", "T2"],
        columns=["x", "y", "z"],
        marks=marks,
        pdf=True,
    )
    assert path.is_file() and path.with_suffix(".pdf").is_file()
    fig = drawn[0]
    assert [[text.get_text() for text in axis.texts] for axis in fig.axes] == [
        ["a", "R", "L"],
        ["b"],
        ["c", "A", "P"],
        [],
        [],
        [],
    ]
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["enhancing tumor"]


def test_a_legend_not_asked_for_explains_what_is_seen(tmp_path, monkeypatch):
    """Outlines in the pictures themselves; where there are none, nothing is explained."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda fig, file, **_: file.touch() or drawn.append(fig))
    gray = np.full((16, 16, 3), 90, np.uint8)
    masks = np.zeros((16, 16, 5), bool)
    masks[4:8, 4:8, 2] = True
    labels = np.zeros((16, 16), np.uint8)
    labels[9, 9] = 1
    marked = pictures.with_labels(pictures.with_rois(gray, masks), labels)
    for cells in ([[gray, marked]], [[gray, gray]]):
        pictures.figure(tmp_path / "x.png", cells, rows=["a"], columns=["b", "c"])
    (legend,) = drawn[0].legends
    titles = {text.get_text() for text in legend.get_texts()}
    assert titles == {"edema", "necrotic core"} and not drawn[1].legends


def test_a_pdf_is_the_same_again(tmp_path):
    cell = np.zeros((16, 16, 3), np.uint8)
    for name in ("one", "other"):
        path = tmp_path / f"{name}.png"
        pictures.figure(path, [[cell]], rows=["a"], columns=["b"], pdf=True)
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "other.pdf").read_bytes()
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")
