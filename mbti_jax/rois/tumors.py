"""ROIs made of a case's own tumor, and the label map that a repainted case has."""

import functools
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from scipy.signal import fftconvolve

from mbti_jax.rois.kinds import (
    CHANNELS,
    COMPONENT_CHANNELS,
    COMPONENTS,
    KINDS,
    NORMAL,
    NUM_KINDS,
    TUMOR,
)
from mbti_jax.rois.regions import Rois, rim
from tfds_brats.cases import is_tumor
from tfds_brats.conventions import CAVITY
from tfds_brats.slices import bounding_box
from tfds_brats.spelling import nearest


class Mode(NamedTuple):
    """A way to make ROIs of a tumor.

    Attributes:
        meaning: in words.
        kinds: of the ROIs that it makes.
        is_step: whether it changes the tumor by some millimeters, in a free-form ROI.
        removes: whether normal tissue takes the place of the whole tumor.
    """

    meaning: str
    kinds: tuple[str, ...]
    is_step: bool = False
    removes: bool = False

    @property
    def fills(self) -> bool:
        """Whether all that it makes is normal tissue."""
        return self.kinds == ("normal",)


MODES = {
    "remove": Mode("normal tissue where the tumor is", ("normal",), removes=True),
    "replace": Mode("another tumor of the same components", tuple(COMPONENTS)),
    "random": Mode("a random tumor where the tumor is", ("tumor",)),
    "move": Mode(
        "normal tissue where the tumor is, and its components elsewhere",
        ("normal", *COMPONENTS),
        removes=True,
    ),
    "grow": Mode("its outer component in the tissue around it", tuple(COMPONENTS), is_step=True),
    "shrink": Mode("normal tissue in the rim of the tumor", ("normal",), is_step=True),
}
# Components from the outside of a tumor to its inside.
_OUTER_FIRST = ("edema", "enhancement", "necrotic_core")
# Share of a moved tumor that must lie in free brain, and how far below the best place others may be.
_LEAST_INSIDE = 0.9
_MARGIN = 0.02


def own_tumor(
    labels: Integer[np.ndarray, "Z H W"],
    brain: Bool[np.ndarray, "Z H W"],
    mode: str,
    box: Collection[str] = (),
    seed: int | tuple[int, ...] = 0,
    *,
    step_mm: float = 0.0,
    dilate_mm: float = 0.0,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Rois:
    """ROIs made of the tumor in a volume's segmentation.

    A moved tumor keeps its shape, or is its mirror image (so that a large one fits into the other
    hemisphere); all slices move alike. The place is drawn from all that have nearly as much of it in
    free brain as the best, at most 2% of the tumor less; what lies outside is left out. On the eight
    gliomas tried, the best place holds between 93% and all of the tumor.

    A tumor grows into all brain within `step_mm` of it that is no resection cavity: by edema if it has
    any, else by enhancement, else by necrotic core. It shrinks by what lies within `step_mm` of its
    outside.

    Args:
        labels: uint8 [Z, H, W], canonical.
        brain: bool [Z, H, W].
        mode: a key of `MODES`.
        box: names of the ROIs that are bounding boxes; with `normal` the tissue that replaces a tumor
            fills its box in every slice.
        seed: whole numbers >= 0, of the place in mode "move".
        step_mm: in modes "grow" and "shrink", by how much, in millimeters above 0.
        dilate_mm: in modes "remove" and "move", how far beyond the tumor the normal tissue that replaces
            it reaches into the brain, see `Rois.dilated`.
        spacing: of the voxels along Z, H and W in millimeters, for these two.

    Raises:
        ValueError: an unknown mode, no tumor, no place to move it to, or a step that changes nothing.
    """
    _check_mode(mode)
    tumor = is_tumor(labels)
    if not tumor.any():
        raise ValueError("the segmentation holds no tumor")
    masks = np.zeros((*labels.shape, NUM_KINDS), bool)
    if MODES[mode].is_step:
        if box:
            raise ValueError(f"tumor mode {mode!r} makes free-form ROIs only, no boxes")
        grows = mode == "grow"
        outer = next(name for name in _OUTER_FIRST if (labels == COMPONENTS[name]).any())
        changed = rim(~tumor if grows else tumor, step_mm, spacing)
        if grows:
            changed &= brain & (labels != CAVITY)
        if not changed.any():
            raise ValueError(
                f"the tumor cannot {mode} by {step_mm:g} mm: no voxel is that near, of "
                f"{' x '.join(f'{size:g}' for size in spacing)} mm"
            )
        masks[..., CHANNELS.index(outer if grows else "normal")] = changed
        return Rois(masks)
    if MODES[mode].removes:
        masks[..., NORMAL] = tumor
        if dilate_mm:
            masks = Rois(masks).dilated(dilate_mm, brain & (labels != CAVITY), spacing).masks
    if mode == "random":
        masks[..., TUMOR] = tumor
    if mode == "move":
        free = brain & ~Rois.with_boxes(masks, box).union & (labels != CAVITY)
        labels = moved(np.where(tumor, labels, 0), free, seed)
    if mode in ("replace", "move"):
        for channel in COMPONENT_CHANNELS:
            masks[..., channel] = labels == KINDS[channel].label
    # A tumor need not have all components.
    return Rois.with_boxes(masks, box)


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        choices = ", ".join(f"{name} ({what.meaning})" for name, what in MODES.items())
        raise ValueError(
            f"unknown tumor mode {mode!r}; choose one of {choices}{nearest(mode, MODES)}"
        )


class Share(NamedTuple):
    """How often a set makes ROIs in some way.

    Attributes:
        mode: a key of `MODES`.
        box: whether all of its ROIs are bounding boxes.
        share: of the set.
    """

    mode: str
    box: bool
    share: float

    @property
    def name(self) -> str:
        """As `parse_shares` reads it."""
        return f"{self.mode} box" if self.box else self.mode


def parse_shares(text: str) -> tuple[Share, ...]:
    """The modes of a set in words.

    Args:
        text: a mode (`move`), or several with their shares (`replace: 2, replace box: 1, random: 1`).
            With `box` behind a mode all its ROIs are bounding boxes. Shares need not add up to 1.

    Returns:
        Shares that add up to 1.

    Raises:
        ValueError: an unknown mode, one twice, a share that is no number above 0, or a mode that
            changes a tumor by steps beside others or with boxes.
    """
    shares: dict[tuple[str, bool], float] = {}
    for entry in text.split(","):
        words, _, number = (part.strip() for part in entry.partition(":"))
        mode, _, box = words.partition(" ")
        _check_mode(mode if box.strip() in ("", "box") else words)
        try:
            share = float(number or 1)
        except ValueError:
            share = math.nan
        if not 0 < share < math.inf or (mode, bool(box)) in shares:
            raise ValueError(
                f"{text!r}: {entry.strip()!r} is not 'mode' or 'mode: share', each mode once"
            )
        shares[mode, bool(box)] = share
        if MODES[mode].is_step and (box or "," in text):
            raise ValueError(f"{text!r}: {mode} makes a series of its own, of free-form ROIs")
    total = sum(shares.values())
    return tuple(Share(mode, box, share / total) for (mode, box), share in shares.items())


def painted_labels(
    labels: Integer[np.ndarray, "*shape"], rois: Rois
) -> UInt8[np.ndarray, "*shape"]:
    """The label map of a case after its ROIs were repainted.

    Args:
        labels: uint8 [...], canonical, of the case before.
        rois: of the same shape.

    Returns:
        uint8 [...], canonical.

    Raises:
        ValueError: an ROI in which the model decides where the components are.
    """
    for name in rois.record():
        if name == "tumor" or (name in rois.box and name != "normal"):
            what = "a mixed tumor" if name == "tumor" else f"a box of {name}"
            raise ValueError(
                f"{what} has no label map, for the model decides what is where in it; only free-form "
                "components and normal tissue have one"
            )
    out = np.where(rois.masks[..., NORMAL], 0, labels).astype(np.uint8)
    for channel in COMPONENT_CHANNELS:
        out[rois.masks[..., channel]] = KINDS[channel].label
    return out


def moved(
    labels: Integer[np.ndarray, "Z H W"],
    free: Bool[np.ndarray, "Z H W"],
    seed: int | tuple[int, ...],
) -> Integer[np.ndarray, "Z H W"]:
    """The tumor in `labels` at another place, or its mirror image; see `own_tumor`.

    Args:
        labels: uint8 [Z, H, W], not empty.
        free: bool [Z, H, W], where it may lie, of the same or another volume.
        seed: whole numbers >= 0, of the place.

    Returns:
        uint8 [Z, H, W], 0 where not `free`.

    Raises:
        ValueError: nowhere does nine tenths of it fit into `free`.
    """
    y0, x0, y1, x1 = bounding_box(labels > 0)
    cut = labels[:, y0:y1, x0:x1]
    shapes = (cut, cut[:, :, ::-1])
    inside = np.stack([_voxels_inside(shape > 0, free) for shape in shapes])
    inside /= np.count_nonzero(cut)
    if inside.max() < _LEAST_INSIDE:
        raise ValueError(
            "the tumor cannot be moved: nowhere does it fit into the brain beside its own place"
        )
    places = np.argwhere(inside >= inside.max() - _MARGIN)
    mirrored, y, x = places[np.random.default_rng(seed).integers(len(places))]
    out = np.zeros_like(labels)
    out[:, y : y + cut.shape[1], x : x + cut.shape[2]] = shapes[mirrored]
    return np.where(free, out, 0)


def _voxels_inside(
    shape: Bool[np.ndarray, "Z h w"], free: Bool[np.ndarray, "Z H W"]
) -> Float[np.ndarray, "Y X"]:
    """How many voxels of bool [Z, h, w] are in `free` [Z, H, W], for every place of it in the slices."""
    # Convolution with the flipped shape is correlation.
    counts = [
        fftconvolve(where.astype(np.float32), slice_[::-1, ::-1].astype(np.float32), mode="valid")
        for where, slice_ in zip(free, shape, strict=True)
        if slice_.any()
    ]
    return functools.reduce(np.add, counts)
