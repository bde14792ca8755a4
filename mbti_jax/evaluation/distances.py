"""Distances between two sets of feature vectors: Frechet and kernel distance.

They are called FID and KID for the features of an Inception network trained on photographs; with other
features they have to be named after those, and the numbers do not compare with those of other papers.
"""

from collections.abc import Callable

import numpy as np


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance of the normal distributions fitted to two sets (Heusel et al. 2017).

        |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))

    It is biased: two sets of the same distribution have a distance above 0 that falls with their size
    (Binkowski et al. 2018), so only distances of sets of the same size can be compared.

    Args:
        x: float [N, D].
        y: float [M, D].

    Raises:
        ValueError: not two sets of at least two vectors of the same length.
    """
    x, y = _sets(x, y)
    cov_x, cov_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    # (C_x C_y)^(1/2) has the trace of (S C_y S)^(1/2) with S = C_x^(1/2), which is symmetric.
    root_x = _symmetric_root(cov_x)
    eigenvalues = np.linalg.eigvalsh(root_x @ cov_y @ root_x)
    # Rounding makes eigenvalues of 0 negative.
    mixed = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    shift = np.square(x.mean(0) - y.mean(0)).sum()
    return float(shift + np.trace(cov_x) + np.trace(cov_y) - 2 * mixed)


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared MMD with a cubic kernel (Binkowski et al. 2018, eq. 4).

    The kernel is k(a, b) = (a . b / D + 1)^3. Being unbiased, the estimate may be negative.

    Args:
        x: float [N, D].
        y: float [M, D].

    Raises:
        ValueError: not two sets of at least two vectors of the same length.
    """
    x, y = _sets(x, y)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_of_others(z):
        values, count = kernel(z, z), len(z)
        return (values.sum() - np.trace(values)) / (count * (count - 1))

    return float(mean_of_others(x) + mean_of_others(y) - 2 * kernel(x, y).mean())


def half_subset_error(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    sizes: tuple[int, int],
    num_subsets: int,
    seed: int,
) -> float:
    """Standard error of a statistic of two sets, from random halves of both.

    The delete-d jackknife (Shao & Wu 1989) with half of each set deleted: the statistic's standard
    deviation over such halves is an estimate of its standard error on the whole sets. It treats the
    elements of a set as independent.

    Args:
        statistic: called with the rows of the first and of the second set to use, int [n // 2] each.
        sizes: how many elements the sets have, at least 4 each.
        num_subsets: how many pairs of halves.
        seed: of their choice.

    Raises:
        ValueError: a set is too small.
    """
    if min(sizes) < 4:
        raise ValueError(f"sets of sizes {sizes} have no halves to estimate an error from")
    rng = np.random.default_rng(seed)
    values = [
        statistic(*(rng.permutation(size)[: size // 2] for size in sizes))
        for _ in range(num_subsets)
    ]
    return float(np.std(values))


def _sets(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"two sets of at least two vectors of one length are needed, not {x.shape} and {y.shape}"
        )
    return x, y


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
