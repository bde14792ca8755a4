"""Gliomas of the digital phantom: where they sit, how they push, and what they grow into.

A focus starts as a tilted ellipsoid and grows outward as a front whose speed depends on the tissue.
The time of arrival T solves the Eikonal equation

    |grad T| = 1 / speed(tissue)

the traveling-wave limit of the reaction-diffusion models of glioma growth (Swanson et al. 2000, Cell
Prolif. 33:317; Konukoglu et al. 2010, IEEE Trans. Med. Imaging 29:77). Edema runs the same equation
again from the surface of the core, fast in white matter, slow in cortex and hardly at all through
fluid, which gives the fingers between the gyri and stops it at fissures and ventricles.
"""

from typing import NamedTuple

import numpy as np

from tfds_brats.phantom_anatomy import (
    WINDOW_SHAPE,
    WINDOW_START,
    Head,
    Tissue,
    lattice_points,
    load_template,
    radial_pullback,
    smooth_field,
    template_depth,
    upsample,
)

NECROSIS, EDEMA, ENHANCING = 1, 2, 4  # BraTS's numbers up to 2021

_FRONT_STEP = 2  # mm, lattice on which fronts travel
_FASTEST = 0.7  # least slowness, which bounds how far a front gets


class Focus(NamedTuple):
    """One center of growth: position in grid voxels, radius in mm, and a matrix [3, 3] that maps
    offsets in mm onto the unit ball when divided by the radius (its determinant is 1)."""

    center: np.ndarray
    radius: float
    shape: np.ndarray


class TumorPlan(NamedTuple):
    """What is decided before growth.

    Attributes:
        kind: 'ring' (necrosis in an enhancing rim), 'solid' (small, enhancing throughout) or
            'low-grade' (non-enhancing core with at most a few enhancing specks).
        foci: one to three.
        push: strength of the mass effect, below 1.
        edema_width: mm that edema travels in white matter.
        rim: thickness of the enhancing rim in mm.
    """

    kind: str
    foci: tuple[Focus, ...]
    push: float
    edema_width: float
    rim: float


class Tumor(NamedTuple):
    """A grown tumor on the window.

    Attributes:
        labels: uint8, 0, 1 necrosis, 2 edema, 4 enhancing.
        core: float32 0..1, share of a voxel that is core (necrosis or enhancing).
        necrosis: float32 0..1, share of the core that is necrosis.
        edema: float32 0..1, how much the tissue outside the core is swollen.
    """

    labels: np.ndarray
    core: np.ndarray
    necrosis: np.ndarray
    edema: np.ndarray


def plan_tumor(rng: np.random.Generator, head: Head) -> TumorPlan:
    """Chooses kind, size and place; the center lies in the white matter of the cerebrum."""
    kind = rng.choice(["ring", "solid", "low-grade"], p=[0.66, 0.12, 0.22])
    if kind == "ring":
        radius, push = rng.uniform(8.0, 28.0), rng.uniform(0.3, 0.6)
        edema_width, rim = rng.uniform(5.0, 24.0), rng.uniform(2.2, 5.5)
    elif kind == "solid":
        radius, push = rng.uniform(3.0, 7.5), rng.uniform(0.05, 0.25)
        edema_width, rim = rng.uniform(3.0, 15.0), 20.0
    else:
        radius, push = rng.uniform(12.0, 26.0), rng.uniform(0.15, 0.4)
        edema_width, rim = rng.uniform(2.0, 9.0), -1.5

    points = lattice_points().reshape(-1, 3)
    template_points = head.to_template(points)
    world = template_points + load_template().origin
    depth = template_depth(template_points)
    nearest = np.rint(template_points).astype(int)
    limits = np.array(load_template().white.shape) - 1
    white = load_template().white[tuple(np.clip(nearest, 0, limits).T)]
    # Above the tentorium: gliomas of adults seldom start in cerebellum or brain stem.
    cerebrum = (world[:, 2] > -20) & ((world[:, 1] > -30) | (world[:, 2] > 4))
    allowed = (white > 0.6) & cerebrum & (depth > 0.45 * radius + 4)
    candidates = points[allowed]
    # A height first, otherwise most tumors would sit in the wide white matter above the ventricles.
    height = rng.choice(np.unique(candidates[:, 2]))
    foci = [_sample_focus(rng, candidates[candidates[:, 2] == height], radius)]
    if kind == "ring" and rng.random() < 0.25:
        for _ in range(rng.integers(1, 3)):
            distance = np.linalg.norm(candidates - foci[0].center, axis=1)
            near = candidates[(distance > 1.4 * radius) & (distance < 1.4 * radius + 20)]
            if len(near):
                foci.append(_sample_focus(rng, near, rng.uniform(3.0, max(4.0, 0.5 * radius))))
    return TumorPlan(str(kind), tuple(foci), push, edema_width, rim)


def _sample_focus(rng: np.random.Generator, candidates: np.ndarray, radius: float) -> Focus:
    center = candidates[rng.integers(len(candidates))] + rng.uniform(-2.0, 2.0, 3)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = np.exp(rng.normal(0.0, 0.2, 3))
    stretch /= np.prod(stretch) ** (1 / 3)
    return Focus(center, radius, np.diag(1.0 / stretch) @ rotation)


def before_tumor(points: np.ndarray, plan: TumorPlan, head: Head) -> np.ndarray:
    """Pull-back of the mass effect, points [..., 3] in grid voxels -> the same.

    The skull does not move: the push fades to nothing at the brain surface.
    """
    depth = template_depth(head.to_template(points))
    give = 1.0 - np.exp(-np.clip(depth, 0.0, None) / 6.0)
    for focus in plan.foci:
        points = radial_pullback(points, focus.center, 1.25 * focus.radius, plan.push * give)
    return points


def arrival_time(start: np.ndarray, slowness: np.ndarray, limit: float) -> np.ndarray:
    """Time at which a front from `start` reaches each point, by shortest paths on a lattice.

    Args:
        start: float32 [x, y, z], time at the sources, infinity elsewhere.
        slowness: float32 [x, y, z], 1 / speed in time per lattice step.
        limit: the front is followed up to this time.

    Returns:
        float32 [x, y, z]; at least the arrival time up to `limit`, larger or infinite beyond. Paths
        run over the 26 neighbors, so distances are overestimated by at most 13%.
    """
    time = np.pad(start, 1, constant_values=np.inf).astype(np.float32)
    cost = np.pad(slowness, 1, constant_values=np.inf).astype(np.float32)
    inner = (slice(1, -1),) * 3
    offsets = [
        (i, j, k)
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
        for k in (-1, 0, 1)
        if (i, j, k) > (0, 0, 0)
    ]
    while True:
        before = time[inner].copy()
        for offset in offsets:
            length = np.float32(0.5 * np.linalg.norm(offset))
            for sign in (1, -1):
                source = tuple(
                    slice(1 + sign * o, n - 1 + sign * o)
                    for o, n in zip(offset, time.shape, strict=True)
                )
                arrival = time[source] + length * (cost[source] + cost[inner])
                np.minimum(time[inner], arrival, out=time[inner])
        changed = time[inner] < before
        if not np.any(changed & (time[inner] <= limit)):
            return time[inner].copy()


def grow_tumor(rng: np.random.Generator, plan: TumorPlan, tissue: Tissue) -> Tumor:
    """Lets the planned foci grow into the (already displaced) tissue."""
    box = _growth_box(plan)
    shape = tuple(part.stop - part.start for part in box)
    local = Tissue(*(volume[box] for volume in tissue))
    coarse = Tissue(*(volume[::_FRONT_STEP, ::_FRONT_STEP, ::_FRONT_STEP] for volume in local))
    voxels = np.stack(
        np.meshgrid(
            *(np.arange(part.start, part.stop, _FRONT_STEP) for part in box), indexing="ij"
        ),
        axis=-1,
    )
    level = _core_level(rng, plan, local, coarse, voxels + WINDOW_START, shape)
    rim = _rim_thickness(rng, plan, shape)
    radius = plan.foci[0].radius
    # Necrosis begins where the core is deeper than the rim; strands of rim cross it.
    inside = level + rim
    if plan.kind == "ring":
        strand = np.abs(smooth_field(rng, shape, 6.0)) + max(0.0, rng.normal(0.0, 0.1))
        inside += np.where(level < 0, 4.0 * np.clip(0.22 - strand, 0.0, None) * rim, 0.0)

    traveled = _edema_time(rng, plan, local, coarse, level, shape)
    core = _sigmoid(-level / 0.5) * local.brain
    necrosis = _sigmoid(-inside / np.float32(0.6 if radius > 6 else 0.4))
    # Swelling is worst at the tumor and fades at the front.
    edema = _sigmoid((plan.edema_width - traveled) / 1.8) * local.brain
    edema *= 1.0 - 0.35 * np.clip(traveled / plan.edema_width, 0.0, 1.0)

    labels = np.zeros(shape, np.uint8)
    labels[(traveled < plan.edema_width) & (local.fluid < 0.4)] = EDEMA
    labels[core > 0.5] = ENHANCING
    labels[(core > 0.5) & (necrosis > 0.5)] = NECROSIS
    labels[~local.brain] = 0
    return Tumor(*(_embed(volume, box) for volume in (labels, core, necrosis, edema)))


def _growth_box(plan: TumorPlan) -> tuple[slice, ...]:
    """Part of the window that the tumor can reach; sizes are odd, so a 2 mm lattice ends on it."""
    low, high = np.array(WINDOW_SHAPE), np.zeros(3, int)
    for focus in plan.foci:
        # Stretched ellipsoid, then edema at its fastest.
        reach = 1.8 * focus.radius + plan.edema_width / _FASTEST + 6
        low = np.minimum(low, np.floor(focus.center - WINDOW_START - reach).astype(int))
        high = np.maximum(high, np.ceil(focus.center - WINDOW_START + reach).astype(int))
    low = np.clip(low, 0, None)
    high = np.minimum(high, WINDOW_SHAPE)
    high -= (high - low + 1) % 2
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def _embed(volume: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    whole = np.zeros(WINDOW_SHAPE, volume.dtype)
    whole[box] = volume
    return whole


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0)))


def _core_level(
    rng: np.random.Generator,
    plan: TumorPlan,
    local: Tissue,
    coarse: Tissue,
    points: np.ndarray,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Float32, about mm outside the surface of the core, negative inside."""
    largest = plan.foci[0].radius
    start = np.full(coarse.brain.shape, np.inf, np.float32)
    for focus in plan.foci:
        distance = focus.radius * np.linalg.norm(
            (points - focus.center) @ focus.shape.T / focus.radius, axis=-1
        )
        # Time is counted so that every focus reaches its own radius at time 0.
        seed = distance - focus.radius
        seed[distance > max(0.6 * focus.radius, _FRONT_STEP)] = np.inf
        start = np.minimum(start, seed)
    slowness = 0.85 * coarse.white + 1.15 * coarse.gray + 5.0 * coarse.fluid
    slowness *= np.exp(0.35 * smooth_field(rng, coarse.brain.shape, max(2.0, largest / 4)))
    slowness = np.maximum(slowness, _FASTEST)
    slowness[~coarse.brain | _falx(coarse)] = 8.0
    time = arrival_time(start, _FRONT_STEP * slowness.astype(np.float32), 0.4 * largest + 4.0)
    level = upsample(np.minimum(time, 60.0), shape, _FRONT_STEP, 1)
    rough = 0.12 * largest * smooth_field(rng, shape, max(3.0, largest / 2.2))
    rough += min(0.9, 0.10 * largest) * smooth_field(rng, shape, 4.5)
    rough += min(0.3, 0.06 * largest) * smooth_field(rng, shape, 2.0)
    return level + rough


def _falx(tissue: Tissue) -> np.ndarray:
    """Bool: the mid-plane, but for the white matter of the corpus callosum, which tumors do cross."""
    return (np.abs(tissue.side) < 1.5) & (tissue.white < 0.7)


def _rim_thickness(rng: np.random.Generator, plan: TumorPlan, shape: tuple[int, ...]) -> np.ndarray:
    """Float32, mm; varies along the surface, with nodules and, where it is negative, gaps."""
    if plan.kind == "low-grade":
        specks = smooth_field(rng, shape, 5.0)
        return plan.rim + np.clip(specks - rng.uniform(1.8, 3.0), 0.0, None) * 12.0
    slow, fast = smooth_field(rng, shape, 9.0), smooth_field(rng, shape, 4.0)
    thickness = plan.rim * np.exp(0.45 * slow + 0.25 * fast)
    return thickness - rng.uniform(0.2, 1.2)


def _edema_time(
    rng: np.random.Generator,
    plan: TumorPlan,
    local: Tissue,
    coarse: Tissue,
    level: np.ndarray,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Float32, mm of white matter that edema has crossed from the core."""
    start = level[::_FRONT_STEP, ::_FRONT_STEP, ::_FRONT_STEP]
    start = np.where(start <= 0.5, np.float32(0.0), np.float32(np.inf))
    slowness = coarse.white + 3.5 * coarse.gray + 15.0 * coarse.fluid
    slowness *= np.exp(0.45 * smooth_field(rng, coarse.brain.shape, 5.0))
    slowness = np.maximum(slowness, _FASTEST)
    slowness[~coarse.brain | _falx(coarse)] = 20.0
    time = arrival_time(start, _FRONT_STEP * slowness.astype(np.float32), plan.edema_width + 4.0)
    time = upsample(np.minimum(time, 80.0), shape, _FRONT_STEP, 1)
    # The lattice is coarser than the cortex: charge the last step at full resolution.
    time += 5.0 * local.gray**2 + 0.8 * smooth_field(rng, shape, 3.0)
    return np.where(level < 0, np.float32(0.0), time)
