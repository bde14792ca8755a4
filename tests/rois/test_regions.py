"""ROIs by name, label map and picture; what is refused, and the sentence that says why."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbti_jax.rois import regions
from mbti_jax.rois.kinds import CHANNELS, COLORS
from mbti_jax.rois.regions import Rois, make_condition

_make_conditions = jax.jit(jax.vmap(make_condition, in_axes=(0, None)))
SHAPE = (9, 8)


def mask(*index) -> np.ndarray:
    out = np.zeros(SHAPE, bool)
    out[index] = True
    return out


def test_names_labels_and_colors_mean_the_same():
    wanted = {"edema": mask(slice(1, 4), 2), "normal": mask(6, slice(2, 5))}
    by_name = regions.to_masks(wanted, SHAPE)
    np.testing.assert_array_equal(by_name[..., CHANNELS.index("edema")], wanted["edema"])
    labels = Rois(by_name).label_map()
    np.testing.assert_array_equal(regions.to_masks(labels, SHAPE), by_name)
    picture = np.zeros((*SHAPE, 3), np.uint8)
    for name, where in wanted.items():
        picture[where] = COLORS[name]
    np.testing.assert_array_equal(regions.to_masks(picture, SHAPE), by_name)
    assert by_name.sum() == 6


def test_255_is_a_mask_but_two_grays_are_not():
    np.testing.assert_array_equal(
        regions.to_masks({"tumor": 255 * mask(2, 3).astype(np.uint8)}, SHAPE)[..., 4], mask(2, 3)
    )
    blurred = mask(2, 3) * 255 + mask(2, 4) * 100
    with pytest.raises(ValueError, match=r"100, 255.*resized or saved with loss"):
        regions.to_masks({"tumor": blurred}, SHAPE)


@pytest.mark.parametrize(
    ("given", "labels", "sentence"),
    [
        ({"tumour": mask(0)}, None, "unknown ROI 'tumour'; ROIs are normal"),
        ({"tumor": np.ones((3, 3))}, None, r"has shape \(3, 3\), the image \(9, 8\)"),
        ({"tumor": mask(0) & False}, None, "ROI is empty"),
        ({}, None, "ROI is empty"),
        (mask(0) * 4, None, r"labels \[4\], which have no meaning"),
        (mask(0) * 1.5, None, r"labels \[1\.5\]"),
        (mask(0) * 7, {1: "edema"}, r"labels \[7\].*known are 1 edema"),
        (np.full(SHAPE, "a"), None, "whole numbers are needed"),
        (np.full((*SHAPE, 3), 9, np.uint8), None, r"unknown colors, such as \(9, 9, 9\)"),
    ],
)
def test_refused(given, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        regions.to_masks(given, SHAPE, labels)


def test_a_binary_mask_is_the_roi_that_it_is_said_to_be():
    given = 255 * mask(2, 3).astype(np.uint8)
    masks = regions.to_masks(given, SHAPE, "tumor")
    np.testing.assert_array_equal(masks[..., 4], mask(2, 3))
    assert masks.sum() == masks[..., 4].sum()
    with pytest.raises(ValueError, match="of a binary mask say which ROI it is"):
        regions.to_masks(given, SHAPE)
    with pytest.raises(ValueError, match=r"the values \[100, 255\] besides 0"):
        regions.to_masks(mask(2, 3) * 255 + mask(2, 4) * 100, SHAPE, "tumor")


def test_a_box_of_an_roi_that_is_not_there_is_refused():
    with pytest.raises(
        ValueError, match="box names edema, of which there is no ROI; there is tumor"
    ):
        Rois.of({"tumor": mask(2, 3)}, SHAPE, box=("tumor", "edema"))


def test_boxes_are_filled_slice_by_slice():
    masks = np.zeros((2, *SHAPE, 5), bool)
    masks[0, 2, 3, 0] = masks[0, 5, 6, 0] = masks[1, 1, 1, 0] = masks[1, 0, 0, 2] = True
    filled = Rois(masks, ["normal"]).masks
    expected = masks.copy()
    expected[0, 2:6, 3:7, 0] = True
    np.testing.assert_array_equal(filled, expected)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_boxes_are_those_of_training(seed):
    rng = np.random.default_rng(seed)
    # From empty to crowded.
    masks = rng.random((3, *SHAPE, 5)) < rng.choice([0.0, 0.02, 0.1, 0.5], 5)
    box = rng.random(5) < 0.5
    trained = jax.device_get(_make_conditions(masks, box))
    ours = make_condition(masks, box)
    jax.tree.map(np.testing.assert_array_equal, ours, trained)
    np.testing.assert_array_equal(regions.fill_boxes(masks, box), ours.roi_masks > 0)


def test_overlap():
    masks = np.zeros((*SHAPE, 5), bool)
    masks[1:4, 1:4, 2] = masks[2, 2, 3] = True
    with pytest.raises(ValueError, match="edema and enhancement overlap in 1 pixels"):
        Rois(masks)
    assert Rois(masks, ["edema"]).warnings == []
    masks[3, 3, 0] = True
    with pytest.raises(ValueError, match="normal and edema overlap"):
        Rois(masks, ["edema"])


def test_mixed_tumor_together_with_components_is_warned_of():
    masks = np.zeros((*SHAPE, 5), bool)
    masks[1, 1, 1] = masks[5, 5, 4] = True
    assert "never trained" in Rois(masks).warnings[0]


def test_labels_in_words():
    assert regions.parse_labels("brats2021") == {
        1: "necrotic_core",
        2: "edema",
        4: "enhancement",
    }
    assert regions.parse_labels("brats2024")[4] == ""
    assert regions.parse_labels("1: edema,7:,3:tumor") == {1: "edema", 7: "", 3: "tumor"}
    for wrong, sentence in (
        ("brats1999", "conventions are brats2018"),
        ("1:oedema", "unknown ROI 'oedema'"),
        ("x:edema", "is not 'number:name'"),
        ("1:edema,1:tumor", "each number once"),
        ("0:normal", "is not 'number:name'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            regions.parse_labels(wrong)
    assert regions.parse_labels("") == regions.ROI_LABELS
    assert regions.parse_labels("edema") == "edema"
    normal = np.zeros((2, 2, 5), bool)
    normal[..., 0] = 1
    assert Rois(normal, ["normal"]).is_box.tolist() == [True] + 4 * [False]
    with pytest.raises(
        ValueError, match="box names edema, of which there is no ROI; there is normal"
    ):
        Rois(normal, ["normal", "edema"])
    assert Rois.with_boxes(normal, ["normal", "edema"]).box == ("normal",)
    with pytest.raises(ValueError, match="collection of names"):
        Rois(np.zeros((2, 2, 5)), "normal")


def test_boxes_of_rois_that_are_made_are_not_changed():
    made = Rois.of({"edema": np.eye(4, dtype=bool)}, (4, 4))
    assert Rois.of(made, (4, 4)) is made
    with pytest.raises(ValueError, match=r"box=\('edema',\) is asked for: give it to `Rois`"):
        Rois.of(made, (4, 4), ["edema"])
