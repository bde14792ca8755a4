"""Blending: harmonic functions are known, and so is a step."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from mbti_jax.inference.blending import blended

SHAPE = (40, 36)
EVERYWHERE = np.ones(SHAPE, bool)


@pytest.fixture
def roi() -> np.ndarray:
    y, x = np.indices(SHAPE)
    return ((y - 20) / 12) ** 2 + ((x - 18) / 9) ** 2 < 1


def tissue() -> np.ndarray:
    y, x = np.indices(SHAPE)
    return np.stack([0.01 * y - 0.02 * x, np.sin(y / 5) * np.cos(x / 7)], axis=-1)


def test_a_constant_offset_goes_away(roi):
    """Of an image without steps of its own, all of it; the membrane is that constant."""
    flat = np.full((*SHAPE, 2), 0.3)
    made = blended(flat + roi[..., None] * np.array([0.2, -0.4]), roi, EVERYWHERE, roi)
    np.testing.assert_allclose(made, flat, atol=1e-12)


def test_what_is_added_is_harmonic_and_keeps_to_the_roi(roi):
    rng = np.random.default_rng(0)
    image = tissue() + roi[..., None] * (0.3 + 0.05 * rng.standard_normal((*SHAPE, 2)))
    made = blended(image, roi, EVERYWHERE, roi)
    np.testing.assert_array_equal(made[~roi], image[~roi])
    added = made - image
    laplacian = sum(np.roll(added, s, a) for a in (0, 1) for s in (1, -1)) - 4 * added
    core = binary_erosion(roi, iterations=2)
    np.testing.assert_allclose(laplacian[core], 0, atol=1e-12)
    # A harmonic function has its extremes on the border.
    assert added[core].min() >= added[roi].min() and added[core].max() <= added[roi].max()

    def step(image):
        """Mean over the border, whose texture averages out."""
        return abs((image[:, 1:] - image[:, :-1])[roi[:, 1:] & ~roi[:, :-1]].mean(0))

    assert (step(made) < 0.15 * step(image)).all()


def test_what_is_painted_as_air_or_lies_beside_air_stays(roi):
    image = np.where(roi[..., None], 0.5, 0.1)
    painted = roi.copy()
    painted[:, 20:] = False
    made = blended(image, roi, EVERYWHERE, painted)
    np.testing.assert_array_equal(made[~painted], image[~painted])
    assert (made[painted] < 0.2).all()
    np.testing.assert_array_equal(blended(image, roi, ~EVERYWHERE, painted), image)


def test_parts_that_touch_no_brain_stay(roi):
    far = np.zeros(SHAPE, bool)
    far[1:4, 1:4] = True
    around = EVERYWHERE.copy()
    around[:8, :8] = False
    image = np.where((roi | far)[..., None], 0.5, 0.1)
    made = blended(image, roi | far, around, roi | far)
    np.testing.assert_array_equal(made[far], image[far])
    np.testing.assert_allclose(made[roi], 0.1, atol=1e-12)


def test_the_smoothing_is_in_millimeters(roi):
    """So over more pixels where they are smaller, which leaves less of a bumpy border's bumps."""
    rough = np.where(roi[..., None], 0.4 * np.sin(np.indices(SHAPE)[0] / 2.0)[..., None], 0.0)
    coarse = blended(rough, roi, EVERYWHERE, roi)
    fine = blended(rough, roi, EVERYWHERE, roi, (0.5, 0.5))
    smoother = blended(rough, roi, EVERYWHERE, roi, (0.25, 0.25))

    def bumps(made):
        return np.abs(np.diff((made - rough)[roi], axis=0)).sum()

    assert bumps(coarse) > bumps(fine) > bumps(smoother)
