"""Checks of what users hand in; each raises a ValueError that says what is wrong in a sentence."""

from typing import Any

import numpy as np

from tfds_brats.scale import IntensityScale, fit_scale


def image_values(image: np.ndarray) -> np.ndarray:
    """[H, W, C] of an image [H, W] or [H, W, C]: finite numbers, no sequence of them constant."""
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"the image has shape {image.shape}; [H, W] or [H, W, C] is needed")
    if image.dtype.kind not in "iuf":
        raise ValueError(f"the image holds {image.dtype}; integers or floats are needed")
    if not np.isfinite(image).all():
        raise ValueError("the image holds NaN or infinite values")
    values = image.reshape(*image.shape[:2], -1)
    for c in range(values.shape[-1]):
        if values[..., c].min() == values[..., c].max():
            raise ValueError(f"the image is constant{f' in sequence {c}' * (image.ndim == 3)}")
    return values


def slice_scale(values: np.ndarray, brain: np.ndarray) -> IntensityScale:
    """The intensity scale that fits one sequence [H, W] of a slice by itself."""
    try:
        return fit_scale(values, brain)
    except ValueError as error:
        raise ValueError(f"no intensity scale fits the slice ({error}); give one") from error


def given_scales(intensity_range: Any, num_sequences: int) -> list[IntensityScale]:
    """Scales of one pair (low, high), or of one for each sequence."""
    ranges = np.asarray(intensity_range, np.float64)
    if ranges.shape == (2,):
        ranges = np.tile(ranges, (num_sequences, 1))
    low_first = ranges.shape == (num_sequences, 2) and (ranges[:, 0] < ranges[:, 1]).all()
    if not (low_first and np.isfinite(ranges).all()):
        raise ValueError(
            "intensity_range must be (low, high) with low < high, or one such pair for each of the "
            f"{num_sequences} sequences, not {intensity_range}"
        )
    return [IntensityScale(float(low), float(high)) for low, high in ranges]


def pixel_sizes(pixel_size: Any) -> tuple[float, float]:
    """(height, width) in millimeters of a pixel, given as such or as one number for both."""
    sizes = np.broadcast_to(pixel_size, 2).tolist() if np.size(pixel_size) in (1, 2) else ()
    if not (sizes and all(0 < size < np.inf for size in sizes)):
        raise ValueError(f"pixel_size must be millimeters above 0, not {pixel_size}")
    return float(sizes[0]), float(sizes[1])


def box_inside(box: Any, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """`box` if it is (y0, x0, y1, x1), half-open and not empty, within [H, W] `shape`."""
    numbers = np.asarray(box)
    if numbers.shape == (4,) and numbers.dtype.kind in "iu":
        y0, x0, y1, x1 = numbers.tolist()
        if 0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]:
            return y0, x0, y1, x1
    raise ValueError(
        f"brain_box must be whole numbers (y0, x0, y1, x1), half-open, inside an image of {shape}, "
        f"not {box}"
    )
