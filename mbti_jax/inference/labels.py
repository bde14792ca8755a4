"""The label map of a repainted slice or volume: what was painted where, and what was there before.

Outside the ROI it holds the input's own labels where they are known, else 0. Inside, a model with a
label head says what it painted; without one the request does, as far as it can: in boxes and mixed
tumors nobody knows.
"""

from typing import Any

import numpy as np

from mbti_jax.rois.kinds import COMPONENTS
from mbti_jax.rois.regions import Rois, requested_labels
from mbti_jax.rois.tumors import painted_labels
from tfds_brats.conventions import CAVITY

# Where a label comes from.
KEPT, REQUESTED, PAINTED = "kept", "requested", "painted"


def label_map(
    rois: Rois,
    kept: np.ndarray | None,
    probabilities: np.ndarray | None,
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """The label maps of samples, and how they came about.

    Args:
        rois: that were repainted, [...].
        kept: canonical labels of the input, [...]; None if they are not known.
        probabilities: of the labels, float [N, ..., 4], used inside the ROI; None without a label head.

    Returns:
        (labels, record): uint8 [N, ...], canonical, with N = 1 without a label head, or None where
        nobody knows what was painted; and for the provenance record, in JSON values, `inside` (painted,
        requested or unknown), `outside` (kept, or unknown and 0), `pixels` (of each label by where it
        comes from, over all samples), `equal_to_request` (share of the requested pixels whose label is
        the request; None if none is requested), and of unknown labels `reason`.
    """
    base = np.zeros(rois.union.shape, np.uint8) if kept is None else kept.astype(np.uint8)
    record: dict[str, Any] = {"outside": "unknown" if kept is None else KEPT}
    requested, is_known = requested_labels(rois.masks, rois.is_box)
    if probabilities is None:
        try:
            labels = painted_labels(base, rois)[None]
        except ValueError as error:
            reason = f"{error}; a model with a label head says what it painted"
            return None, {"inside": "unknown", **record, "reason": reason}
        source = REQUESTED
    else:
        inside = probabilities.argmax(-1).astype(np.uint8)
        labels, source = np.where(rois.union, inside, base), PAINTED
    pixels = {}
    for name, label in {**COMPONENTS, "resection_cavity": CAVITY}.items():
        found = labels == label
        counts = {KEPT: found & ~rois.union, source: found & rois.union}
        counted = {where: int(mask.sum()) for where, mask in counts.items() if mask.any()}
        if counted:
            pixels[name] = counted
    equal = (labels == requested)[:, is_known]
    agreement = float(equal.mean()) if equal.size else None
    return labels, {"inside": source, **record, "pixels": pixels, "equal_to_request": agreement}
