"""ROIs made of a case's own tumour, and the label map that a repainted case has."""

import numpy as np
from scipy.signal import fftconvolve

from mbti_jax.rois.kinds import CHANNELS, COMPONENTS
from mbti_jax.rois.regions import fill_boxes
from tfds_brats.cases import is_tumor
from tfds_brats.conventions import CAVITY
from tfds_brats.slices import bounding_box

MODES = {
    "remove": "normal tissue where the tumour is",
    "replace": "another tumour of the same components",
    "random": "a random tumour where the tumour is",
    "move": "normal tissue where the tumour is, and its components elsewhere",
}
# Share of a moved tumour that must lie in free brain, and how far below the best place others may be.
_LEAST_INSIDE = 0.9
_MARGIN = 0.02


def own_tumor_masks(
    labels: np.ndarray,
    brain: np.ndarray,
    mode: str,
    box: np.ndarray,
    seed: int | tuple[int, ...] = 0,
) -> np.ndarray:
    """ROI masks from the labels of a volume.

    A moved tumour keeps its shape, or is its mirror image (so that a large one fits into the other
    hemisphere); all slices move alike. The place is drawn from all that have nearly as much of it in
    free brain as the best, at most 2% of the tumour less; what lies outside is left out. On the eight
    gliomas tried, the best place holds between 93% and all of the tumour.

    Args:
        labels: uint8 [Z, H, W], canonical.
        brain: bool [Z, H, W].
        mode: a key of `MODES`.
        box: bool [5]; with `normal` the tissue that replaces a tumour fills its box in every slice.
        seed: whole numbers >= 0, of the place in mode "move".

    Returns:
        bool [Z, H, W, 5], boxes filled.

    Raises:
        ValueError: an unknown mode, no tumour, or no place to move it to.
    """
    if mode not in MODES:
        choices = ", ".join(f"{name} ({meaning})" for name, meaning in MODES.items())
        raise ValueError(f"unknown tumor mode {mode!r}; choose one of {choices}")
    tumor = is_tumor(labels)
    if not tumor.any():
        raise ValueError("the segmentation holds no tumour")
    masks = np.zeros((*labels.shape, len(CHANNELS)), bool)
    if mode in ("remove", "move"):
        masks[..., CHANNELS.index("normal")] = tumor
    if mode == "random":
        masks[..., CHANNELS.index("tumor")] = tumor
    masks = fill_boxes(masks, box)
    if mode == "move":
        free = brain & ~masks.any(-1) & (labels != CAVITY)
        labels = moved(np.where(tumor, labels, 0), free, seed)
    if mode in ("replace", "move"):
        for name, label in COMPONENTS.items():
            masks[..., CHANNELS.index(name)] = labels == label
    return fill_boxes(masks, box)


def painted_labels(labels: np.ndarray, masks: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The label map of a case after its ROIs were repainted.

    Args:
        labels: uint8 [...], canonical, of the case before.
        masks: bool [..., 5], boxes filled.
        box: bool [5].

    Returns:
        uint8 [...], canonical.

    Raises:
        ValueError: an ROI in which the model decides where the components are.
    """
    for channel, name in enumerate(CHANNELS):
        if masks[..., channel].any() and (name == "tumor" or (box[channel] and name != "normal")):
            what = "a mixed tumour" if name == "tumor" else f"a box of {name}"
            raise ValueError(
                f"{what} has no label map, for the model decides what is where in it; only free-form "
                "components and normal tissue have one"
            )
    out = np.where(masks[..., CHANNELS.index("normal")], 0, labels).astype(np.uint8)
    for name, label in COMPONENTS.items():
        out[masks[..., CHANNELS.index(name)]] = label
    return out


def moved(labels: np.ndarray, free: np.ndarray, seed: int | tuple[int, ...]) -> np.ndarray:
    """The tumour in `labels` at another place, or its mirror image; see `own_tumor_masks`.

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
            "the tumour cannot be moved: nowhere does it fit into the brain beside its own place"
        )
    places = np.argwhere(inside >= inside.max() - _MARGIN)
    mirrored, y, x = places[np.random.default_rng(seed).integers(len(places))]
    out = np.zeros_like(labels)
    out[:, y : y + cut.shape[1], x : x + cut.shape[2]] = shapes[mirrored]
    return np.where(free, out, 0)


def _voxels_inside(shape: np.ndarray, free: np.ndarray) -> np.ndarray:
    """How many voxels of bool [Z, h, w] are in `free` [Z, H, W], for every place of it in the slices."""
    return sum(
        # A correlation.
        fftconvolve(where.astype(np.float32), slice_[::-1, ::-1].astype(np.float32), mode="valid")
        for where, slice_ in zip(free, shape, strict=True)
        if slice_.any()
    )
