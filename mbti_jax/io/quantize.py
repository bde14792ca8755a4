"""Painted values in the data type of the input, and nothing else touched."""

from collections.abc import Iterable

import numpy as np


def quantize(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """Numbers in the data type of the input.

    Args:
        values: float [...].
        dtype: integer (values are rounded, then clipped to its range) or float (clipped to what is
            finite in it).

    Returns:
        (array of `dtype`, how many values were clipped).

    Raises:
        ValueError: a value is not finite.
    """
    dtype = np.dtype(dtype)
    if not np.isfinite(values).all():
        raise ValueError("painted values are NaN or infinite")
    if dtype.kind in "iu":
        values, limits = np.rint(values), np.iinfo(dtype)
    else:
        limits = np.finfo(dtype)
    clipped = int(((values < limits.min) | (values > limits.max)).sum())
    # The largest 64-bit integers have no float64 of their own; one below does.
    top = np.nextafter(limits.max, 0) if limits.bits == 64 and dtype.kind in "iu" else limits.max
    return np.clip(values, limits.min, top).astype(dtype), clipped


def paste(image: np.ndarray, painted: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, int]:
    """Copies of an image with other values inside, in its own data type.

    Args:
        image: [...].
        painted: float [N, ...], used inside.
        inside: bool [...].

    Returns:
        ([N, ...] of the image's data type, how many values were clipped to it).
    """
    numbers, clipped = quantize(painted[:, inside], image.dtype)
    images = np.repeat(image[None], len(painted), axis=0)
    images[:, inside] = numbers
    return images, clipped


def standard_deviation(images: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The standard deviation of samples, n - 1 in the denominator.

    Args:
        images: [n, ...] with n of at least 2.
        inside: bool [...].

    Returns:
        float32 [...], 0 where not `inside`.
    """
    spread = np.std(images, axis=0, ddof=1, dtype=np.float64)
    return np.where(inside, spread, 0).astype(np.float32)


def mean_and_deviation(samples: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean and standard deviation of samples, of which one at a time is kept (Welford 1962).

    Args:
        samples: float64, all of one shape; at least one.

    Returns:
        (mean, standard deviation with n - 1 in the denominator), the latter None for a single sample.
    """
    mean, squares, count = np.zeros(()), np.zeros(()), 0
    for count, sample in enumerate(samples, start=1):
        difference = sample - mean
        mean = mean + difference / count
        squares = squares + difference * (sample - mean)
    return mean, np.sqrt(squares / (count - 1)) if count > 1 else None
