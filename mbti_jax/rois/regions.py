"""Regions of interest as users give them: by name, as label maps, as coloured pictures.

Whatever its form, an ROI becomes bool masks [..., 5] with one channel for each name of `CHANNELS`.
"""

from collections.abc import Collection, Mapping

import numpy as np

from mbti_jax.rois.kinds import CHANNELS, COLORS, DRAWING_ORDER, ROI_LABELS
from tfds_brats.conventions import CONVENTIONS, get_convention

_NORMAL, _TUMOR = CHANNELS.index("normal"), CHANNELS.index("tumor")


def to_masks(
    rois: Mapping[str, np.ndarray] | np.ndarray,
    shape: tuple[int, ...],
    labels: Mapping[int, str] | None = None,
) -> np.ndarray:
    """Masks of the five channels.

    Args:
        rois: {name: mask} with names of `CHANNELS` and masks of `shape` that hold two values, 0 being
            outside; or a label map of `shape` with whole numbers, 0 being outside; or a picture, uint8
            [*shape, 3], in the exact colours of `pictures.COLORS` on black.
        shape: shape of the image that they belong to.
        labels: what the numbers of a label map mean, {number: name}; an empty name is no ROI. Default
            `ROI_LABELS`.

    Returns:
        bool [*shape, 5].

    Raises:
        ValueError: another shape, an unknown name, label or colour, a mask with more than two values,
            or no ROI at all.
    """
    if isinstance(rois, Mapping):
        masks = _from_names(rois, shape)
    else:
        rois = np.asarray(rois)
        if rois.shape == (*shape, 3) and rois.dtype == np.uint8:
            rois, labels = _labels_of_colors(rois), ROI_LABELS
        masks = _from_labels(rois, shape, ROI_LABELS if labels is None else labels)
    if not masks.any():
        raise ValueError("the ROI is empty: there is nothing to inpaint")
    return masks


def box_flags(box: Collection[str]) -> np.ndarray:
    """bool [5], True for the channels named in `box`.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(box, str):
        raise ValueError(f"box takes a collection of names, such as ({box!r},), not a string")
    _check_names(box)
    return np.array([name in box for name in CHANNELS])


def fill_boxes(masks: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Fills the bounding rectangle of the channels that are boxes, slice by slice.

    Args:
        masks: bool [..., H, W, 5].
        box: bool [5].
    """

    def between(line):  # Everything between the first and the last True along the last axis.
        before = np.logical_or.accumulate(line, axis=-1)
        after = np.flip(np.logical_or.accumulate(np.flip(line, -1), axis=-1), -1)
        return before & after

    filled = masks.copy()
    for channel in np.flatnonzero(box):
        mask = masks[..., channel]
        rows, columns = between(mask.any(-1)), between(mask.any(-2))
        filled[..., channel] = rows[..., :, None] & columns[..., None, :]
    return filled


def check_overlap(masks: np.ndarray, box: np.ndarray) -> list[str]:
    """Checks that the channels go together as in training.

    Args:
        masks: bool [..., 5], boxes filled.
        box: bool [5].

    Returns:
        Warnings about what was never trained but may be tried.

    Raises:
        ValueError: two free-form ROIs overlap, or normal tissue overlaps another ROI.
    """
    present = np.flatnonzero(masks.any(axis=tuple(range(masks.ndim - 1))))
    for i, first in enumerate(present):
        for second in present[i + 1 :]:
            if first != _NORMAL and (box[first] or box[second]):
                continue
            count = int((masks[..., first] & masks[..., second]).sum())
            if count:
                raise ValueError(
                    f"the ROIs {CHANNELS[first]} and {CHANNELS[second]} overlap in {count} pixels; "
                    "a pixel can be only one of them"
                )
    if _TUMOR in present and any(0 < channel < _TUMOR for channel in present):
        return ["the model was never trained on a mixed tumour beside single components"]
    return []


def to_label_map(masks: np.ndarray) -> np.ndarray:
    """bool [..., 5] -> uint8 [...] with the numbers of `ROI_LABELS`."""
    numbers = {name: number for number, name in ROI_LABELS.items()}
    out = np.zeros(masks.shape[:-1], np.uint8)
    for name in DRAWING_ORDER:
        out[masks[..., CHANNELS.index(name)]] = numbers[name]
    return out


def parse_labels(text: str) -> dict[int, str]:
    """The meaning of labels in words.

    Args:
        text: a convention's name (`brats2021`), of which the components are taken; or a mapping, such
            as "1:edema, 2:tumor, 7:" where a label without a name is no ROI; or "" for `ROI_LABELS`.

    Raises:
        ValueError: it is none of these.
    """
    if not text:
        return dict(ROI_LABELS)
    if ":" not in text:
        if text not in CONVENTIONS:
            raise ValueError(
                f"{text!r} is neither a mapping such as '1:edema, 2:tumor' nor a convention; "
                f"conventions are {', '.join(CONVENTIONS)}"
            )
        known = get_convention(text).labels
        return {n: ROI_LABELS.get(meaning, "") for n, meaning in known.items() if n}
    mapping = {}
    for entry in text.split(","):
        number, _, name = (part.strip() for part in entry.partition(":"))
        if not number.isdecimal() or int(number) == 0 or int(number) in mapping:
            raise ValueError(f"{text!r}: {entry.strip()!r} is not 'number:name', each number once")
        if name:
            _check_names([name])
        mapping[int(number)] = name
    return mapping


def _from_names(rois: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    _check_names(rois)
    masks = np.zeros((*shape, len(CHANNELS)), bool)
    for name, mask in rois.items():
        mask = np.asarray(mask)
        if mask.shape != shape:
            raise ValueError(f"the ROI {name} has shape {mask.shape}, the image {shape}")
        inside = mask != 0
        values = np.unique(mask[inside])
        if len(values) > 1:
            raise ValueError(
                f"the ROI {name} holds the values {values[:4].tolist()} besides 0; a mask has one "
                "value inside (was it resized or saved with loss?)"
            )
        masks[..., CHANNELS.index(name)] = inside
    return masks


def _from_labels(rois: np.ndarray, shape: tuple[int, ...], labels: Mapping[int, str]) -> np.ndarray:
    if rois.shape != shape:
        raise ValueError(f"the ROI label map has shape {rois.shape}, the image {shape}")
    if rois.dtype.kind not in "iufb":
        raise ValueError(f"the ROI label map holds {rois.dtype}; whole numbers are needed")
    numbers = np.unique(rois[rois != 0])
    unknown = [number.item() for number in numbers if number not in labels]
    if unknown:
        known = ", ".join(f"{number} {name or 'no ROI'}" for number, name in labels.items())
        raise ValueError(
            f"the ROI label map holds the labels {unknown[:8]}, which have no meaning; known are "
            f"{known}"
        )
    _check_names(name for name in labels.values() if name)
    masks = np.zeros((*shape, len(CHANNELS)), bool)
    for number in numbers:
        if name := labels[number]:
            masks[..., CHANNELS.index(name)] |= rois == number
    return masks


def _labels_of_colors(picture: np.ndarray) -> np.ndarray:
    colors = np.unique(picture.reshape(-1, 3), axis=0)
    numbers = {COLORS[name]: number for number, name in ROI_LABELS.items()}
    numbers[0, 0, 0] = 0
    unknown = [tuple(color.tolist()) for color in colors if tuple(color.tolist()) not in numbers]
    if unknown:
        known = ", ".join(f"{name} {color}" for name, color in COLORS.items())
        raise ValueError(
            f"the ROI picture holds {len(unknown)} unknown colours, such as {unknown[0]}; it has to "
            f"be black but for {known} (anti-aliasing and JPEG make other colours)"
        )
    out = np.zeros(picture.shape[:-1], np.uint8)
    for color, number in numbers.items():
        out[(picture == color).all(-1)] = number
    return out


def _check_names(names: Collection[str]) -> None:
    unknown = [name for name in names if name not in CHANNELS]
    if unknown:
        raise ValueError(f"unknown ROI {unknown[0]!r}; ROIs are {', '.join(CHANNELS)}")
