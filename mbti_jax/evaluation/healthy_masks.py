"""Masks of healthy tissue shaped like tumors, made as in BraTS's local-inpainting challenge.

Where healthy tissue is to be inpainted, the truth is known only if there was no tumor. The challenge
(Kofler et al. 2023, arXiv 2305.08992) therefore cuts the shape of a real tumor component out of
healthy tissue. This follows its published recipe:

1. A shape is a connected component (26 neighbors) of the whole tumor, holes filled, of at least 800
   voxels.
2. The case's own tumor is dilated by 5 voxels. Small tumors get large masks and vice versa: of
   all shapes ranked by their share of the brain, one is drawn around the rank opposite to that of the
   case's own tumor.
3. The shape is flipped along each axis or not, and rotated by any angle in two planes.
4. Its place is the one farther from the tumor of two random places in the brain.
5. It is accepted if it lies within the volume, at least 5 voxels from the dilated tumor, and at least
   75% of it inside the brain. Otherwise everything is drawn anew.

Departures: the mask also keeps its distance from components below 800 voxels and resection cavities,
though they are not voided; and after every 200 failed draws the range of ranks widens, so that a small
volume gets a mask, too, where the challenge would draw forever.

Files are written in the challenge's layout, which `configs/inpaint.py` reads as `brats_inpainting`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage import measure, segmentation
from tqdm import tqdm

from mbti_jax.io.nifti import write_label_map, write_nifti_like
from tfds_brats.cases import Case, CaseFiles, is_tumor, read_case
from tfds_brats.conventions import CAVITY, CONVENTIONS, CaseError

MIN_VOXELS = 800
DILATION = 5.0
MIN_DISTANCE = 5.0
MIN_BRAIN = 0.75
# Width of the range of ranks that a shape is drawn from, as a share of all shapes.
_RANKS = 0.1
_DRAWS_PER_WIDTH = 200


@dataclasses.dataclass(frozen=True)
class Shape:
    """A tumor component.

    Attributes:
        mask: bool [X, Y, Z], cut to its bounding box.
        share: its voxels as a share of the brain that it comes from.
    """

    mask: np.ndarray
    share: float


@dataclasses.dataclass(frozen=True)
class HealthyMask:
    """What is voided in a case.

    Attributes:
        healthy: bool [X, Y, Z], healthy tissue (and up to a quarter of background).
        unhealthy: bool [X, Y, Z], the dilated tumor; empty if there is none.
    """

    healthy: np.ndarray
    unhealthy: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """bool [X, Y, Z], both."""
        return self.healthy | self.unhealthy

    def on_background(self, brain: np.ndarray) -> int:
        """How many voxels of healthy mask are not in the brain, bool [X, Y, Z]."""
        return int(np.count_nonzero(self.healthy & ~brain))


def large_components(tumor: np.ndarray) -> np.ndarray:
    """Components of at least `MIN_VOXELS`, holes filled; bool [X, Y, Z] in and out."""
    return _components(tumor, lambda counts: counts >= MIN_VOXELS)


def largest_component(brain: np.ndarray) -> np.ndarray:
    """The brain without detached parts, holes filled; bool [X, Y, Z] in and out."""
    return _components(brain, lambda counts: counts == counts.max())


def _components(mask: np.ndarray, chosen: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The components whose sizes are `chosen`, holes filled."""
    out = np.zeros_like(mask)
    if not mask.any():
        return out
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    numbers = np.asarray(measure.label(mask[box], connectivity=3))
    counts = np.bincount(numbers.ravel())
    counts[0] = 0
    # Voxels not connected to the outside, which a margin holds together, are inside. Much faster than
    # ndimage.binary_fill_holes, which dilates step by step.
    outside = segmentation.flood(np.pad(chosen(counts)[numbers], 1), (0, 0, 0), connectivity=1)
    out[box] = ~outside[1:-1, 1:-1, 1:-1]
    return out


def shapes_of(case: Case) -> list[Shape]:
    """The shapes in a case that was read with its segmentation."""
    numbers = measure.label(large_components(is_tumor(case.segmentation)), connectivity=3)
    volume = np.count_nonzero(largest_component(case.brain))
    parts = measure.regionprops(numbers)
    return [Shape(part.image, np.count_nonzero(part.image) / volume) for part in parts]


def read_shapes(files: Sequence[CaseFiles]) -> list[Shape]:
    """The shapes in cases, smallest first.

    Raises:
        ValueError: a case cannot be read, or none has a tumor that is large enough.
    """
    bar = tqdm(files, desc="tumor shapes", unit="case", leave=False)
    shapes = [shape for f in bar for shape in shapes_of(read_case(f, ("t1",)))]
    if not shapes:
        raise ValueError(
            f"none of the {len(files)} cases has a tumor component of {MIN_VOXELS} voxels to take "
            "a shape from"
        )
    return sorted(shapes, key=lambda shape: shape.share)


def healthy_mask(
    labels: np.ndarray,
    brain: np.ndarray,
    shapes: Sequence[Shape],
    seed: int | Sequence[int],
) -> HealthyMask:
    """Cuts a shape out of healthy tissue; see the module's description.

    Args:
        labels: uint8 [X, Y, Z], canonical.
        brain: bool [X, Y, Z].
        shapes: sorted by share, see `read_shapes`.
        seed: whole numbers >= 0.

    Raises:
        ValueError: no shape found a place.
    """
    rng = np.random.default_rng(seed)
    brain = largest_component(brain)
    tumor = large_components(is_tumor(labels))
    unhealthy = _distance_to(tumor) < DILATION
    distance = _distance_to(unhealthy | is_tumor(labels) | (labels == CAVITY))
    places = np.flatnonzero(brain & (distance > MIN_DISTANCE))
    if not len(places):
        raise ValueError(f"no brain lies {MIN_DISTANCE:g} voxels from the tumor")
    shares = [shape.share for shape in shapes]
    rank = len(shapes) - np.searchsorted(shares, np.count_nonzero(tumor) / np.count_nonzero(brain))
    width = _RANKS
    while True:
        low = max(int(rank - width * len(shapes) / 2), 0)
        high = min(max(int(rank + width * len(shapes) / 2), low + 1), len(shapes))
        low = min(low, high - 1)
        for _ in range(_DRAWS_PER_WIDTH):
            two = places[rng.integers(len(places), size=2)]
            center = np.unravel_index(two[distance.flat[two].argmax()], brain.shape)
            shape = turned(shapes[int(rng.integers(low, high))].mask, rng)
            healthy = placed(shape, center, brain.shape)
            if healthy is not None and fits(healthy, brain, distance):
                return HealthyMask(healthy, unhealthy)
        if high - low == len(shapes):
            raise ValueError(
                f"none of the {len(shapes)} tumor shapes fits into healthy tissue "
                f"{MIN_DISTANCE:g} voxels from the tumor; give more cases to take shapes from"
            )
        width *= 2


def case_mask(case: Case, shapes: Sequence[Shape], seed: int | Sequence[int]) -> HealthyMask:
    """The `healthy_mask` of a case; as in the challenge, its brain is that of T1.

    Raises:
        CaseError: no shape found a place, with the case's name.
    """
    try:
        brain = dataclasses.replace(case, images={"t1": case.images["t1"]}).brain
        return healthy_mask(case.segmentation, brain, shapes, seed)
    except ValueError as error:
        raise CaseError(f"{case.subject}: {error}") from error


def turned(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shape flipped and rotated at random, cut to its bounding box; bool [X, Y, Z] in and out."""
    for axis in np.flatnonzero(rng.integers(2, size=3)).tolist():
        shape = np.flip(shape, axis)
    for axes, angle in zip(((0, 1), (1, 2)), rng.uniform(0, 360, 2), strict=True):
        shape = ndimage.rotate(shape, angle, axes, order=0, mode="grid-constant", prefilter=False)
    (box,) = ndimage.find_objects(shape.astype(np.uint8))
    return shape[box]


def placed(shape: np.ndarray, center: Iterable[int], size: Sequence[int]) -> np.ndarray | None:
    """bool `size`, the shape's bounding box centered on a voxel; None if it does not fit."""
    starts = [c - length // 2 for c, length in zip(center, shape.shape, strict=True)]
    stops = [start + length for start, length in zip(starts, shape.shape, strict=True)]
    if min(starts) < 0 or any(stop > n for stop, n in zip(stops, size, strict=True)):
        return None
    out = np.zeros(size, bool)
    out[tuple(map(slice, starts, stops))] = shape
    return out


def fits(healthy: np.ndarray, brain: np.ndarray, distance: np.ndarray) -> bool:
    """Whether a mask is large enough, far enough from the dilated tumor, and inside the brain.

    Args:
        healthy: bool [X, Y, Z].
        brain: bool [X, Y, Z].
        distance: float [X, Y, Z], voxels to the nearest one that is avoided.
    """
    count = np.count_nonzero(healthy)
    return bool(
        count >= MIN_VOXELS
        and distance[healthy].min() >= MIN_DISTANCE
        and np.count_nonzero(healthy & brain) >= MIN_BRAIN * count
    )


def _distance_to(mask: np.ndarray) -> np.ndarray:
    """Euclidean distance in voxels to the nearest voxel of a mask; infinite where it is empty."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~mask))


def write_layout(folder: Path, case: Case, mask: HealthyMask) -> None:
    """Writes the files of a case: images, voided images, and masks.

    They are `t1n`, `t1n-voided`, `mask`, `mask-healthy` and, with a tumor, `mask-unhealthy`, as the
    challenge has them. It has no names for other sequences; those that were read, the context of a model
    of several sequences, are written as that context only: voided, as `t1c`, `t2w` and `t2f`.

    All images have the header, affine and data type of the case's own.
    """
    nothing, suffixes = np.zeros_like(mask.whole), CONVENTIONS["brats2023"].suffixes
    others = [name for name in case.images if name != "t1"]
    images = [("t1", "-t1n", nothing), ("t1", "-t1n-voided", mask.whole)]
    images += [(name, suffixes[name], mask.whole) for name in others]
    zeros: dict[int | None, np.ndarray] = {None: np.zeros(mask.whole.shape)}
    for sequence, suffix, roi in images:
        target = folder / f"{case.subject}{suffix}.nii.gz"
        write_nifti_like(case.files.images[sequence], target, zeros, roi)
    masks = {"mask": mask.whole, "mask-healthy": mask.healthy}
    if mask.unhealthy.any():
        masks["mask-unhealthy"] = mask.unhealthy
    for name, voxels in masks.items():
        target = folder / f"{case.subject}-{name}.nii.gz"
        write_label_map(target, voxels.astype(np.uint8), case.files.images["t1"])
