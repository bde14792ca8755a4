"""Augmentation: flips and a rotation, by default the paper's; and parts of slices for whole ones."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Bool, Float, Integer, Key

from mbti_jax.diffusion.arrays import AnyArray
from mbti_jax.fields import FieldError, Interval, check_fields
from tfds_brats.scale import BACKGROUND


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training moves slices. The defaults are the paper's.

    Attributes:
        vertical_flip: probability of exchanging the anterior and the posterior end. A network that also
            sees heads upside down knows less well where in a head it is.
        horizontal_flip: probability of exchanging left and right.
        max_angle: rotations are uniform between minus and plus this, in degrees.
        crop_height, crop_width: of the part of a slice that an update sees, in pixels of the network's
            image, around a random pixel of its ROI; 0 for the whole height or width. A third of a slice
            costs about a third, so that the same time makes three times the updates (Patch Diffusion,
            Wang et al. 2023, arXiv 2304.12526). The end of a training should see what sampling shows the
            network: whole slices.
        crop_updates: how many updates see parts before all others see whole slices; 0: all see parts.

    Raises:
        FieldError: a number that cannot be used.
    """

    vertical_flip: Annotated[float, Interval(0, 1)] = 0.5
    horizontal_flip: Annotated[float, Interval(0, 1)] = 0.5
    max_angle: Annotated[float, Interval(0, 180)] = 15.0
    crop_height: Annotated[int, Interval(0, 2**12)] = 0
    crop_width: Annotated[int, Interval(0, 2**12)] = 0
    crop_updates: Annotated[int, Interval(0, 2**31)] = 0

    def __post_init__(self):
        check_fields(self)
        if self.crop_updates and not (self.crop_height or self.crop_width):
            problem = "needs crop_height or crop_width; without them all updates see whole slices"
            raise FieldError("crop_updates", problem)

    @property
    def of_whole_slices(self) -> "Augmentation":
        """The same without parts."""
        return dataclasses.replace(self, crop_height=0, crop_width=0, crop_updates=0)

    def crop_size(self, image_size: int) -> tuple[int, int]:
        """Height and width of what an update sees of a square image."""
        return self.crop_height or image_size, self.crop_width or image_size


def augment(
    key: Key[jax.Array, ""],
    image: Float[AnyArray, "H W C"],
    labels: Integer[AnyArray, "H W"],
    how: Augmentation = Augmentation(),
) -> tuple[Float[jax.Array, "H W C"], Integer[jax.Array, "H W"]]:
    """Flips the axes at random, then rotates by a random angle.

    Args:
        key: typed PRNG key of this example.
        image: float32 [H, W, C], background -1.
        labels: integer [H, W], background 0.
        how: probabilities and the largest angle.

    Returns:
        The moved image and labels, of the same shapes and dtypes; see `flip_and_rotate`.
    """
    vertical_key, horizontal_key, angle_key = jax.random.split(key, 3)
    flips = (
        jax.random.bernoulli(vertical_key, how.vertical_flip),
        jax.random.bernoulli(horizontal_key, how.horizontal_flip),
    )
    angle = jax.random.uniform(angle_key, minval=-how.max_angle, maxval=how.max_angle)
    return flip_and_rotate(image, labels, *flips, angle)


def flip_and_rotate(
    image: Float[AnyArray, "H W C"],
    labels: Integer[AnyArray, "H W"],
    flip_vertical: Bool[AnyArray, ""] | bool,
    flip_horizontal: Bool[AnyArray, ""] | bool,
    angle_degrees: Float[AnyArray, ""] | float,
) -> tuple[Float[jax.Array, "H W C"], Integer[jax.Array, "H W"]]:
    """Flips, then rotates about the image center; one interpolation does both.

    The image is interpolated bilinearly, labels take the nearest pixel. What comes from outside the
    image is background (-1 and 0), and background away from the brain stays exactly -1.

    Args:
        image: float32 [H, W, C], background -1.
        labels: integer [H, W], background 0.
        flip_vertical: bool, reverses the rows.
        flip_horizontal: bool, reverses the columns.
        angle_degrees: float, counter-clockwise as displayed with row 0 at the top.

    Returns:
        The moved image and labels, of the same shapes and dtypes.
    """
    height, width = labels.shape
    y = (jnp.arange(height) - (height - 1) / 2)[:, None]
    x = (jnp.arange(width) - (width - 1) / 2)[None, :]
    angle = jnp.deg2rad(angle_degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Both flips keep the center, so on centered source coordinates they are a change of sign.
    source_y = jnp.where(flip_vertical, -1.0, 1.0) * (cos * y + sin * x) + (height - 1) / 2
    source_x = jnp.where(flip_horizontal, -1.0, 1.0) * (cos * x - sin * y) + (width - 1) / 2

    def interpolate(channel: Float[AnyArray, "H W"]) -> Float[jax.Array, "H W"]:
        # Above background, zeros stay exactly zero whatever the weights' rounding.
        moved = map_coordinates(channel - BACKGROUND, (source_y, source_x), order=1)
        return moved + BACKGROUND

    moved_image = jax.vmap(interpolate, in_axes=-1, out_axes=-1)(image)
    moved_labels = map_coordinates(labels, (source_y, source_x), order=0)
    return moved_image, moved_labels


def crop_corner(
    key: Key[jax.Array, ""],
    roi: Bool[AnyArray, "H W 1"],
    size: tuple[int, int],
    *,
    centered: bool = False,
) -> tuple[Integer[jax.Array, ""], Integer[jax.Array, ""]]:
    """Where a part of a slice begins that holds a random pixel of its ROI.

    The pixel is uniform over the ROI, or over as much of it as a part can hold, and its place in the
    part is uniform, too, as far as the part then lies inside the slice.

    Args:
        key: typed PRNG key of this example.
        roi: bool [H, W, 1], of whole images.
        size: height and width of the part, at most those of the slice.
        centered: the part's columns lie about the middle of the slice, whatever the ROI, so that its
            left and right half are each other's mirror image as the slice's are.

    Returns:
        int32 row and column of its first pixel.
    """
    pixel_key, row_key, column_key = jax.random.split(key, 3)
    height, width = roi.shape[:2]
    middle = (width - size[1]) // 2
    reached = roi[..., 0]
    if centered:
        column = jnp.arange(width)
        reached &= (column >= middle) & (column < middle + size[1])
    chosen = jax.random.categorical(pixel_key, jnp.where(reached.ravel(), 0.0, -jnp.inf))

    def first(key, pixel, length, whole):
        return jnp.clip(pixel - jax.random.randint(key, (), 0, length), 0, whole - length)

    row = first(row_key, chosen // width, size[0], height)
    if centered:
        return row, jnp.asarray(middle, row.dtype)
    return row, first(column_key, chosen % width, size[1], width)
