"""The window that is cut out of a slice."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, Shaped


def window_slices(
    shape: tuple[int, ...], brain_box: Integer[np.ndarray, "4"] | Sequence[int], window: int
) -> tuple[range, range]:
    """Rows and columns of the window in the slice's own pixel numbers (negative ones are padding).

    Args:
        shape: (height, width) of the slice.
        brain_box: (y0, x0, y1, x1), half-open, of the volume's brain.
        window: side of the window in pixels.

    Raises:
        ValueError: the brain does not fit into the window.
    """
    ranges = []
    for size, low, high in zip(shape[:2], brain_box[:2], brain_box[2:], strict=True):
        low, high = int(low), int(high)
        if window >= size:
            start = -((window - size) // 2)
        elif high - low > window:
            raise ValueError(
                f"its brain is {high - low} pixels wide and does not fit a window of {window}; "
                f"data.window must be at least {high - low}"
            )
        else:
            start = min(max((low + high - window) // 2, 0), size - window)
        ranges.append(range(start, start + window))
    return ranges[0], ranges[1]


def cut_window(
    image: Shaped[np.ndarray, "H W *rest"], rows: range, columns: range
) -> Shaped[np.ndarray, "h w *rest"]:
    """The window of `image` [H, W, ...]; zeros where it lies outside."""
    out = np.zeros((len(rows), len(columns), *image.shape[2:]), image.dtype)
    target, source = [], []
    for span, size in zip((rows, columns), image.shape, strict=False):
        first, end = max(span.start, 0), min(span.stop, size)
        source.append(slice(first, end))
        target.append(slice(first - span.start, end - span.start))
    out[tuple(target)] = image[tuple(source)]
    return out
