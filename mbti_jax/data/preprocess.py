"""From stored codes to a network-sized image: decoding and resizing of one example.

Every function works on one example, has static shapes and is meant to be vmapped inside a jitted
step. Resampling weights depend on sizes only, so they are numpy constants of the compiled program.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, UInt16

from mbti_jax.diffusion.arrays import AnyArray
from tfds_brats.scale import BACKGROUND


def decode(
    codes: UInt16[AnyArray, "H W C"], gain: Float[AnyArray, " C"], bias: Float[AnyArray, " C"]
) -> Float[jax.Array, "H W C"]:
    """Intensities of stored codes: `gain * code + bias`, and exactly -1 where the code is 0.

    Args:
        codes: uint16 [H, W, C]; 0 is background.
        gain: float32 [C], intensity per code of each sequence.
        bias: float32 [C], intensity that code 0 would have in the brain.

    Returns:
        float32 [H, W, C], nominally in [-1, 1]; not clipped.
    """
    return jnp.where(codes == 0, BACKGROUND, gain * codes.astype(jnp.float32) + bias)


def area_resize(image: Float[AnyArray, "H W C"], size: tuple[int, int]) -> Float[AnyArray, "h w C"]:
    """Resizes by exact area averaging.

    Output pixel i covers the interval [i, i + 1) * H/h of the input; each input pixel counts with
    the length of its overlap. The two axes are separable, so this is two small matrix products.

    Args:
        image: float32 [H, W, C], background -1.
        size: (h, w) of the output; any ratio to (H, W).

    Returns:
        float32 [h, w, C]. A pixel that covers nothing but background is exactly -1.
    """
    if image.shape[:2] == tuple(size):
        return image
    rows = _area_weights(image.shape[0], size[0])
    columns = _area_weights(image.shape[1], size[1])
    # Above background, zeros stay exactly zero whatever the weights' rounding. HIGHEST, because the
    # default of GPUs and TPUs would round image and weights to tf32 or bf16.
    factors, precision = (rows, image - BACKGROUND, columns), jax.lax.Precision.HIGHEST
    return jnp.einsum("yh,hwc,xw->yxc", *factors, precision=precision) + BACKGROUND


def nearest_resize(
    labels: Integer[AnyArray, "H W"], size: tuple[int, int]
) -> Integer[AnyArray, "h w"]:
    """Resizes a label map: each output pixel takes the input pixel that its center falls into.

    Args:
        labels: integer [H, W].
        size: (h, w) of the output.

    Returns:
        [h, w] of the same dtype. A center on the border of two pixels takes the later one.
    """
    rows = _nearest_indices(labels.shape[0], size[0])
    columns = _nearest_indices(labels.shape[1], size[1])
    return labels[rows][:, columns]


def _area_weights(length: int, new_length: int) -> Float[np.ndarray, "{new_length} {length}"]:
    """float32 [new_length, length]; rows sum to one."""
    # In units of 1 / new_length input pixels every edge is an integer, so the overlaps are exact.
    new_edges = np.arange(new_length + 1)[:, None] * length
    edges = np.arange(length + 1)[None, :] * new_length
    overlap = np.minimum(new_edges[1:], edges[:, 1:]) - np.maximum(new_edges[:-1], edges[:, :-1])
    return (np.maximum(overlap, 0) / length).astype(np.float32)


def _nearest_indices(length: int, new_length: int) -> Integer[np.ndarray, " {new_length}"]:
    """int [new_length]: floor((i + 1/2) * length / new_length), in integers."""
    return (2 * np.arange(new_length) + 1) * length // (2 * new_length)
