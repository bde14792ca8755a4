"""Tasks against scikit-image's regions, closed forms and binomial bounds, on random and real slices."""

import jax
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage, stats
from skimage.draw import disk
from skimage.measure import regionprops

from mbti_jax.data.augment import augment
from mbti_jax.data.preprocess import area_resize, nearest_resize
from mbti_jax.rois.regions import Rois, fill_boxes, make_condition
from mbti_jax.rois.tasks import TaskSettings, sample_stack, sample_task

EMPTY, FREE_FORM, BOX = 1, 2, 3

_make_condition = jax.jit(make_condition)
_fill_boxes = jax.jit(fill_boxes)
_sample_batch = jax.jit(jax.vmap(sample_task, in_axes=(0, 0, 0, None)), static_argnums=3)


def _filled_box(mask):
    """The bounding rectangle of a mask, by scikit-image."""
    filled = np.zeros_like(mask)
    if mask.any():
        (region,) = regionprops(mask.astype(np.uint8))
        y0, x0, y1, x1 = region.bbox
        filled[y0:y1, x0:x1] = True
    return filled


def _brain_slice(size=24, radius=10.0, tumor=True):
    """A disk of brain with a tumor of three components, or without."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    image = np.where(np.hypot(y, x) <= radius, 0.3, -1.0).astype(np.float32)[..., None]
    labels = np.zeros((size, size), np.uint8)
    if tumor:
        labels[7:11, 8:10] = 2
        labels[8:10, 9:11] = 3
        labels[9, 9] = 1
    return image, labels


def _draw(image, labels, config, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    images, maps = (np.broadcast_to(a, (count, *a.shape)) for a in (image, labels))
    condition = jax.device_get(_sample_batch(keys, images, maps, config))
    return condition.roi_masks, condition.class_vector


def _check(image, labels, roi_masks, class_vector):
    """Everything that holds for every training task of a slice, whatever was drawn."""
    assert roi_masks.shape == (*labels.shape, 5) and roi_masks.dtype == np.float32
    assert class_vector.shape == (5,) and class_vector.dtype == np.float32
    assert np.isin(roi_masks, (0, 1)).all()
    assert np.isin(class_vector, (EMPTY, FREE_FORM, BOX)).all()
    masks = roi_masks.astype(bool)
    assert masks.any(), "the ROI is empty"
    np.testing.assert_array_equal(class_vector == EMPTY, ~masks.any((0, 1)))

    tumor, cavity = np.isin(labels, (1, 2, 3)), labels == 4
    regions = {1: labels == 1, 2: labels == 2, 3: labels == 3, 4: tumor}
    for channel, region in regions.items():
        if class_vector[channel] == FREE_FORM:
            np.testing.assert_array_equal(masks[..., channel], region)
        if class_vector[channel] == BOX:
            np.testing.assert_array_equal(masks[..., channel], _filled_box(region))
    if class_vector[4] != EMPTY:
        assert (class_vector[1:4] == EMPTY).all()
    elif masks[..., 1:4].any():
        for channel in (1, 2, 3):
            assert (class_vector[channel] != EMPTY) == regions[channel].any()
    else:
        assert class_vector[0] != EMPTY

    normal = masks[..., 0]
    if class_vector[0] == BOX:
        np.testing.assert_array_equal(normal, _filled_box(normal))
    if not cavity.all():
        assert not (normal & (tumor | cavity)).any()
        assert not (normal & masks[..., 1:].any(-1)).any()
    brain = (image != -1).any(-1)
    if normal.any() and (brain & ~tumor & ~cavity & ~masks[..., 1:].any(-1)).any():
        assert (normal & brain).any()


# All slices of this size share one compiled program.
_CONFIG = TaskSettings()
_SHAPE = (14, 12)
_NUM_DRAWS = 16


@settings(max_examples=100, deadline=None)
@given(
    labels=hnp.arrays(np.uint8, _SHAPE, elements=st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4])),
    blank=st.integers(0, _SHAPE[0]),
    brain=hnp.arrays(np.bool_, (*_SHAPE, 2)),
    brain_everywhere=st.sampled_from([(False, False), (False, True), (True, False)]),
    seed=st.integers(0, 2**31 - 1),
)
def test_random_label_maps(labels, blank, brain, brain_everywhere, seed):
    labels[blank:] = 0
    image = np.where(brain | brain_everywhere, 0.5, -1.0).astype(np.float32)
    for task in zip(*_draw(image, labels, _CONFIG, _NUM_DRAWS, seed), strict=True):
        _check(image, labels, *task)


_NOTHING = np.zeros(_SHAPE, np.uint8)
_BRAIN = np.pad(np.ones((8, 6), np.uint8), 3)
_ONE_PIXEL = np.pad(np.ones((1, 1), np.uint8), ((5, 8), (4, 7)))
_EVERYWHERE = np.ones(_SHAPE, np.uint8)


@pytest.mark.parametrize(
    "brain, labels",
    [
        pytest.param(_NOTHING, _NOTHING, id="background only"),
        pytest.param(_EVERYWHERE, _NOTHING, id="brain fills the image"),
        pytest.param(_ONE_PIXEL, _NOTHING, id="one brain pixel"),
        pytest.param(_ONE_PIXEL, _ONE_PIXEL * 4, id="one brain pixel, cavity"),
        pytest.param(_BRAIN, _BRAIN * 2, id="tumor fills the brain"),
        pytest.param(_BRAIN, _BRAIN * 4, id="cavity fills the brain"),
        pytest.param(_EVERYWHERE, _EVERYWHERE * 3, id="tumor fills the image"),
        pytest.param(_EVERYWHERE, _EVERYWHERE * 4, id="cavity fills the image"),
        pytest.param(_NOTHING, _ONE_PIXEL * 1, id="tumor outside the brain"),
        pytest.param(_BRAIN, (_BRAIN - _ONE_PIXEL) * 2, id="one normal pixel"),
    ],
)
def test_odd_slices(brain, labels):
    # The brain shows in the second sequence only.
    image = np.stack([np.full(_SHAPE, -1), np.where(brain, 0.5, -1)], -1).astype(np.float32)
    for task in zip(*_draw(image, labels, _CONFIG, _NUM_DRAWS), strict=True):
        _check(image, labels, *task)


def test_brain_too_thin_for_any_shape_gets_a_smaller_one():
    # A circle of the least radius, one pixel, around a pixel of this line is 3/5 brain.
    image = np.full((*_SHAPE, 2), -1, np.float32)
    image[6, 1:-1] = 0.5
    roi_masks, class_vector = _draw(image, _NOTHING, _CONFIG, _NUM_DRAWS)
    assert (class_vector[:, 0] == FREE_FORM).any()
    for normal in roi_masks[..., 0].astype(bool):
        assert (image != -1).any(-1)[normal].mean() >= 0.75


@given(masks=hnp.arrays(np.bool_, (9, 11, 5)), keep=hnp.arrays(np.bool_, (9, 11, 5)))
@settings(max_examples=60, deadline=None)
def test_boxes_equal_regionprops(masks, keep):
    for sparse in (masks, masks & keep & np.roll(keep, 1, 0) & np.roll(masks, 3, 1)):
        boxes = np.asarray(_fill_boxes(sparse, np.ones(5, bool)))
        for channel in range(5):
            np.testing.assert_array_equal(boxes[..., channel], _filled_box(sparse[..., channel]))


def test_a_condition_states_the_task_that_was_given():
    masks = np.zeros((9, 11, 5), np.float32)
    masks[2, 3, 0] = masks[4, 7, 0] = 1
    masks[5:8, 1:4, 1] = masks[1, 1, 4] = 1
    task = _make_condition(masks > 0, np.array([True, False, True, False, True]))
    np.testing.assert_array_equal(task.class_vector, [BOX, FREE_FORM, EMPTY, EMPTY, BOX])
    expected = masks.copy()
    expected[2:5, 3:8, 0] = 1
    np.testing.assert_array_equal(task.roi_masks, expected)


def test_training_and_inference_agree():
    image = np.full((*_SHAPE, 2), 0.1, np.float32)
    labels = np.zeros(_SHAPE, np.uint8)
    labels[2:5, 3:9], labels[3, 4:7], labels[4, 5] = 2, 3, 1
    roi_masks, class_vector = _draw(image, labels, _CONFIG, _NUM_DRAWS)
    components = np.stack([labels == label for label in (1, 2, 3)], -1)
    for masks, classes in zip(roi_masks, class_vector, strict=True):
        normal, mixed = masks[..., :1], classes[4] != EMPTY
        given_masks = np.concatenate(
            [
                normal,
                components & (not mixed) & (classes[1:4] != EMPTY),
                components.any(-1, keepdims=True) & mixed,
            ],
            axis=-1,
        )
        task = _make_condition(given_masks > 0, classes == BOX)
        np.testing.assert_array_equal(task.roi_masks, masks)
        np.testing.assert_array_equal(task.class_vector, classes)


def test_probabilities_are_those_of_the_config():
    config = TaskSettings(
        prob_tumor=0.7, prob_normal=0.4, prob_mixed=0.35, prob_box=0.25, prob_normal_box=0.6
    )
    image, labels = _brain_slice()
    _, classes = _draw(image, labels, config, 4000)
    normal, mixed = classes[:, 0] != EMPTY, classes[:, 4] != EMPTY
    single = (classes[:, 1:4] != EMPTY).all(1)
    used = mixed | single

    def check(hits, probability):
        assert stats.binomtest(int(np.sum(hits)), len(hits), probability).pvalue > 1e-4

    assert not (mixed & single).any() and normal[~used].all()
    check(used, 0.7)
    check(normal[used], 0.4)
    check(mixed[used], 0.35)
    check(classes[mixed, 4] == BOX, 0.25)
    for channel in (1, 2, 3):
        check(classes[single, channel] == BOX, 0.25)
    check((classes[single, 1:4] == BOX).all(1), 0.25**3)
    check(classes[normal, 0] == BOX, 0.6)

    image, labels = _brain_slice(tumor=False)
    _, classes = _draw(image, labels, config, 4000)
    assert (classes[:, 0] != EMPTY).all() and (classes[:, 1:] == EMPTY).all()


_sample_stacks = jax.jit(
    jax.vmap(sample_stack, in_axes=(0, None, None, None, None)),
    static_argnums=4,
    compiler_options={"xla_backend_optimization_level": 0},
)


def test_a_stack_has_the_task_of_a_slice_and_its_neighbors_what_a_volume_would_show():
    image, labels = _brain_slice()
    _, without = _brain_slice(tumor=False)
    # One below with the core alone, one above with a cavity, two above without tumor.
    core, cavity = np.where(labels == 1, 1, 0), np.where(labels == 2, 4, labels)
    around = np.stack([labels, core, cavity, without]).astype(np.uint8)
    keys = jax.random.split(jax.random.key(0), 400)
    task, masks = jax.device_get(_sample_stacks(keys, image, labels, around, _CONFIG))
    alone = jax.device_get(
        _sample_batch(keys, *(np.stack([a] * 400) for a in (image, labels)), _CONFIG)
    )
    jax.tree.map(np.testing.assert_array_equal, task, alone)
    ended = 0
    for own, classes, drawn in zip(task.roi_masks, task.class_vector, masks, strict=True):
        for of_slice, rois in zip(around, drawn, strict=True):
            mixed, tumor = classes[4] != EMPTY, np.isin(of_slice, (1, 2, 3))
            drawn_tumor = (classes[1:] != EMPTY).any()
            for channel in range(1, 5):
                region = tumor if channel == 4 else of_slice == channel
                region = region & drawn_tumor & (mixed == (channel == 4))
                box = classes[channel] == BOX
                np.testing.assert_array_equal(
                    rois[..., channel], _filled_box(region) if box else region
                )
            normal = rois[..., 0] > 0
            assert not (normal & ((of_slice > 0) | rois[..., 1:].any(-1))).any()
            if classes[0] == BOX:
                np.testing.assert_array_equal(normal, _filled_box(normal))
            if classes[0] == EMPTY:
                assert not normal.any()
            ended += classes[0] != EMPTY and not normal.any()
        # Of one ellipsoid or cuboid the cuts lie over each other.
        if classes[0] != EMPTY and drawn[-1, ..., 0].any():
            assert (own[..., 0] * drawn[-1, ..., 0]).any()
    assert ended > 20


def test_cuts_through_ellipsoids_shrink_towards_their_ends():
    image, labels = _brain_slice(64, _BRAIN_RADIUS, tumor=False)
    config = TaskSettings(max_circles=1, min_radius=0.2, max_radius=0.25)
    keys = jax.random.split(jax.random.key(1), 300)
    around = np.stack([labels] * 4)
    task, masks = jax.device_get(_sample_stacks(keys, image, labels, around, config))
    box = task.class_vector[:, 0] == BOX
    stacks = np.concatenate([masks[:, :2], task.roi_masks[:, None], masks[:, 2:]], axis=1)[..., 0]
    areas = stacks.sum((2, 3))
    # A cuboid has one cut, wherever it is.
    assert all(set(row) <= {0, row[2]} for row in areas[box])
    # An ellipsoid's squared radius is a parabola of the height: pi r^2, to the pixels of the outline.
    for row in areas[~box]:
        if (row > 0).all() and row.max() < 3 * row[2]:
            second = np.diff(row, 2)
            assert np.ptp(second) < 4 * np.sqrt(row.max()) and second.mean() < np.sqrt(row.max())
    # Ends on either side, about as often.
    assert min((areas[:, 0] == 0).sum(), (areas[:, 4] == 0).sum()) > 15


_BRAIN_RADIUS = 28.0


def _normal_rois(config, count, labels=None):
    """Brain, masks of circles, masks of rectangles in a slice that is a disk of brain."""
    image, no_tumor = _brain_slice(64, _BRAIN_RADIUS, tumor=False)
    roi_masks, classes = _draw(image, no_tumor if labels is None else labels, config, count)
    masks = roi_masks[..., 0].astype(bool)
    return (image != -1)[..., 0], masks[classes[:, 0] == FREE_FORM], masks[classes[:, 0] == BOX]


@pytest.mark.parametrize("beside_cavity", [False, True])
def test_shapes_are_circles_and_rectangles_of_mostly_brain(beside_cavity):
    config = TaskSettings(max_circles=1, max_aspect=1.5)
    labels = np.zeros((64, 64), np.uint8)
    labels[26:38, 26:38] = 4 * beside_cavity
    brain, circles, rectangles = _normal_rois(config, 200, labels)
    for mask in np.concatenate([circles, rectangles]):
        assert brain[mask].mean() >= 0.75
        assert not (labels[mask] == 4).any()

    radii = []
    for mask in circles:
        y, x = np.nonzero(mask)
        center = y.mean(), x.mean()
        radii.append(np.hypot(y - center[0], x - center[1]).max())
        circle = np.zeros_like(mask)
        circle[disk(center, radii[-1] + 1e-6, shape=mask.shape)] = True
        np.testing.assert_array_equal(mask, circle)
    # The pixels' radius is up to one pixel below that of the circle.
    assert min(radii) > 0.1 * _BRAIN_RADIUS - 1
    assert max(radii) < 0.5 * _BRAIN_RADIUS + 0.01
    assert max(radii) > (7 if beside_cavity else 12)

    heights, widths = rectangles.any(2).sum(1), rectangles.any(1).sum(1)
    for mask in rectangles:
        np.testing.assert_array_equal(mask, _filled_box(mask))
    # The sides are known to within one pixel at either end.
    assert ((heights - 2) / (widths + 2) < 1.5).all() and ((widths - 2) / (heights + 2) < 1.5).all()
    assert (heights > widths).any() and (widths > heights).any()
    assert (heights - 2).max() * (widths - 2).max() < np.pi * (0.5 * _BRAIN_RADIUS) ** 2 * 1.5


def test_shapes_are_anywhere_in_the_brain_and_as_many_as_asked():
    config = TaskSettings(min_radius=0.02, max_radius=0.02, max_circles=3)
    _, circles, rectangles = _normal_rois(config, 1000)
    counts = np.bincount([ndimage.label(mask)[1] for mask in circles], minlength=4)
    # Small circles seldom touch, so the number of pieces is nearly that of circles.
    assert counts[0] == 0 and len(counts) == 4
    assert (np.abs(counts[1:] / counts.sum() - 1 / 3) < 0.07).all()

    assert all(ndimage.label(mask)[1] == 1 for mask in rectangles)
    centers = np.array([np.argwhere(mask).mean(0) for mask in rectangles]) - 31.5
    # In a disk the squared distance from its center and the direction are uniform.
    squared = (centers**2).sum(1) / _BRAIN_RADIUS**2
    directions = np.arctan2(*centers.T) / (2 * np.pi) % 1
    assert stats.kstest(squared, "uniform").pvalue > 1e-3
    assert stats.kstest(directions, "uniform").pvalue > 1e-3


def _real_slices(folder):
    images, labels = [], []
    for path in sorted(folder.rglob("*seg*.nii*")):
        segmentation = np.asarray(nibabel.load(path).dataobj).astype(np.uint8)
        # Enhancement is 4 until BraTS 2021.
        segmentation[segmentation == 4] = 3
        (image_path, *_) = sorted(path.parent.glob("*flair.nii*")) or sorted(
            path.parent.glob("*t2f.nii*")
        )
        volume = np.asarray(nibabel.load(image_path).dataobj)
        for k in range(10, 150, 14):
            values = volume[:, :, k].T[..., None]
            if (values != 0).sum() >= 100:
                images.append(np.where(values == 0, -1, values / 1000).astype(np.float32))
                labels.append(segmentation[:, :, k].T)
    return np.stack(images), np.stack(labels)


def test_real_slices(real_cases):
    @jax.jit
    @jax.vmap
    def prepare(key, image, labels):
        augment_key, task_key = jax.random.split(key)
        small = area_resize(image, (60, 60)), nearest_resize(labels, (60, 60))
        moved = augment(augment_key, *small)
        return *moved, sample_task(task_key, *moved, TaskSettings())

    images, labels = _real_slices(real_cases)
    assert (labels > 0).any((1, 2)).sum() > 20
    keys = jax.random.split(jax.random.key(0), len(images))
    images, labels, task = jax.device_get(prepare(keys, images, labels))
    for example in zip(images, labels, task.roi_masks, task.class_vector, strict=True):
        _check(*example)
    has_normal = task.class_vector[:, 0] != EMPTY
    brain = (images[has_normal] != -1).any(-1)
    normal = task.roi_masks[has_normal, ..., 0].astype(bool)
    # Rarely below 75%: where circles that each keep to it overlap in brain.
    share = (normal & brain).sum((1, 2)) / normal.sum((1, 2))
    assert np.mean(share >= 0.75) > 0.97 and share.min() > 0.6


@pytest.mark.parametrize(
    "wrong",
    [
        {"prob_tumor": 1.5},
        {"prob_normal_box": -0.1},
        {"min_brain_fraction": 2},
        {"min_radius": 0},
        {"min_radius": 0.6},
        {"max_aspect": 0.5},
        {"max_circles": 0},
        {"num_candidates": 2},
    ],
)
def test_impossible_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TaskSettings(**wrong)


@pytest.mark.parametrize("shape", [(8, 8, 4), (2, 8, 8, 6), (8, 5)])
def test_masks_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="normal"):
        Rois(np.zeros(shape))
