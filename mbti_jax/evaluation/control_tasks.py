"""What a model is asked to paint when its control of tumors is measured, and whether it did.

A task is scored on the label maps that segmenters draw of the repainted slices. The reference is the
scores of the real slices, which show what was asked for.
"""

import contextlib
import dataclasses
from collections.abc import Mapping

import numpy as np

from mbti_jax.diffusion.condition import Condition
from mbti_jax.evaluation.overlap import box_around, dice, intersection_over_union
from mbti_jax.evaluation.segmenter import RealSegmenterSettings, Segmenter, component_labels
from mbti_jax.evaluation.slices import LabeledSlices
from mbti_jax.evaluation.workbench import PartSettings, Workbench
from mbti_jax.fields import Count
from mbti_jax.rois.kinds import CHANNELS, COMPONENTS
from mbti_jax.rois.regions import REMOVAL_MARGIN_MM, Rois
from mbti_jax.rois.tumors import moved, own_tumor
from tfds_brats.conventions import EDEMA

# Below it a segmenter does not see the component (or, for shares and boxes, the tumor) on real slices
# either, and the ratio means nothing.
MIN_REAL_SCORE = 0.3


@dataclasses.dataclass(frozen=True)
class ControlKind:
    """A kind of task.

    Attributes:
        title: in words.
        mode: what is painted where the tumor is, a key of `tumors.MODES`.
        scores: names of its scores, see `ControlTask.score`.
        scored_roi: name of the ROI in which the share of tumor is scored; with the score `iou`, it is a
            bounding box.
    """

    title: str
    mode: str
    scores: tuple[str, ...]
    scored_roi: str = ""

    @property
    def box(self) -> tuple[str, ...]:
        """Names of the ROIs that are bounding boxes."""
        return (self.scored_roi,) if "iou" in self.scores else ()


_EDEMA_BOX = "edema as a box, other components free-form"
_OF_BOXES = ("iou", "share")
KINDS = {
    "components": ControlKind("components, free-form", "replace", tuple(COMPONENTS)),
    "tumor_box": ControlKind("mixed tumor in a box", "random", _OF_BOXES, "tumor"),
    "edema_box": ControlKind(_EDEMA_BOX, "replace", _OF_BOXES, "edema"),
    "removal": ControlKind("normal tissue in place of the tumor", "remove", ("share",), "normal"),
}


@dataclasses.dataclass(frozen=True)
class ControlTaskSettings(PartSettings):
    """Slices of a test split and how they are scored.

    Attributes:
        num_slices: with tumor, and as many without.
        min_area: of a scored component, in the model's pixels.
        min_brain_area: of a slice without tumor, in the dataset's pixels.
        segmenter: trained on real slices.
    """

    num_slices: Count
    min_area: Count
    min_brain_area: Count
    segmenter: RealSegmenterSettings

    def slices(self, workbench: Workbench) -> tuple[LabeledSlices, LabeledSlices]:
        """Slices with tumor, and slices without."""
        return workbench.with_and_without_tumor("test", self.num_slices, self.min_brain_area)


@dataclasses.dataclass(frozen=True)
class ControlTask:
    """Slices and what to paint into them.

    Attributes:
        kind: a key of `KINDS`.
        slices: N.
        labels: uint8 [N, S, S], the label map that is asked for; with boxes and in removal, the tumor
            that the boxes and ROIs were drawn around.
        condition: of the slices.
        min_area: pixels. A smaller component is not scored, since a pixel more or less at its border
            would decide, and smaller connected parts do not count in boxes.
    """

    kind: str
    slices: LabeledSlices
    labels: np.ndarray
    condition: Condition
    min_area: int

    def with_margin(self, pixel_mm: float) -> "ControlTask":
        """The same with a removal that reaches as far beyond the tumor as that of users.

        Args:
            pixel_mm: size of the slices' pixels.
        """
        masks = np.stack(
            [
                Rois(of_slice).dilated(REMOVAL_MARGIN_MM, brain, (pixel_mm, pixel_mm)).masks
                for of_slice, brain in zip(
                    self.condition.roi_masks > 0, self.slices.brain, strict=True
                )
            ]
        )
        return dataclasses.replace(self, condition=Rois(masks).condition())

    def scores(self, segmented: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """`score` of each sequence's label maps."""
        return {sequence: self.score(labels) for sequence, labels in segmented.items()}

    def tumor_dice(self, segmented: np.ndarray) -> np.ndarray:
        """Dice of all that was segmented as tumor with all tumor of `labels`, float64 [N]."""
        return np.array(list(map(dice, segmented > 0, self.labels > 0)))

    def score(self, segmented: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of what a segmenter finds in each slice.

        Args:
            segmented: uint8 [N, S, S].

        Returns:
            float64 [N] by score, NaN for slices without a score. For components: Dice of what was
            segmented with what was asked for, by name. For boxes: `iou` of the requested box with the
            box around the segmented tumor, or edema; 0 where there is none; and `share` of the
            requested box that was segmented as tumor. For removal: `share` of the former tumor that was
            segmented as tumor.
        """
        if self.kind == "components":

            def component_dice(mine: np.ndarray, asked: np.ndarray) -> float:
                return dice(mine, asked) if np.count_nonzero(asked) >= self.min_area else np.nan

            return {
                name: np.array(list(map(component_dice, segmented == label, self.labels == label)))
                for name, label in COMPONENTS.items()
            }
        kind = KINDS[self.kind]
        channel = CHANNELS.index(kind.scored_roi)
        # The rim of a removal, see `with_margin`, is not tumor to begin with.
        is_removal = self.kind == "removal"
        rois = (self.labels if is_removal else self.condition.roi_masks[..., channel]) > 0
        shares = [(mine > 0)[roi].mean() for mine, roi in zip(segmented, rois, strict=True)]
        scores = {"share": np.array(shares)}
        if "iou" in kind.scores:
            regions = segmented == EDEMA if self.kind == "edema_box" else segmented > 0
            boxes = [box_around(region, self.min_area) for region in regions]
            scores["iou"] = np.array(list(map(intersection_over_union, boxes, rois)))
        return scores


def make_control_task(
    kind: str, slices: LabeledSlices, labels: np.ndarray, min_area: int
) -> ControlTask:
    """The task of painting tumors of given label maps, in those slices that have what it needs.

    Args:
        kind: a key of `KINDS`.
        slices: N.
        labels: uint8 [N, S, S], canonical.
        min_area: pixels that a component (for an edema's box, the edema) must have.

    Raises:
        ValueError: an unknown kind, or no slice has what it needs.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of task {kind!r}; choose from {', '.join(KINDS)}")
    asked = KINDS[kind]
    labels = component_labels(labels)
    needed = [EDEMA] if kind == "edema_box" else COMPONENTS.values()
    suitable = np.max([(labels == label).sum((1, 2)) for label in needed], axis=0) >= min_area
    if not suitable.any():
        raise ValueError(f"no slice holds what is needed for {asked.title}; use more slices")
    slices, labels = slices[suitable], labels[suitable]
    rois = own_tumor(labels, slices.brain, asked.mode, asked.box)
    return ControlTask(kind, slices, labels, rois.condition(), min_area)


def transplant(
    labels: np.ndarray, hosts: LabeledSlices, seed: int
) -> tuple[LabeledSlices, np.ndarray]:
    """Puts tumors of other slices into slices without tumor, inside the brain.

    Every host gets the first tumor, in an order of its own, of which nine tenths fit into its brain,
    at a place of its own (see `tumors.moved`); hosts too small for any are left out.

    Args:
        labels: uint8 [M, S, S], whose tumors are transplanted.
        hosts: slices without tumor.
        seed: of choice and places.

    Returns:
        The hosts that got one, and uint8 [N, S, S], what they got.

    Raises:
        ValueError: none fits anywhere.
    """
    tumors, rows, transplanted = component_labels(labels), [], []
    for row, brain in enumerate(hosts.brain):
        order = np.random.default_rng((seed, row)).permutation(len(tumors))
        for tumor in filter(np.any, tumors[order]):
            # Where it does not fit, the next one is tried.
            with contextlib.suppress(ValueError):
                transplanted.append(moved(tumor[None], brain[None], (seed, row))[0])
                rows.append(row)
                break
    if not rows:
        raise ValueError("no tumor fits into the brain of any slice without tumor")
    return hosts[np.array(rows)], np.stack(transplanted)


def false_positives(segmented: np.ndarray, slices: LabeledSlices) -> np.ndarray:
    """Share of the brain without tumor that is segmented as tumor, float64 [N]; NaN without any brain.

    Args:
        segmented: uint8 [N, S, S], label maps of the slices.
        slices: N.
    """
    outside = slices.brain & (slices.labels == 0)
    counts = outside.sum((1, 2))
    marked = (outside & (segmented > 0)).sum((1, 2))
    return np.divide(marked, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def segment(segmenters: Mapping[str, Segmenter], images: np.ndarray) -> dict[str, np.ndarray]:
    """Label maps, uint8 [N, S, S], that each sequence's segmenter draws of images [N, S, S, Q]."""
    return {
        sequence: segmenter.labels(images[..., channel])
        for channel, (sequence, segmenter) in enumerate(segmenters.items())
    }
