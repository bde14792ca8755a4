"""ROIs as files and callers give them: masks by name, label maps, colored pictures."""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Bool, UInt8

from mbti_jax.rois.kinds import CHANNELS, COLORS, ROI_LABELS
from tfds_brats.conventions import CONVENTIONS, get_convention
from tfds_brats.spelling import nearest

# What a message asks for where a mask was taken for a label map.
WHICH_ROI = "of a binary mask say which ROI it is"


def to_masks(
    rois: Mapping[str, np.ndarray] | np.ndarray,
    shape: tuple[int, ...],
    labels: Mapping[int, str] | str | None = None,
) -> Bool[np.ndarray, "*shape K"]:
    """Masks of all kinds of ROI.

    Args:
        rois: {name: mask} with names of `kinds.CHANNELS` and masks of `shape` that hold two values,
            0 being outside; or a label map of `shape` with whole numbers, 0 being outside; or a picture,
            uint8 [*shape, 3], in the exact colors of `kinds.COLORS` on black.
        shape: shape of the image that they belong to.
        labels: what the numbers of a label map mean, {number: name}; an empty name is no ROI. Or the
            name of a single ROI, of which `rois` is the mask, with any one number inside. Default
            `kinds.ROI_LABELS`.

    Returns:
        bool [*shape, K].

    Raises:
        ValueError: another shape, an unknown name, label or color, a mask with more than two values,
            or no ROI at all.
    """
    if isinstance(rois, Mapping):
        masks = _from_names(rois, shape)
    elif isinstance(labels, str):
        masks = _from_names({labels: np.asarray(rois)}, shape)
    else:
        rois = np.asarray(rois)
        if rois.shape == (*shape, 3) and rois.dtype == np.uint8:
            rois, labels = _labels_of_colors(rois), ROI_LABELS
        masks = _from_labels(rois, shape, ROI_LABELS if labels is None else labels)
    if not masks.any():
        raise ValueError("the ROI is empty: there is nothing to inpaint")
    return masks


def parse_labels(text: str) -> dict[int, str] | str:
    """The meaning of labels in words.

    Args:
        text: a convention's name (`brats2021`), of which the components are taken; or a mapping, such
            as "1:edema, 2:tumor, 7:" where a label without a name is no ROI; or the name of a single
            ROI, for a binary mask; or "" for `ROI_LABELS`.

    Returns:
        As `to_masks` takes it.

    Raises:
        ValueError: it is neither.
    """
    if not text:
        return dict(ROI_LABELS)
    if text in CHANNELS:
        return text
    if ":" not in text:
        if text not in CONVENTIONS:
            raise ValueError(
                f"{text!r} is neither a mapping such as '1:edema, 2:tumor', nor the one ROI that a mask "
                f"is ({', '.join(CHANNELS)}), nor a convention; "
                f"conventions are {', '.join(CONVENTIONS)}{nearest(text, [*CHANNELS, *CONVENTIONS])}"
            )
        known = get_convention(text).labels
        return {n: ROI_LABELS.get(meaning, "") for n, meaning in known.items() if n}
    mapping = {}
    for entry in text.split(","):
        number, _, name = (part.strip() for part in entry.partition(":"))
        if not number.isdecimal() or int(number) == 0 or int(number) in mapping:
            raise ValueError(f"{text!r}: {entry.strip()!r} is not 'number:name', each number once")
        if name:
            check_names([name])
        mapping[int(number)] = name
    return mapping


def _from_names(
    rois: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> Bool[np.ndarray, "*shape K"]:
    check_names(rois)
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


def _from_labels(
    rois: np.ndarray, shape: tuple[int, ...], labels: Mapping[int, str]
) -> Bool[np.ndarray, "*shape K"]:
    if rois.shape != shape:
        raise ValueError(f"the ROI label map has shape {rois.shape}, the image {shape}")
    if rois.dtype.kind not in "iufb":
        raise ValueError(f"the ROI label map holds {rois.dtype}; whole numbers are needed")
    numbers = np.unique(rois[rois != 0])
    unknown = [number.item() for number in numbers if number not in labels]
    if unknown:
        known = ", ".join(f"{number} {name or 'no ROI'}" for number, name in labels.items())
        way = f"; {WHICH_ROI}" if len(numbers) == 1 else ""
        raise ValueError(
            f"the ROI label map holds the labels {unknown[:8]}, which have no meaning; known are "
            f"{known}{way}"
        )
    check_names(name for name in labels.values() if name)
    masks = np.zeros((*shape, len(CHANNELS)), bool)
    for number in numbers:
        if name := labels[number]:
            masks[..., CHANNELS.index(name)] |= rois == number
    return masks


def _labels_of_colors(picture: UInt8[np.ndarray, "*shape 3"]) -> UInt8[np.ndarray, "*shape"]:
    colors = np.unique(picture.reshape(-1, 3), axis=0)
    numbers = {COLORS[name]: number for number, name in ROI_LABELS.items()}
    numbers[0, 0, 0] = 0
    unknown = [tuple(color.tolist()) for color in colors if tuple(color.tolist()) not in numbers]
    if unknown:
        known = ", ".join(f"{name} {color}" for name, color in COLORS.items())
        raise ValueError(
            f"the ROI picture holds {len(unknown)} unknown colors, such as {unknown[0]}; it has to "
            f"be black but for {known} (anti-aliasing and JPEG make other colors)"
        )
    out = np.zeros(picture.shape[:-1], np.uint8)
    for color, number in numbers.items():
        out[(picture == color).all(-1)] = number
    return out


def check_names(names: Iterable[str]) -> None:
    unknown = [name for name in names if name not in CHANNELS]
    if unknown:
        way = f"ROIs are {', '.join(CHANNELS)}{nearest(unknown[0], CHANNELS)}"
        raise ValueError(f"unknown ROI {unknown[0]!r}; {way}")
