"""The intensity scale against its definition, and the codes against what they must give back."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import scoreatpercentile

from tfds_brats.scale import encode, fit_scale


def volume(seed: int, low: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(values, brain) of a volume whose brain has a long bright tail and starts above `low`."""
    rng = np.random.default_rng(seed)
    brain = rng.random((12, 11, 10)) < 0.4
    return np.where(brain, low + 1e-3 + rng.gamma(2.0, 100.0, brain.shape), 0), brain


@pytest.mark.parametrize("low", [0.0, 500.0, -100.0])
def test_scale_is_the_stated_percentiles(low):
    values, brain = volume(0, low)
    scale = fit_scale(values, brain)
    assert scale.low == pytest.approx(min(0, scoreatpercentile(values[brain], 0.1)))
    assert scale.high == pytest.approx(scoreatpercentile(values[brain], 99.5))
    assert (scale.low < 0) == (low < 0)
    np.testing.assert_allclose(scale.to_model([scale.low, scale.high]), [-1, 1])
    assert scale.to_model(values).max() > 1
    np.testing.assert_allclose(scale.to_values(scale.to_model(values)), values, atol=1e-9)


def test_scale_ignores_brain_that_is_zero_in_this_sequence():
    values, brain = volume(1)
    scale = fit_scale(values, brain)
    assert fit_scale(values, np.ones_like(brain)) == scale


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 0.0, 0.0], "non-zero"),
        ([5.0, 5.0, 0.0], "constant"),
        ([5.0, np.nan, 1.0], "NaN"),
        ([5.0, np.inf, 1.0], "NaN"),
    ],
)
def test_unusable_values_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        fit_scale(np.array(values), np.array([True, True, False]))


integer_volumes = st.one_of(
    arrays(np.int16, (4, 5), elements=st.integers(-32767, 32767)),
    arrays(np.uint16, (4, 5), elements=st.integers(0, 65534)),
    arrays(np.uint8, (4, 5)),
    arrays(np.int8, (4, 5)),
    arrays(np.int32, (4, 5), elements=st.integers(2**31 - 60000, 2**31 - 1)),
    arrays(np.float32, (4, 5), elements=st.integers(-30000, 30000).map(float)),
)
brains = arrays(bool, (4, 5)).filter(np.any)


@settings(max_examples=200, deadline=None)
@given(
    integer_volumes,
    brains,
    st.sampled_from([(1.0, 0.0), (0.5, -3.0), (2.0**-10, 7.0), (-1.0, 0.0)]),
)
def test_whole_numbers_come_back_exactly(stored, brain, scaling):
    slope, intercept = scaling
    codes, code_slope, code_offset = encode(stored, brain, slope, intercept)
    assert codes.dtype == np.uint16
    np.testing.assert_array_equal(codes > 0, brain)
    values = code_slope * codes.astype(np.float64) + code_offset
    np.testing.assert_array_equal(
        values[brain], slope * stored[brain].astype(np.float64) + intercept
    )


float_volumes = st.one_of(
    arrays(np.float32, (4, 5), elements=st.floats(-1e6, 1e6, width=32)),
    arrays(np.float64, (4, 5), elements=st.floats(-10, 10)),
    arrays(np.int32, (4, 5), elements=st.integers(-(10**9), 10**9)),
)


@settings(max_examples=200, deadline=None)
@given(float_volumes, brains)
def test_other_numbers_come_back_to_half_a_step(stored, brain):
    assume(np.ptp(stored[brain]) > 1e-6)
    codes, code_slope, code_offset = encode(stored, brain)
    np.testing.assert_array_equal(codes > 0, brain)
    inside = stored[brain].astype(np.float64)
    step = (inside.max() - inside.min()) / 65534
    if code_slope != 1:
        assert code_slope == pytest.approx(step, rel=1e-12)
    values = code_slope * codes[brain].astype(np.float64) + code_offset
    tolerance = 0.5 * step * (1 + 1e-6) + 1e-12 * np.abs(inside).max()
    assert np.abs(values - inside).max() <= tolerance


@pytest.mark.parametrize("low", [0.0, 500.0, -100.0])
def test_gain_and_bias_are_the_scale_applied_to_codes(low):
    values, brain = volume(2, low)
    scale, codes = fit_scale(values, brain), encode(values, brain)
    gain, bias = codes.gain_and_bias(scale)
    decoded = codes.slope * codes.codes[brain] + codes.offset
    np.testing.assert_allclose(gain * codes.codes[brain] + bias, scale.to_model(decoded), atol=1e-9)
