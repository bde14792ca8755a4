"""The nearest patches of many slices to given ones, over all shifts, unchanged and mirrored.

With m a region's mask, p the patch and I a slice, the sum of squared differences at shift s is

    sum_x m(x) (p(x) - I(x + s))^2 = sum_x m p^2 - 2 (m p * I)(s) + (m * I^2)(s)

with * the cross-correlation: products in the frequency domain and one inverse transform for all shifts.
At shifts that keep the patch inside the slice nothing wraps around, so transforms of the slice's
own size are enough.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mbti_jax.evaluation.slices import in_batches
from tfds_brats.slices import bounding_box

# Slices whose products with a patch are held at once: 64 of 256 x 256 take 70 MB.
_SLICES_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Patch:
    """A region of a slice, cut to its bounding box.

    Attributes:
        values: float32 [h, w].
        inside: bool [h, w], the region.
        corner: row and column of the box in the slice.
    """

    values: np.ndarray
    inside: np.ndarray
    corner: tuple[int, int]

    @classmethod
    def cut(cls, image: np.ndarray, region: np.ndarray) -> "Patch":
        """The patch of float [S, S] inside bool [S, S].

        Raises:
            ValueError: the region is empty.
        """
        if not region.any():
            raise ValueError("an empty region has no patch to search for")
        box = bounding_box(region)
        cut = np.s_[box[0] : box[2], box[1] : box[3]]
        return cls(image[cut].astype(np.float32), region[cut], box[:2])

    def mirrored(self) -> "Patch":
        """Left and right exchanged, at the same place."""
        return Patch(self.values[:, ::-1], self.inside[:, ::-1], self.corner)


@dataclasses.dataclass(frozen=True)
class Matches:
    """Where each patch fits best in each slice.

    Attributes:
        distances: float32 [P, N], root mean square difference over the region, in the slices' units.
            Rounding of the transforms makes that of an exact copy about 1e-3.
        mirrored: bool [P, N], whether it is the mirrored patch that fits.
        corners: int [P, N, 2], row and column of the patch's box in the slice.
    """

    distances: np.ndarray
    mirrored: np.ndarray
    corners: np.ndarray


def search(patches: list[Patch], slices: np.ndarray) -> Matches:
    """Finds the best of all places of patches in slices.

    Args:
        patches: P, each no larger than a slice.
        slices: float32 [N, S, S], values of the order of 1.
    """
    size = slices.shape[1]
    kernels = [_kernels(patch, size) for patch in patches]

    def best(part: np.ndarray) -> tuple[np.ndarray, ...]:
        transformed = _transform(part)
        found = jax.device_get([_best(*transformed, *kernel) for kernel in kernels])
        return tuple(np.stack(arrays, axis=1) for arrays in zip(*found, strict=True))

    sums, places = (array.T for array in in_batches(best, _SLICES_AT_ONCE, slices))
    counts = np.array([patch.inside.sum() for patch in patches])[:, None]
    mirrored, position = np.divmod(places, size * size)
    return Matches(
        np.sqrt(np.maximum(sums, 0) / counts).astype(np.float32),
        mirrored.astype(bool),
        np.stack(np.divmod(position, size), axis=-1),
    )


def distance_at(patch: Patch, image: np.ndarray, corner: tuple[int, int]) -> float:
    """Root mean square difference of a patch, over its region, to a place of a slice [S, S]."""
    (y, x), (height, width) = corner, patch.values.shape
    other = image[y : y + height, x : x + width]
    difference = (patch.values.astype(np.float64) - other)[patch.inside]
    return float(np.sqrt(np.square(difference).mean()))


def _kernels(patch: Patch, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Transforms of m and m p, sum m p^2, and the shifts inside the slice, as `_best` takes them.

    The first two are complex64 [2, S, S // 2 + 1] of the patch and the mirrored one.
    """
    height, width = patch.values.shape
    planes = np.zeros((2, 2, size, size), np.float32)
    for plane, version in zip(planes, (patch, patch.mirrored()), strict=True):
        plane[0, :height, :width] = version.inside
        plane[1, :height, :width] = version.inside * version.values
    transforms = np.conj(np.fft.rfft2(planes)).astype(np.complex64)
    energy = np.square(patch.values[patch.inside], dtype=np.float64).sum()
    fits = np.zeros((size, size), bool)
    fits[: size - height + 1, : size - width + 1] = True
    return transforms[:, 0], transforms[:, 1], np.asarray(energy, np.float32), fits


@jax.jit
def _transform(slices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Transforms of slices and of their squares, complex64 [N, 1, S, S // 2 + 1]."""
    return jnp.fft.rfft2(slices)[:, None], jnp.fft.rfft2(jnp.square(slices))[:, None]


@jax.jit
def _best(slices, squares, mask, weighted, energy, fits) -> tuple[jax.Array, jax.Array]:
    """The lowest sum of squared differences, float32 [N], and where in [2, S, S] it is, int [N]."""
    products = mask * squares - 2 * weighted * slices
    sums = energy + jnp.fft.irfft2(products, s=fits.shape)
    sums = jnp.where(fits, sums, jnp.inf).reshape(len(sums), -1)
    return sums.min(-1), sums.argmin(-1)
