"""ROIs from the case's own tumor, and the labels afterwards."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from mbti_jax.rois.kinds import CHANNELS
from mbti_jax.rois.regions import Rois
from mbti_jax.rois.tumors import own_tumor, painted_labels, parse_shares

SHAPE = (4, 40, 36)


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
    rois = own_tumor(labels, brain, "remove")
    np.testing.assert_array_equal(channel(rois.masks, "normal"), (labels > 0) & (labels < 4))
    assert rois.masks.sum() == channel(rois.masks, "normal").sum()
    after = painted_labels(labels, rois)
    np.testing.assert_array_equal(after, np.where(labels == 4, 4, 0))


def test_remove_in_its_box(labels, brain):
    labels[1, 20, 20] = 2
    rois = own_tumor(labels, brain, "remove", ["normal"])
    expected = np.zeros(SHAPE, bool)
    expected[1, 10:21, 8:21] = expected[2, 10:18, 8:14] = True
    np.testing.assert_array_equal(channel(rois.masks, "normal"), expected)
    assert not painted_labels(labels, rois)[:3].any()


def test_replace_keeps_the_label_map(labels, brain):
    rois = own_tumor(labels, brain, "replace")
    np.testing.assert_array_equal(painted_labels(labels, rois), labels)
    np.testing.assert_array_equal(channel(rois.masks, "enhancement"), labels == 3)


def test_random_and_boxes_have_no_label_map(labels, brain):
    rois = own_tumor(labels, brain, "random", ["tumor"])
    assert channel(rois.masks, "tumor").sum() == 2 * 8 * 6
    with pytest.raises(ValueError, match="mixed tumor has no label map"):
        painted_labels(labels, rois)
    rois = own_tumor(labels, brain, "replace", ["edema"])
    with pytest.raises(ValueError, match="box of edema has no label map"):
        painted_labels(labels, rois)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("box", [[], ["normal"]])
def test_move(labels, brain, seed, box):
    rois = own_tumor(labels, brain, "move", box, seed)
    after = painted_labels(labels, rois)
    components = rois.masks[..., 1:4].any(-1)
    assert not (components & channel(rois.masks, "normal")).any()
    assert not (components & ~brain).any() and (after[labels == 4] == 4).all()
    # Shape and components as before, but for the few voxels that may be lost.
    for label in (1, 2, 3):
        before = (labels == label).sum()
        assert 0 <= before - (after == label).sum() <= 2
    assert not after[(labels > 0) & (labels < 4)].any()
    again = own_tumor(labels, brain, "move", box, seed)
    np.testing.assert_array_equal(again.masks, rois.masks)


def test_places_differ_and_may_not_exist(labels, brain):
    places = {own_tumor(labels, brain, "move", seed=s).masks[..., 2].tobytes() for s in range(8)}
    assert len(places) >= 7
    with pytest.raises(ValueError, match="nowhere does it fit"):
        own_tumor(labels, (labels > 0) & brain, "move")


def test_refused(labels, brain):
    with pytest.raises(ValueError, match="unknown tumor mode 'delete'; choose one of remove"):
        own_tumor(labels, brain, "delete")
    with pytest.raises(ValueError, match="holds no tumor"):
        own_tumor(np.where(labels == 4, 4, 0), brain, "remove")


def nearest(where: np.ndarray, to: np.ndarray, spacing) -> np.ndarray:
    """Distance in mm of each voxel of `where` from the nearest one of `to`."""
    tree = cKDTree(np.argwhere(to) * spacing)
    return tree.query(np.argwhere(where) * spacing)[0]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5)])
@pytest.mark.parametrize("step_mm", [1.0, 3.0])
def test_grow_takes_the_brain_that_is_near(labels, brain, step_mm, spacing):
    brain[:, :, 15:] = False  # The brain ends a pixel beside the tumor.
    brain[3, 30:34, 20:24] = True
    rois = own_tumor(labels, brain, "grow", step_mm=step_mm, spacing=spacing)
    free = brain & (labels == 0)
    expected = np.zeros(SHAPE, bool)
    tumor = (labels > 0) & (labels < 4)
    expected[tuple(np.argwhere(free)[nearest(free, tumor, spacing) <= step_mm + 1e-6].T)] = True
    np.testing.assert_array_equal(channel(rois.masks, "edema"), expected)
    assert expected.any() and rois.masks.sum() == expected.sum()
    after = painted_labels(labels, rois)
    np.testing.assert_array_equal(after, np.where(expected, 2, labels))
    # A tumor without edema grows by what is outermost.
    rois = own_tumor(
        np.where(labels == 2, 0, labels), brain, "grow", step_mm=step_mm, spacing=spacing
    )
    assert channel(rois.masks, "enhancement").any() and not channel(rois.masks, "edema").any()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5)])
def test_shrink_makes_the_rim_normal(labels, brain, spacing):
    rois = own_tumor(labels, brain, "shrink", step_mm=2.0, spacing=spacing)
    tumor = (labels > 0) & (labels < 4)
    expected = np.zeros(SHAPE, bool)
    expected[tuple(np.argwhere(tumor)[nearest(tumor, ~tumor, spacing) <= 2 + 1e-6].T)] = True
    np.testing.assert_array_equal(channel(rois.masks, "normal"), expected)
    np.testing.assert_array_equal(painted_labels(labels, rois), np.where(expected, 0, labels))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5)])
@pytest.mark.parametrize("mode", ["remove", "move"])
def test_removal_takes_the_rim(labels, brain, mode, spacing):
    labels[3, 10:18, 14:16] = 4  # A cavity, which stays.
    rois = own_tumor(labels, brain, mode, seed=1, dilate_mm=3.0, spacing=spacing)
    tumor, free = (labels > 0) & (labels < 4), brain & (labels == 0)
    near = np.argwhere(free)[nearest(free, tumor, spacing) <= 3 + 1e-6]
    expected = tumor.copy()
    expected[tuple(near.T)] = True
    np.testing.assert_array_equal(channel(rois.masks, "normal"), expected)
    assert len(near)
    if mode == "move":
        # It lands beside all of what is repainted.
        assert not (rois.masks[..., 1:].any(-1) & expected).any()
    after = painted_labels(labels, rois)
    np.testing.assert_array_equal(after[expected & ~rois.masks[..., 1:].any(-1)], 0)
    np.testing.assert_array_equal(after[labels == 4], 4)


def test_dilation_spares_other_rois_and_fills_boxes(brain):
    masks = np.zeros((*SHAPE, len(CHANNELS)), bool)
    masks[1, 10:14, 10:14, 0] = True
    masks[1, 10:14, 15:18, CHANNELS.index("edema")] = True
    wider = Rois(masks).dilated(2.0, brain, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(wider.masks[..., 1:], masks[..., 1:])
    assert wider.masks[1, 10:14, 14, 0].all() and wider.masks[0, 12, 12, 0]
    box = Rois(masks * (np.arange(len(CHANNELS)) == 0), ("normal",))
    assert box.dilated(2.0, brain, (1.0, 1.0, 1.0)).masks[1, 8:16, 8:16, 0].all()
    with pytest.raises(ValueError, match="there is none"):
        Rois(masks * (np.arange(len(CHANNELS)) > 0)).dilated(2.0, brain, (1.0, 1.0, 1.0))


def test_steps_that_change_nothing_are_refused(labels, brain):
    with pytest.raises(ValueError, match=r"cannot grow by 0\.5 mm"):
        own_tumor(labels, brain, "grow", step_mm=0.5)
    with pytest.raises(ValueError, match=r"cannot shrink by 0\.5 mm"):
        own_tumor(labels, brain, "shrink", step_mm=0.5)
    with pytest.raises(ValueError, match=r"cannot shrink by 2 mm"):
        own_tumor(np.full_like(labels, 2), brain, "shrink", step_mm=2.0)
    with pytest.raises(ValueError, match="free-form ROIs only"):
        own_tumor(labels, brain, "grow", ["edema"], step_mm=2.0)


def test_shares_in_words():
    assert parse_shares("move") == (("move", False, 1.0),)
    assert parse_shares("replace: 2, replace box:1 ,random box") == (
        ("replace", False, 0.5), ("replace", True, 0.25), ("random", True, 0.25),
    )  # fmt: skip
    for text in (
        "delete",
        "move boxes",
        "move: -1",
        "move: much",
        "move, move",
        "move,",
        "grow, move",
        "grow box",
    ):
        with pytest.raises(ValueError, match=r"mode|share|series"):
            parse_shares(text)
