"""Inpainting tasks: from a label map to ROI masks and the class vector (paper, section 2.1).

A task is a mask for each kind of ROI and, for each, a class value:

| channel | ROI of | label |
|---|---|---|
| 0 | normal tissue | - |
| 1 | necrotic core | 1 |
| 2 | edema | 2 |
| 3 | enhancement | 3 |
| 4 | mixed tumor | 1, 2 or 3 |

Training draws tasks with `sample_task`, inference states them as `regions.Rois`; both end in
`regions.make_condition`. Everything works on one example with static shapes, for use
under `jax.vmap` and `jax.jit`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Integer, Key

from mbti_jax.diffusion.arrays import AnyArray
from mbti_jax.diffusion.condition import Condition, offsets
from mbti_jax.fields import FieldError, check_fields
from mbti_jax.rois.kinds import COMPONENT_CHANNELS, KINDS, NORMAL, NUM_KINDS, TUMOR
from mbti_jax.rois.regions import fill_boxes, make_condition
from tfds_brats.conventions import CAVITY
from tfds_brats.scale import BACKGROUND


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """How often each task is drawn in training, and how large ROIs of normal tissue are.

    The paper says which tasks exist but not how often each is drawn, so every number here is our
    choice. With the defaults a slice with tumor trains tumor alone in 40% of draws, tumor and
    normal tissue together in 40%, normal tissue alone in 20%.

    Attributes:
        prob_tumor: probability of ROIs of tumor (scenario 1 or 2) in a slice that has tumor. High,
            because fewer than half of the slices have any; not 1, because normal tissue has to be
            inpainted beside tumor that stays, too.
        prob_normal: probability of an ROI of normal tissue (scenario 3), independent of the above;
            drawn regardless wherever there is no ROI of tumor. 1/2: as often with as without.
        prob_mixed: probability that the ROIs of tumor are one mixed ROI (scenario 2) and not one for
            each component (scenario 1). 1/2: no task is preferred.
        prob_box: probability of a bounding box instead of a free-form ROI, drawn for every tumor
            channel. 1/2: every combination of modes is equally likely.
        prob_normal_box: probability that the ROI of normal tissue is a rectangle, not circles. 1/2.
        max_circles: circles are between 1 and this many, uniformly; they may overlap, which gives
            outlines that are not round. There is one rectangle, since a box channel is one box.
        min_radius: least radius of a circle, in units of the radius of the disk that has the slice's
            brain area; a rectangle has the area of a circle.
        max_radius: largest radius, likewise; radii are uniform in between. At inference this ROI
            covers a tumor that is to go, and in BraTS slices the radius of the disk of the tumor's
            area is 0.07 to 0.52 of the brain's between the 5th and 95th percentile, 0.36 in the median.
        max_aspect: rectangles' height / width is log-uniform in [1 / max_aspect, max_aspect].
        min_brain_fraction: least share of brain among the pixels of a circle or rectangle.
        num_candidates: how many places are tried, all at once.

    Raises:
        ValueError: a probability or fraction outside [0, 1], or an impossible size or count.
    """

    prob_tumor: float = 0.8
    prob_normal: float = 0.5
    prob_mixed: float = 0.5
    prob_box: float = 0.5
    prob_normal_box: float = 0.5
    max_circles: int = 3
    min_radius: float = 0.1
    max_radius: float = 0.5
    max_aspect: float = 2.0
    min_brain_fraction: float = 0.75
    num_candidates: int = 16

    def __post_init__(self):
        check_fields(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_share = field.name.startswith("prob_") or field.name == "min_brain_fraction"
            if is_share and not 0 <= value <= 1:
                raise FieldError(field.name, f"must lie in [0, 1], not {value}")
        if not 0 < self.min_radius <= self.max_radius:
            raise FieldError(
                "min_radius", f"must be above 0 and at most max_radius, not {self.min_radius}"
            )
        if self.max_aspect < 1:
            raise FieldError("max_aspect", f"must be at least 1, not {self.max_aspect}")
        if not 1 <= self.max_circles <= self.num_candidates:
            raise FieldError(
                "max_circles", f"must be from 1 to num_candidates, not {self.max_circles}"
            )


def sample_task(
    key: Key[jax.Array, ""],
    image: Float[AnyArray, "H W C"],
    labels: Integer[AnyArray, "H W"],
    config: TaskSettings,
) -> Condition:
    """Draws a training task for one slice that is seen without its neighbors; see `sample_stack`."""
    return sample_stack(key, image, labels, labels[None][:0], config)[0]


def sample_stack(
    key: Key[jax.Array, ""],
    image: Float[AnyArray, "H W C"],
    labels: Integer[AnyArray, "H W"],
    around: Integer[AnyArray, "N H W"],
    config: TaskSettings,
) -> tuple[Condition, Float[jax.Array, "N H W K"]]:
    """Draws a training task for a slice and its neighbors, after augmentation.

    Tumor in channels 1-3 or 4 and normal tissue in channel 0 are drawn independently, but one of
    them is always there: the ROI is never empty. Channel 0 shares no pixel with tumor, a resection
    cavity or an ROI of tumor. Only a box around tumor may contain a cavity.

    The neighbors have what an ROI of the volume would show there. Which kinds there are and which of
    them are boxes is drawn once for all, and a box is filled slice by slice, as `regions.Rois` does.
    Tumor is each slice's own, so that its ROI ends where the tumor does. ROIs of normal tissue are cuts
    through ellipsoids or cuboids of random depth, and shrink in each slice until they hold no tumor.

    Args:
        key: typed PRNG key of this example.
        image: float32 [H, W, C]; brain is where any sequence differs from -1.
        labels: uint8 [H, W]: 0, 1 necrotic core, 2 edema, 3 enhancement, 4 resection cavity.
        around: uint8 [N, H, W], the same of N = 2 K neighbors, bottom to top; their ROIs may be empty.
        config: probabilities and sizes.

    Returns:
        (condition, masks): the `Condition` of one example, and the neighbors' ROI masks, float32
        [N, H, W, K]. Without brain outside tumor and cavity (a slice no dataset
        should hold) channel 0 falls back to background, and to anything at all if there is none.
    """
    choices_key, shapes_key = jax.random.split(key)
    # One draw for all choices: each call of a generator costs compilation time.
    probabilities = (config.prob_tumor, config.prob_normal, config.prob_mixed)
    box_probabilities = [
        config.prob_normal_box if channel == NORMAL else config.prob_box
        for channel in range(NUM_KINDS)
    ]
    choices = jax.random.bernoulli(choices_key, jnp.array([*probabilities, *box_probabilities]))
    draw_tumor, draw_normal, mixed = choices[:3]
    box = choices[3:]

    def rois_of_tumor(labels, drawn):
        """Their masks [..., H, W, K]; the tumor; all that no ROI of normal tissue may hold."""
        components = {channel: labels == KINDS[channel].label for channel in COMPONENT_CHANNELS}
        tumor = functools.reduce(jnp.logical_or, components.values())
        nothing = jnp.zeros_like(tumor)
        masks = [components.get(channel, nothing) & ~mixed for channel in range(NUM_KINDS)]
        masks[TUMOR] = tumor & mixed
        rois = jnp.asarray(fill_boxes(drawn & jnp.stack(masks, axis=-1), box))
        return rois, tumor, tumor | (labels == CAVITY) | rois.any(axis=-1)

    brain = (image != BACKGROUND).any(axis=-1)
    # There has to be something to paint.
    healthy = brain & (labels == 0)
    draw_tumor |= ~healthy.any()
    tumor_rois, tumor, taken = rois_of_tumor(labels, draw_tumor)
    tumor_rois_around, _, taken_around = rois_of_tumor(around, draw_tumor)

    use_normal = ~(tumor.any() & draw_tumor) | (draw_normal & (brain & ~taken).any())
    normal, normal_around = _sample_shapes(
        shapes_key, brain, ~taken, ~taken_around, box[NORMAL], config
    )
    condition = make_condition(tumor_rois.at[..., NORMAL].set(use_normal & normal), box)
    masks_around = tumor_rois_around.at[..., NORMAL].set(use_normal & normal_around)
    return condition, masks_around.astype(jnp.float32)


def _sample_shapes(
    key: Key[jax.Array, ""],
    brain: Bool[jax.Array, "H W"],
    free: Bool[jax.Array, "H W"],
    free_around: Bool[jax.Array, "N H W"],
    box: Bool[jax.Array, ""],
    config: TaskSettings,
) -> tuple[Bool[jax.Array, "H W"], Bool[jax.Array, "N H W"]]:
    """Draws one rectangle or up to `max_circles` circles, disjoint from what is not `free`.

    Every candidate has its center in free brain, and shrinks about it until it touches neither a
    pixel that is not free nor the image's border. It is valid if it is then still of the least
    size and mostly brain. The first valid ones are taken. If none is, the candidates shrink further,
    until they hold nothing but free brain, and the largest is taken; it still holds its center.

    A circle is the cut through an ellipsoid, a rectangle that through a cuboid. Half of its depth is 1/2
    to 2 times the radius, counted in slices (slices being about as far apart as pixels), and at least 1;
    the slice lies anywhere in it. A cut has at most twice the radius of the slice's own.

    Args:
        key: typed PRNG key.
        brain: bool [H, W].
        free: bool [H, W], pixels that the shapes may contain.
        free_around: bool [N, H, W], the same of the neighbors.
        box: bool, rectangle or circles.
        config: sizes and counts.

    Returns:
        bool [H, W], with at least one pixel, and the cuts [N, H, W] in the neighbors.
    """
    candidates_key, count_key = jax.random.split(key)
    height, width = brain.shape
    place, size, elongation = jax.random.uniform(candidates_key, (3, config.num_candidates))

    # Where centers may lie: the first of these that is not empty.
    pool = jnp.where((brain & free).any(), brain & free, jnp.where(free.any(), free, True))
    center_y, center_x = _choose_pixels(place, pool)

    # At least one pixel, so that a slice without brain divides by no zero.
    brain_radius = jnp.sqrt(brain.sum() / jnp.pi)
    min_radius = jnp.maximum(config.min_radius * brain_radius, 1.0)
    max_radius = jnp.maximum(config.max_radius * brain_radius, 1.0)
    radius = min_radius + (max_radius - min_radius) * size
    log_aspect = math.log(config.max_aspect) * (2 * elongation - 1)
    rectangle_scale = math.sqrt(math.pi) / 2  # Half the side of the square of a unit disk's area.
    half_height = radius * jnp.where(box, rectangle_scale * jnp.exp(log_aspect / 2), 1.0)
    half_width = radius * jnp.where(box, rectangle_scale * jnp.exp(-log_aspect / 2), 1.0)

    # A shape is the set of pixels whose gauge is at most 1, or a lower limit once it has shrunk.
    # Squares, not roots, make it cheap to compute again in each of the reductions below.
    y = jnp.square((jnp.arange(height) - center_y[:, None]) / half_height[:, None])[:, :, None]
    x = jnp.square((jnp.arange(width) - center_x[:, None]) / half_width[:, None])[:, None, :]
    gauge = jnp.where(box, jnp.maximum(y, x), y + x)
    to_border_y = jnp.minimum(center_y + 1, height - center_y) / half_height
    to_border_x = jnp.minimum(center_x + 1, width - center_x) / half_width
    border_gauge = jnp.square(jnp.minimum(to_border_y, to_border_x))

    def limit_within(
        allowed: Bool[jax.Array, "H W"], most: Float[AnyArray, "*N"] | float = 1.0
    ) -> Float[jax.Array, " N"]:
        """Gauge [N] at which each candidate stays inside the image and inside `allowed`."""
        nearest_other = jnp.where(allowed, jnp.inf, gauge).min(axis=(1, 2))
        # A little less, for the comparisons with it may round differently.
        return jnp.minimum(most, (1 - 1e-4) * jnp.minimum(nearest_other, border_gauge))

    limit_in_free = limit_within(free)
    shapes_in_free = gauge <= limit_in_free[:, None, None]
    brain_fraction = (shapes_in_free & brain).sum((1, 2)) / shapes_in_free.sum((1, 2))
    valid = (radius * jnp.sqrt(limit_in_free) >= min_radius) & (
        brain_fraction >= config.min_brain_fraction
    )
    num_circles = jax.random.randint(count_key, (), 1, config.max_circles + 1)
    first_valid = valid & (jnp.cumsum(valid) <= jnp.where(box, 1, num_circles))

    limit_in_pool = limit_within(pool)
    largest_in_pool = jnp.argmax(radius**2 * limit_in_pool)

    chosen = jnp.where(
        valid.any(), first_valid, jnp.arange(config.num_candidates) == largest_in_pool
    )
    limit = jnp.where(valid.any(), limit_in_free, limit_in_pool)

    def union(limit: Float[jax.Array, " N"], chosen: Bool[jax.Array, " N"]):
        return ((gauge <= limit[:, None, None]) & chosen[:, None, None]).any(axis=0)

    depth, place = jax.random.uniform(jax.random.fold_in(key, 0), (2, config.num_candidates))
    half_depth = jnp.maximum(radius * jnp.exp2(2 * depth - 1), 1.0)
    # Of the slice in the depth, from -1 to 1, where nothing is left of an ellipsoid.
    place = 2 * place - 1
    around = []
    for offset, allowed in zip(offsets(len(free_around) // 2), free_around, strict=True):
        height = jnp.abs(place + offset / half_depth)
        growth = jnp.where(box, height <= 1, (1 - height**2) / (1 - place**2))
        cut = limit_within(allowed, limit * jnp.clip(growth, 0.0, 4.0))
        around.append(union(cut, chosen & (cut > 0)))
    return union(limit, chosen), jnp.array(around, bool).reshape(free_around.shape)


def _choose_pixels(
    place: Float[jax.Array, " N"], pool: Bool[jax.Array, "H W"]
) -> tuple[Int[jax.Array, " N"], Int[jax.Array, " N"]]:
    """Rows and columns [N] of uniform pixels of bool `pool` [H, W], for `place` [N] in [0, 1)."""
    positions = jnp.cumsum(pool.reshape(-1))
    index = jnp.searchsorted(positions, place * positions[-1], side="right")
    return jnp.divmod(index, pool.shape[1])
