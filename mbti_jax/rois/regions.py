"""Regions of interest as users give them: by name, as label maps, as colored pictures.

Whatever its form, an ROI becomes a `Rois`, with one mask for each kind of `rois.kinds`.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from scipy.ndimage import distance_transform_edt

from mbti_jax.diffusion.arrays import AnyArray
from mbti_jax.diffusion.condition import Condition
from mbti_jax.fields import suggesting_names
from mbti_jax.rois.given import check_names, to_masks
from mbti_jax.rois.kinds import (
    CHANNELS,
    COMPONENT_CHANNELS,
    DRAWING_ORDER,
    KINDS,
    NORMAL,
    NUM_KINDS,
    TUMOR,
)
from tfds_brats.slices import bounding_box

# Values of the class vector; 0 is the null condition's.
CLASS_EMPTY = 1
CLASS_FREE_FORM = 2
CLASS_BOX = 3
# How far beyond its outline a tumor is removed unless something else is asked for, in millimeters. Its
# blurred rim lies there: on six gliomas of BraTS 2018 the FLAIR signal 1, 2, 3 and 4 mm outside the
# outline was above that of the brain farther away by 0.28, 0.14, 0.07 and 0.03 (which it stays up to
# 10 mm) of the edema's contrast, medians.
REMOVAL_MARGIN_MM = 3.0
# Distances between voxels are sums of squares and their roots.
_ROUNDING_MM = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Rois:
    """ROIs of one or more slices, and which of them are bounding boxes.

    Boxes are filled, slice by slice, when the value is made.

    Attributes:
        masks: bool [..., H, W, K], a channel for each of `kinds.KINDS`.
        box: names of the kinds that are bounding boxes; the others are free-form.

    Raises:
        ValueError: an unknown name, or one in `box` of which there is no ROI; masks of another shape;
            two free-form ROIs overlap, or normal tissue overlaps another ROI.
    """

    masks: np.ndarray
    box: Collection[str] = ()

    def __post_init__(self):
        if isinstance(self.box, str):
            raise ValueError(
                f"box takes a collection of names, such as ({self.box!r},), not a string"
            )
        check_names(self.box)
        masks = np.asarray(self.masks) != 0
        if masks.ndim < 3 or masks.shape[-1] != NUM_KINDS:
            raise ValueError(
                f"masks must be [..., H, W, {NUM_KINDS}] for {', '.join(CHANNELS)}; got {masks.shape}"
            )
        object.__setattr__(self, "box", tuple(self.box))
        object.__setattr__(self, "masks", fill_boxes(masks, self.is_box))
        there = [CHANNELS[channel] for channel in self._present]
        absent = sorted({*self.box} - {*there})
        if absent:
            raise ValueError(
                f"box names {', '.join(absent)}, of which there is no ROI; there is "
                f"{', '.join(there) or 'none'}"
            )
        self._check_overlap()

    @classmethod
    def with_boxes(cls, masks: Bool[np.ndarray, "... H W K"], box: Collection[str]) -> "Rois":
        """ROIs of which those in `box` are bounding boxes that there are.

        For kinds that were chosen before it was known which of them there will be.
        """
        check_names(box)
        there = np.any(masks, axis=tuple(range(masks.ndim - 1)))
        return cls(masks, [name for name in box if there[CHANNELS.index(name)]])

    @classmethod
    @suggesting_names
    def of(
        cls,
        rois: "Rois | Mapping[str, np.ndarray] | np.ndarray",
        shape: tuple[int, ...],
        box: Collection[str] = (),
        labels: Mapping[int, str] | str | None = None,
    ) -> "Rois":
        """ROIs in any form that `to_masks` takes; a `Rois`, with its boxes, is checked and returned.

        Args:
            rois: the ROIs.
            shape: of the image or volume that they belong to.
            box: see the attribute.
            labels: meaning of a label map's numbers, or of a binary mask, see `to_masks`.

        Raises:
            ValueError: as `to_masks` and `Rois` do; or `box` differs from that of a `Rois`.
        """
        if isinstance(rois, Rois):
            if box and {*box} != {*rois.box}:
                raise ValueError(
                    f"the ROIs are made already, with box={tuple(rois.box)}, and box={tuple(box)} is "
                    "asked for: give it to `Rois`"
                )
            if rois.masks.shape[:-1] != shape:
                raise ValueError(f"the ROIs have shape {rois.masks.shape[:-1]}, the image {shape}")
            return rois
        return cls(to_masks(rois, shape, labels), box)

    @property
    def is_box(self) -> Bool[np.ndarray, " K"]:
        """bool [K]."""
        return np.array([name in self.box for name in CHANNELS])

    @functools.cached_property
    def union(self) -> Bool[np.ndarray, "... H W"]:
        """bool [..., H, W], the pixels to be made."""
        return np.any(self.masks, axis=-1)

    @property
    def warnings(self) -> list[str]:
        """What was never trained but may be tried."""
        present = self._present
        if TUMOR in present and any(channel in present for channel in COMPONENT_CHANNELS):
            return ["the model was never trained on a mixed tumor together with single components"]
        return []

    def __getitem__(self, rows: Any) -> "Rois":
        """The ROIs of some slices along the first axis."""
        return Rois.with_boxes(self.masks[rows], self.box)

    def only(self, rows: Any) -> "Rois":
        """The same shape, with the ROIs of some slices along the first axis alone."""
        masks = np.zeros_like(self.masks)
        masks[rows] = self.masks[rows]
        return Rois.with_boxes(masks, self.box)

    def dilated(
        self,
        width_mm: float,
        allowed: Bool[np.ndarray, "*N H W"],
        spacing: Sequence[float],
    ) -> "Rois":
        """The same with ROIs of normal tissue that reach farther.

        What is to be removed seldom ends where its outline does. The other kinds say what shall be
        where, and stay.

        Args:
            width_mm: by how much, in millimeters.
            allowed: bool [..., H, W], where they may reach: the brain, or a part of it. They spare the
                other ROIs.
            spacing: of the pixels or voxels in millimeters, for each axis.

        Raises:
            ValueError: there is no ROI of normal tissue, or a box that grew meets another ROI.
        """
        normal = self.masks[..., NORMAL]
        if not normal.any():
            raise ValueError("dilation is for ROIs of normal tissue, and there is none")
        others = np.delete(self.masks, NORMAL, axis=-1).any(axis=-1)
        masks = self.masks.copy()
        masks[..., NORMAL] |= rim(~normal, width_mm, spacing) & allowed & ~others
        return Rois(masks, self.box)

    def condition(self) -> Condition:
        """What the network is asked for, as numpy arrays."""
        return make_condition(self.masks, self.is_box)

    def label_map(self) -> UInt8[np.ndarray, "... H W"]:
        """uint8 [..., H, W] with the numbers of `kinds.ROI_LABELS`."""
        out = np.zeros(self.masks.shape[:-1], np.uint8)
        for channel in DRAWING_ORDER:
            out[self.masks[..., channel]] = KINDS[channel].label
        return out

    def record(self, brain: np.ndarray | None = None) -> dict[str, Any]:
        """Mode, size and extent of the ROIs, for the provenance record.

        Args:
            brain: bool [..., H, W]; where it is given, how many pixels lie outside of it, too.
        """
        out = {}
        for channel in self._present:
            mask, name = self.masks[..., channel], CHANNELS[channel]
            out[name] = {
                "mode": "box" if name in self.box else "free-form",
                "pixels": int(mask.sum()),
                "extent_y0_x0_y1_x1": list(bounding_box(mask)),
            }
            if brain is not None:
                out[name]["pixels_on_background"] = int((mask & ~brain).sum())
        return out

    @property
    def _present(self) -> list[int]:
        return np.flatnonzero(self.masks.any(axis=tuple(range(self.masks.ndim - 1)))).tolist()

    def _check_overlap(self) -> None:
        present, is_box = self._present, self.is_box
        for i, first in enumerate(present):
            for second in present[i + 1 :]:
                if first != NORMAL and (is_box[first] or is_box[second]):
                    continue
                count = int((self.masks[..., first] & self.masks[..., second]).sum())
                if count:
                    raise ValueError(
                        f"the ROIs {CHANNELS[first]} and {CHANNELS[second]} overlap in {count} "
                        "pixels; a pixel can be only one of them"
                    )


# Made by `dataclass`, so that it cannot be decorated where it is written.
Rois.__init__ = suggesting_names(Rois.__init__)


def rim(
    inside: Bool[np.ndarray, "*shape"], width_mm: float, spacing: Sequence[float]
) -> Bool[np.ndarray, "*shape"]:
    """The pixels of `inside` whose centers are at most `width_mm` from the center of one outside.

    Args:
        inside: bool [...].
        width_mm: in millimeters.
        spacing: of the pixels along each axis, in millimeters.
    """
    if inside.all():  # The distance to nothing is not defined.
        return np.zeros_like(inside)
    distance = distance_transform_edt(inside, sampling=spacing)
    return inside & (np.asarray(distance) <= width_mm + _ROUNDING_MM)


def fill_boxes(
    masks: Bool[AnyArray, "*N H W K"], is_box: Bool[AnyArray, " K"]
) -> Bool[AnyArray, "*N H W K"]:
    """Fills the bounding rectangle of the channels that are boxes, slice by slice.

    Args:
        masks: bool [..., H, W, K], a numpy or JAX array.
        is_box: bool [K].

    Returns:
        The same kind of array; an empty mask stays empty.
    """
    xp = masks.__array_namespace__()
    rows = _fill_between(xp.any(masks, axis=-2))
    columns = _fill_between(xp.any(masks, axis=-3))
    return xp.where(is_box, rows[..., :, None, :] & columns[..., None, :, :], masks)


def make_condition(masks: Bool[AnyArray, "*N H W K"], is_box: Bool[AnyArray, " K"]) -> Condition:
    """The condition of given masks: boxes filled, class values set.

    Args:
        masks: bool [..., H, W, K], a numpy or JAX array.
        is_box: bool [K]; true makes the channel a bounding box around all its pixels, false leaves it
            free-form.

    Returns:
        `Condition` of the same kind of arrays. A channel without pixels is empty (class value 1)
        whatever `is_box` says.
    """
    xp = masks.__array_namespace__()
    class_vector = xp.where(
        masks.any(axis=(-3, -2)), xp.where(is_box, CLASS_BOX, CLASS_FREE_FORM), CLASS_EMPTY
    )
    return Condition(fill_boxes(masks, is_box).astype(np.float32), class_vector.astype(np.float32))


def requested_labels(
    masks: Bool[AnyArray, "*N H W K"], is_box: Bool[AnyArray, "... K"]
) -> tuple[UInt8[AnyArray, "*N H W"], Bool[AnyArray, "*N H W"]]:
    """What lies in a pixel by the request alone.

    Normal tissue and free-form components say it; in boxes and mixed tumors the model decides.

    Args:
        masks: [..., H, W, K], a numpy or JAX array.
        is_box: bool, which of the channels are bounding boxes, to broadcast against the masks.

    Returns:
        (labels, known): uint8 [..., H, W], canonical, 0 where not known; and bool [..., H, W].
    """
    xp = masks.__array_namespace__()
    values = np.zeros(NUM_KINDS, np.uint8)
    values[list(COMPONENT_CHANNELS)] = [KINDS[channel].label for channel in COMPONENT_CHANNELS]
    free_form = masks & ~is_box
    # Free-form components share no pixel.
    labels = xp.max(xp.where(free_form, values, np.uint8(0)), axis=-1)
    return labels, (labels > 0) | masks[..., NORMAL]


def _fill_between(line: Bool[AnyArray, "*N L K"]) -> Bool[AnyArray, "*N L K"]:
    """Sets everything between the first and the last true along the axis before the last one."""
    xp = line.__array_namespace__()
    length = line.shape[-2]
    index = xp.arange(length)[:, None]
    first = xp.where(line, index, length).min(axis=-2, keepdims=True)
    last = xp.where(line, index, -1).max(axis=-2, keepdims=True)
    return (first <= index) & (index <= last)
