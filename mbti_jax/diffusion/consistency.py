"""Consistency tuning: a process on top of another, of which it makes a model for few steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Key, Num

from mbti_jax.diffusion.arrays import Images, Numbers
from mbti_jax.diffusion.processes import Image, NetworkProcess, Process, Roi, Times, like

# Halvings of the gap between the two times, and the error d of estimates of x_0.
_MOST_HALVINGS = 8
_BLEND = 0.05


@dataclasses.dataclass(frozen=True)
class Consistency(Process):
    """Training towards one to four steps: consistency tuning (Geng et al. 2024, arXiv:2406.14548).

    A diffusion model is tuned into a consistency model (Song et al. 2023, arXiv:2303.01469): its
    estimate f(x_t, t) of x_0, by any kind of prediction, shall be the same all along a path of the
    process, and so the image in which the path ends. It is trained to agree with itself at an earlier
    time r of the same x_0 and noise:

        f(x_t, t) -> f(x_r, r) without a gradient,     r + 1 = (1 - gap) (t + 1),
        f(x_r, r) = x_0 for r < 0, where no noise is left.

    With gap = 1 that is the training of the diffusion model, so its weights are where tuning starts; gap
    is 1/2 then and is halved every `halve_every` updates, down to 1/256. No teacher is kept, and no
    derivative in t is taken. Errors count as in the training before, being those of the prediction that
    means f(x_r, r) at x_t: so they are as large as they were for eps, v and x_0.

    All paths hang on the image that they start from. An estimate from eps or v becomes x_t itself as the
    noise vanishes; one of x_0 is whatever the network says, nothing holds it, and the network drifts. So
    it is blended there with x_t, as with a measurement of noise sigma / alpha where the estimate has an
    error of d = 0.05 (the image having a range of 2):

        f = (1 - k) estimate + k x_t / alpha,     k = (alpha d)^2 / ((alpha d)^2 + sigma^2)

    The class vector is dropped as in diffusion, and guidance takes two passes, with any weight.

    Attributes:
        process: that of the diffusion model.
        halve_every: updates from one gap to the next.
    """

    process: NetworkProcess
    halve_every: int = 1

    samplers = ("consistency",)

    @property
    def num_timesteps(self) -> int:
        return self.process.num_timesteps

    def alpha(self, t: Any) -> Any:
        return self.process.alpha(t)

    def sigma(self, t: Any) -> Any:
        return self.process.sigma(t)

    def target(self, x_0: Image, eps: Image, t: Times) -> Image:
        return self.process.target(x_0, eps, t)

    def to_x_0(self, prediction: Image, x_t: Image, t: Times) -> Image:
        keep, skip = self._blend(x_t, t)
        return (1 - keep) * self.process.to_x_0(prediction, x_t, t) + skip * x_t

    def _blend(self, x_t: Image, t: Times) -> tuple[Any, Any]:
        """k and k / alpha, to broadcast against the image; zeros for eps and v."""
        a, s = like(self.alpha(t), x_t), like(self.sigma(t), x_t)
        if self.process.prediction != "x_0":
            return 0 * a, 0 * a
        total = (a * _BLEND) ** 2 + s**2
        return (a * _BLEND) ** 2 / total, a * _BLEND**2 / total

    def draw_time(self, key: Key[jax.Array, ""]) -> Num[jax.Array, ""]:
        return self.process.draw_time(key)

    def training_target(
        self,
        predict: Callable[[Images, Numbers], jax.Array],
        x_0: Images,
        eps: Images,
        t: Numbers,
        roi: Roi,
        step: Any = None,
    ) -> Images:
        halvings = _MOST_HALVINGS if step is None else 1 + step // self.halve_every
        gap = jnp.exp2(-jnp.minimum(halvings, _MOST_HALVINGS).astype(jnp.float32))
        r = (1 - gap) * (t + 1).astype(jnp.float32) - 1
        x_r, x_t = self.corrupt(x_0, eps, r, roi), self.corrupt(x_0, eps, t, roi)
        end = jnp.where(like(r, x_0) < 0, x_0, self.to_x_0(predict(x_r, r), x_r, r))
        # The estimate that, blended, is the end; the image where most of the blend is x_t.
        keep, skip = self._blend(x_t, t)
        end = jnp.where(keep < 0.5, (end - skip * x_t) / (1 - keep), x_0)
        a, s = like(self.alpha(t), x_0), like(self.sigma(t), x_0)
        return jax.lax.stop_gradient(self.target(end, (x_t - a * end) / s, t))
