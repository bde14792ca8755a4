"""The forward process inside a region of interest, what the network predicts of it, and the loss.

Glossary:

    x_0          clean image [B, H, W, C], nominal range [-1, 1], background -1
    eps          standard normal noise, same shape
    roi          [B, H, W, 1], true where the image is to be made: the union of roi_masks
    roi_masks    [B, H, W, 5], 0 / 1, one channel per kind of tissue
    context      x_0 outside the roi: known, never noised
    a_t, s_t     sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t); a_t^2 + s_t^2 = 1
    x_t          a_t x_0 + s_t eps inside the roi, x_0 outside
    v            a_t eps - s_t x_0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D)
    prediction   what the network returns: an estimate of eps, v or x_0

With these, x_0 = (x_t - s_t eps) / a_t = a_t x_t - s_t v and eps = (x_t - a_t x_0) / s_t. At the
last timestep of the cosine schedule a_t is 5e-5, so x_0 from eps multiplies an error of the network
by 2e4: a sampler must clip it. From v no error grows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mbti_jax.diffusion.schedule import Schedule

PREDICTIONS = ("eps", "v", "x_0")


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A Gaussian diffusion process and what the network predicts of it.

    Every method takes images float32 [B, ..., C] with t int [B], or one example [..., C] with a
    scalar t, and gives meaningful values inside the roi only unless it says otherwise.

    Attributes:
        schedule: the noise schedule.
        prediction: 'eps', 'v' or 'x_0'. The paper's network predicts eps. A network with few
            channels for the pixels it folds into them does better with x_0, since then it need not
            carry the noise through to its output.

    Raises:
        ValueError: `prediction` is none of them.
    """

    schedule: Schedule
    prediction: str = "eps"

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"Unknown prediction {self.prediction!r}; choose from {PREDICTIONS}.")

    def q_sample(self, x_0: jax.Array, eps: jax.Array, t: jax.Array, roi: jax.Array) -> jax.Array:
        """x_t: noised inside the roi, the clean image outside.

        x_t = a_t x_0 + s_t eps (Ho et al. 2020, equation 4).

        Args:
            x_0: clean image.
            eps: standard normal noise, like `x_0`.
            t: timestep.
            roi: [B, H, W, 1], bool or 0 / 1.

        Returns:
            x_t, like `x_0`; outside the roi equal to `x_0` bit for bit.
        """
        a, s = self._signal(t, x_0), self._noise(t, x_0)
        return jnp.where(roi, a * x_0 + s * eps, x_0)

    def target(self, x_0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """What the network is trained to return: eps, x_0, or v = a_t eps - s_t x_0."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "x_0":
            return x_0
        return self._signal(t, x_0) * eps - self._noise(t, x_0) * x_0

    def to_x_0(self, prediction: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """The clean image that a prediction means: itself, (x_t - s_t eps) / a_t, or a_t x_t - s_t v."""
        if self.prediction == "x_0":
            return prediction
        a, s = self._signal(t, x_t), self._noise(t, x_t)
        if self.prediction == "eps":
            return (x_t - s * prediction) / a
        return a * x_t - s * prediction

    def to_eps(self, prediction: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """The noise that a prediction means: itself, (x_t - a_t x_0) / s_t, or s_t x_t + a_t v."""
        if self.prediction == "eps":
            return prediction
        a, s = self._signal(t, x_t), self._noise(t, x_t)
        if self.prediction == "x_0":
            return (x_t - a * prediction) / s
        return s * x_t + a * prediction

    def posterior(
        self, x_0: jax.Array, x_t: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, equations 6 and 7).

        Returns:
            The mean, like `x_0`, and the variance, which broadcasts against it.
        """
        mean = (
            _at(self.schedule.posterior_x_0_coefficient, t, x_0) * x_0
            + _at(self.schedule.posterior_x_t_coefficient, t, x_0) * x_t
        )
        return mean, _at(self.schedule.posterior_variance, t, x_0)

    def _signal(self, t: jax.Array, like: jax.Array) -> jax.Array:
        return _at(self.schedule.sqrt_alphas_cumprod, t, like)

    def _noise(self, t: jax.Array, like: jax.Array) -> jax.Array:
        return _at(self.schedule.sqrt_one_minus_alphas_cumprod, t, like)


def _at(table: np.ndarray, t: jax.Array, like: jax.Array) -> jax.Array:
    """`table[t]` as float32, with trailing axes of length 1 to broadcast against `like`."""
    values = jnp.asarray(table, jnp.float32)[t]
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def union(roi_masks: jax.Array) -> jax.Array:
    """The roi: bool [..., 1], true where any channel of `roi_masks` [..., 5] is set."""
    return jnp.any(roi_masks > 0, axis=-1, keepdims=True)


def model_input(x_t: jax.Array, roi_masks: jax.Array) -> jax.Array:
    """What the network sees: x_t [..., C] and roi_masks [..., 5] as channels of one image."""
    return jnp.concatenate([x_t, roi_masks.astype(x_t.dtype)], axis=-1)


def squared_error_terms(
    prediction: jax.Array, target: jax.Array, roi: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Numerator and denominator of the loss, per example.

    The loss of a global batch is sum(sums) / sum(counts), the mean squared error over all pixels
    and sequences inside its rois. Microbatches and devices each add up both before the one
    division, so that the loss does not depend on how the batch was split.

    Args:
        prediction: float32 [B, H, W, C].
        target: float32 [B, H, W, C]; its values outside the roi play no part.
        roi: [B, H, W, 1], bool or 0 / 1.
        weight: float32 [B]; 0 for examples that only fill up a batch.

    Returns:
        sums: float32 [B], weight * squared error summed over the roi.
        counts: float32 [B], weight * number of pixels in the roi * C.
    """
    inside = jnp.broadcast_to(roi > 0, prediction.shape)
    axes = tuple(range(1, prediction.ndim))
    error = jnp.where(inside, prediction - target, 0.0)
    sums = weight * jnp.sum(jnp.square(error), axis=axes)
    counts = weight * jnp.sum(inside, axis=axes, dtype=jnp.float32)
    return sums, counts
