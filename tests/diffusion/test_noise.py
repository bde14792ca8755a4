"""Start noise along z: unit variance, the filter's correlation, and independence of the batch."""

import numpy as np
from scipy.stats import kstest

from mbti_jax.diffusion.noise import noise_for, slice_weights, start_noise

SHAPE = (32, 32, 1)


def test_is_standard_normal_and_correlated_as_stated():
    slices = np.arange(40)
    noise = np.asarray(start_noise(0, np.zeros(40, int), slices, SHAPE, 2.0)[0]).reshape(40, -1)
    assert kstest(noise[::20].ravel(), "norm").pvalue > 1e-3
    weights = slice_weights(2.0)
    for distance in (1, 2, 4, 13):
        measured = np.mean(noise[distance:] * noise[:-distance])
        expected = np.convolve(weights, weights)[len(weights) - 1 :]
        expected = expected[distance] if distance < len(expected) else 0.0
        # Of 40 slices about 40 / 7 are independent.
        assert abs(measured - expected) < 5 / np.sqrt(5 * noise.shape[1])
        assert abs(expected - np.exp(-(distance**2) / 16)) < 0.02


def test_a_slice_has_the_same_noise_alone_and_among_others():
    among, _ = start_noise(3, np.full(6, 1), np.arange(6), SHAPE, 1.5)
    alone, _ = start_noise(3, [1], [4], SHAPE, 1.5)
    np.testing.assert_array_equal(among[4], alone[0])


def test_other_samples_and_seeds_have_other_noise():
    base = np.asarray(start_noise(3, [0], [4], SHAPE, 1.5)[0])
    for seed, sample in ((3, 1), (4, 0)):
        other = np.asarray(start_noise(seed, [sample], [4], SHAPE, 1.5)[0])
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.15


def test_without_a_filter_it_is_the_samplers_noise():
    expected, _ = noise_for(3, [0, 1], [4, 5], SHAPE)
    np.testing.assert_array_equal(start_noise(3, [0, 1], [4, 5], SHAPE)[0], expected)
