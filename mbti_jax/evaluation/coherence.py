"""How a repainted region holds together with the slices and the tissue around it.

Each measure is a ratio: of the repainted volume over the real one in the same place, so 1 is right
whatever the tissue. Arrays are [Z, H, W], axial slices along the first axis; a slice is a volume with
one. Only voxels of the true brain count, but for `false_brain`.

Fills of slices that know nothing of each other show stripes in coronal (Z, W) and sagittal (Z, H)
planes. The step between slices grows by them, and shrinks where a fill is too smooth; the stripe measure

    stripes = E (difference along z)^2 / E (difference in the plane's other direction)^2

sees the first alone, since a fill that is smooth in all directions alike leaves it as it is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.ndimage import binary_erosion, laplace

from mbti_jax.evaluation.statistics import Number
from mbti_jax.inference.continuity import mean_step
from mbti_jax.rois.regions import rim

Volume = Float[np.ndarray, "Z H W"]
Region = Bool[np.ndarray, "Z H W"]

# Tissue around a region is the brain so near to it, in millimeters.
AROUND_MM = 10.0
# Brain is painted where a value lies above that share of the intensity scale.
BRAIN_LEVEL = 0.1
_Z, _ROWS, _COLUMNS = 0, 1, 2


def measures(
    before: Volume,
    after: Volume,
    roi: Region,
    brain: Region,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    level: float = BRAIN_LEVEL,
) -> dict[str, Number]:
    """All measures of a repainted region; None where there is nothing to measure or to divide by.

    Args:
        before: the real volume.
        after: the repainted one, equal to it outside the ROI.
        roi: what is measured.
        brain: the true brain.
        spacing: of the voxels along Z, H and W, in millimeters.
        level: values above it are brain, in the units of the volumes.

    Returns:
        `step`: between slices, over that of the same region of the real volume; `step_around`: over that
        of the real brain within `AROUND_MM` around it; `coronal`, `sagittal`: `stripes`; `texture`: mean
        absolute Laplacian in the slice; `seam`: `border_step`; all of the repainted volume over the
        real one. `false_brain`: see there.
    """
    inside, around = roi & brain, rim(~roi, AROUND_MM, spacing) & brain
    step = mean_step(after, inside)
    real, repainted = (stripes(volume, inside) for volume in (before, after))
    return {
        "step": _ratio(step, mean_step(before, inside)),
        "step_around": _ratio(step, mean_step(before, around)),
        "coronal": _ratio(repainted["coronal"], real["coronal"]),
        "sagittal": _ratio(repainted["sagittal"], real["sagittal"]),
        "texture": _ratio(*(_mean(roughness(volume, inside)) for volume in (after, before))),
        "seam": _ratio(*(border_step(volume, roi, brain) for volume in (after, before))),
        "false_brain": false_brain(after, roi, brain, level),
    }


def stripes(values: Volume, inside: Region) -> Mapping[str, Number]:
    """Energy of differences along z over that in the slice, in `coronal` and `sagittal` planes.

    Of white noise it is 1, of slices with a constant each infinite (None).
    """
    along = {axis: _mean(_differences(values, inside, axis) ** 2) for axis in range(3)}
    return {
        "coronal": _ratio(along[_Z], along[_COLUMNS]),
        "sagittal": _ratio(along[_Z], along[_ROWS]),
    }


def roughness(values: Shaped[np.ndarray, "Z H W"], inside: Region) -> Shaped[np.ndarray, " pixels"]:
    """The absolute Laplacian in the slice, of pixels where it sees nothing but inside."""
    slices = [
        np.abs(laplace(image))[np.asarray(binary_erosion(region), bool)]
        for image, region in zip(values, inside, strict=True)
    ]
    return np.concatenate(slices)


def border_step(values: Volume, roi: Region, brain: Region) -> Number:
    """Mean absolute difference across the ROI's border in the slice, where both sides are brain."""
    steps = []
    for axis in (_ROWS, _COLUMNS):
        lower, upper = _neighbors(axis)
        across = (roi[lower] != roi[upper]) & brain[lower] & brain[upper]
        steps.append(np.abs(np.diff(values, axis=axis)[across]))
    return _mean(np.concatenate(steps))


def false_brain(after: Volume, roi: Region, brain: Region, level: float) -> Number:
    """Share of the ROI's voxels outside the true brain that are painted as brain, so above `level`."""
    return _mean(after[roi & ~brain] > level)


def _neighbors(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the lower and the upper of two neighbors along an axis are."""
    lower, upper = [slice(None)] * 3, [slice(None)] * 3
    lower[axis], upper[axis] = slice(None, -1), slice(1, None)
    return tuple(lower), tuple(upper)


def _differences(values: np.ndarray, inside: np.ndarray, axis: int) -> np.ndarray:
    """Differences of neighbors that are both inside, float64 [pairs]."""
    lower, upper = _neighbors(axis)
    return np.diff(values.astype(np.float64), axis=axis)[inside[lower] & inside[upper]]


def _mean(values: np.ndarray) -> Number:
    return float(values.mean()) if values.size else None


def _ratio(a: Number, b: Number) -> Number:
    return a / b if a is not None and b else None
