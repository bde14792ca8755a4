"""What an `Inpainter` returns: a repainted slice, a repainted volume, samples in the model's units."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from mbti_jax.rois.regions import Rois


@dataclasses.dataclass(frozen=True)
class InpaintedSlice:
    """What `Inpainter.inpaint` made of a slice.

    Attributes:
        images: [num_samples, H, W] or [num_samples, H, W, C], in the units and the data type of the
            input; outside the ROI equal to it bit for bit. Of the estimate "mean" one image, their mean.
        std: float32 [H, W] or [H, W, C], the standard deviation over the samples (n - 1 in the
            denominator) in the input's units, 0 outside the ROI; None for a single sample, and for the
            mean in one pass.
        rois: the ROIs, boxes filled.
        labels: uint8 [images, H, W], canonical: inside the ROI what the model painted, or without
            a label head what was requested; outside the labels that were given, else 0. None where
            nobody knows what was painted; `provenance["labels"]` says why, and where labels come from.
        label_probabilities: float32 [images, H, W, 4], of no tumor and canonical labels 1 to 3, 0
            outside the ROI; None without a label head.
        provenance: how it was made, in JSON values.
    """

    images: np.ndarray
    std: np.ndarray | None
    rois: Rois
    labels: np.ndarray | None
    label_probabilities: np.ndarray | None
    provenance: dict[str, Any]

    @property
    def is_mean(self) -> bool:
        """Whether `images` is one, the mean of the samples."""
        return self.provenance["sampling"].get("estimate") == "mean"


@dataclasses.dataclass(frozen=True)
class InpaintedVolume:
    """One sample of a case, or the mean of its samples, made by `Inpainter.inpaint_volume`.

    Attributes:
        values: sequence -> float64 [Z, H, W] in the file's units, meaningful inside the ROI only.
        std: of a mean, sequence -> float32 [Z, H, W], the standard deviation over the samples as in
            `InpaintedSlice`; None for one sample, and for the mean in one pass.
        rois: the ROIs of the slices that were repainted, [Z, H, W].
        labels, label_probabilities: as in `InpaintedSlice`, [Z, H, W] and [Z, H, W, 4].
        details: for the provenance record, in JSON values.
    """

    values: dict[str, np.ndarray]
    std: dict[str, np.ndarray] | None
    rois: Rois
    labels: np.ndarray | None
    label_probabilities: np.ndarray | None
    details: dict[str, Any]


class Samples(NamedTuple):
    """What `Inpainter.sample` returns.

    Attributes:
        images: float32 [samples, N, S, S, Q], equal to those given outside the ROI.
        label_probabilities: float32 [samples, N, S, S, 4], of no tumor and canonical labels 1 to 3,
            meaningful inside the ROI only; the mean over sequences that were painted one by one. From
            the last evaluation of the network. None without a label head.
    """

    images: np.ndarray
    label_probabilities: np.ndarray | None
