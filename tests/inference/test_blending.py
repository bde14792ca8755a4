"""Blending: of a disk the membrane is known, and so is a step."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.special import iv

from mbti_jax.diffusion.sampling import BLEND_REACH_MM
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


@pytest.mark.parametrize("size", [(0.25, 0.25), (0.3, 0.15)])
def test_in_a_disk_a_constant_offset_goes_away_as_a_bessel_function(size):
    """At the border all of it; u'' + u' / r = u / reach^2 has the solution I_0(r / reach)."""
    radius, offset = 12.0, np.array([0.2, -0.4])
    middle = [int(radius / s) + 4 for s in size]
    y, x = np.indices([2 * m + 1 for m in middle])
    r = np.hypot((y - middle[0]) * size[0], (x - middle[1]) * size[1])
    disk, everywhere = r < radius, np.ones(r.shape, bool)
    flat = np.full((*r.shape, 2), 0.3)
    made = blended(flat + disk[..., None] * offset, disk, everywhere, disk, size)
    added = -iv(0, r / BLEND_REACH_MM) / iv(0, radius / BLEND_REACH_MM)
    # The border is a pixel wide.
    expected = (1 + added[disk])[:, None] * offset
    np.testing.assert_allclose((made - flat)[disk], expected, atol=0.06 * abs(offset).max())
    center = (made - flat)[middle[0], middle[1]]
    np.testing.assert_allclose(center, (1 - 1 / iv(0, radius / BLEND_REACH_MM)) * offset, rtol=0.03)
    edge = disk & (r > radius - min(size))
    np.testing.assert_allclose(made[edge], flat[edge], atol=0.03)


def test_what_is_added_fades_and_keeps_to_the_roi(roi):
    rng = np.random.default_rng(0)
    image = tissue() + roi[..., None] * (0.3 + 0.05 * rng.standard_normal((*SHAPE, 2)))
    made = blended(image, roi, EVERYWHERE, roi)
    np.testing.assert_array_equal(made[~roi], image[~roi])
    added = made - image
    laplacian = sum(np.roll(added, s, a) for a in (0, 1) for s in (1, -1)) - 4 * added
    core = binary_erosion(roi, iterations=2)
    np.testing.assert_allclose(laplacian[core], added[core] / BLEND_REACH_MM**2, atol=1e-12)
    # It is largest on the border.
    assert np.abs(added[core]).max() <= np.abs(added[roi]).max()

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
    border = painted & ~binary_erosion(roi)
    assert border.any() and (made[border] < 0.15).all()
    np.testing.assert_array_equal(blended(image, roi, ~EVERYWHERE, painted), image)


def test_parts_that_touch_no_brain_stay(roi):
    far = np.zeros(SHAPE, bool)
    far[1:4, 1:4] = True
    around = EVERYWHERE.copy()
    around[:8, :8] = False
    image = np.where((roi | far)[..., None], 0.5, 0.1)
    made = blended(image, roi | far, around, roi | far)
    np.testing.assert_array_equal(made[far], image[far])
    np.testing.assert_allclose(made[roi & ~binary_erosion(roi)], 0.1, atol=1e-12)
    assert (made[roi] < 0.5).all()


def test_the_smoothing_is_in_millimeters(roi):
    """So over more pixels where they are smaller, which leaves less of a bumpy border's bumps."""
    rough = np.where(roi[..., None], 0.4 * np.sin(np.indices(SHAPE)[0] / 2.0)[..., None], 0.0)
    coarse = blended(rough, roi, EVERYWHERE, roi)
    fine = blended(rough, roi, EVERYWHERE, roi, (0.5, 0.5))
    smoother = blended(rough, roi, EVERYWHERE, roi, (0.25, 0.25))

    def bumps(made):
        return np.abs(np.diff((made - rough)[roi], axis=0)).sum()

    assert bumps(coarse) > bumps(fine) > bumps(smoother)
