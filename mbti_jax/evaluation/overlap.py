"""How well regions agree: Dice, boxes around them and their intersection over union."""

import numpy as np
from scipy.ndimage import label

from tfds_brats.slices import bounding_box


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a and b| / (|a| + |b|) of bool arrays of the same shape.

    Raises:
        ValueError: another shape, or both are empty, which leaves it undefined.
    """
    _check(a, b)
    total = np.count_nonzero(a) + np.count_nonzero(b)
    if not total:
        raise ValueError("the Dice coefficient of two empty regions is undefined")
    return 2 * np.count_nonzero(a & b) / total


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    """|a and b| / |a or b| of bool arrays of the same shape.

    Raises:
        ValueError: another shape, or both are empty, which leaves it undefined.
    """
    _check(a, b)
    union = np.count_nonzero(a | b)
    if not union:
        raise ValueError("the intersection over union of two empty regions is undefined")
    return np.count_nonzero(a & b) / union


def box_around(region: np.ndarray, min_area: int) -> np.ndarray:
    """The bounding box of a segmented region, without specks.

    Args:
        region: bool [H, W].
        min_area: pixels; connected parts (8 neighbors) with fewer do not count, since one wrong
            pixel far away would make the box large.

    Returns:
        bool [H, W], the filled box; empty if no part is large enough.
    """
    parts, count = label(region, np.ones((3, 3)))
    large = 1 + np.flatnonzero(np.bincount(parts[region], minlength=count + 1)[1:] >= min_area)
    filled = np.zeros_like(region)
    if len(large):
        y0, x0, y1, x1 = bounding_box(np.isin(parts, large))
        filled[y0:y1, x0:x1] = True
    return filled


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.dtype != bool or b.dtype != bool or a.shape != b.shape:
        raise ValueError(
            f"two bool arrays of one shape are needed, not {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
