"""The axial slices of a volume."""

import numpy as np


def to_slices(volume: np.ndarray) -> np.ndarray:
    """[X, Y, Z, ...] in LPS -> view [Z, H, W, ...]: row 0 anterior, column 0 the patient's right."""
    return volume.transpose(2, 1, 0, *range(3, volume.ndim))


# The same transposition is its own inverse.
from_slices = to_slices


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(y0, x0, y1, x1), half-open, of bool [..., H, W] over all leading axes.

    Raises:
        ValueError: the mask is empty.
    """
    leading = tuple(range(mask.ndim - 2))
    rows = np.flatnonzero(mask.any(axis=(*leading, -1)))
    columns = np.flatnonzero(mask.any(axis=(*leading, -2)))
    if not len(rows):
        raise ValueError("an empty mask has no bounding box")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
