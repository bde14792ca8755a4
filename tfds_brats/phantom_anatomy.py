"""Healthy anatomy of the digital phantom: a deformed ICBM152 brain as tissue fractions.

Everything lives on the BraTS grid (240 x 240 x 155 voxels of 1 mm, LPS), cropped to `WINDOW`, which
holds every brain with room to spare. Positions are voxel indices of the whole grid, in mm.

Geometry is a *pull-back*: for every voxel of the subject we compute where in the template its tissue
comes from. Three maps are chained, from the subject to the template:

    voxel --displacement of the tumor--> healthy subject --random smooth field--> affine --> template

The maps are smooth, so they are evaluated on a 4 mm lattice and interpolated.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

GRID_SHAPE = (240, 240, 155)
# First voxel and shape of the part of the grid that a brain can occupy.
WINDOW_START = np.array([40, 28, 0])
WINDOW_SHAPE = (160, 200, 152)
WINDOW = tuple(
    slice(start, start + size) for start, size in zip(WINDOW_START, WINDOW_SHAPE, strict=True)
)

_LATTICE_STEP = 4
_TEMPLATE_CENTER = np.array([98.0, 117.0, 78.0])  # voxel in the mid-plane, amid the brain
_DEPTH_STEP = 2  # mm, resolution of the template's depth map


class Template(NamedTuple):
    """ICBM152 2009a nonlinear symmetric, 197 x 233 x 189 voxels of 1 mm, RAS.

    Attributes:
        gray: float32, fraction of gray matter.
        white: float32, fraction of white matter.
        fluid: float32, fraction of cerebrospinal fluid (the rest of the brain).
        depth: float32 at half resolution, mm from the brain surface, positive inside.
        origin: world coordinates (mm) of the first voxel.
    """

    gray: np.ndarray
    white: np.ndarray
    fluid: np.ndarray
    depth: np.ndarray
    origin: np.ndarray


@functools.lru_cache(maxsize=1)
def load_template() -> Template:
    """Loads the maps that are bundled with nilearn; needs no network."""
    # Not at the top: importing nilearn takes two seconds, and reading cases does not need it.
    from nilearn import datasets

    t1_image = datasets.load_mni152_template(resolution=1)
    t1 = np.asarray(t1_image.dataobj, dtype=np.float32)
    gray = np.asarray(datasets.load_mni152_gm_template(resolution=1).dataobj, dtype=np.float32)
    white = np.asarray(datasets.load_mni152_wm_template(resolution=1).dataobj, dtype=np.float32)
    # Averaging 152 people filled most sulci with "gray matter"; the average T1 still shows them dark.
    sulci = np.clip((0.60 - t1) / 0.22, 0.0, 1.0) * gray
    gray = gray - sulci
    fluid = np.clip(1.0 - gray - white, 0.0, 1.0)

    brain = t1[::_DEPTH_STEP, ::_DEPTH_STEP, ::_DEPTH_STEP] > 0
    # The template ends in a flat cut through the brain stem, which is not a brain surface.
    brain = np.pad(brain, ((0, 0), (0, 0), (20, 0)), mode="edge")
    inside, outside = (np.asarray(ndimage.distance_transform_edt(part)) for part in (brain, ~brain))
    depth = inside - outside
    depth = (depth[:, :, 20:] * _DEPTH_STEP).astype(np.float32)
    return Template(gray, white, fluid, depth, t1_image.affine[:3, 3].copy())


@functools.lru_cache(maxsize=64)
def _spline_matrix(size: int, spacing: float, order: int) -> np.ndarray:
    """float32 [size, knots]: B-spline basis of a degree (1 or 3) on knots `spacing` voxels apart."""
    knots = int(np.ceil((size - 1) / spacing)) + 1 + (2 if order == 3 else 0)
    offset = 1 if order == 3 else 0
    x = np.abs(np.arange(size)[:, None] / spacing + offset - np.arange(knots)[None, :])
    if order == 1:
        weights = np.clip(1.0 - x, 0.0, None)
    else:
        weights = np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.clip(2.0 - x, 0.0, None) ** 3 / 6)
    return weights.astype(np.float32)


def upsample(lattice: np.ndarray, shape: tuple[int, ...], spacing: float, order: int) -> np.ndarray:
    """Evaluates a tensor-product B-spline with coefficients `lattice` on every voxel of `shape`.

    With order 1 this is linear interpolation of a lattice whose points are `spacing` voxels apart.
    Three small matrix products take a tenth of the time of `scipy.ndimage.zoom`.
    """
    x, y, z = (_spline_matrix(size, spacing, order) for size in shape)
    return (x @ np.matmul(y, lattice @ z.T).reshape(x.shape[1], -1)).reshape(shape)


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], spacing: float) -> np.ndarray:
    """float32 random field of unit variance, a cubic B-spline with normal coefficients.

    Args:
        rng: source of the coefficients.
        shape: three sizes in voxels.
        spacing: knot distance in voxels; features are about twice as large.
    """
    matrices = [_spline_matrix(size, spacing, 3) for size in shape]
    knots = tuple(matrix.shape[1] for matrix in matrices)
    field = upsample(rng.standard_normal(knots, dtype=np.float32), shape, spacing, 3)
    # Sum of squared weights, averaged over the voxels: the variance of the sum.
    variance = np.prod([np.mean(np.sum(matrix**2, axis=1)) for matrix in matrices])
    field /= np.float32(np.sqrt(variance))
    return field


def radial_pullback(
    points: np.ndarray, center: np.ndarray, radius: float, strength: np.ndarray | float
) -> np.ndarray:
    """Where tissue now at `points` was before a lesion at `center` pushed it outward.

        p_0 = c + (p - c) (1 - s exp(-|p - c|^2 / (2 radius^2)))

    The shift is largest (0.61 s radius) at |p - c| = radius and fades beyond. For 0 <= s < 1 the map
    is one-to-one, because d|p_0| / d|p| >= 1 - s. A negative s pulls tissue inward.

    Args:
        points: float [..., 3], mm.
        center: float [3], mm.
        radius: mm.
        strength: s, a number below 1 or an array [...].
    """
    offset = points - center
    falloff = np.exp(-np.sum(offset**2, axis=-1) / (2.0 * radius**2))
    return center + offset * (1.0 - strength * falloff)[..., None]


class Head(NamedTuple):
    """One person's anatomy before any tumor.

    Attributes:
        to_template: maps points float [..., 3] (voxel indices of the grid) to template voxel indices.
        tissue_bias: weights of fluid, gray and white matter; more fluid means more atrophy.
        sharpness: exponent that turns the template's soft fractions into crisp tissue.
    """

    to_template: Callable[[np.ndarray], np.ndarray]
    tissue_bias: tuple[float, float, float]
    sharpness: float


def lattice_points() -> np.ndarray:
    """float32 [i, j, k, 3]: positions of the 4 mm lattice that covers the window."""
    axes = [
        start + _LATTICE_STEP * np.arange(int(np.ceil((size - 1) / _LATTICE_STEP)) + 1)
        for start, size in zip(WINDOW_START, WINDOW_SHAPE, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)


def sample_head(rng: np.random.Generator) -> Head:
    """Draws size, pose, shape, ventricle size and atrophy of one person."""
    # Subject mm per template mm: brain boxes of about 140 x 172 x 140 voxels, as in real cases.
    scale = np.array([0.93, 0.94, 0.90]) * rng.normal(1.0, [0.012, 0.016, 0.014])
    angles = rng.normal(0.0, np.deg2rad([1.5, 1.0, 1.5]))
    cosine, sine = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cosine[0], -sine[0]], [0, sine[0], cosine[0]]])
    about_y = np.array([[cosine[1], 0, sine[1]], [0, 1, 0], [-sine[1], 0, cosine[1]]])
    about_z = np.array([[cosine[2], -sine[2], 0], [sine[2], cosine[2], 0], [0, 0, 1]])
    # The template is RAS and the grid LPS, so the first two axes turn round.
    linear = np.diag([-1.0, -1.0, 1.0]) @ np.diag(1.0 / scale) @ about_x @ about_y @ about_z
    center = np.array([118.5, 127.5, 68.0]) + rng.normal(0.0, [1.0, 2.5, 1.5])

    shape = lattice_points().shape[:3]
    # Slow fields shape the head, fast ones the gyri; slopes stay below 1, so nothing folds.
    fields = [
        2.5 * smooth_field(rng, shape, 60 / _LATTICE_STEP)
        + 0.9 * smooth_field(rng, shape, 20 / _LATTICE_STEP)
        + 0.8 * smooth_field(rng, shape, 9 / _LATTICE_STEP)
        for _ in range(3)
    ]
    ventricle_strength = rng.uniform(-0.25, 0.35)

    def to_template(points: np.ndarray) -> np.ndarray:
        flat = (points.reshape(-1, 3) - WINDOW_START) / _LATTICE_STEP
        shift = [ndimage.map_coordinates(f, flat.T, order=1, mode="nearest") for f in fields]
        moved = points + np.stack(shift, axis=-1).reshape(points.shape)
        template = (moved - center) @ linear.T + _TEMPLATE_CENTER
        for side in (-1, 1):
            ventricle = np.array([98.0 + side * 14.0, 122.0, 90.0])
            template = radial_pullback(template, ventricle, 16.0, ventricle_strength)
        return template.astype(np.float32)

    return Head(
        to_template,
        tissue_bias=(float(np.exp(rng.normal(0.2, 0.35))), 1.0, float(np.exp(rng.normal(0, 0.1)))),
        sharpness=rng.uniform(1.5, 2.2),
    )


def template_depth(template_points: np.ndarray) -> np.ndarray:
    """Depth below the template's brain surface in mm, float32 [...], at template voxel indices."""
    flat = template_points.reshape(-1, 3).T / _DEPTH_STEP
    depth = ndimage.map_coordinates(load_template().depth, flat, order=1, mode="nearest")
    return depth.reshape(template_points.shape[:-1])


class Tissue(NamedTuple):
    """Anatomy on the window, all float32 but `brain`.

    Attributes:
        brain: bool, what skull-stripping leaves.
        depth: mm below the brain surface.
        side: mm from the mid-plane, measured in the template; its sign tells the hemispheres apart.
        fluid, gray, white: fractions that add up to 1 in the brain and are 0 outside.
    """

    brain: np.ndarray
    depth: np.ndarray
    side: np.ndarray
    fluid: np.ndarray
    gray: np.ndarray
    white: np.ndarray


def sample_tissue(
    rng: np.random.Generator, head: Head, before_tumor: Callable[[np.ndarray], np.ndarray]
) -> Tissue:
    """Reads the template through `head` and through the tumor's displacement.

    Args:
        rng: source of the ragged edge of skull-stripping and of the small folds.
        head: the person.
        before_tumor: pull-back of the mass effect, points [..., 3] -> points [..., 3].
    """
    template = load_template()
    lattice = head.to_template(before_tumor(lattice_points()))
    depth = upsample(template_depth(lattice), WINDOW_SHAPE, _LATTICE_STEP, 1)
    # Skull-stripping cuts a little deeper here and there.
    ragged = 0.5 * smooth_field(rng, WINDOW_SHAPE, 14) + 0.5 * smooth_field(rng, WINDOW_SHAPE, 5)
    brain = depth > rng.uniform(0.3, 1.2) + ragged
    # Every neighbor of a brain voxel lies in the window, but for the cut at the bottom of the grid.
    brain[0] = brain[-1] = brain[:, 0] = brain[:, -1] = brain[:, :, -1] = False

    points = [upsample(lattice[..., axis], WINDOW_SHAPE, _LATTICE_STEP, 1) for axis in range(3)]
    side = points[0] - np.float32(_TEMPLATE_CENTER[0])
    points = np.stack([axis[brain] for axis in points])
    brain_indices = np.flatnonzero(brain)
    # Log-odds noise at the scale of a gyrus makes folds and sulci differ from person to person.
    fold = 0.5 * smooth_field(rng, WINDOW_SHAPE, 4).ravel()[brain_indices]
    fold_fluid = 0.6 * smooth_field(rng, WINDOW_SHAPE, 5).ravel()[brain_indices]
    logits = (fold_fluid, -fold, fold)
    odds = []
    for source, bias, noise in zip(
        (template.fluid, template.gray, template.white), head.tissue_bias, logits, strict=True
    ):
        fraction = ndimage.map_coordinates(source, points, order=1, mode="nearest")
        odds.append(((fraction + 1e-3) * bias * np.exp(noise)) ** np.float32(head.sharpness))
    total = odds[0] + odds[1] + odds[2]
    volumes = []
    for part in odds:
        volume = np.zeros(WINDOW_SHAPE, np.float32)
        volume.ravel()[brain_indices] = part / total
        volumes.append(volume)
    return Tissue(brain, depth, side, *volumes)
