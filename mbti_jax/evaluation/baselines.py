"""Baselines: ways to fill a region without learning."""

import cv2
import numpy as np
from scipy import ndimage
from skimage.restoration import inpaint_biharmonic

from tfds_brats.slices import bounding_box

_RING_PIXELS = 3
_TELEA_RADIUS = 3.0  # Pixels.
# The stencil of the biharmonic operator reaches two pixels.
_BIHARMONIC_REACH = 2
_UINT16_MAX = np.iinfo(np.uint16).max


def surrounding_mean(image: np.ndarray, roi: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Fills the ROI with the mean of the brain within three pixels around it.

    Args:
        image: float [H, W].
        roi: bool [H, W].
        brain: bool [H, W]; only its values outside the ROI count. If no brain surrounds the ROI,
            the mean of all brain outside it is used.

    Returns:
        Like `image`, and equal to it outside the ROI.

    Raises:
        ValueError: there is no brain outside the ROI.
    """
    ring = ndimage.binary_dilation(roi, iterations=_RING_PIXELS) & brain & ~roi
    if not ring.any():
        ring = brain & ~roi
    if not ring.any():
        raise ValueError("the ROI leaves no brain to take a mean of")
    return np.where(roi, image[ring].mean(dtype=np.float64), image).astype(image.dtype)


def telea(image: np.ndarray, roi: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Fast-marching inpainting (Telea 2004), OpenCV's implementation.

    Args:
        image: float32 [H, W].
        roi: bool [H, W].
        brain: not used; makes the fills interchangeable.

    Returns:
        Like `image`, and equal to it outside the ROI.

    Raises:
        ValueError: the ROI is all of the image.
    """
    del brain
    # As 16-bit integers: on float images OpenCV 5 returns values far outside their range.
    # The range is that of the context: the truth inside the ROI must not be seen.
    if roi.all():
        raise ValueError("the ROI leaves nothing to continue from")
    low, high = image[~roi].min(), image[~roi].max()
    if low == high:
        return np.where(roi, low, image)
    share = np.clip((image - low) / (high - low), 0, 1)
    codes = np.round(share * _UINT16_MAX).astype(np.uint16)
    filled = cv2.inpaint(codes, roi.astype(np.uint8), _TELEA_RADIUS, cv2.INPAINT_TELEA)
    values = low + (high - low) * filled.astype(np.float32) / _UINT16_MAX
    return np.where(roi, values, image)


def biharmonic(image: np.ndarray, roi: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The smoothest continuation (Chui & Mhaskar 2010), scikit-image's implementation.

    Values are clipped to those in the rectangle around the ROI, two pixels wider on each side, on which
    alone the result depends.

    Args:
        image: float [H, W].
        roi: bool [H, W].
        brain: not used; makes the fills interchangeable.

    Returns:
        Like `image`, and equal to it outside the ROI.

    Raises:
        ValueError: the ROI is all of the image.
    """
    del brain
    if roi.all():
        raise ValueError("the ROI leaves nothing to continue from")
    if not roi.any():
        return image.copy()
    y0, x0, y1, x1 = bounding_box(roi)
    reach = _BIHARMONIC_REACH
    part = np.s_[max(y0 - reach, 0) : y1 + reach, max(x0 - reach, 0) : x1 + reach]
    filled, image64 = image.copy(), image[part].astype(np.float64)
    filled[part] = inpaint_biharmonic(image64, roi[part], split_into_regions=True)
    return np.where(roi, filled, image)
