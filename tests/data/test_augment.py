"""Flips and rotation against numpy and scipy."""

import functools

import jax
import numpy as np
import pytest
from scipy import ndimage, stats

from mbti_jax.data.augment import Augmentation, augment, crop_corner, flip_and_rotate
from mbti_jax.fields import FieldError

_flip_and_rotate = jax.jit(flip_and_rotate)
_augment = jax.jit(jax.vmap(augment))


def _example(height, width, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 2, (height, width, channels)).astype(np.float32)
    return image, rng.integers(0, 5, (height, width)).astype(np.uint8)


def _source_coordinates(height, width, degrees):
    angle = np.deg2rad(degrees)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y -= (height - 1) / 2
    x -= (width - 1) / 2
    return (
        np.cos(angle) * y + np.sin(angle) * x + (height - 1) / 2,
        np.cos(angle) * x - np.sin(angle) * y + (width - 1) / 2,
    )


@pytest.mark.parametrize("height, width", [(64, 64), (41, 56)])
@pytest.mark.parametrize("degrees", [-15.0, -3.3, 7.25, 14.9])
def test_rotation_equals_scipy(height, width, degrees):
    image, labels = _example(height, width)
    moved_image, moved_labels = _flip_and_rotate(image, labels, False, False, degrees)
    assert moved_image.dtype == np.float32 and moved_labels.dtype == np.uint8

    def rotate(array, order, fill):
        return ndimage.rotate(
            array, degrees, reshape=False, order=order, mode="grid-constant", cval=fill
        )

    np.testing.assert_allclose(moved_image, rotate(image.astype(np.float64), 1, -1.0), atol=1e-4)
    # Where a coordinate lies half way between two pixels, rounding decides which one is nearest.
    coordinates = _source_coordinates(height, width, degrees)
    clear = np.all([np.abs(c - np.floor(c) - 0.5) > 1e-4 for c in coordinates], axis=0)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(moved_labels)[clear], rotate(labels, 0, 0)[clear])


@pytest.mark.parametrize("vertical, horizontal", [(True, False), (False, True), (True, True)])
def test_flips_come_before_the_rotation(vertical, horizontal):
    image, labels = _example(20, 24)
    flipped = image[::-1] if vertical else image, labels[::-1] if vertical else labels
    if horizontal:
        flipped = tuple(array[:, ::-1] for array in flipped)
    still_image, still_labels = _flip_and_rotate(image, labels, vertical, horizontal, 0.0)
    np.testing.assert_allclose(still_image, flipped[0], atol=1e-6)
    np.testing.assert_array_equal(still_labels, flipped[1])
    turned_image, _ = _flip_and_rotate(image, labels, vertical, horizontal, 12.0)
    expected = ndimage.rotate(
        flipped[0].astype(np.float64), 12.0, reshape=False, order=1, mode="grid-constant", cval=-1
    )
    np.testing.assert_allclose(turned_image, expected, atol=1e-4)


def test_background_away_from_brain_stays_exactly_minus_one():
    image = np.full((64, 64, 1), -1, np.float32)
    image[24:40, 24:40] = _example(16, 16, 1)[0]
    labels = np.zeros((64, 64), np.uint8)
    labels[28:34, 30:38] = 3
    brain = (image != -1).any(-1).astype(np.float64)
    for degrees in np.linspace(-15, 15, 7):
        moved, moved_labels = map(np.asarray, _flip_and_rotate(image, labels, True, False, degrees))
        reached = ndimage.rotate(brain[::-1], degrees, reshape=False, order=1) > 0
        assert (moved[~ndimage.binary_dilation(reached)] == -1).all()
        assert (moved[reached] != -1).mean() > 0.9
        assert set(np.unique(moved_labels)) == {0, 3}


def test_augmentation_is_reproducible_and_differs_by_key():
    image, labels = _example(24, 24)
    keys = jax.random.split(jax.random.key(1), 4)
    images, maps = np.stack([image] * 4), np.stack([labels] * 4)
    first, again = _augment(keys, images, maps), _augment(keys, images, maps)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    for i in range(3):
        assert not np.array_equal(first[0][i], first[0][i + 1])


@pytest.mark.parametrize(
    "how, vertical, horizontal",
    [
        (Augmentation(), 0.5, 0.5),
        (Augmentation(0.0, 1.0, 0.0), 0, 1),
        (Augmentation(0.2, 0.7, 5), 0.2, 0.7),
    ],
)
def test_angles_are_uniform_and_flips_as_probable_as_asked_for(how, vertical, horizontal):
    # Where two brighter spots end up gives both flips and the angle.
    size, draws, arm = 41, 600, 12
    image = np.full((size, size, 1), -1, np.float32)
    center = size // 2
    image[center - 1 : center + 2, center + arm - 1 : center + arm + 2] = 1.0
    image[center + arm - 1 : center + arm + 2, center - 1 : center + 2] = 5.0
    keys = jax.random.split(jax.random.key(3), draws)
    move = jax.jit(jax.vmap(functools.partial(augment, how=how)))
    moved, _ = move(keys, np.stack([image] * draws), np.zeros((draws, size, size), np.uint8))
    y, x = np.mgrid[:size, :size] - center
    angles, flips = [], []
    for picture in np.asarray(moved)[..., 0] + 1:
        # The two spots differ in weight, 1 : 3; split the plane along the diagonals.
        sideways = np.abs(x) > np.abs(y)
        weight = picture * sideways
        spot_y, spot_x = (weight * y).sum() / weight.sum(), (weight * x).sum() / weight.sum()
        below = ((picture * ~sideways) * y).sum() > 0
        flips.append((not below, spot_x < 0))
        angle = np.rad2deg(np.arctan2(-spot_y, abs(spot_x)))  # Counter-clockwise, y points down.
        angles.append(-angle if spot_x < 0 else angle)
    angles = np.array(angles)
    assert np.abs(angles).max() <= how.max_angle + 0.2
    if how.max_angle:
        uniform = stats.uniform(-how.max_angle, 2 * how.max_angle)
        assert stats.kstest(angles, uniform.cdf).pvalue > 1e-3
    for count, share in zip(np.sum(flips, axis=0), (vertical, horizontal), strict=True):
        assert stats.binomtest(int(count), draws, share).pvalue > 1e-3
    both = int(np.sum(np.all(flips, axis=1)))
    assert stats.binomtest(both, draws, vertical * horizontal).pvalue > 1e-3


@pytest.mark.parametrize("field", ["vertical_flip", "horizontal_flip"])
def test_probabilities_are_probabilities(field):
    with pytest.raises(FieldError, match=field):
        Augmentation(**{field: 1.2})


def test_parts_hold_a_pixel_of_the_roi_that_is_uniform():
    roi = np.zeros((12, 10, 1), bool)
    roi[3, 4] = roi[9, 8] = roi[10, 8] = True
    keys = jax.random.split(jax.random.key(5), 3000)
    rows, columns = jax.jit(jax.vmap(lambda key: crop_corner(key, roi, (1, 1))))(keys)
    pixels, counts = np.unique(np.stack([rows, columns], 1), axis=0, return_counts=True)
    np.testing.assert_array_equal(pixels, np.argwhere(roi[..., 0]))
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("centered", [False, True])
def test_parts_lie_inside_the_slice_and_anywhere_around_their_pixel(centered):
    roi = np.zeros((12, 10, 1), bool)
    roi[5, 7] = True
    keys = jax.random.split(jax.random.key(6), 500)
    corner = functools.partial(crop_corner, roi=roi, size=(4, 6), centered=centered)
    rows, columns = map(np.asarray, jax.jit(jax.vmap(corner))(keys))
    assert set(rows) == {2, 3, 4, 5}
    # Columns 2 to 7 hold the pixel; from the fifth on, the part would not lie in the slice.
    assert set(columns) == ({2} if centered else {2, 3, 4})
