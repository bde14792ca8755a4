"""The search in the frequency domain against a loop over all places."""

import numpy as np
import pytest

from mbti_jax.evaluation.patch_search import Patch, distance_at, search


def _slices(seed, count=3, size=20):
    return np.random.default_rng(seed).uniform(-1, 1, (count, size, size)).astype(np.float32)


def _region(size=20, y=5, x=8):
    """Not symmetric, with a hole."""
    region = np.zeros((size, size), bool)
    region[y : y + 6, x : x + 4] = True
    region[y + 1, x : x + 3] = False
    return region


def _by_loop(patch, image):
    """(distance, mirrored, corner) of the best place."""
    best = (np.inf, None, None)
    height, width = patch.values.shape
    for mirrored in (False, True):
        values, inside = patch.values, patch.inside
        if mirrored:
            values, inside = np.fliplr(values), np.fliplr(inside)
        for y in range(image.shape[0] - height + 1):
            for x in range(image.shape[1] - width + 1):
                total, count = 0.0, 0
                for i in range(height):
                    for j in range(width):
                        if inside[i, j]:
                            total += (float(values[i, j]) - float(image[y + i, x + j])) ** 2
                            count += 1
                best = min(best, ((total / count) ** 0.5, mirrored, (y, x)))
    return best


def test_the_search_is_that_of_a_loop_over_all_places():
    slices = _slices(0)
    patches = [
        Patch.cut(image, _region(y=y, x=x))
        for image, y, x in zip(_slices(1), (5, 0, 14), (8, 16, 0), strict=True)
    ]
    found = search(patches, slices)
    for p, patch in enumerate(patches):
        for n, image in enumerate(slices):
            distance, mirrored, corner = _by_loop(patch, image)
            assert found.distances[p, n] == pytest.approx(distance, abs=1e-4)
            assert found.mirrored[p, n] == mirrored
            assert tuple(found.corners[p, n]) == corner


@pytest.mark.parametrize("mirror", [False, True])
def test_a_copy_is_found_where_it_was_put(mirror):
    """Shifted, mirrored, at the slice's border, among more slices than are searched at once."""
    slices = _slices(0, count=130)
    region = _region()
    patch = Patch.cut(_slices(1, count=1)[0], region)
    copied = patch.mirrored() if mirror else patch
    height, width = copied.values.shape
    corner = (20 - height, 0)
    place = slices[129, corner[0] : corner[0] + height, corner[1] : corner[1] + width]
    place[copied.inside] = copied.values[copied.inside]
    found = search([patch], slices)
    assert found.distances[0].argmin() == 129
    assert found.distances[0, 129] < 2e-3
    assert found.mirrored[0, 129] == mirror
    assert tuple(found.corners[0, 129]) == corner
    assert np.delete(found.distances[0], 129).min() > 0.2
    assert distance_at(copied, slices[129], corner) == 0


def test_distance_at_a_place_by_hand():
    patch = Patch(np.array([[1, 5, 3]], np.float32), np.array([[True, False, True]]), (0, 0))
    image = np.zeros((4, 4))
    image[2, 1:4] = (0, 9, 1)
    assert distance_at(patch, image, (2, 1)) == pytest.approx((0.5 * (1 + 4)) ** 0.5)


def test_a_patch_as_large_as_the_slice_has_one_place():
    slices = _slices(0)
    found = search([Patch.cut(slices[0], np.ones((20, 20), bool))], slices)
    assert found.distances[0, 0] < 2e-3
    assert (found.corners == 0).all()


def test_an_empty_region_is_refused():
    with pytest.raises(ValueError, match="empty region"):
        Patch.cut(_slices(0)[0], np.zeros((20, 20), bool))
