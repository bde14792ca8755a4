"""ROIs from the case's own tumour, and the labels afterwards."""

import numpy as np
import pytest

from mbti_jax.rois.kinds import CHANNELS
from mbti_jax.rois.regions import box_flags
from mbti_jax.rois.tumors import own_tumor_masks, painted_labels

SHAPE = (4, 40, 36)
NONE = np.zeros(5, bool)


@pytest.fixture
def brain() -> np.ndarray:
    brain = np.zeros(SHAPE, bool)
    brain[:, 2:38, 3:33] = True
    return brain


@pytest.fixture
def labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 10:18, 8:14] = 2
    labels[1:3, 12:16, 9:12] = 3
    labels[2, 13, 10] = 1
    labels[3, 30:34, 20:24] = 4  # A resection cavity.
    return labels


def channel(masks: np.ndarray, name: str) -> np.ndarray:
    return masks[..., CHANNELS.index(name)]


def test_remove(labels, brain):
    masks = own_tumor_masks(labels, brain, "remove", NONE)
    np.testing.assert_array_equal(channel(masks, "normal"), (labels > 0) & (labels < 4))
    assert masks.sum() == channel(masks, "normal").sum()
    after = painted_labels(labels, masks, NONE)
    np.testing.assert_array_equal(after, np.where(labels == 4, 4, 0))


def test_remove_in_its_box(labels, brain):
    labels[1, 20, 20] = 2
    flags = box_flags(["normal"])
    masks = own_tumor_masks(labels, brain, "remove", flags)
    expected = np.zeros(SHAPE, bool)
    expected[1, 10:21, 8:21] = expected[2, 10:18, 8:14] = True
    np.testing.assert_array_equal(channel(masks, "normal"), expected)
    assert not painted_labels(labels, masks, flags)[:3].any()


def test_replace_keeps_the_label_map(labels, brain):
    masks = own_tumor_masks(labels, brain, "replace", NONE)
    np.testing.assert_array_equal(painted_labels(labels, masks, NONE), labels)
    np.testing.assert_array_equal(channel(masks, "enhancement"), labels == 3)


def test_random_and_boxes_have_no_label_map(labels, brain):
    masks = own_tumor_masks(labels, brain, "random", box_flags(["tumor"]))
    assert channel(masks, "tumor").sum() == 2 * 8 * 6
    with pytest.raises(ValueError, match="mixed tumour has no label map"):
        painted_labels(labels, masks, NONE)
    masks = own_tumor_masks(labels, brain, "replace", box_flags(["edema"]))
    with pytest.raises(ValueError, match="box of edema has no label map"):
        painted_labels(labels, masks, box_flags(["edema"]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("box", [[], ["normal"]])
def test_move(labels, brain, seed, box):
    flags = box_flags(box)
    masks = own_tumor_masks(labels, brain, "move", flags, seed)
    after = painted_labels(labels, masks, flags)
    components = masks[..., 1:4].any(-1)
    assert not (components & channel(masks, "normal")).any()
    assert not (components & ~brain).any() and (after[labels == 4] == 4).all()
    # Shape and components as before, but for the few voxels that may be lost.
    for label in (1, 2, 3):
        before = (labels == label).sum()
        assert 0 <= before - (after == label).sum() <= 2
    assert not after[(labels > 0) & (labels < 4)].any()
    np.testing.assert_array_equal(own_tumor_masks(labels, brain, "move", flags, seed), masks)


def test_places_differ_and_may_not_exist(labels, brain):
    places = {own_tumor_masks(labels, brain, "move", NONE, s)[..., 2].tobytes() for s in range(8)}
    assert len(places) >= 7
    with pytest.raises(ValueError, match="nowhere does it fit"):
        own_tumor_masks(labels, (labels > 0) & brain, "move", NONE)


def test_refused(labels, brain):
    with pytest.raises(ValueError, match="unknown tumor mode 'delete'; choose one of remove"):
        own_tumor_masks(labels, brain, "delete", NONE)
    with pytest.raises(ValueError, match="holds no tumour"):
        own_tumor_masks(np.where(labels == 4, 4, 0), brain, "remove", NONE)
