"""Axial slices of a volume, and boxes around what is in them, against scikit-image."""

import numpy as np
import pytest
from skimage.measure import regionprops

from tfds_brats.slices import bounding_box, from_slices, to_slices


def test_slices_show_the_patient_from_below_with_anterior_up():
    volume = np.zeros((3, 4, 5, 2))
    volume[0, 1, 2, 1] = 1  # In LPS: rightmost, second from the front, third from below.
    slices = to_slices(volume)
    assert slices.shape == (5, 4, 3, 2) and slices[2, 1, 0, 1] == slices.sum() == 1
    np.testing.assert_array_equal(from_slices(slices), volume)


@pytest.mark.parametrize("share", [0.005, 0.05, 1.0])
def test_bounding_box_over_leading_axes(share):
    rng = np.random.default_rng(1)
    for _ in range(20):
        mask = rng.random((2, 3, 11, 13)) < share
        if mask.any():
            (region,) = regionprops(mask.any((0, 1)).astype(np.uint8))
            assert bounding_box(mask) == region.bbox
    with pytest.raises(ValueError, match="empty mask"):
        bounding_box(np.zeros((2, 11, 13), bool))
