"""Checks of what users hand in; each raises a ValueError that says what is wrong in a sentence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from skimage.morphology import convex_hull_image

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.rois.kinds import COMPONENTS, KINDS, NORMAL
from mbti_jax.rois.regions import Rois
from tfds_brats.conventions import CAVITY, CaseError
from tfds_brats.scale import IntensityScale, fit_scale
from tfds_brats.volumes import MAX_SPACING, MIN_SPACING

# Share of a box that may lie on background before it is reported: one at the brain's edge has corners
# there.
_MAX_BOX_ON_BACKGROUND = 0.5
# Ratio of two sizes of voxels up to which they count as the same.
_SAME_SIZE = 1.25


def is_sampling(value: Any) -> None:
    """Raises TypeError for what is no `Sampling`, such as the name of a sampler."""
    if not isinstance(value, Sampling):
        raise TypeError(f"sampling must be a Sampling, such as Sampling(seed=1), not {value!r:.60}")


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
    # The model computes in float32.
    with np.errstate(over="ignore", invalid="ignore"):
        width = np.diff(ranges.astype(np.float32))
    representable = ((width > np.finfo(np.float32).tiny) & np.isfinite(width)).all()
    if not (low_first and representable):
        raise ValueError(
            "intensity_range must be (low, high) with low < high, or one such pair for each of the "
            f"{num_sequences} sequences, in what float32 can tell apart, not {intensity_range}"
        )
    return [IntensityScale(float(low), float(high)) for low, high in ranges]


def given_labels(labels: Any, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W] of a canonical label map."""
    labels = np.asarray(labels)
    if labels.shape != shape or labels.dtype.kind not in "iub":
        raise ValueError(
            f"labels must be whole numbers of the image's shape {shape}, not {labels.dtype} "
            f"{labels.shape}"
        )
    unknown = sorted({*np.unique(labels).tolist()} - {*range(CAVITY + 1)})
    if unknown:
        known = ", ".join(
            f"{number} {name.replace('_', ' ')}" for name, number in COMPONENTS.items()
        )
        raise ValueError(
            f"labels hold {unknown[:8]}; canonical labels are 0, {known} and {CAVITY} resection cavity"
        )
    return labels.astype(np.uint8)


def pixel_sizes(pixel_size: Any) -> tuple[float, float]:
    """(height, width) in millimeters of a pixel, given as such or as one number for both."""
    sizes = np.broadcast_to(pixel_size, 2).tolist() if np.size(pixel_size) in (1, 2) else ()
    if not (sizes and all(MIN_SPACING <= size <= MAX_SPACING for size in sizes)):
        raise ValueError(
            f"pixel_size must be millimeters above 0, from {MIN_SPACING:g} to {MAX_SPACING:g}, not "
            f"{pixel_size}"
        )
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


def rois_in_brain(rois: Rois, brain: np.ndarray) -> list[str]:
    """Warnings about ROIs that lie on background.

    An ROI may replace tissue that was set to zero before, so what counts as wholly outside is outside of
    the convex hull of the brain in every slice. Free-form tumor on background is reported, and boxes of
    tumor that lie there for the most part; normal tissue may fill what was cut out.

    Args:
        rois: [..., H, W].
        brain: bool [..., H, W].

    Raises:
        ValueError: an ROI is wholly outside of the brain.
    """
    warnings = []
    for name, entry in rois.record(brain).items():
        count, total = entry["pixels_on_background"], entry["pixels"]
        channel = next(n for n, kind in enumerate(KINDS) if kind.name == name)
        if count == total and not _reaches_hull(rois.masks[..., channel], brain):
            raise ValueError(
                f"the ROI {name} lies wholly outside of the brain, on background; is it on the grid and "
                "in the orientation of the image?"
            )
        limit = _MAX_BOX_ON_BACKGROUND * total if name in rois.box else 0
        if channel != NORMAL and count > limit:
            warnings.append(f"{count} of {total} pixels of {name} lie on background")
    return warnings


def _reaches_hull(mask: np.ndarray, brain: np.ndarray) -> bool:
    slices = zip(
        mask.reshape(-1, *mask.shape[-2:]), brain.reshape(-1, *brain.shape[-2:]), strict=True
    )
    return any(
        (inside & convex_hull_image(tissue)).any()
        for inside, tissue in slices
        if inside.any() and tissue.any()
    )


def slice_numbers(roi: np.ndarray, slices: Sequence[int], subject: str) -> np.ndarray:
    """Those with an ROI [Z, H, W], or `slices`, which must be of them; ascending, each once."""
    with_roi = np.flatnonzero(roi.any(axis=(1, 2)))
    if not len(slices):
        if not len(with_roi):
            raise CaseError(f"{subject}: the ROI is empty: there is nothing to inpaint")
        return with_roi
    for number in slices:
        if not 0 <= number < len(roi):
            raise CaseError(f"{subject}: has no slice {number}; it has 0 to {len(roi) - 1}")
        if number not in with_roi:
            first, last = with_roi[[0, -1]] if len(with_roi) else (None, None)
            raise CaseError(
                f"{subject}: slice {number} has no ROI; ROIs are in slices {first} to {last}"
            )
    return np.unique(slices)


def is_near(size: float, trained: float) -> bool:
    """Whether voxels count as large as those of the training data: to within 25%."""
    return max(size, trained) / min(size, trained) <= _SAME_SIZE


def voxel_sizes(
    spacing: Sequence[float], pixel_mm: float | None, distance_mm: float, sees_neighbors: bool
) -> list[str]:
    """Warnings about a volume whose voxels are not as large as those that a model learned from.

    The window that the model sees is in millimeters, so anatomy has its size whatever the voxels.

    Args:
        spacing: along X, Y and Z in millimeters.
        pixel_mm: of the pixels in training; None where it is not known.
        distance_mm: of the slices in training.
        sees_neighbors: whether the model sees those beside a slice.
    """
    *pixel, distance = spacing
    out = []
    if pixel_mm and not all(is_near(size, pixel_mm) for size in pixel):
        out.append(
            f"pixels are {' x '.join(f'{size:.3g}' for size in pixel)} mm, and the model learned from "
            f"pixels of {pixel_mm:.3g} mm: what it paints has the detail of the coarser ones"
        )
    if sees_neighbors and not is_near(distance, distance_mm):
        out.append(
            f"the slices lie {distance:.3g} mm apart and those that the model learned from "
            f"{distance_mm:.3g} mm: each was painted without seeing its neighbors; resample the volume "
            "for results that hold together along z"
        )
    return out
