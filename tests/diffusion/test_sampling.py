"""Samples that are not finite are an error."""

import numpy as np
import pytest

from mbti_jax.diffusion.sampling import NonFiniteSampleError, Sampling, check_finite


def test_finite_samples_come_back_as_they_are():
    samples = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 2, 3)
    assert check_finite(samples, Sampling()) is samples


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_an_error_that_says_how_it_was_drawn(value):
    samples = np.zeros((2, 50), np.float32)
    samples[1, :3] = value
    with pytest.raises(NonFiniteSampleError, match=r"3 of 100 .*guidance_weight=7.5") as error:
        check_finite(samples, Sampling(num_steps=9, guidance=7.5))
    assert "num_steps=9" in str(error.value)
