"""Start noise that neighboring slices of a volume share in part.

White noise n_k of every slice k is filtered along the slices with a Gaussian and brought back to unit
variance:

    x_T(k) = sum_j w_j n_(k+j) / sqrt(sum_j w_j^2),   w_j = exp(-j^2 / (2 sigma^2))

so x_T(k) is standard normal again, and the correlation of two slices d apart is about
exp(-d^2 / (4 sigma^2)). Slice k's noise is made of the neighbors' own keys, whether or not they are
sampled too, so it is the same for one slice as for the whole volume.
"""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Key

from mbti_jax.diffusion.arrays import AnyArray

Indices = Sequence[int] | AnyArray
# Start noise, and a typed key per example.
Noise = tuple[Float[jax.Array, "B ..."], Key[jax.Array, " B"]]

# Beyond this many sigma the weights are cut off.
_REACH = 3.0


def noise_for(seed: int, samples: Indices, slice_indices: Indices, shape: Sequence[int]) -> Noise:
    """Start noise and step keys of a batch, each example's from its own numbers alone.

    Args:
        seed: the user's seed.
        samples: ints [B], which of several samples of the same slice each example is.
        slice_indices: ints [B], which slice of the volume each example is.
        shape: (H, W, C) of one example.

    Returns:
        x_T: float32 [B, H, W, C], standard normal.
        keys: typed keys [B] for a sampler.

    Raises:
        ValueError: `samples` and `slice_indices` are not vectors of the same length.
    """
    of, at = np.asarray(samples, np.int32), np.asarray(slice_indices, np.int32)
    if of.ndim != 1 or of.shape != at.shape:
        raise ValueError(
            f"samples {of.shape} and slice_indices {at.shape} must be vectors of the same length."
        )
    return _noise_for(jax.random.key(seed), of, at, tuple(shape))


@functools.partial(jax.jit, static_argnames="shape")
def _noise_for(key, samples, slice_indices, shape):
    def of_example(sample, slice_index):
        example = jax.random.fold_in(jax.random.fold_in(key, sample), slice_index)
        start, steps = jax.random.split(example)
        return jax.random.normal(start, shape), steps

    return jax.vmap(of_example)(samples, slice_indices)


def slice_weights(z_sigma: float) -> Float[np.ndarray, " taps"]:
    """float64 [2 R + 1], w_j / sqrt(sum w^2) for j = -R ... R; their squares sum to one."""
    reach = math.ceil(_REACH * z_sigma)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-((offsets / z_sigma) ** 2) / 2) if reach else np.ones(1)
    return weights / np.sqrt(np.square(weights).sum())


def slice_covariance(z_sigma: float, positions: Sequence[int]) -> Float[np.ndarray, "N N"]:
    """float64, covariance of `start_noise` between the slices at some positions, of unit variance."""
    weights = slice_weights(z_sigma)
    by_distance = np.correlate(weights, weights, "full")[len(weights) - 1 :]
    distance = np.abs(np.subtract.outer(positions, positions))
    return np.interp(distance, range(len(weights)), by_distance, right=0.0)


def start_noise(
    seed: int,
    samples: Indices,
    slice_indices: Indices,
    shape: Sequence[int],
    z_sigma: float = 0.0,
) -> Noise:
    """Start noise and step keys, see `noise_for`; the start noise is correlated along the slices.

    The noise that steps add with eta > 0 stays independent from slice to slice.

    Args:
        seed, samples, slice_indices, shape: as in `noise_for`.
        z_sigma: sigma of the filter in slices; 0 is independent noise.

    Returns:
        (x_T float32 [B, H, W, C], typed keys [B]).

    Raises:
        ValueError: `z_sigma` is negative or infinite, or as `noise_for` does.
    """
    if not (math.isfinite(z_sigma) and z_sigma >= 0):
        raise ValueError(f"z_sigma must be a number of slices, at least 0, not {z_sigma}")
    noise, keys = noise_for(seed, samples, slice_indices, shape)
    if z_sigma == 0:
        return noise, keys
    weights = slice_weights(z_sigma).astype(np.float32)
    reach = len(weights) // 2
    noise = weights[reach] * noise
    for offset in range(1, reach + 1):
        for shift in (-offset, offset):
            neighbor, _ = noise_for(seed, samples, np.asarray(slice_indices) + shift, shape)
            noise += weights[reach + shift] * neighbor
    return noise, keys
