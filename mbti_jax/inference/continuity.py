"""How continuous a repainted volume is along z."""

from typing import Any

import numpy as np

from mbti_jax.inference.inpainted import InpaintedVolume
from tfds_brats.cases import Case
from tfds_brats.scale import IntensityScale
from tfds_brats.slices import to_slices

# What `measure` compares with, in words.
_OTHERS = {
    "input_inside_roi": "what was there before by",
    "input_around_roi": "the tissue around it by",
    "independent_noise": "with independent noise it would by",
}


def z_continuity(values: np.ndarray, roi: np.ndarray, scale: IntensityScale) -> float | None:
    """`mean_step` as a share of the scale's range."""
    step = mean_step(values, roi)
    return None if step is None else step / (scale.high - scale.low)


def mean_step(values: np.ndarray, inside: np.ndarray) -> float | None:
    """Mean absolute difference of neighboring slices inside a region.

    Args:
        values: [Z, H, W].
        inside: bool [Z, H, W]; voxels count whose upper neighbor is inside, too.

    Returns:
        The mean, or None where no two neighbors are inside.
    """
    pairs = inside[1:] & inside[:-1]
    if not pairs.any():
        return None
    return float(np.abs(values[1:][pairs].astype(np.float64) - values[:-1][pairs]).mean())


def measure(
    case: Case, result: InpaintedVolume, independent: InpaintedVolume | None = None
) -> dict[str, dict[str, float | None]]:
    """`z_continuity` of a repainted case by sequence, compared with the tissue that was there.

    Args:
        case: the case.
        result: what it became.
        independent: the same with independent noise in every slice.
    """
    roi, brain = result.rois.union, to_slices(case.brain)
    out: dict[str, Any] = {}
    for name, values in result.values.items():
        scale, before = case.scale(name), to_slices(case.values(name))
        out[name] = {
            "inpainted": z_continuity(values, roi, scale),
            "input_inside_roi": z_continuity(before, roi, scale),
            "input_around_roi": z_continuity(before, brain & ~roi, scale),
        }
        if independent is not None:
            noise = z_continuity(independent.values[name], independent.rois.union, scale)
            out[name]["independent_noise"] = noise
    return out


def describe(subject: str, continuity: dict[str, dict[str, float | None]]) -> list[str]:
    """The figures of `measure` in words, a line for each sequence that has any."""
    lines = []
    for sequence, figures in continuity.items():
        if figures["inpainted"] is not None:
            others = [
                f"{_OTHERS[k]} {v:.1%}"
                for k, v in figures.items()
                if k in _OTHERS and v is not None
            ]
            lines.append(
                f"{subject} {sequence}: from slice to slice what was painted changes by "
                f"{figures['inpainted']:.1%} of the intensity range ({', '.join(others)})"
            )
    return lines
