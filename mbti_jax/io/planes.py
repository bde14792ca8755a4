"""Axial, coronal and sagittal planes of a volume, through a region and in the right proportions.

Volumes are [Z, H, W, ...]: slices from inferior to superior, rows from anterior to posterior, columns
from the patient's right to the left. Coronal and sagittal planes are shown with superior on top,
sagittal ones with anterior on the left.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped

AXIAL, CORONAL, SAGITTAL = range(3)
_NAMES = ("axial", "coronal", "sagittal")
# What is shown around a region is so wide, or has so much margin, in millimeters.
_LEAST_MM, _MARGIN_MM = 100.0, 16.0


@dataclasses.dataclass(frozen=True)
class Plane:
    """A plane of a volume, and the part of it that is shown.

    Attributes:
        axis: across the plane: 0 axial, 1 coronal, 2 sagittal.
        number: of the slice, row or column.
        window: rows and columns that are shown, before superior comes on top.
        pixel_mm: height and width of a pixel in millimeters.
    """

    axis: int
    number: int
    window: tuple[slice, slice]
    pixel_mm: tuple[float, float]

    @property
    def name(self) -> str:
        """axial, coronal or sagittal."""
        return _NAMES[self.axis]

    @property
    def sides(self) -> str:
        """What lies left and right in a picture: the patient's right and left, or front and back."""
        return "AP" if self.axis == SAGITTAL else "RL"

    @property
    def title(self) -> str:
        """Such as "coronal 97"."""
        return f"{self.name} {self.number}"

    def of(self, volume: Shaped[np.ndarray, "Z H W ..."]) -> Shaped[np.ndarray, "h w ..."]:
        """`shown` of a volume."""
        return self.shown(np.take(volume, self.number, axis=self.axis))

    def shown(self, section: Shaped[np.ndarray, "h w ..."]) -> Shaped[np.ndarray, "h w ..."]:
        """What is shown of the whole plane, in square pixels of the smaller of its two sides.

        Pixels are repeated, so that label maps stay label maps.
        """
        shown = section[self.window]
        if self.axis != AXIAL:
            shown = shown[::-1]
        for axis, size in enumerate(self.pixel_mm):
            length = shown.shape[axis]
            count = max(1, round(length * size / min(self.pixel_mm)))
            places = ((np.arange(count) + 0.5) * length / count).astype(int)
            shown = np.take(shown, places, axis=axis)
        return shown


def planes_through(
    region: Bool[np.ndarray, "Z H W"],
    brain: Bool[np.ndarray, "Z H W"],
    spacing: Sequence[float],
    whole: bool = False,
) -> tuple[Plane, Plane, Plane]:
    """The axial, the coronal and the sagittal plane in which a region is largest.

    Args:
        region: not empty.
        brain: pictures do not reach beyond the bounding box of brain and region.
        spacing: of the voxels along Z, H and W, in millimeters.
        whole: whether they show all of that box, and not what lies around the region alone.
    """
    windows = []
    for axis, size in enumerate(spacing):
        low, high = _ends(region, axis)
        first, last = _ends(brain | region, axis)
        if not whole:
            length = high - low
            margin = max(_MARGIN_MM / size, (_LEAST_MM / size - length) / 2)
            # Moved, where it would reach beyond the brain.
            width = min(length + 2 * round(margin), last - first)
            first = min(max(low - round(margin), first), last - width)
            last = first + width
        windows.append(slice(first, last))
    planes = []
    for axis in range(3):
        rows, columns = (other for other in range(3) if other != axis)
        area = region.sum((rows, columns))
        window, pixel_mm = (windows[rows], windows[columns]), (spacing[rows], spacing[columns])
        planes.append(Plane(axis, int(area.argmax()), window, pixel_mm))
    return planes[0], planes[1], planes[2]


def _ends(mask: np.ndarray, axis: int) -> tuple[int, int]:
    """The first index along an axis at which a mask holds something, and the one after the last."""
    found = np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis)))
    return int(found[0]), int(found[-1]) + 1
