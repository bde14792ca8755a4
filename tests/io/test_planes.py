"""Planes of volumes: which, how they lie, and their proportions."""

import numpy as np
import pytest

from mbti_jax.io.planes import planes_through

SHAPE = (10, 12, 14)


def box(*ends, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*pair) for pair in ends)] = True
    return mask


def whole(region, spacing=(1.0, 1.0, 1.0)):
    return planes_through(region, np.ones(region.shape, bool), spacing, whole=True)


def test_each_plane_is_the_one_with_the_largest_cross_section():
    region = box((2, 5), (3, 6), (4, 7))
    # More of slice 6, of row 8 and of column 9 than of any other.
    region[6, 0:11, 0:10] = True
    region[0:10, 8, 0:13] = True
    region[0:10, 0:12, 9] = True
    areas = [[region.take(n, axis).sum() for n in range(region.shape[axis])] for axis in range(3)]
    planes = whole(region)
    assert [plane.number for plane in planes] == [int(np.argmax(area)) for area in areas]
    assert [plane.title for plane in planes] == ["axial 6", "coronal 8", "sagittal 9"]


def test_superior_is_on_top_and_anterior_on_the_left():
    """Slices count from below, rows from the front, columns from the right."""
    z, y, x = np.indices(SHAPE)
    region = box((3, 5), (4, 6), (7, 9))
    axial, coronal, sagittal = whole(region)
    assert (axial.number, coronal.number, sagittal.number) == (3, 4, 7)
    np.testing.assert_array_equal(axial.of(100 * y + x), (100 * y + x)[3])
    np.testing.assert_array_equal(coronal.of(100 * z + x), (100 * z + x)[::-1, 4])
    np.testing.assert_array_equal(sagittal.of(100 * z + y), (100 * z + y)[::-1, :, 7])
    assert coronal.of(z)[0, 0] == sagittal.of(z)[0, 0] == SHAPE[0] - 1
    assert sagittal.of(y)[0].tolist() == list(range(SHAPE[1]))


@pytest.mark.parametrize("spacing", [(5.0, 1.0, 1.0), (2.5, 1.0, 1.0), (1.0, 3.0, 1.5)])
def test_a_ball_of_millimeters_is_round_in_every_plane(spacing):
    """A radius of 20 mm, in voxels of any size: as wide as high, to a voxel's side."""
    shape = [int(60 / size) for size in spacing]
    grid = np.indices(shape)
    centers = [(g + 0.5) * size - 30 for g, size in zip(grid, spacing, strict=True)]
    ball = sum(c**2 for c in centers) <= 20**2
    for plane in whole(ball, spacing):
        shown = plane.of(ball)
        pixel = min(plane.pixel_mm)
        height, width = (pixel * np.count_nonzero(shown.any(axis)) for axis in (1, 0))
        assert height == pytest.approx(40, abs=1.5 * max(spacing))
        assert width == pytest.approx(40, abs=1.5 * max(spacing))
        # The whole field is 60 mm, and a picture's pixels are square.
        assert shown.shape[0] * pixel == pytest.approx(60, abs=max(spacing))
        assert shown.shape[1] * pixel == pytest.approx(60, abs=max(spacing))


def test_pixels_are_repeated_so_that_labels_stay_labels():
    labels = np.zeros((4, 6, 6, 2), np.uint8)
    labels[1, 2, 3] = (7, 9)
    _, coronal, _ = planes_through(
        labels[..., 0] > 0, np.ones((4, 6, 6), bool), (3.0, 1.0, 1.0), whole=True
    )
    shown = coronal.of(labels)
    assert shown.shape == (12, 6, 2) and shown.dtype == np.uint8
    expected = np.repeat(labels[::-1, 2], 3, axis=0)
    np.testing.assert_array_equal(shown, expected)


def test_a_small_region_is_shown_with_a_hundred_millimeters_around_it():
    shape, spacing = (50, 180, 160), (3.0, 1.0, 1.0)
    brain = box((2, 49), (5, 175), (8, 150), shape=shape)
    region = box((20, 24), (100, 112), (60, 70), shape=shape)
    axial, coronal, sagittal = planes_through(region, brain, spacing)
    for plane in (axial, coronal, sagittal):
        shown = plane.of(region)
        assert shown.any()
        assert shown.shape[0] == pytest.approx(100, abs=3)
        assert shown.shape[1] == pytest.approx(100, abs=3)
        assert plane.of(region).sum() == region.take(plane.number, plane.axis).sum() * (
            1 if plane is axial else 3
        )
    # In the middle of the picture.
    rows, columns = (np.flatnonzero(axial.of(region).any(axis)) for axis in (1, 0))
    assert rows.mean() == pytest.approx(49.5, abs=1) and columns.mean() == pytest.approx(
        49.5, abs=1
    )


def test_a_picture_does_not_reach_beyond_brain_and_region():
    shape = (40, 180, 160)
    brain = box((2, 39), (5, 175), (8, 150), shape=shape)
    # At the brain's corner: the picture moves inward, and is as large.
    region = box((2, 6), (5, 15), (0, 10), shape=shape)
    axial, *_ = planes_through(region, brain, (1.0, 1.0, 1.0))
    assert axial.window == (slice(5, 105), slice(0, 100))
    # A large one has its margin of 16 mm, and no brain is left out that is not there.
    region = box((2, 39), (30, 150), (8, 150), shape=shape)
    axial, coronal, _ = planes_through(region, brain, (1.0, 1.0, 1.0))
    assert axial.window == (slice(14, 166), slice(8, 150))
    assert coronal.window == (slice(2, 39), slice(8, 150))
