"""Tasks that ask for what a slice holds, and their samples."""

import numpy as np
import pytest
from evaluation_setting import make_setting
from repainted_slices import make_slices

from mbti_jax.evaluation import own_anatomy
from mbti_jax.rois.tasks import CLASS_BOX, CLASS_EMPTY, CLASS_FREE_FORM, TaskConfig


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return make_setting(tmp_path_factory.mktemp("own_anatomy"))


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
    tasks = own_anatomy.own_tasks(slices, "components", False, TaskConfig(), 0)
    for channel in (1, 2, 3):
        assert (tasks.roi_masks[..., channel] == (slices.labels == channel)).all()
    empty, free = CLASS_EMPTY, CLASS_FREE_FORM
    assert tasks.class_vectors.tolist() == [[empty, free, free, empty, empty]]


def test_boxes_are_those_of_the_components():
    tasks = own_anatomy.own_tasks(_slices(), "components", True, TaskConfig(), 0)
    assert tasks.roi_masks[0, ..., 2].sum() == 6 * 6
    assert tasks.roi_masks[0, 8:14, 9:15, 2].all()
    assert tasks.class_vectors[0].tolist() == [
        CLASS_EMPTY,
        CLASS_BOX,
        CLASS_BOX,
        CLASS_EMPTY,
        CLASS_EMPTY,
    ]


def test_a_mixed_tumour_leaves_the_cavity_out():
    slices = _slices()
    tasks = own_anatomy.own_tasks(slices, "tumor", False, TaskConfig(), 0)
    assert (tasks.roi == np.isin(slices.labels, (1, 2, 3))).all()
    assert tasks.class_vectors[0].tolist() == [CLASS_EMPTY] * 4 + [CLASS_FREE_FORM]


@pytest.mark.parametrize("box", [False, True])
def test_normal_tissue_is_neither_tumour_nor_cavity(box):
    slices = _slices()
    tasks = own_anatomy.own_tasks(slices, "normal", box, TaskConfig(), 0)
    assert tasks.roi.any()
    assert not (tasks.roi & (slices.labels > 0)).any()
    assert not tasks.roi_masks[..., 1:].any()
    value = CLASS_BOX if box else CLASS_FREE_FORM
    assert tasks.class_vectors[0].tolist() == [value] + [CLASS_EMPTY] * 4


def test_places_of_normal_tissue_follow_the_seed():
    masks = [
        own_anatomy.own_tasks(_slices(), "normal", False, TaskConfig(), seed).roi
        for seed in (0, 0, 1)
    ]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown kind of task 'edema'"):
        own_anatomy.own_tasks(_slices(), "edema", False, TaskConfig(), 0)


@pytest.mark.parametrize("kind", own_anatomy.KINDS)
def test_samples_differ_inside_the_roi_only(setting, kind):
    repainted = own_anatomy.repaint(
        setting, kind, False, num_slices=3, least_brain=100, num_steps=2, num_samples=2
    )
    inside = np.broadcast_to(repainted.tasks.roi[None, ..., None], repainted.samples.shape)
    images = np.broadcast_to(repainted.slices.images[None], repainted.samples.shape)
    assert (repainted.samples[~inside] == images[~inside]).all()
    assert (repainted.samples[inside] != images[inside]).mean() > 0.9
    assert (repainted.samples[0][inside[0]] != repainted.samples[1][inside[1]]).mean() > 0.9
    assert repainted.sizes["num_samples"] == 2
    assert repainted.sizes["num_slices"] == len(repainted.slices) > 0
