"""What a model is asked to paint when its control of tumours is measured, and whether it did.

A request is scored on the label maps that segmenters draw of the repainted slices. The same scores of
the real slices, which show what was asked for, are what to lay them beside.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mbti_jax.evaluation.overlap import box_around, dice, intersection_over_union
from mbti_jax.evaluation.segmenter import Segmenter
from mbti_jax.evaluation.setting import LabelledSlices, Tasks
from mbti_jax.rois.kinds import CHANNELS, COMPONENTS
from mbti_jax.rois.tumors import moved
from tfds_brats.cases import is_tumor
from tfds_brats.conventions import EDEMA

KINDS = {
    "components": "components, free-form",
    "tumor_box": "mixed tumour in a box",
    "edema_box": "edema as a box, other components free-form",
    "removal": "normal tissue in place of the tumour",
}
# Scores by kind.
SCORES = {
    "components": tuple(COMPONENTS),
    "tumor_box": ("iou", "share"),
    "edema_box": ("iou", "share"),
    "removal": ("share",),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """Slices and what to paint into them.

    Attributes:
        kind: of `KINDS`.
        slices: N.
        labels: uint8 [N, S, S], the label map that is asked for; with boxes and in removal, the tumour
            that the boxes and ROIs were drawn around.
        tasks: of the slices.
    """

    kind: str
    slices: LabelledSlices
    labels: np.ndarray
    tasks: Tasks


def make_request(kind: str, slices: LabelledSlices, labels: np.ndarray, least_area: int) -> Request:
    """The request for tumours of given label maps, in those slices that have what it needs.

    Args:
        kind: of `KINDS`.
        slices: N.
        labels: uint8 [N, S, S], canonical.
        least_area: pixels that a component, with an edema's box the edema, must have.

    Raises:
        ValueError: an unknown kind, or no slice has what it needs.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of request {kind!r}; choose from {', '.join(KINDS)}")
    labels = np.where(is_tumor(labels), labels, 0).astype(np.uint8)
    needed = [EDEMA] if kind == "edema_box" else COMPONENTS.values()
    there = np.max([(labels == label).sum((1, 2)) for label in needed], axis=0) >= least_area
    if not there.any():
        raise ValueError(f"no slice holds what is needed for {KINDS[kind]}; use more slices")
    slices, labels = slices.take(there), labels[there]
    if kind == "components":
        tasks = Tasks.components(labels)
    elif kind == "edema_box":
        tasks = Tasks.components(labels, ("edema",))
    elif kind == "tumor_box":
        tasks = Tasks.whole(labels > 0, "tumor", box=True)
    else:
        tasks = Tasks.whole(labels > 0, "normal", box=False)
    return Request(kind, slices, labels, tasks)


def borrow(
    labels: np.ndarray, hosts: LabelledSlices, seed: int
) -> tuple[LabelledSlices, np.ndarray]:
    """Puts tumours of other slices into slices without tumour, inside the brain.

    Every host gets the first tumour, in an order of its own, of which nine tenths fit into its brain,
    at a place of its own (see `tumors.moved`); hosts too small for any are left out.

    Args:
        labels: uint8 [M, S, S], whose tumours are borrowed.
        hosts: slices without tumour.
        seed: of choice and places.

    Returns:
        The hosts that got one, and uint8 [N, S, S], what they got.

    Raises:
        ValueError: none fits anywhere.
    """
    tumors = [np.where(is_tumor(donor), donor, 0) for donor in labels]
    rows, borrowed = [], []
    for row, brain in enumerate(hosts.brain):
        for donor in np.random.default_rng((seed, row)).permutation(len(tumors)):
            if not tumors[donor].any():
                continue
            try:
                placed = moved(tumors[donor][None], brain[None], (seed, row))[0]
            except ValueError:
                continue
            rows.append(row)
            borrowed.append(placed)
            break
    if not rows:
        raise ValueError("no tumour fits into the brain of any slice without tumour")
    return hosts.take(np.array(rows)), np.stack(borrowed).astype(np.uint8)


def segment(segmenters: Mapping[str, Segmenter], images: np.ndarray) -> dict[str, np.ndarray]:
    """What each sequence's segmenter sees in its channel of images [N, S, S, Q]: uint8 [N, S, S]."""
    return {
        sequence: segmenter.labels(images[..., channel])
        for channel, (sequence, segmenter) in enumerate(segmenters.items())
    }


def measure(request: Request, found: np.ndarray, least_area: int) -> dict[str, np.ndarray]:
    """Scores of what a segmenter found in each slice of a request.

    Args:
        request: N slices.
        found: uint8 [N, S, S].
        least_area: pixels. A smaller component is not scored, since a pixel more or less at its border
            would decide, and smaller connected parts do not count in boxes.

    Returns:
        float64 [N] by score, NaN in slices that have none. For components: Dice of what was found with
        what was asked for, by name. For boxes: `iou` of the requested box with the box around what was
        found of the tumour, or of the edema; 0 where nothing was; and `share` of the requested box
        that was found to be tumour. For removal: `share` of the ROI that was found to be tumour.
    """
    if request.kind == "components":
        return {
            name: np.array(
                [
                    dice(there == label, wanted == label)
                    if np.count_nonzero(wanted == label) >= least_area
                    else np.nan
                    for there, wanted in zip(found, request.labels, strict=True)
                ]
            )
            for name, label in COMPONENTS.items()
        }
    channel = {"tumor_box": "tumor", "edema_box": "edema", "removal": "normal"}[request.kind]
    rois = request.tasks.roi_masks[..., CHANNELS.index(channel)]
    shares = np.array([(there > 0)[roi].mean() for there, roi in zip(found, rois, strict=True)])
    if request.kind == "removal":
        return {"share": shares}
    regions = found == EDEMA if request.kind == "edema_box" else found > 0
    ious = [
        intersection_over_union(box_around(region, least_area), roi)
        for region, roi in zip(regions, rois, strict=True)
    ]
    return {"iou": np.array(ious), "share": shares}
