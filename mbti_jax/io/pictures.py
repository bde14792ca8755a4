"""Pictures a person can look at: gray slices, colored ROIs, sheets and figures."""

import dataclasses
import os
import string
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage.segmentation import find_boundaries

from mbti_jax.io.files import replacing
from mbti_jax.rois.kinds import CHANNELS, COLORS, COMPONENT_CHANNELS, KINDS, NUM_KINDS
from tfds_brats.slices import bounding_box


@dataclasses.dataclass(frozen=True)
class Marks:
    """What a figure says beside its pictures.

    Attributes:
        kinds: names of the ROI kinds that the legend explains; None for those whose colors are seen.
        sides: of the pictures of each column, what lies left and right, such as "RL"; empty for nothing.
        letters: whether columns are lettered.
    """

    kinds: Sequence[str] | None = None
    sides: Sequence[str] = ()
    letters: bool = False


def gray(image: np.ndarray, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """float [H, W] -> uint8 [H, W, 3]; `low` and what is below is black, `high` and above white."""
    shown = np.clip((image - low) / (high - low), 0, 1)
    return np.repeat((255 * shown + 0.5).astype(np.uint8)[..., None], 3, axis=-1)


def with_rois(picture: np.ndarray, roi_masks: np.ndarray, fill: float = 0.35) -> np.ndarray:
    """Colors each ROI channel: its area tinted by `fill`, its outline in full color.

    Args:
        picture: uint8 [H, W, 3].
        roi_masks: [H, W, 5], 0 / 1.
    """
    out = picture.astype(np.float32)
    for channel, name in enumerate(CHANNELS):
        mask = roi_masks[..., channel] > 0
        color = np.array(COLORS[name], np.float32)
        out[mask] = (1 - fill) * out[mask] + fill * color
        out[find_boundaries(mask, mode="inner")] = color
    return out.astype(np.uint8)


def with_labels(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Outlines each tumor component of a canonical label map, in its ROI's color.

    Args:
        picture: uint8 [H, W, 3].
        labels: [H, W].
    """
    masks = np.zeros((*labels.shape, NUM_KINDS), bool)
    for channel in COMPONENT_CHANNELS:
        masks[..., channel] = labels == KINDS[channel].label
    return with_rois(picture, masks, fill=0.0)


def enlarge(picture: np.ndarray, least: int = 192) -> np.ndarray:
    """Repeats pixels until the shorter side has at least `least` of them."""
    factor = max(1, -(-least // min(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def around(inside: np.ndarray, margin: int = 8, least: int = 48) -> tuple[slice, slice]:
    """Rows and columns of a square window around a region, moved and cut to fit the image.

    Args:
        inside: bool [H, W], not empty.
        margin: pixels around the region.
        least: smallest side.
    """
    box = bounding_box(inside)
    spans = list(zip(box[:2], box[2:], inside.shape, strict=True))
    side = max(least, *(high - low + 2 * margin for low, high, _ in spans))
    window = []
    for low, high, size in spans:
        start = min(max((low + high - side) // 2, 0), max(size - side, 0))
        window.append(slice(start, min(start + side, size)))
    return window[0], window[1]


def sheet(images: np.ndarray, roi_masks: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Input, ROIs and sample side by side, an example a row, once for each sequence.

    Args:
        images, samples: float [B, H, W, C].
        roi_masks: [B, H, W, 5].

    Returns:
        uint8 [B * h, 3 * C * w, 3].
    """
    rows = []
    for image, masks, sample in zip(images, roi_masks, samples, strict=True):
        cells = []
        for c in range(image.shape[-1]):
            before = enlarge(gray(image[..., c]))
            marked = with_rois(before, enlarge(masks))
            cells += [before, marked, enlarge(gray(sample[..., c]))]
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows, axis=0)


def figure(
    path: str | os.PathLike,
    cells: Sequence[Sequence[np.ndarray]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    footnote: str = "",
    marks: Marks = Marks(),
    pdf: bool = False,
) -> Path:
    """Writes a labeled grid of pictures as PNG, and explains the colors of ROIs in it.

    Args:
        path: file to write; written beside and renamed.
        cells: rows of uint8 [H, W, 3] pictures.
        rows, columns: labels; they are wrapped, as the title is.
        title, footnote: text above and below.
        marks: what is said beside the pictures.
        pdf: whether the same is written as PDF beside it.
    """
    # Not with the module: training draws without it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    inch = 1.9
    # With a gap between the labels of neighboring rows.
    rows = [_fitting(row, 0.9 * inch, points=10) for row in rows]
    left = 0.45 + 0.17 * max(row.count("\n") for row in rows)
    width = left + inch * len(columns) + 0.05
    title, columns = _wrapped(title, width / 0.085), [_wrapped(c, inch / 0.066) for c in columns]
    # Of the title a line takes 0.17 inch, of the labels 0.15.
    lines = max(label.count("\n") + 1 for label in columns)
    top, bottom = 0.4 + 0.17 * title.count("\n") + 0.15 * lines, 0.55
    height = inch * len(rows) + top + bottom
    fig = Figure(figsize=(width, height), facecolor="white")
    axes = fig.subplots(
        len(rows),
        len(columns),
        squeeze=False,
        gridspec_kw={
            "left": left / width,
            "right": 1 - 0.05 / width,
            "top": 1 - top / height,
            "bottom": bottom / height,
            "wspace": 0.03,
            "hspace": 0.03,
        },
    )
    for r, line in enumerate(cells):
        for c, picture in enumerate(line):
            axis = axes[r, c]
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if r == 0:
                axis.set_title(columns[c], fontsize=9)
            if c == 0:
                axis.set_ylabel(rows[r], fontsize=10)
            if r == 0 and marks.letters:
                _write_inside(axis, (0.02, 0.98), "left", "top", string.ascii_lowercase[c % 26])
            if r == 0 and c < len(marks.sides):
                for side, x in zip(marks.sides[c], ("left", "right"), strict=bool(marks.sides[c])):
                    _write_inside(axis, (0.02 if x == "left" else 0.98, 0.5), x, "center", side)
    fig.suptitle(title, fontsize=11, y=1 - 0.08 / height, va="top")
    explained = _seen(cells) if marks.kinds is None else marks.kinds
    handles = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*kind.color), label=kind.title)
        for kind in KINDS
        if kind.name in explained
    ]
    place = {"loc": "upper left", "bbox_to_anchor": (0, (bottom - 0.02) / height)}
    if handles:
        fig.legend(handles=handles, **place, ncols=len(handles), fontsize=8, frameon=False)
    fig.text(1 - 0.05 / width, 0.08 / height, footnote, ha="right", fontsize=8)
    FigureCanvasAgg(fig)
    # Fine enough that no pixel is left out, such as those of a thin outline.
    largest = max(max(cell.shape[:2]) for line in cells for cell in line)
    dpi = max(110, largest / (inch / 1.04))
    with replacing(path) as beside:
        fig.savefig(beside, format="png", dpi=dpi)
    if pdf:
        with replacing(Path(path).with_suffix(".pdf")) as beside:
            # Without the time, so that the same figure is the same file.
            fig.savefig(beside, format="pdf", dpi=dpi, metadata={"CreationDate": None})
    return Path(path)


def _seen(cells: Sequence[Sequence[np.ndarray]]) -> list[str]:
    """Names of the ROI kinds whose outlines are in pictures: each has some pixels of the full color."""
    pictures = [picture for line in cells for picture in line]
    return [
        name
        for name, color in COLORS.items()
        if any((picture == color).all(-1).any() for picture in pictures)
    ]


def kinds_in(*masks: np.ndarray) -> list[str]:
    """Names of the kinds of ROI in masks [..., 5]."""
    return [
        name for channel, name in enumerate(CHANNELS) if any(m[..., channel].any() for m in masks)
    ]


def _write_inside(
    axis: Any, place: tuple[float, float], across: str, along: str, text: str
) -> None:
    """White letters with a dark rim, which can be read on any picture."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2, foreground="black")]
    style = {"color": "white", "fontsize": 9, "fontweight": "bold", "path_effects": rim}
    axis.text(*place, text, ha=across, va=along, transform=axis.transAxes, **style)


def _fitting(text: str, inches: float, points: float) -> str:
    """Text in lines that are no longer than that, in matplotlib's font of that size."""

    from matplotlib.textpath import TextPath

    def length(line: str) -> float:
        return TextPath((0, 0), line, size=points).get_extents().width / 72

    for characters in range(len(text), 0, -1):
        lines = textwrap.wrap(text, characters)
        if all(length(line) < inches for line in lines):
            return "\n".join(lines)
    return text


def _wrapped(text: str, characters: float) -> str:
    return "\n".join(textwrap.fill(line, int(characters)) for line in text.split("\n"))
