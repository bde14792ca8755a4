"""Slices that are painted together: which of them is whose neighbor, and which others are seen."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from mbti_jax.diffusion.condition import offsets
from tfds_brats.records import MIN_BRAIN_BOX_AREA, box_areas


def neighbor_rows(
    slice_indices: Sequence[int] | Int[np.ndarray, " N"],
    has_roi: Bool[np.ndarray, " N"],
    neighbors: int,
    *,
    per_slice: int,
    num_samples: int,
    first_still: int,
) -> Int[np.ndarray, "rows 2*{neighbors}"]:
    """The neighbors of what is sampled of a volume, by number of their rows.

    Rows of what is sampled go by sample, slice with an ROI, and sequence; from `first_still` on come the
    slices without ROI, by slice and sequence, which all samples share.

    Args:
        slice_indices: numbers of the slices in their volume.
        has_roi: which of them are sampled.
        neighbors: K, how many slices on either side are seen.
        per_slice: rows of a slice: how many sequences are painted one by one.
        num_samples: samples.
        first_still: see above.

    Returns:
        int [rows, 2 K], bottom to top; -1 where the slice is not among those given.

    Raises:
        ValueError: two slices have the same number.
    """
    numbers = [int(number) for number in slice_indices]
    at = {number: place for place, number in enumerate(numbers)}
    if len(at) < len(numbers):
        raise ValueError("slices of a volume must have numbers of their own")
    # Among the sampled ones, and among the others.
    rank = np.where(has_roi, np.cumsum(has_roi), np.cumsum(~has_roi)) - 1
    sampled = np.flatnonzero(has_roi)
    rows = np.arange(num_samples * len(sampled) * per_slice)
    sample, rest = np.divmod(rows, len(sampled) * per_slice)
    place, sequence = np.divmod(rest, per_slice)
    around = []
    for offset in offsets(neighbors):
        other = np.array([at.get(numbers[n] + offset, -1) for n in sampled])[place]
        row = rank[other] * per_slice + sequence
        row += np.where(has_roi[other], sample * len(sampled) * per_slice, first_still)
        around.append(np.where(other < 0, -1, row))
    return np.stack(around, axis=-1)


def seen_slices(
    brain: Bool[np.ndarray, "Z H W"],
    numbers: Int[np.ndarray, " N"],
    neighbors: int,
    normal: Bool[np.ndarray, "Z H W"],
    replaced: Bool[np.ndarray, "Z H W"],
) -> Int[np.ndarray, " M"]:
    """Numbers of the slices that are painted and of the neighbors that they see, in order.

    As in training, slices with less brain than those of a dataset are not there. A slice without painted
    ones around it is painted as if alone: what is asked for in it alone seldom fits what is beside it.
    Nor is a slice seen that still holds what normal tissue beside it takes the place of.

    Args:
        brain: of the volume.
        numbers: of the slices that are painted.
        neighbors: K, how many slices on either side are seen.
        normal: where normal tissue is painted.
        replaced: where something is that normal tissue should take the place of: tumor, and ROIs of
            normal tissue that are not painted now.
    """
    painted = set(numbers.tolist())
    seen, spoiled = set(painted), set()
    for number in painted:
        around = {number + offset for offset in offsets(neighbors)} & set(range(len(brain)))
        if around & painted:
            seen |= around
        else:
            spoiled |= around
        spoiled |= {z for z in around - painted if (normal[number] & replaced[z]).any()}
    found = np.array(sorted(seen - spoiled))
    shown = box_areas(brain[found]) >= MIN_BRAIN_BOX_AREA
    return found[shown | np.isin(found, numbers)]
