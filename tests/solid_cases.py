"""Brains and tumors as solid bodies, large enough for masks of 800 voxels; arrays [X, Y, Z]."""

import numpy as np

SIZE = (56, 60, 44)


def ball(center, radius, size=SIZE):
    grid = np.indices(size)
    return sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2


def ellipsoid():
    grid = np.indices(SIZE)
    center, radii = (27, 30, 21), (25, 27, 19)
    terms = zip(grid, center, radii, strict=True)
    return sum(((g - c) / r) ** 2 for g, c, r in terms) <= 1


def labels_with(tumor):
    return (2 * tumor).astype(np.uint8)
