"""ROIs by name, label map and picture; what is refused, and the sentence that says why."""

import numpy as np
import pytest

from mbti_jax.rois.given import parse_labels, to_masks
from mbti_jax.rois.kinds import CHANNELS, COLORS, ROI_LABELS
from mbti_jax.rois.regions import Rois

SHAPE = (9, 8)


def mask(*index) -> np.ndarray:
    out = np.zeros(SHAPE, bool)
    out[index] = True
    return out


def test_names_labels_and_colors_mean_the_same():
    wanted = {"edema": mask(slice(1, 4), 2), "normal": mask(6, slice(2, 5))}
    by_name = to_masks(wanted, SHAPE)
    np.testing.assert_array_equal(by_name[..., CHANNELS.index("edema")], wanted["edema"])
    labels = Rois(by_name).label_map()
    np.testing.assert_array_equal(to_masks(labels, SHAPE), by_name)
    picture = np.zeros((*SHAPE, 3), np.uint8)
    for name, where in wanted.items():
        picture[where] = COLORS[name]
    np.testing.assert_array_equal(to_masks(picture, SHAPE), by_name)
    assert by_name.sum() == 6


def test_255_is_a_mask_but_two_grays_are_not():
    np.testing.assert_array_equal(
        to_masks({"tumor": 255 * mask(2, 3).astype(np.uint8)}, SHAPE)[..., 4], mask(2, 3)
    )
    blurred = mask(2, 3) * 255 + mask(2, 4) * 100
    with pytest.raises(ValueError, match=r"100, 255.*resized or saved with loss"):
        to_masks({"tumor": blurred}, SHAPE)


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
        to_masks(given, SHAPE, labels)


def test_a_binary_mask_is_the_roi_that_it_is_said_to_be():
    given = 255 * mask(2, 3).astype(np.uint8)
    masks = to_masks(given, SHAPE, "tumor")
    np.testing.assert_array_equal(masks[..., 4], mask(2, 3))
    assert masks.sum() == masks[..., 4].sum()
    with pytest.raises(ValueError, match="of a binary mask say which ROI it is"):
        to_masks(given, SHAPE)
    with pytest.raises(ValueError, match=r"the values \[100, 255\] besides 0"):
        to_masks(mask(2, 3) * 255 + mask(2, 4) * 100, SHAPE, "tumor")


def test_labels_in_words():
    assert parse_labels("brats2021") == {
        1: "necrotic_core",
        2: "edema",
        4: "enhancement",
    }
    assert parse_labels("brats2024")[4] == ""
    assert parse_labels("1: edema,7:,3:tumor") == {1: "edema", 7: "", 3: "tumor"}
    for wrong, sentence in (
        ("brats1999", "conventions are brats2018"),
        ("1:oedema", "unknown ROI 'oedema'"),
        ("x:edema", "is not 'number:name'"),
        ("1:edema,1:tumor", "each number once"),
        ("0:normal", "is not 'number:name'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            parse_labels(wrong)
    assert parse_labels("") == ROI_LABELS
    assert parse_labels("edema") == "edema"
