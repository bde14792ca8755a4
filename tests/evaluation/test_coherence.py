"""Measures of a repainted region against closed forms, and against SciPy."""

import numpy as np
import pytest
from scipy import ndimage

from mbti_jax.evaluation import coherence

SHAPE = (12, 14, 16)
Z, Y, X = np.indices(SHAPE).astype(float)
BRAIN = np.ones(SHAPE, bool)


def block(shape=SHAPE):
    roi = np.zeros(shape, bool)
    roi[3:9, 4:11, 5:12] = True
    return roi


def measured(before, after, roi=None, brain=BRAIN, **options):
    roi = block() if roi is None else roi
    return coherence.measures(before, np.where(roi, after, before), roi, brain, **options)


def test_what_was_not_changed_is_right_in_everything():
    real = np.random.default_rng(0).normal(size=SHAPE)
    found = measured(real, real)
    ones = ("step", "coronal", "sagittal", "texture", "seam")
    assert [found[name] for name in ones] == [1] * 5
    assert found["false_brain"] is None


def test_steps_of_linear_ramps_are_their_slopes():
    found = measured(2 * Z + 3 * X, 5 * Z + 3 * X)
    assert found["step"] == pytest.approx(5 / 2)
    assert found["step_around"] == pytest.approx(5 / 2)
    # Tissue around a region may step otherwise than the tissue that was in it.
    found = measured(np.where(block(), 4 * Z, 2 * Z), 5 * Z)
    assert found["step"] == pytest.approx(5 / 4)
    assert found["step_around"] == pytest.approx(5 / 2)


def test_tissue_around_is_counted_in_millimeters():
    """Ten millimeters are one slice of 8 mm, and no more: the step beyond does not count."""
    shape = (12, 3, 3)
    roi = np.zeros(shape, bool)
    roi[5:7] = True
    z = np.indices(shape)[0].astype(float)
    before = np.where(z < 4, 100 * z, z)
    before[8:] = 100 * z[8:]
    found = coherence.measures(before, before, roi, np.ones(shape, bool), spacing=(8, 1, 1))
    # Slices 4 and 7 are around; no two of them are neighbors.
    assert found["step_around"] is None
    found = coherence.measures(before, before, roi, np.ones(shape, bool), spacing=(4, 1, 1))
    # Slices 3, 4, 7 and 8: from 300 to 4 and from 7 to 800.
    assert found["step_around"] == pytest.approx(1 / ((296 + 793) / 2))


def test_stripes_of_a_known_pattern():
    """Slices alternate by a, and columns ascend by b and rows by c: a^2 over b^2 and over c^2."""
    inside = block()
    found = coherence.stripes(6 * (Z % 2) + 2 * X + 3 * Y, inside)
    assert found == pytest.approx({"coronal": 9, "sagittal": 4})
    # Painted over real: the same but without the stripes, where slices ascend by 1.
    found = measured(1 * Z + 2 * X + 3 * Y, 6 * (Z % 2) + 2 * X + 3 * Y)
    assert (found["coronal"], found["sagittal"]) == pytest.approx((36, 36))


def test_stripes_of_white_noise_and_of_noise_that_is_smooth_along_z():
    rng = np.random.default_rng(1)
    shape = (60, 50, 50)
    noise, inside = rng.normal(size=shape), np.ones(shape, bool)
    found = coherence.stripes(noise, inside)
    assert found == pytest.approx({"coronal": 1, "sagittal": 1}, rel=0.02)
    # A Gaussian filter with weights w along z leaves E d^2 = 2 (r_0 - r_1), r the correlation of w.
    smooth = ndimage.gaussian_filter1d(noise, 2.0, axis=0, mode="wrap")
    impulse = np.zeros(41)
    impulse[20] = 1
    w = ndimage.gaussian_filter1d(impulse, 2.0)
    expected = 1 - np.correlate(w, w, "full")[41] / np.square(w).sum()
    found = coherence.stripes(smooth, inside)
    assert found == pytest.approx({"coronal": expected, "sagittal": expected}, rel=0.05)
    # The same everywhere smoother, in all directions alike: a step of less, but no stripes.
    found = measured(noise, noise / 3, block(shape), np.ones(shape, bool))
    assert found["coronal"] == pytest.approx(1) and found["sagittal"] == pytest.approx(1)
    assert found["step"] == pytest.approx(1 / 3)
    assert found["texture"] == pytest.approx(1 / 3, rel=0.2)


def test_independent_slices_step_by_the_square_root_of_the_correlation_lost():
    """Of normal values with correlation r between slices E |d| is 2 sqrt((1 - r) / pi)."""
    rng = np.random.default_rng(2)
    shape, r = (80, 40, 40), 0.9
    real = [rng.normal(size=shape[1:])]
    for _ in range(shape[0] - 1):
        real.append(r * real[-1] + np.sqrt(1 - r**2) * rng.normal(size=shape[1:]))
    everything = np.ones(shape, bool)
    found = measured(np.stack(real), rng.normal(size=shape), everything, everything)
    assert found["step"] == pytest.approx(np.sqrt(1 / (1 - r)), rel=0.03)


def test_the_seam_is_the_step_across_the_border():
    """A region brighter by a than its surroundings, in which neighbors differ by b."""
    before = np.where((X + Y) % 2 == 0, 0.0, 0.5)
    found = measured(before, np.where((X + Y) % 2 == 0, 4.0, 4.5))
    # Neighbors differ by 4.5 or 3.5 in equal numbers or nearly; the real ones always by 0.5.
    roi = block()
    across = []
    for axis in (1, 2):
        pairs = np.diff(roi.astype(int), axis=axis) != 0
        across.append(np.abs(np.diff(np.where(roi, before + 4, before), axis=axis)[pairs]))
    assert found["seam"] == pytest.approx(np.concatenate(across).mean() / 0.5)
    assert 7.5 < found["seam"] < 8.5
    # Only there: what happens inside of the outermost pixels is no seam.
    inner = ndimage.binary_erosion(roi)
    again = measured(before, np.where(inner, 99.0, before))
    assert again["seam"] == 1


def test_the_border_on_background_is_no_seam():
    real = np.where(X < 12, 5 + X % 2, 0.0)
    brain = real > 0
    roi = block()
    found = measured(real, real, roi, brain)
    assert found["seam"] == 1
    assert coherence.border_step(real, roi, brain) == pytest.approx(
        # 7 rows: left 0 or 1 apart; columns: equal values above and below.
        np.abs(real[0, 0, 5] - real[0, 0, 4]) * 7 / (7 + 2 * 7)
    )


def test_false_brain_is_the_share_of_background_painted_as_brain():
    brain = X < 9
    real = np.where(brain, 1.0, 0.0)
    painted = real.copy()
    painted[:, :, 10] = 0.3
    painted[:, :, 11] = 0.05
    # Of the columns 9, 10 and 11 of the block one is bright.
    assert measured(real, painted, None, brain)["false_brain"] == pytest.approx(1 / 3)
    assert measured(real, painted, None, brain, level=0.01)["false_brain"] == pytest.approx(2 / 3)


def test_what_cannot_be_measured_is_none():
    real = 2 * Z + X
    flat = measured(real, np.full(SHAPE, 7.0))
    assert flat["coronal"] is flat["sagittal"] is None
    assert flat["step"] == 0
    alone = block()
    alone[:6] = alone[7:] = False
    found = measured(real, real, alone)
    assert (
        found["step"] is found["step_around"] is found["coronal"] is None or found["step"] is None
    )
    assert measured(np.zeros(SHAPE), Z)["texture"] is None


def test_texture_sees_nothing_but_the_region():
    rng = np.random.default_rng(3)
    real, inside = rng.normal(size=SHAPE), block()
    rows = coherence.roughness(real, inside)
    expected = [np.abs(ndimage.laplace(real[k]))[5:10, 6:11].ravel() for k in range(3, 9)]
    np.testing.assert_allclose(rows, np.concatenate(expected))
