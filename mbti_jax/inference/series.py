"""Follow-up series: a tumor that grows or shrinks step by step, each painted beside the one before."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.inference.inpainted import InpaintedVolume
from mbti_jax.inference.inpainter import Inpainter
from mbti_jax.inference.labels import label_map
from mbti_jax.rois.regions import Rois
from mbti_jax.rois.tumors import own_tumor, painted_labels
from tfds_brats.cases import Case, is_tumor
from tfds_brats.conventions import CaseError
from tfds_brats.slices import from_slices, to_slices

# paint(case, rois, number of the step from 0) -> what became of the case.
Paint = Callable[[Case, Rois, int], InpaintedVolume]


def follow_up(
    inpainter: Inpainter,
    case: Case,
    mode: str,
    *,
    step_mm: float,
    num_steps: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    **options: Any,
) -> Iterator[InpaintedVolume]:
    """A series of repainted cases, see `steps`.

    Args:
        inpainter: the model.
        case: with its segmentation.
        mode, step_mm, num_steps: see `steps`.
        sampling: how each step is drawn; their noise differs.
        **options: `sequences`, `progress` and `cancel` of `Inpainter.inpaint_volume`.
    """

    def paint(case: Case, rois: Rois, number: int) -> InpaintedVolume:
        (result,) = inpainter.inpaint_volume(case, rois, sampling, samples=[number], **options)
        return result

    return steps(case, mode, step_mm, num_steps, paint)


def steps(
    case: Case, mode: str, step_mm: float, num_steps: int, paint: Paint
) -> Iterator[InpaintedVolume]:
    """Grows or shrinks a case's tumor step by step.

    Only what a step adds is painted in it; what earlier steps painted is its context and stays, so the
    cases of a series differ by growth alone. How far the tumor reaches follows the requests, measured
    from the case's own tumor: after n steps of s mm the tumor is the one that a single step of n s mm
    makes, also where voxels are larger than a step. A step in which none is reached repeats the one
    before.

    Args:
        case: with its segmentation.
        mode: "grow" or "shrink", see `rois.tumors.own_tumor`.
        step_mm: of a step, in millimeters above 0.
        num_steps: how many.
        paint: paints one step.

    Yields:
        After each step the case with all that was painted so far: ROIs, values and labels of all steps.

    Raises:
        CaseError: the case has no segmentation, or a step that cannot be made, by its number.
    """
    kept, brain = to_slices(case.segmentation), to_slices(case.brain)
    now, labels, total = case, kept, None
    for number in range(num_steps):
        try:
            if not is_tumor(labels).any():
                raise ValueError("nothing is left of the tumor")
            reach = (number + 1) * step_mm
            rois = own_tumor(kept, brain, mode, step_mm=reach, spacing=case.spacing[::-1])
        except ValueError as error:
            raise CaseError(f"{case.subject}, step {number + 1}: {error}") from error
        if total is None:
            total = paint(now, rois, number)
        else:
            rois = Rois(rois.masks & ~total.rois.union[..., None])
            if rois.union.any():
                total = _together(total, paint(now, rois, number), kept, brain)
        series = {"mode": mode, "step_mm": step_mm, "step": number + 1}
        total = dataclasses.replace(total, details={**total.details, "series": series})
        yield total
        labels = painted_labels(kept, total.rois)
        values = {
            name: from_slices(np.where(total.rois.union, painted, to_slices(case.values(name))))
            for name, painted in total.values.items()
        }
        now = case.repainted(values, from_slices(labels))


def _together(
    before: InpaintedVolume, step: InpaintedVolume, kept: np.ndarray, brain: np.ndarray
) -> InpaintedVolume:
    """What several steps painted, as one result."""
    inside = step.rois.union
    rois = Rois(before.rois.masks | step.rois.masks)
    values = {
        name: np.where(inside, painted, before.values[name])
        for name, painted in step.values.items()
    }
    std = None
    if before.std is not None and step.std is not None:
        std = {name: np.where(inside, now, before.std[name]) for name, now in step.std.items()}
    earlier, probabilities = before.label_probabilities, step.label_probabilities
    if earlier is not None and probabilities is not None:
        probabilities = np.where(inside[..., None], probabilities, earlier)
    labels, record = label_map(rois, kept, None if probabilities is None else probabilities[None])
    details = {
        **step.details,
        "slices": sorted({*before.details["slices"], *step.details["slices"]}),
        "rois": rois.record(brain),
        "labels": record,
        "warnings": list(dict.fromkeys(before.details["warnings"] + step.details["warnings"])),
    }
    return InpaintedVolume(
        values,
        std,
        rois,
        None if labels is None else labels[0],
        probabilities,
        details,
        before.case,
        before.checkpoint,
    )
