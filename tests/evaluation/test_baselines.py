"""Fills that learn nothing: what they see, and what they leave."""

import numpy as np
import pytest

from mbti_jax.evaluation.baselines import biharmonic, surrounding_mean, telea

FILLS = pytest.mark.parametrize("fill", [surrounding_mean, telea, biharmonic])


def example(seed: int = 0, size: int = 40):
    """A smooth image on a disc of brain (background -1) and a square ROI in it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    brain = np.hypot(y - size / 2, x - size / 2) < 0.45 * size
    image = np.where(brain, np.sin(y / 7) * np.cos(x / 5) / 2 + rng.normal(0, 0.05, y.shape), -1)
    roi = np.zeros_like(brain)
    roi[15:22, 18:27] = True
    return image.astype(np.float32), roi, brain


@FILLS
def test_the_context_is_left_bit_for_bit(fill):
    image, roi, brain = example()
    before = image.copy()
    filled = fill(image, roi, brain)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[~roi], image[~roi])
    assert (filled[roi] != image[roi]).any()
    np.testing.assert_array_equal(image, before)


@FILLS
def test_the_truth_inside_the_roi_is_not_looked_at(fill):
    image, roi, brain = example()
    noise = np.random.default_rng(1).normal(0, 100, image.shape).astype(np.float32)
    changed = np.where(roi, noise, image)
    np.testing.assert_array_equal(fill(changed, roi, brain), fill(image, roi, brain))


@FILLS
def test_a_constant_brain_is_continued(fill):
    _, roi, brain = example()
    image = np.where(brain, 0.37, -1).astype(np.float32)
    np.testing.assert_allclose(fill(image, roi, brain)[roi], 0.37, atol=1e-4)


@FILLS
def test_a_fill_stays_within_the_values_around_it(fill):
    image, roi, brain = example()
    filled = fill(image, roi, brain)[roi]
    around = image[brain & ~roi]
    assert around.min() - 1e-4 <= filled.min()
    assert filled.max() <= around.max() + 1e-4


def test_the_surrounding_mean_is_that_of_an_explicit_loop():
    image, roi, brain = example()
    roi[20:24, 30:40] = True  # Beyond the edge of the brain.
    values = []
    for i, j in zip(*np.nonzero(brain & ~roi), strict=True):
        # Three steps of a dilation by the four neighbors reach what is three city blocks away.
        if min(abs(i - a) + abs(j - b) for a, b in zip(*np.nonzero(roi), strict=True)) <= 3:
            values.append(float(image[i, j]))
    filled = surrounding_mean(image, roi, brain)
    np.testing.assert_allclose(filled[roi], np.mean(values), rtol=1e-6)


def test_far_from_the_brain_the_mean_is_that_of_all_of_it():
    image, _, brain = example()
    roi = np.zeros_like(brain)
    roi[:2, :2] = True
    filled = surrounding_mean(image, roi, brain)
    np.testing.assert_allclose(filled[roi], image[brain].mean(), rtol=1e-5)


@FILLS
def test_a_roi_over_everything_is_an_error(fill):
    image, _, brain = example()
    with pytest.raises(ValueError, match="the ROI leaves no"):
        fill(image, np.ones_like(brain), brain)


def test_telea_continues_a_slope_better_than_a_mean():
    size = 40
    truth = np.broadcast_to(np.linspace(-0.5, 0.8, size, dtype=np.float32), (size, size)).copy()
    roi = np.zeros((size, size), bool)
    roi[16:24, 10:30] = True
    brain = np.ones_like(roi)
    errors = [
        np.abs(fill(truth, roi, brain) - truth)[roi].mean() for fill in (telea, surrounding_mean)
    ]
    assert errors[0] < errors[1] / 2


def test_the_biharmonic_fill_continues_cubics_exactly():
    """The bilaplacian of a cubic is 0, and so is its discrete form: the truth is the solution."""
    y, x = np.mgrid[:30, :32] / 30 - 0.5
    truth = 0.3 + x - 2 * y + x * y - x**2 + 2 * x**3 - 1.5 * x * y**2
    roi = np.zeros(truth.shape, bool)
    roi[9:15, 8:20] = True
    roi[20:23, 25:27] = True  # A second region.
    filled = biharmonic(truth, roi, np.ones_like(roi))
    np.testing.assert_allclose(filled, truth, atol=1e-9)


def test_the_biharmonic_fill_sees_the_surroundings_and_nothing_else():
    image, roi, brain = example()
    far = np.zeros_like(roi)
    far[:12] = True  # The ROI begins in row 15, and the fill reaches two pixels.
    changed = np.where(far, 5, image).astype(np.float32)
    expected = biharmonic(image, roi, brain)
    np.testing.assert_array_equal(biharmonic(changed, roi, brain)[~far], expected[~far])
    changed = image.copy()
    changed[13, 20] += 1
    assert (biharmonic(changed, roi, brain)[roi] != expected[roi]).any()


def test_an_empty_roi_leaves_everything():
    image, roi, brain = example()
    np.testing.assert_array_equal(biharmonic(image, np.zeros_like(roi), brain), image)
