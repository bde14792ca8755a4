"""A plain regressor in the place of a diffusion process: the network paints the ROI at once.

    prediction = network(where(roi, 0, x_0), roi_masks, class_vector)

It is trained with the squared error inside the ROI, so it tends to the mean of what could be there. It
fits the same network, training loop, checkpoint and sampler as a process of a single timestep: t is
always 0, the network returns x_0, and the noise that the sampler starts from is replaced by zeros. There
is no null condition to guide with, and no second sample.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mbti_jax.diffusion.guidance import Apply, Denoise
from mbti_jax.diffusion.process import Diffusion, model_input, union


@dataclasses.dataclass(frozen=True)
class Regression(Diffusion):
    """A process with one timestep, of whose input nothing inside the ROI is left.

    Attributes:
        schedule: of one timestep; its value plays no part, as a sampler's last step goes to x_0.

    Raises:
        ValueError: more timesteps, or a prediction other than x_0.
    """

    prediction: str = "x_0"

    def __post_init__(self):
        if self.prediction != "x_0" or self.schedule.num_timesteps != 1:
            raise ValueError(
                "a regressor predicts x_0 at one timestep: set --config.diffusion.num_timesteps=1, "
                f"not {self.schedule.num_timesteps}"
            )

    def q_sample(self, x_0: jax.Array, eps: jax.Array, t: jax.Array, roi: jax.Array) -> jax.Array:
        """The network's input, like `x_0`: 0 inside the roi, the clean image outside."""
        del eps, t
        return jnp.where(roi, 0.0, x_0)


def regressed(apply: Apply) -> Denoise:
    """A denoise function that looks neither at what is inside the ROI nor at the guidance weight."""

    def denoise(params, x_t, t, roi_masks, class_vector, weight):
        del weight
        x = jnp.where(union(roi_masks), 0.0, x_t)
        return apply(params, model_input(x, roi_masks), t, class_vector).astype(x_t.dtype)

    return denoise
