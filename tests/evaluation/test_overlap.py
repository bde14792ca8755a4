"""Overlaps against scipy and boxes moved by hand."""

import numpy as np
import pytest
from scipy.spatial.distance import dice as dice_dissimilarity
from scipy.spatial.distance import jaccard

from mbti_jax.evaluation.overlap import box_around, dice, intersection_over_union


def _box(y0, x0, y1, x1, shape=(12, 14)):
    box = np.zeros(shape, bool)
    box[y0:y1, x0:x1] = True
    return box


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_are_scipys(seed):
    a, b = np.random.default_rng(seed).random((2, 9, 7)) < 0.3
    assert dice(a, b) == pytest.approx(1 - dice_dissimilarity(a.ravel(), b.ravel()))
    assert intersection_over_union(a, b) == pytest.approx(1 - jaccard(a.ravel(), b.ravel()))


def test_shifted_boxes():
    a = _box(2, 2, 6, 8)  # 4 x 6
    assert intersection_over_union(a, a) == dice(a, a) == 1
    # Shifted by 1 row and 2 columns they share 3 x 4.
    b = _box(3, 4, 7, 10)
    assert intersection_over_union(a, b) == 12 / 36
    assert dice(a, b) == 24 / 48
    assert intersection_over_union(a, _box(8, 2, 12, 8)) == 0


def test_a_box_around_what_is_large_enough():
    region = np.zeros((12, 14), bool)
    region[2, 3:6] = region[4:7, 8] = True  # Two parts of 3 pixels.
    region[10, 12] = True  # A speck.
    np.testing.assert_array_equal(box_around(region, 2), _box(2, 3, 7, 9))
    np.testing.assert_array_equal(box_around(region, 1), _box(2, 3, 11, 13))
    assert not box_around(region, 4).any()
    assert not box_around(np.zeros((3, 3), bool), 1).any()


def test_diagonal_neighbors_are_connected():
    np.testing.assert_array_equal(box_around(np.eye(4, dtype=bool), 4), np.ones((4, 4), bool))


@pytest.mark.parametrize("overlap", [dice, intersection_over_union])
def test_what_has_no_overlap(overlap):
    empty = np.zeros((3, 3), bool)
    with pytest.raises(ValueError, match="undefined"):
        overlap(empty, empty)
    with pytest.raises(ValueError, match="one shape"):
        overlap(empty, np.ones((3, 4), bool))
    with pytest.raises(ValueError, match="bool"):
        overlap(empty, np.ones((3, 3)))
