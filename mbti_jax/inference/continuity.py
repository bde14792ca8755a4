"""Repainting slices of a case, with noise that neighbouring slices share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mbti_jax.inference import provenance
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.rois.regions import check_overlap
from tfds_brats.cases import Case
from tfds_brats.scale import IntensityScale, fit_scale
from tfds_brats.slices import bounding_box, to_slices


@dataclasses.dataclass(frozen=True)
class InpaintedVolume:
    """One sample of a case.

    Attributes:
        values: sequence -> float64 [Z, H, W] in the file's units, meaningful inside the ROI only.
        masks: bool [Z, H, W, 5], the ROIs of the slices that were repainted.
        details: for the provenance record, in JSON values.
    """

    values: dict[str, np.ndarray]
    masks: np.ndarray
    details: dict[str, Any]


def sequences_to_paint(inpainter: Inpainter, case: Case, wanted: Sequence[str]) -> tuple[str, ...]:
    """Which sequences of a case the model shall repaint.

    Args:
        wanted: their names; empty for all that both the case and the model have.

    Raises:
        ValueError: the case lacks one, or the model does not know it or paints another set.
    """
    known = inpainter.sequences
    chosen = tuple(wanted) or tuple(name for name in known if name in case.images)
    if inpainter.num_channels > 1 and not wanted:
        chosen = known
    for name in chosen:
        if name not in known:
            raise ValueError(f"the model was not trained on {name}, but on {', '.join(known)}")
        if name not in case.images:
            raise ValueError(f"{case.subject}: has no {name} image, which the model needs")
    if not chosen:
        raise ValueError(f"{case.subject}: has none of the model's sequences {', '.join(known)}")
    if inpainter.num_channels > 1 and chosen != known:
        raise ValueError(
            f"this model paints {', '.join(known)} together and cannot leave one out; got "
            f"{', '.join(chosen)}"
        )
    return chosen


def inpaint_case(
    inpainter: Inpainter,
    case: Case,
    masks: np.ndarray,
    box: np.ndarray,
    sequences: Sequence[str],
    *,
    sample: int = 0,
    **settings: Any,
) -> InpaintedVolume:
    """Repaints the ROIs in one sample of a case; arguments as of `inpaint_samples`."""
    (result,) = inpaint_samples(
        inpainter, case, masks, box, sequences, samples=[sample], **settings
    )
    return result


def inpaint_samples(
    inpainter: Inpainter,
    case: Case,
    masks: np.ndarray,
    box: np.ndarray,
    sequences: Sequence[str],
    *,
    samples: Sequence[int],
    slices: Sequence[int] = (),
    scales: Sequence[IntensityScale] | None = None,
    z_sigma_mm: float = 0.0,
    **sampling: Any,
) -> list[InpaintedVolume]:
    """Repaints the ROIs in several samples of a case, which share the inpainter's batches.

    Args:
        inpainter: the model.
        case: the images.
        masks: bool [Z, H, W, 5], boxes filled.
        box: bool [5].
        sequences: as of `sequences_to_paint`.
        samples: numbers of the samples.
        slices: numbers of the slices to repaint; empty for all that have an ROI.
        scales: one a sequence; default the case's.
        z_sigma_mm: reach of the noise's correlation along z, see `noise`; 0 for independent slices.
        **sampling: `seed`, `num_steps`, `spacing`, `guidance_weight`, `eta`, `progress`, `cancel` as
            of `Inpainter.sample`.

    Raises:
        ValueError: no ROI in the slices, a slice that is not there, ROIs that do not go together.
    """
    warnings = check_overlap(masks, box)
    numbers = _slice_numbers(masks, slices, case.subject)
    brain = to_slices(case.brain)
    scales = [case.scale(name) for name in sequences] if scales is None else list(scales)
    spacing = case.spacing
    window = inpainter.place_window(
        brain.shape[1:], bounding_box(brain), bounding_box(masks.any(-1)), spacing[1::-1]
    )
    values = np.stack([to_slices(case.values(name))[numbers] for name in sequences], axis=-1)
    chosen = np.zeros_like(masks)
    chosen[numbers] = masks[numbers]
    painted = inpainter.repaint(
        values,
        brain[numbers],
        masks[numbers],
        box,
        scales,
        window,
        slice_indices=numbers,
        samples=samples,
        z_sigma=z_sigma_mm / spacing[2],
        **sampling,
    )
    reported = {name: value for name, value in sampling.items() if not callable(value)}
    details = {
        "slices": numbers.tolist(),
        "rois": provenance.roi_record(chosen, box),
        "geometry": window.record(),
        "intensity": {
            **provenance.scale_record(scales, "the volume"),
            "slice_scale_shift": _slice_scale_shift(values, brain[numbers], scales),
        },
        "sequences": {
            "names": list(sequences),
            "painted": "together"
            if inpainter.num_channels > 1
            else "one by one, same mask and noise",
        },
        "warnings": warnings,
    }
    results = []
    for sample, images in zip(samples, painted, strict=True):
        out = {name: np.zeros(brain.shape) for name in sequences}
        for c, name in enumerate(sequences):
            out[name][numbers] = images[..., c]
        drawn = {"sampling": {**reported, "sample": sample, "z_sigma_mm": z_sigma_mm}}
        results.append(InpaintedVolume(out, chosen, {**drawn, **details}))
    return results


def z_continuity(values: np.ndarray, masks: np.ndarray, scale: IntensityScale) -> float | None:
    """Mean absolute difference of neighbouring slices inside the ROI, as a share of the scale's range.

    Args:
        values: [Z, H, W].
        masks: bool [Z, H, W, ...]; voxels count whose upper neighbour is inside, too.

    Returns:
        The mean, or None where no two neighbours are inside.
    """
    roi = masks.reshape(*masks.shape[:3], -1).any(-1)
    pairs = roi[1:] & roi[:-1]
    if not pairs.any():
        return None
    step = np.abs(values[1:][pairs].astype(np.float64) - values[:-1][pairs])
    return float(step.mean() / (scale.high - scale.low))


def _slice_numbers(masks: np.ndarray, slices: Sequence[int], subject: str) -> np.ndarray:
    with_roi = np.flatnonzero(masks.any(axis=(1, 2, 3)))
    if not len(slices):
        if not len(with_roi):
            raise ValueError(f"{subject}: the ROI is empty: there is nothing to inpaint")
        return with_roi
    for number in slices:
        if not 0 <= number < len(masks):
            raise ValueError(f"{subject}: has no slice {number}; it has 0 to {len(masks) - 1}")
        if number not in with_roi:
            first, last = with_roi[[0, -1]] if len(with_roi) else (None, None)
            raise ValueError(
                f"{subject}: slice {number} has no ROI; ROIs are in slices {first} to {last}"
            )
    return np.unique(slices)


def _slice_scale_shift(
    values: np.ndarray, brain: np.ndarray, scales: Sequence[IntensityScale]
) -> list[float | None]:
    """By how much scales fitted to single slices would differ: median of high / high - 1, a sequence."""
    out = []
    for c, scale in enumerate(scales):
        shifts = []
        for image, inside in zip(values[..., c], brain, strict=True):
            try:
                shifts.append(fit_scale(image, inside).high / scale.high - 1)
            except ValueError:  # A slice without enough brain has no scale.
                continue
        out.append(float(np.median(shifts)) if shifts else None)
    return out
