"""The intensity scale and the uint16 codes of a volume.

Scale, per volume and sequence: linear, robust and invertible; nothing is clipped.

    y = -1 + 2 (value - low) / (high - low)

low is 0 (or the 0.1th percentile of the brain if that is negative), high the 99.5th percentile of
the brain. Enhancement lies above the 99.9th percentile and therefore above 1.

Codes: how a record stores a volume. Code 0 is background, and brain has 1..65535 with

    value = code_slope * code + code_offset
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BACKGROUND = -1.0
"""Intensity of every pixel outside the brain; brain is whatever differs from it in any sequence."""

_MAX_CODE = 65535
_LOW_PERCENTILE = 0.1
_HIGH_PERCENTILE = 99.5


@dataclass(frozen=True)
class IntensityScale:
    """The linear map between values of a volume and the model's nominal range [-1, 1]."""

    low: float
    high: float

    def to_model(self, values: np.ndarray) -> np.ndarray:
        """values in the file's units, any shape -> float64, nominal [-1, 1], not clipped."""
        return -1 + 2 * (np.asarray(values, np.float64) - self.low) / (self.high - self.low)

    def to_values(self, model: np.ndarray) -> np.ndarray:
        """Inverse of `to_model`, float64."""
        return self.low + (np.asarray(model, np.float64) + 1) / 2 * (self.high - self.low)


def fit_scale(values: np.ndarray, brain: np.ndarray) -> IntensityScale:
    """Fits the scale of one sequence of one volume.

    Args:
        values: [...] values of the volume in the file's units.
        brain: [...] bool, the brain of any sequence; voxels that are zero in this one do not count.

    Raises:
        ValueError: the brain is empty, constant or not finite in this sequence.
    """
    inside = values[brain]
    inside = inside[inside != 0]
    if inside.size == 0:
        raise ValueError("no voxel of the brain is non-zero")
    if not np.isfinite(inside).all():
        raise ValueError("the brain holds NaN or infinite values")
    if inside.min() == inside.max():
        raise ValueError(f"the brain is constant ({inside[0]})")
    low, high = np.percentile(inside, [_LOW_PERCENTILE, _HIGH_PERCENTILE])
    low = min(0.0, float(low))
    if not high > low:
        raise ValueError(f"the brain is constant ({high}) except for a few voxels")
    return IntensityScale(low, float(high))


class Codes(NamedTuple):
    """codes uint16 [...]; value = slope * code + offset where code > 0; 0 is background."""

    codes: np.ndarray
    slope: float
    offset: float

    def gain_and_bias(self, scale: IntensityScale) -> tuple[float, float]:
        """(gain, bias) such that gain * code + bias is the model's image where code > 0."""
        gain = 2 * self.slope / (scale.high - scale.low)
        return gain, -1 + 2 * (self.offset - scale.low) / (scale.high - scale.low)


def encode(stored: np.ndarray, brain: np.ndarray, slope=1.0, intercept=0.0) -> Codes:
    """Codes of one sequence of one volume.

    Integers that span at most 65534 are restored exactly, even if they are stored as floats; other
    numbers are rounded to steps of 1 / 65534 of their range in the brain.

    Args:
        stored: [...] finite integers or floats; value = slope * stored + intercept.
        brain: [...] bool, the brain of any sequence, not empty; everything else gets code 0.
        slope, intercept: scaling of the stored numbers.
    """
    inside = stored[brain]
    low, high = inside.min().item(), inside.max().item()
    steps = inside.astype(np.int64 if inside.dtype.kind in "iu" else np.float64) - low
    step = 1.0
    if high - low >= _MAX_CODE or (steps.dtype.kind == "f" and np.any(steps % 1)):
        step = (high - low) / (_MAX_CODE - 1)
        steps = np.rint(steps / step)
    codes = np.zeros(stored.shape, np.uint16)
    codes[brain] = steps + 1
    return Codes(codes, slope * step, slope * (low - step) + intercept)
