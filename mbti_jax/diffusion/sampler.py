"""DDIM sampling inside a region of interest (Song et al. 2021, arXiv:2010.02502).

The sampler knows neither the network nor what it predicts: it asks a denoise function for x_0. With
alpha = alpha_bar_t and alpha' = alpha_bar_{t_prev}, one step is

    x_0      = clip(denoise(x_t, t), low, high)
    eps      = (x_t - sqrt(alpha) x_0) / sqrt(1 - alpha)
    sigma    = eta sqrt((1 - alpha') / (1 - alpha)) sqrt(1 - alpha / alpha')          (equation 16)
    x_t_prev = sqrt(alpha') x_0 + sqrt(1 - alpha' - sigma^2) eps + sigma z            (equation 12)

inside the roi, and the context outside. eps comes from the clipped x_0, as in guided-diffusion. Put
together, x_t_prev = A x_0 + B x_t + sigma z, whose three numbers per step are worked out in float64
before sampling starts (`step_table`). eta = 0 is deterministic, eta = 1 is ancestral sampling.

One compiled program serves any number of steps, spacing, eta, guidance weight and clip range: they
are arguments. The program gets the table of all steps, padded to T rows, and the range of rows to
run now. Its loop has a traced trip count, so rows outside the range cost nothing, where a scan of
fixed length would evaluate the network for masked steps too; the price is that the loop cannot be
unrolled or differentiated, which sampling does not need. Python only splits the steps into chunks,
so that it can report progress or stop between them; the image stays on its devices.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbti_jax.diffusion.guidance import Denoise
from mbti_jax.diffusion.process import union
from mbti_jax.diffusion.schedule import Schedule


class SamplingCancelled(Exception):
    """The caller's `cancel` function returned true."""


class StepTable(NamedTuple):
    """One row per timestep visited, x_t_prev = x_0_factor x_0 + x_t_factor x_t + sigma z.

    Rows beyond the last step are zeros. Each array has length T: int32 `t`, float32 the others.
    """

    t: np.ndarray
    x_0_factor: np.ndarray
    x_t_factor: np.ndarray
    sigma: np.ndarray


def step_table(schedule: Schedule, timesteps: Sequence[int], eta: float) -> StepTable:
    """The steps of a sampler that visits `timesteps` and ends at the clean image.

    Args:
        schedule: the noise schedule.
        timesteps: ints, strictly descending, within [0, T).
        eta: share of ancestral sampling's noise, in [0, 1].

    Raises:
        ValueError: `timesteps` or `eta` is not as above.
    """
    t = np.asarray(timesteps)
    valid = t.ndim == 1 and t.size > 0 and np.issubdtype(t.dtype, np.integer)
    if not valid or t[0] >= schedule.num_timesteps or t[-1] < 0 or np.any(np.diff(t) >= 0):
        raise ValueError(
            "timesteps must be integers that descend strictly within "
            f"[0, {schedule.num_timesteps}), got {timesteps!r}."
        )
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 and 1, got {eta}.")
    alpha = schedule.alphas_cumprod[t]
    alpha_prev = np.append(alpha[1:], 1.0)
    sigma = eta * np.sqrt((1 - alpha_prev) / (1 - alpha)) * np.sqrt(1 - alpha / alpha_prev)
    # Not below 0 but for rounding, since eta <= 1.
    eps_factor = np.sqrt(np.maximum(1 - alpha_prev - sigma**2, 0.0))
    x_t_factor = eps_factor / np.sqrt(1 - alpha)
    x_0_factor = np.sqrt(alpha_prev) - x_t_factor * np.sqrt(alpha)

    def padded(values: np.ndarray, dtype: type) -> np.ndarray:
        return np.pad(values.astype(dtype), (0, schedule.num_timesteps - len(t)))

    return StepTable(
        padded(t, np.int32),
        padded(x_0_factor, np.float32),
        padded(x_t_factor, np.float32),
        padded(sigma, np.float32),
    )


def noise_for(
    seed: int, samples: Sequence[int], slice_indices: Sequence[int], shape: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Start noise and step keys of a batch, each example's from its own numbers alone.

    Args:
        seed: the user's seed.
        samples: ints [B], which of several samples of the same slice each example is.
        slice_indices: ints [B], which slice of the volume each example is.
        shape: (H, W, C) of one example.

    Returns:
        x_T: float32 [B, H, W, C], standard normal.
        keys: typed keys [B] for `Sampler`.

    Raises:
        ValueError: `samples` and `slice_indices` are not vectors of the same length.
    """
    samples, slice_indices = np.asarray(samples, np.int32), np.asarray(slice_indices, np.int32)
    if samples.ndim != 1 or samples.shape != slice_indices.shape:
        raise ValueError(
            f"samples {samples.shape} and slice_indices {slice_indices.shape} must be vectors of "
            "the same length."
        )
    return _noise_for(jax.random.key(seed), samples, slice_indices, tuple(shape))


@functools.partial(jax.jit, static_argnames="shape")
def _noise_for(key, samples, slice_indices, shape):
    def of_example(sample, slice_index):
        example = jax.random.fold_in(jax.random.fold_in(key, sample), slice_index)
        start, steps = jax.random.split(example)
        return jax.random.normal(start, shape), steps

    return jax.vmap(of_example)(samples, slice_indices)


class Sampler:
    """Guided DDIM sampling, compiled once per shape and batch.

    The batch may be sharded over devices: the arrays then come in with the same `NamedSharding`
    over their first axis (`jax.device_put` what `noise_for` returns, too), and so has the result.
    """

    def __init__(self, denoise: Denoise, schedule: Schedule):
        """Takes a denoise function, as `guidance.guided` makes them, and its noise schedule."""
        self.schedule = schedule
        self._start = jax.jit(_start)
        self._steps = jax.jit(functools.partial(_steps, denoise), donate_argnames="x_t")

    def __call__(
        self,
        params: Any,
        x_T: jax.Array,
        context: jax.Array,
        roi_masks: jax.Array,
        class_vector: jax.Array,
        keys: jax.Array,
        *,
        timesteps: Sequence[int],
        weight: float | np.ndarray,
        eta: float = 0.0,
        clip: tuple[float, float] = (-math.inf, math.inf),
        chunk: int = 10,
        progress: Callable[[int, int], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> jax.Array:
        """Makes the image inside the roi.

        Args:
            params: the network's parameters, handed to the denoise function.
            x_T: float32 [B, H, W, C], standard normal noise; used inside the roi only. Not donated.
            context: float32 [B, H, W, C], the image; used outside the roi only.
            roi_masks: [B, H, W, 5], 0 / 1. The roi is their union.
            class_vector: float32 [B, 5].
            keys: typed keys [B]. The noise of a step (eta > 0) is a function of the example's key and
              the timestep, not of the batch or the chunks.
            timesteps: ints, strictly descending, such as `schedule.trailing_timesteps(50)`.
            weight: guidance weight w, one number or float [B].
            eta: 0 (deterministic) to 1 (ancestral).
            clip: lowest and highest x_0, in the units of the image; infinite for no clipping.
            chunk: number of steps between two reports. The result does not depend on it.
            progress: called with (steps done, steps in all) after each chunk has been computed.
            cancel: asked before each chunk; true ends the sampling.

        Returns:
            float32 [B, H, W, C]; outside the roi equal to `context` bit for bit.

        Raises:
            ValueError: an argument's shape or value is not as above.
            SamplingCancelled: `cancel` returned true.
        """
        table = step_table(self.schedule, timesteps, eta)
        total, low, high = len(timesteps), *clip
        batch = context.shape[0]
        _check(x_T, context, roi_masks, class_vector, keys)
        if not low < high:
            raise ValueError(f"clip must be (low, high) with low < high, got {clip}.")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}.")
        weight = np.broadcast_to(np.asarray(weight, np.float32), (batch,))
        bounds = np.array([low, high], np.float32)

        x_t = self._start(x_T, context, roi_masks)
        running = None
        for first in range(0, total, chunk):
            if cancel is not None and cancel():
                raise SamplingCancelled(f"Cancelled before step {first + 1} of {total}.")
            rows = np.array([first, min(first + chunk, total)], np.int32)
            x_t, done = self._steps(
                params, x_t, context, roi_masks, class_vector, keys, weight, bounds, table, rows
            )
            # Wait for the chunk before this one, so that the device always has work queued.
            if running is not None:
                _report(progress, running, total)
            running = done
        _report(progress, running, total)
        return x_t


def _report(progress, done, total):
    done = int(done)  # waits until the chunk has been computed
    if progress is not None:
        progress(done, total)


def _start(x_T, context, roi_masks):
    return jnp.where(union(roi_masks), x_T, context)


def _steps(
    denoise, params, x_t, context, roi_masks, class_vector, keys, weight, bounds, table, rows
):
    """Runs the rows from `rows[0]` to before `rows[1]`; returns x_t and the number of steps done."""
    roi = union(roi_masks)

    def step(row, carry):
        x_t, done = carry
        t, x_0_factor, x_t_factor, sigma = (column[row] for column in table)
        x_0 = denoise(params, x_t, jnp.full(len(x_t), t), roi_masks, class_vector, weight)
        x_0 = jnp.clip(x_0, bounds[0], bounds[1])
        z = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), x_t.shape[1:]))(keys)
        x_t = jnp.where(roi, x_0_factor * x_0 + x_t_factor * x_t + sigma * z, context)
        return x_t, done + 1

    return jax.lax.fori_loop(rows[0], rows[1], step, (x_t, rows[0]))


def _check(x_T, context, roi_masks, class_vector, keys):
    batch, *size, _ = context.shape
    for name, array, shape in (
        ("x_T", x_T, context.shape),
        ("roi_masks", roi_masks, (batch, *size, roi_masks.shape[-1])),
        ("class_vector", class_vector, (batch, class_vector.shape[-1])),
        ("keys", keys, (batch,)),
    ):
        if array.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} to go with a context of {context.shape}, "
                f"got {array.shape}."
            )
