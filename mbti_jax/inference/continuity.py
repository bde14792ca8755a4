"""How continuous a repainted volume is along z."""

import numpy as np

from tfds_brats.scale import IntensityScale


def z_continuity(values: np.ndarray, roi: np.ndarray, scale: IntensityScale) -> float | None:
    """Mean absolute difference of neighboring slices inside the ROI, as a share of the scale's range.

    Args:
        values: [Z, H, W].
        roi: bool [Z, H, W]; voxels count whose upper neighbor is inside, too.

    Returns:
        The mean, or None where no two neighbors are inside.
    """
    pairs = roi[1:] & roi[:-1]
    if not pairs.any():
        return None
    step = np.abs(values[1:][pairs].astype(np.float64) - values[:-1][pairs])
    return float(step.mean() / (scale.high - scale.low))
