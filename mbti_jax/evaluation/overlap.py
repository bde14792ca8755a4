"""How well regions agree: Dice, boxes around them and their intersection over union."""

from typing import cast

import numpy as np
from scipy.ndimage import label

from mbti_jax.rois.regions import fill_boxes


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a and b| / (|a| + |b|) of bool arrays of the same shape.

    Raises:
        ValueError: another shape, or both are empty, which leaves it undefined.
    """
    both, union = _counts(a, b)
    return 2 * both / (both + union)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    """|a and b| / |a or b| of bool arrays of the same shape.

    Raises:
        ValueError: another shape, or both are empty, which leaves it undefined.
    """
    both, union = _counts(a, b)
    return both / union


def box_around(region: np.ndarray, min_area: int) -> np.ndarray:
    """The bounding box of a segmented region, without specks.

    Args:
        region: bool [H, W].
        min_area: pixels; connected parts (8 neighbors) with fewer do not count, since one wrong
            pixel far away would make the box large.

    Returns:
        bool [H, W], the filled box; empty if no part is large enough.
    """
    parts, count = cast(tuple[np.ndarray, int], label(region, np.ones((3, 3))))
    large = 1 + np.flatnonzero(np.bincount(parts[region], minlength=count + 1)[1:] >= min_area)
    return np.asarray(fill_boxes(np.isin(parts, large)[..., None], np.array([True])))[..., 0]


def _counts(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Pixels in both regions, and in any of them."""
    if a.dtype != bool or b.dtype != bool or a.shape != b.shape:
        raise ValueError(
            f"two bool arrays of one shape are needed, not {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
    union = int(np.count_nonzero(a | b))
    if not union:
        raise ValueError("the overlap of two empty regions is undefined")
    return int(np.count_nonzero(a & b)), union
