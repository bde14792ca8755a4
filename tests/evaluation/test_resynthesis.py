"""Tasks that ask for what a slice holds, and their samples."""

import numpy as np
import pytest
from evaluation_workbench import make_workbench
from resynthesized_slices import make_slices

from mbti_jax.evaluation import resynthesis
from mbti_jax.rois.regions import CLASS_BOX, CLASS_EMPTY, CLASS_FREE_FORM
from mbti_jax.rois.tasks import TaskSettings


@pytest.fixture(scope="module")
def workbench(tmp_path_factory):
    return make_workbench(tmp_path_factory.mktemp("resynthesis"))


def _slices():
    """One slice with a necrotic core inside edema beside a cavity, in a brain of 24 x 24 pixels."""
    labels = np.zeros((1, 32, 32), np.uint8)
    labels[0, 8:14, 9:15] = 2
    labels[0, 10:12, 11:12] = 1
    labels[0, 16:18, 9:15] = 4
    images = np.full((1, 32, 32, 1), -1, np.float32)
    images[:, 4:28, 4:28] = 0.3
    return make_slices(images, labels)


def test_components_are_asked_for_where_they_are():
    slices = _slices()
    condition = resynthesis.own_condition(slices, "components", False, TaskSettings(), 0)
    for channel in (1, 2, 3):
        assert (condition.roi_masks[..., channel] == (slices.labels == channel)).all()
    empty, free = CLASS_EMPTY, CLASS_FREE_FORM
    assert condition.class_vector.tolist() == [[empty, free, free, empty, empty]]


def test_boxes_are_those_of_the_components():
    condition = resynthesis.own_condition(_slices(), "components", True, TaskSettings(), 0)
    assert condition.roi_masks[0, ..., 2].sum() == 6 * 6
    assert condition.roi_masks[0, 8:14, 9:15, 2].all()
    assert condition.class_vector[0].tolist() == [
        CLASS_EMPTY,
        CLASS_BOX,
        CLASS_BOX,
        CLASS_EMPTY,
        CLASS_EMPTY,
    ]


def test_a_mixed_tumor_leaves_the_cavity_out():
    slices = _slices()
    condition = resynthesis.own_condition(slices, "tumor", False, TaskSettings(), 0)
    assert (condition.roi[..., 0] == np.isin(slices.labels, (1, 2, 3))).all()
    assert condition.class_vector[0].tolist() == [CLASS_EMPTY] * 4 + [CLASS_FREE_FORM]


@pytest.mark.parametrize("box", [False, True])
def test_normal_tissue_is_neither_tumor_nor_cavity(box):
    slices = _slices()
    condition = resynthesis.own_condition(slices, "normal", box, TaskSettings(), 0)
    assert condition.roi.any()
    assert not (condition.roi[..., 0] & (slices.labels > 0)).any()
    assert not condition.roi_masks[..., 1:].any()
    value = CLASS_BOX if box else CLASS_FREE_FORM
    assert condition.class_vector[0].tolist() == [value] + [CLASS_EMPTY] * 4


def test_places_of_normal_tissue_follow_the_seed():
    masks = [
        resynthesis.own_condition(_slices(), "normal", False, TaskSettings(), seed).roi
        for seed in (0, 0, 1)
    ]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown kind of task 'edema'"):
        resynthesis.own_condition(_slices(), "edema", False, TaskSettings(), 0)


@pytest.mark.parametrize("kind", resynthesis.KINDS)
def test_samples_differ_inside_the_roi_only(workbench, kind):
    found = resynthesis.resynthesize(
        workbench, kind, False, num_slices=3, min_brain_area=100, num_steps=2, num_samples=2
    )
    inside = np.broadcast_to(found.roi[None, ..., None], found.samples.shape)
    images = np.broadcast_to(found.slices.images[None], found.samples.shape)
    assert (found.samples[~inside] == images[~inside]).all()
    assert (found.samples[inside] != images[inside]).mean() > 0.9
    assert (found.samples[0][inside[0]] != found.samples[1][inside[1]]).mean() > 0.9
    assert found.sizes["num_samples"] == 2
    assert found.sizes["num_slices"] == len(found.slices) > 0
