"""ROIs and their boxes; what is refused, and the sentence that says why."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbti_jax.rois.regions import Rois, fill_boxes, make_condition

_make_conditions = jax.jit(jax.vmap(make_condition, in_axes=(0, None)))
SHAPE = (9, 8)


def mask(*index) -> np.ndarray:
    out = np.zeros(SHAPE, bool)
    out[index] = True
    return out


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
    np.testing.assert_array_equal(fill_boxes(masks, box), ours.roi_masks > 0)


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


def test_which_rois_are_boxes():
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
