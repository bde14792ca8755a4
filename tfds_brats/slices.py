"""The axial slices of a volume."""

import numpy as np


def to_slices(volume: np.ndarray) -> np.ndarray:
    """[X, Y, Z, ...] in LPS -> view [Z, H, W, ...]: row 0 anterior, column 0 the patient's right."""
    return volume.transpose(2, 1, 0, *range(3, volume.ndim))


# The same exchange of axes undoes it.
from_slices = to_slices


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(y0, x0, y1, x1), half-open, of bool [..., H, W] over all leading axes; None when it is empty."""
    mask = mask.any(axis=tuple(range(mask.ndim - 2)))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
