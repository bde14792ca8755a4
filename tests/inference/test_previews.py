"""Previews of repainted cases: planes through the ROIs, in the volume's proportions."""

import numpy as np
import pytest
from PIL import Image
from synthetic_cases import AFFINE, SHAPE, make_arrays, write_volume

from mbti_jax.inference import results
from mbti_jax.inference.inpainted import InpaintedSlice, InpaintedVolume
from mbti_jax.inference.inputs import named_files
from mbti_jax.rois.kinds import COLORS
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import read_case
from tfds_brats.slices import to_slices


@pytest.fixture
def case(tmp_path):
    """Two sequences with slices of 3 mm."""
    images, _ = make_arrays(0)
    affine = AFFINE @ np.diag([1.0, 1, 3, 1])
    paths = {
        n: str(write_volume(tmp_path / f"{n}.nii.gz", images[n], affine)) for n in ("t1", "t2")
    }
    return read_case(named_files(paths), ("t1", "t2"), labels=False)


@pytest.fixture
def drawn(case, tmp_path, monkeypatch):
    """What `draw_case` hands to `pictures.figure`."""
    masks = np.zeros(SHAPE[::-1], bool)
    masks[1:4, 6:10, 8:11] = True
    masks[2, 5, 9] = True
    values = {name: np.full(SHAPE[::-1], value) for name, value in (("t1", 1e6), ("t2", -1e6))}
    rois = Rois.of({"edema": masks}, masks.shape)
    result = InpaintedVolume(values, None, rois, None, None, {})
    found = {}
    draw = results.pictures.figure

    def figure(path, cells, **options):
        found.update(cells=cells, **options)
        return draw(path, cells, **options)

    monkeypatch.setattr(results.pictures, "figure", figure)
    results.draw_case(tmp_path / "preview.png", case, result, "a case")
    assert (tmp_path / "preview.png").is_file()
    return case, masks, found


def test_a_row_is_a_sequence_with_its_planes_side_by_side(drawn):
    _, _, found = drawn
    assert found["rows"] == ["T1", "T2"]
    planes = ("axial 2", "coronal 6", "sagittal 9")
    assert found["columns"] == [x for plane in planes for x in (f"{plane}, ROIs", "inpainted")]
    # Columns from the patient's right to the left; sagittal planes with anterior on the left.
    assert found["marks"].sides == ["RL"] * 4 + ["AP"] * 2
    assert found["marks"].kinds == ["edema"]


def test_a_legend_explains_what_the_planes_show(case, tmp_path, monkeypatch):
    """Not the tumor in a slice that is not among them."""
    masks = np.zeros(SHAPE[::-1], bool)
    masks[2, 6:10, 8:11] = True
    labels = np.zeros(masks.shape, np.uint8)
    labels[4, 6:10, 8:11] = 3
    rois = Rois.of({"normal": masks}, masks.shape)
    values = {"t1": np.zeros(masks.shape)}
    result = InpaintedVolume(values, None, rois, labels, np.zeros((1,)), {})
    kinds = []
    monkeypatch.setattr(
        results.pictures, "figure", lambda *_, marks, **__: kinds.append(marks.kinds)
    )
    results.draw_case(tmp_path / "preview.png", case, result, "a case")
    labels[2, 7, 9] = 2
    results.draw_case(tmp_path / "preview.png", case, result, "a case")
    assert kinds == [["normal"], ["normal", "edema"]]


def test_planes_have_the_proportions_of_the_volume_and_show_what_was_painted(drawn):
    case, masks, found = drawn
    brain = to_slices(case.brain)
    z, y, x = (np.flatnonzero((brain | masks).any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    heights = (len(y), 3 * len(z), 3 * len(z))
    widths = (len(x), len(x), len(y))
    # No picture reaches beyond the brain, which is smaller than what is shown around an ROI.
    for line, shade in zip(found["cells"], (255, 0), strict=True):
        for plane in range(3):
            pair = line[2 * plane : 2 * plane + 2]
            assert {cell.shape for cell in pair} == {(heights[plane], widths[plane], 3)}
        inside = np.repeat(masks[z[0] : z[-1] + 1, y[0] : y[-1] + 1, 9][::-1], 3, axis=0)
        outlined, after = line[4:]
        assert (after[inside] == shade).all()
        np.testing.assert_array_equal(after[~inside], outlined[~inside])
        assert (outlined[inside] == COLORS["edema"]).all(-1).any()


def test_a_preview_is_as_wide_as_a_screen(tmp_path, drawn):
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.width > 2 * picture.height > 0
        assert 1200 <= picture.width <= 1500


def test_a_slice_is_cut_to_its_brain_and_its_legend_to_what_is_shown(tmp_path, monkeypatch):
    """A tumor that the model composed in a box: of edema alone, it says."""
    brain = np.zeros((200, 240), np.uint16)
    brain[50:130, 90:160] = 500
    box = np.zeros(brain.shape, bool)
    box[60:80, 100:130] = True
    rois = Rois.of({"tumor": box}, box.shape, ("tumor",))
    labels = np.zeros((1, *brain.shape), np.uint8)
    labels[0, 62:70, 105:120] = 2
    probabilities = np.eye(4, dtype=np.float32)[labels]
    record = {"intensity": {"low_high": [[0.0, 1000.0]]}}
    result = InpaintedSlice(brain[None], None, rois, labels, probabilities, record, brain)
    found = {}
    monkeypatch.setattr(
        results.pictures, "figure", lambda path, cells, **o: found.update(o, cells=cells)
    )
    results.draw_slice(tmp_path / "preview.png", brain, result, "a slice")
    (line,) = found["cells"]
    # The brain is 80 pixels high, and 8 are left around it.
    assert {cell.shape for cell in line} == {(96, 96, 3)}
    assert (line[0] > 0).any(-1).sum() == 80 * 70
    assert found["marks"].kinds == ["edema", "tumor"]
