"""ROIs made of a case's own tumor, and the label map that a repainted case has."""

import functools
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from scipy.signal import fftconvolve

from mbti_jax.rois.kinds import COMPONENT_CHANNELS, COMPONENTS, KINDS, NORMAL, NUM_KINDS, TUMOR
from mbti_jax.rois.regions import Rois
from tfds_brats.cases import is_tumor
from tfds_brats.conventions import CAVITY
from tfds_brats.slices import bounding_box


class Mode(NamedTuple):
    """A way to make ROIs of a tumor: what it means, and the kinds of ROI that it makes."""

    meaning: str
    kinds: tuple[str, ...]


MODES = {
    "remove": Mode("normal tissue where the tumor is", ("normal",)),
    "replace": Mode("another tumor of the same components", tuple(COMPONENTS)),
    "random": Mode("a random tumor where the tumor is", ("tumor",)),
    "move": Mode(
        "normal tissue where the tumor is, and its components elsewhere", ("normal", *COMPONENTS)
    ),
}
# Share of a moved tumor that must lie in free brain, and how far below the best place others may be.
_LEAST_INSIDE = 0.9
_MARGIN = 0.02


def own_tumor(
    labels: Integer[np.ndarray, "Z H W"],
    brain: Bool[np.ndarray, "Z H W"],
    mode: str,
    box: Collection[str] = (),
    seed: int | tuple[int, ...] = 0,
) -> Rois:
    """ROIs made of the tumor in a volume's segmentation.

    A moved tumor keeps its shape, or is its mirror image (so that a large one fits into the other
    hemisphere); all slices move alike. The place is drawn from all that have nearly as much of it in
    free brain as the best, at most 2% of the tumor less; what lies outside is left out. On the eight
    gliomas tried, the best place holds between 93% and all of the tumor.

    Args:
        labels: uint8 [Z, H, W], canonical.
        brain: bool [Z, H, W].
        mode: a key of `MODES`.
        box: names of the ROIs that are bounding boxes; with `normal` the tissue that replaces a tumor
            fills its box in every slice.
        seed: whole numbers >= 0, of the place in mode "move".

    Raises:
        ValueError: an unknown mode, no tumor, or no place to move it to.
    """
    if mode not in MODES:
        choices = ", ".join(f"{name} ({meaning})" for name, (meaning, _) in MODES.items())
        raise ValueError(f"unknown tumor mode {mode!r}; choose one of {choices}")
    tumor = is_tumor(labels)
    if not tumor.any():
        raise ValueError("the segmentation holds no tumor")
    masks = np.zeros((*labels.shape, NUM_KINDS), bool)
    if mode in ("remove", "move"):
        masks[..., NORMAL] = tumor
    if mode == "random":
        masks[..., TUMOR] = tumor
    if mode == "move":
        free = brain & ~Rois(masks, box).union & (labels != CAVITY)
        labels = moved(np.where(tumor, labels, 0), free, seed)
    if mode in ("replace", "move"):
        for channel in COMPONENT_CHANNELS:
            masks[..., channel] = labels == KINDS[channel].label
    return Rois(masks, box)


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
