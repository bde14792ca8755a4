"""Whether the label map that comes with a repainted slice says what the slice shows.

Segmenters trained on real slices segment repainted ones. Their label maps are compared with the
returned ones, and the scores with those of the same segmenters against the truth of real slices: the
ratio is what counts, since a segmenter of one sequence misses what the sequence does not show.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbti_jax.diffusion.condition import Condition
from mbti_jax.diffusion.sampling import Sampling
from mbti_jax.evaluation import control_tasks, report, segmenter, statistics
from mbti_jax.evaluation.control import compare
from mbti_jax.evaluation.overlap import dice
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.evaluation.workbench import PartSettings, Workbench
from mbti_jax.fields import Count
from mbti_jax.inference.inpainted import Samples
from mbti_jax.io import pictures
from mbti_jax.rois import kinds
from mbti_jax.rois.regions import CLASS_BOX, requested_labels
from mbti_jax.rois.tumors import own_tumor
from tfds_brats.conventions import CAVITY

# Bins of confidence, of equal width.
NUM_BINS = 10


class LabelMode(NamedTuple):
    """What is painted where slices have their tumor: a key of `tumors.MODES`, and the boxes."""

    title: str
    mode: str
    box: tuple[str, ...] = ()


MODES = {
    "components": LabelMode("components, free-form", "replace"),
    "components_box": LabelMode("components, boxes", "replace", tuple(kinds.COMPONENTS)),
    "tumor": LabelMode("mixed tumor, free-form", "random"),
    "tumor_box": LabelMode("mixed tumor, box", "random", ("tumor",)),
}


@dataclasses.dataclass(frozen=True)
class LabelsSettings(PartSettings):
    """Settings of the part.

    Attributes:
        num_slices: with tumor.
        num_steps: of the sampler.
        min_area: of a scored component, in the model's pixels.
        segmenter: trained on real slices.
    """

    num_slices: Count
    num_steps: Count
    min_area: Count
    segmenter: segmenter.RealSegmenterSettings


def run(workbench: Workbench, settings: LabelsSettings, folder: Path) -> dict[str, Any]:
    """Measures the label maps of all modes; draws three slices of each.

    Raises:
        ValueError: the model has no label head.
    """
    segmenters = segmenter.real_segmenters(workbench, settings.segmenter)
    slices = workbench.slices("test", settings.num_slices, with_tumor=True)
    sampling = Sampling(num_steps=settings.num_steps, seed=workbench.seed)
    real_maps, rows, sides, names = control_tasks.segment(segmenters, slices.images), [], {}, []
    requested, bins = None, {}
    for mode, (title, made, box) in MODES.items():
        condition = own_tumor(slices.labels, slices.brain, made, box).condition()
        has_roi = condition.roi.any((1, 2, 3))
        chosen, condition = slices[has_roi], condition[has_roi]
        samples = workbench.sampled(chosen, condition, sampling, name=title)
        (painted,) = samples.images
        returned = returned_labels(samples, condition, chosen)
        roi = condition.roi[..., 0]
        maps = control_tasks.segment(segmenters, painted)
        for sequence, (name, label) in itertools.product(maps, kinds.COMPONENTS.items()):

            def scores(found: np.ndarray, truth: np.ndarray, label: int = label, roi=roi):
                return component_dice(found, truth, label, roi, settings.min_area)

            pair = (scores(maps[sequence], returned), chosen.patients)
            real = (scores(real_maps[sequence][has_roi], chosen.labels), chosen.patients)
            row = {"mode": mode, "sequence": sequence, "component": name}
            rows.append(row | compare(pair, real, workbench.seed))
        if box:
            touched, patients = touches_boxes(returned, condition, chosen.patients)
            sides[mode] = statistics.mean_with_interval(
                touched, patients, workbench.seed, statistics.SHARE
            )
        if mode == "components":
            agreement = agreement_with_request(returned, condition)
            requested = statistics.mean_with_interval(
                agreement, chosen.patients, workbench.seed, statistics.SHARE
            )
        else:
            known = workbench.inpainter.labels_of(chosen.images, condition, sampling)
            bins[mode] = reliability(known[roi], chosen.labels[roi])
        names.append(f"{mode}.png")
        _draw(folder / names[-1], workbench, chosen, condition, painted, returned, title)
    return {
        **workbench.record(settings.num_steps),
        "segmenter": dataclasses.asdict(settings.segmenter),
        "min_area": settings.min_area,
        "sizes": slices.sizes,
        "scores": rows,
        "boxes_touched": sides,
        "equal_to_request": requested,
        "calibration": bins,
        "pictures": names,
    }


def returned_labels(samples: Samples, condition: Condition, slices: LabeledSlices) -> np.ndarray:
    """The label maps of first samples: what was painted inside the ROIs, the slices' own outside.

    Args:
        samples: of N slices.
        condition, slices: theirs.

    Returns:
        uint8 [N, S, S].

    Raises:
        ValueError: the samples are those of a model without a label head.
    """
    if samples.label_probabilities is None:
        raise ValueError("the model has no label head, so it returns no label maps")
    painted = samples.label_probabilities[0].argmax(-1).astype(np.uint8)
    return np.where(condition.roi[..., 0], painted, slices.labels)


def component_dice(
    found: np.ndarray, truth: np.ndarray, label: int, roi: np.ndarray, min_area: int
) -> np.ndarray:
    """Dice of a component inside the ROIs, float64 [N]; NaN where `truth` has too little of it there.

    Args:
        found, truth: uint8 [N, S, S].
        label: of the component.
        roi: bool [N, S, S].
        min_area: pixels that `truth` must have.
    """
    pairs = zip((found == label) & roi, (truth == label) & roi, strict=True)
    return np.array([dice(a, b) if b.sum() >= min_area else np.nan for a, b in pairs])


def touches_boxes(
    labels: np.ndarray, condition: Condition, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether what was asked for in a box touches all four of its sides, for every box.

    Args:
        labels: uint8 [N, S, S].
        condition: of N examples.
        patients: [N].

    Returns:
        (0 or 1, patient), float64 [M] and [M], of the boxes of components and mixed tumors.
    """
    touched, of = [], []
    for n, channel in np.argwhere(condition.class_vector == CLASS_BOX).tolist():
        if channel == kinds.NORMAL:
            continue
        rows, columns = np.nonzero(condition.roi_masks[n, ..., channel] > 0)
        box = labels[n, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        is_there = (box > 0) & (box < CAVITY)
        if channel != kinds.TUMOR:
            is_there = box == kinds.KINDS[channel].label
        ends = is_there[0], is_there[-1], is_there[:, 0], is_there[:, -1]
        touched.append(float(all(end.any() for end in ends)))
        of.append(patients[n])
    return np.array(touched), np.array(of)


def agreement_with_request(labels: np.ndarray, condition: Condition) -> np.ndarray:
    """Share of the pixels with a requested label that have it, float64 [N]; NaN without any.

    Args:
        labels: uint8 [N, S, S].
        condition: of N examples.
    """
    is_box = (condition.class_vector == CLASS_BOX)[:, None, None, :]
    wanted, known = requested_labels(condition.roi_masks > 0, is_box)
    hits, counts = ((labels == wanted) & known).sum((1, 2)), known.sum((1, 2))
    return np.divide(hits, counts, out=np.full(len(labels), np.nan), where=counts > 0)


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """How often labels are right, by how sure the model is (Guo et al. 2017, arXiv:1706.04599).

    Args:
        probabilities: float [N, 4].
        truth: canonical labels [N]; a resection cavity is left out.

    Returns:
        `pixels`; `ece`, the mean over pixels of |share that is right - mean confidence| of their bin,
        None without pixels; and `bins`, of those that are not empty {"low", "high", "pixels",
        "confidence", "accuracy"}.
    """
    counted = truth != CAVITY
    probabilities, truth = probabilities[counted], truth[counted]
    confidence = probabilities.max(-1).astype(np.float64)
    right = probabilities.argmax(-1) == truth
    number = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    bins, error = [], 0.0
    for b in np.unique(number).tolist():
        inside = number == b
        entry = {
            "low": b / NUM_BINS,
            "high": (b + 1) / NUM_BINS,
            "pixels": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        error += entry["pixels"] * abs(entry["accuracy"] - entry["confidence"])
        bins.append(entry)
    return {"pixels": len(truth), "ece": error / len(truth) if bins else None, "bins": bins}


def tables(result: Mapping[str, Any]) -> str:
    """The part's section of the report, in Markdown."""
    rows = []
    for row in result["scores"]:
        count = (row["painted"] or {"count": 0})["count"]
        title, component = MODES[row["mode"]].title, row["component"].replace("_", " ")
        numbers = (row["real"], row["painted"], row["ratio"])
        rows.append([title, row["sequence"], component, count, *numbers])
    sides = [[MODES[mode].title, share] for mode, share in result["boxes_touched"].items()]
    bins = [
        [
            MODES[mode].title,
            f"{b['low']:.1f} to {b['high']:.1f}",
            f"{b['pixels']:,}",
            f"{b['confidence']:.2f}",
            f"{b['accuracy']:.2f}",
        ]
        for mode, calibration in result["calibration"].items()
        for b in calibration["bins"]
    ]
    errors = ", ".join(
        f"{MODES[mode].title} {statistics.cell(calibration['ece'], 3)}"
        for mode, calibration in result["calibration"].items()
    )
    columns = ["mode", "sequence", "component", "slices", "real", "painted", "ratio"]
    return report.section(
        "labels",
        result=result,
        min_real_score=control_tasks.MIN_REAL_SCORE,
        scores=report.table(columns, rows, num_text=3),
        requested=statistics.cell(result["equal_to_request"], 3),
        sides=report.table(["boxes", "tumor touches all four sides"], sides),
        errors=errors,
        bins=report.table(["mode", "confidence", "pixels", "mean", "right"], bins, num_text=2),
        images="\n".join(f"![{name[:-4]}](labels/{name})" for name in result["pictures"]),
    )


def _draw(
    path: Path,
    workbench: Workbench,
    slices: LabeledSlices,
    condition: Condition,
    painted: np.ndarray,
    returned: np.ndarray,
    title: str,
) -> None:
    """Request, result and returned labels of three slices, of T1CE and FLAIR where there are such."""
    shown = [q for q in ("t1ce", "flair") if q in workbench.sequences] or workbench.sequences[-1:]
    numbers = np.unique(np.linspace(0, len(slices) - 1, 3).astype(int))
    cells = []
    for n in numbers:
        window = pictures.around(condition.roi[n, ..., 0], margin=16)
        line = []
        for sequence in shown:
            channel = workbench.sequences.index(sequence)
            before, after = (
                pictures.enlarge(pictures.gray(image[n, ..., channel][window]))
                for image in (slices.images, painted)
            )
            masks = pictures.enlarge(condition.roi_masks[n][window])
            labels = pictures.enlarge(returned[n][window])
            marked = pictures.with_rois(before, masks, fill=0.2)
            line += [marked, after, pictures.with_labels(after, labels)]
        cells.append(line)
    columns = []
    for sequence in shown:
        columns += [f"{sequence.upper()} request", "painted", "labels returned"]
    pictures.figure(
        path,
        cells,
        rows=[f"slice {n}" for n in numbers],
        columns=columns,
        title=title[0].upper() + title[1:],
        footnote="synthetic inside the ROIs, not for diagnosis",
    )
