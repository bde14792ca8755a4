"""Blending of painted tissue into its surroundings, inside the ROI.

What a network paints differs from the tissue around by a little that varies slowly along the ROI's
border, and the eye finds that step. Adding a membrane to it, which on the border is that difference,
keeps the painted gradients and takes the step away (Perez et al. 2003, "Poisson image editing"). Theirs
is harmonic and fills the ROI, so that a border beside what is left of a tumor, or beside fluid, changes
all that was painted; this one is held to zero by springs, and ends within millimeters (the screened
Poisson equation, u'' = u / reach^2). The difference is smoothed along the border first, for a single
pixel's is mostly texture.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu
from skimage.measure import label

from mbti_jax.diffusion.sampling import BLEND_REACH_MM
from mbti_jax.rois.kinds import NORMAL
from tfds_brats.scale import BACKGROUND

# Standard deviation of the smoothing along the border, in millimeters.
_SIGMA_MM = 3.0
# How far above background a painted pixel is brain, in the model's units.
_AIR = 0.02
_SIDES = ((0, 1), (0, -1), (1, 1), (1, -1))


def blend_normal_tissue(
    painted: Float[np.ndarray, "H W C"],
    context: Float[np.ndarray, "H W C"],
    masks: Bool[np.ndarray, "H W K"],
    pixel_size: Sequence[float],
) -> Float[np.ndarray, "H W C"]:
    """A painted slice whose ROI of normal tissue goes over into the brain around all ROIs.

    What was painted as background stays exactly as it is. So do other kinds of ROI, whose tissue may
    well end with the ROI.

    Args:
        painted: float [H, W, C] in model units.
        context: the input, likewise; background is -1.
        masks: bool [H, W, K], the ROIs.
        pixel_size: height and width of a pixel in millimeters.

    Returns:
        float [H, W, C]; `painted` outside the ROI of normal tissue.
    """
    normal, union = masks[..., NORMAL], np.asarray(masks.any(axis=-1))
    if not normal.any():
        return painted
    brain = (context != BACKGROUND).any(axis=-1)
    tissue = np.asarray(np.any(painted > BACKGROUND + _AIR, axis=-1))
    whole = np.where(union[..., None], painted, context)
    made = blended(whole, normal, brain & ~union, tissue, pixel_size)
    return np.where(normal[..., None], made, painted).astype(painted.dtype)


def blended(
    image: Float[np.ndarray, "H W C"],
    roi: Bool[np.ndarray, "H W"],
    around: Bool[np.ndarray, "H W"],
    painted: Bool[np.ndarray, "H W"],
    pixel_size: Sequence[float] = (1.0, 1.0),
) -> Float[np.ndarray, "H W C"]:
    """A slice whose ROI goes over into what lies around it.

    Args:
        image: float [H, W, C], the painted slice with its surroundings.
        roi: bool [H, W], the ROI that is blended.
        around: bool [H, W], the pixels outside of all ROIs that it is to go over into: brain.
        painted: bool [H, W], the pixels of the ROI that are brain; others stay as they are.
        pixel_size: height and width of a pixel in millimeters.

    Returns:
        float64 [H, W, C]; outside `roi & painted` it is `image`. So it is in parts of the ROI that touch
        nothing of `around`.
    """
    out = np.array(image, np.float64)
    inside = roi & painted
    steps, count = _steps(out, inside, around & ~roi)
    border = count > 0
    # Parts without any border have nothing to go over into.
    parts = np.asarray(label(inside, connectivity=1))
    inside &= np.isin(parts, parts[border])
    if not border.any():
        return out
    sigma = [_SIGMA_MM / size for size in pixel_size]
    weight = gaussian_filter(count, sigma, mode="constant")[border][:, None]
    smooth = [gaussian_filter(steps[..., c], sigma, mode="constant") for c in range(out.shape[-1])]
    difference = np.zeros_like(out)
    difference[border] = np.stack(smooth, axis=-1)[border] / weight
    out[inside] += _membrane(difference, border, inside, pixel_size)[inside]
    return out


def _steps(
    image: np.ndarray, inside: np.ndarray, around: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """From each pixel inside to its neighbors around: sum of the differences [H, W, C], their number."""
    steps, count = np.zeros_like(image), np.zeros(inside.shape)
    for axis, shift in _SIDES:
        beside = inside & _shifted(around, axis, shift)
        steps[beside] += (_shifted(image, axis, shift) - image)[beside]
        count += beside
    return steps, count


def _membrane(
    values: np.ndarray, border: np.ndarray, inside: np.ndarray, pixel_size: Sequence[float]
) -> np.ndarray:
    """[H, W, C]: `values` on the border, and in the other pixels of `inside` what they hold up there.

    Its Laplacian is its value over the square of `BLEND_REACH_MM`; where it meets neither, it is level.
    """
    out = np.where(border[..., None], values, 0.0)
    free = inside & ~border
    size = int(free.sum())
    if not size:
        return out
    number = np.full(free.shape, -1)
    number[free] = np.arange(size)
    diagonal, known = np.full(size, BLEND_REACH_MM**-2), np.zeros((size, values.shape[-1]))
    rows, columns, entries = [np.arange(size)], [np.arange(size)], []
    for axis, shift in _SIDES:
        pull = pixel_size[axis] ** -2
        neighbor, fixed = (
            _shifted(number, axis, shift, -1)[free],
            _shifted(border, axis, shift)[free],
        )
        linked = neighbor >= 0
        diagonal += pull * (linked | fixed)
        known[fixed] += pull * _shifted(out, axis, shift)[free][fixed]
        rows.append(np.flatnonzero(linked))
        columns.append(neighbor[linked])
        entries.append(np.full(linked.sum(), -pull))
    matrix = (np.concatenate([diagonal, *entries]), (np.concatenate(rows), np.concatenate(columns)))
    out[free] = splu(coo_array(matrix, shape=(size, size)).tocsc()).solve(known)
    return out


def _shifted(array: np.ndarray, axis: int, shift: int, fill: float = 0) -> np.ndarray:
    """The neighbor of each pixel along an axis, before (1) or behind it (-1); `fill` past the image."""
    out = np.full_like(array, fill)
    later, earlier = [slice(None)] * array.ndim, [slice(None)] * array.ndim
    later[axis], earlier[axis] = slice(1, None), slice(None, -1)
    to, of = (later, earlier) if shift == 1 else (earlier, later)
    out[tuple(to)] = array[tuple(of)]
    return out
