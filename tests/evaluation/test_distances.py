"""Distances of feature sets against scipy, loops, and closed forms of known distributions."""

import numpy as np
import pytest
import scipy.linalg

from mbti_jax.evaluation.distances import frechet_distance, half_subset_error, kernel_distance


def _sets(seed=0, n=60, m=50, d=5):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)), 0.7 * rng.normal(size=(m, d)) @ mix + 0.5


def test_frechet_distance_is_that_of_the_matrix_square_root():
    x, y = _sets()
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(
        cov_x + cov_y - 2 * scipy.linalg.sqrtm(cov_x @ cov_y).real
    )
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_in_one_dimension():
    """(m_x - m_y)^2 + (s_x - s_y)^2, whatever the sample."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (40, 1)), rng.gamma(2, 1, (30, 1))
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_and_moved():
    x, _ = _sets()
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + np.array([3, 0, 4, 0, 0])) == pytest.approx(25, rel=1e-9)


def test_frechet_distance_with_fewer_samples_than_features():
    """Covariances without full rank: the root of the product is still that of the positive part."""
    x = np.array([[1.0, 0, 0], [-1, 0, 0]])
    y = np.array([[0, 1.0, 0], [0, -1, 0]])
    assert frechet_distance(x, y) == pytest.approx(4)


def test_kernel_distance_is_the_sum_over_pairs():
    x, y = _sets(n=7, m=6, d=3)

    def kernel(a, b):
        return (sum(i * j for i, j in zip(a, b, strict=True)) / 3 + 1) ** 3

    def within(z):
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(a, b) for a in x for b in y]
    expected = within(x) + within(y) - 2 * sum(across) / len(across)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_has_no_bias():
    """With D = 1 it estimates 3 (dm_1)^2 + 3 (dm_2)^2 + (dm_3)^2, dm_i the differences of moments."""
    rng = np.random.default_rng(1)
    shift, repeats = 0.3, 4000
    # Moments of N(mu, 1): mu, mu^2 + 1, mu^3 + 3 mu.
    expected = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2
    values = [
        kernel_distance(rng.normal(0, 1, (12, 1)), rng.normal(shift, 1, (12, 1)))
        for _ in range(repeats)
    ]
    error = np.std(values) / np.sqrt(repeats)
    assert abs(np.mean(values) - expected) < 4 * error
    assert error < expected / 10


def test_the_error_from_halves_is_that_of_the_mean():
    """For a difference of means the standard error is known."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(0, 1, 200), rng.normal(0, 3, 150)
    found = half_subset_error(lambda i, j: x[i].mean() - y[j].mean(), (200, 150), 2000, 0)
    expected = np.sqrt(x.var(ddof=1) / 200 + y.var(ddof=1) / 150)
    assert found == pytest.approx(expected, rel=0.06)


def test_the_error_of_the_kernel_distance_is_its_spread_over_repetitions():
    rng = np.random.default_rng(3)

    def draw():
        return rng.normal(0, 1, (80, 4)), rng.normal(0.6, 1.3, (80, 4))

    values = [kernel_distance(*draw()) for _ in range(300)]
    errors = []
    for seed in range(20):
        x, y = draw()
        errors.append(
            half_subset_error(
                lambda i, j, x=x, y=y: kernel_distance(x[i], y[j]), (80, 80), 50, seed
            )
        )
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one length"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="at least two vectors"):
        kernel_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="no halves"):
        half_subset_error(lambda i, j: 0.0, (3, 9), 10, 0)
