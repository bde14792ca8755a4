"""DDIM (Song et al. 2021, arXiv:2010.02502).

With a, s = alpha and sigma of the process at t, and a', s' at the time before, one step is

    eps      = (x_t - a x_0) / s
    noise    = eta (s' / s) sqrt(1 - a^2 / a'^2)                   (equation 16)
    x_t_prev = a' x_0 + sqrt(s'^2 - noise^2) eps + noise z         (equation 12)

eps comes from the clipped x_0, as in guided-diffusion. Put together, x_t_prev = A x_0 + B x_t + noise z,
whose three numbers per step are worked out in float64 before sampling starts. eta = 0 is deterministic,
eta = 1 is ancestral sampling.

Equation 16 is written for a^2 + s^2 = 1. The variance of q(x_t_prev | x_t, x_0) of any process is
(s'^2 / s^2) (s^2 - (a s' / a')^2), and since s'^2 = V' - a'^2 with V = a^2 + s^2, the bracket is
V - (a / a')^2 V'.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from mbti_jax.diffusion.arrays import Images
from mbti_jax.diffusion.processes import Process

TAKES_ETA = True
EVALUATIONS = 1
SPACING = "trailing"
STEPS = 50


class Rows(NamedTuple):
    """x_t_prev = x_0_factor x_0 + x_t_factor x_t + noise z; int32 `t`, float32 the others."""

    t: Any
    noise: Any
    x_0_factor: Any
    x_t_factor: Any


def table(process: Process, t: Int[np.ndarray, " n"], eta: float) -> Rows:
    """The rows from noise to the clean image."""
    t_prev = np.append(t[1:], -1)
    a, s = process.alpha(t), process.sigma(t)
    a_prev, s_prev = process.alpha(t_prev), process.sigma(t_prev)
    spread = process.variance(t) - (a / a_prev) ** 2 * process.variance(t_prev)
    noise = eta * (s_prev / s) * np.sqrt(np.maximum(spread, 0.0))
    # Not below 0 but for rounding, since eta <= 1.
    x_t_factor = np.sqrt(np.maximum(s_prev**2 - noise**2, 0.0)) / s
    x_0_factor = a_prev - x_t_factor * a
    return Rows(t.astype(np.int32), *map(np.float32, (noise, x_0_factor, x_t_factor)))


def start(x_T: Images) -> tuple[()]:
    """DDIM remembers nothing."""
    return ()


def step(carry: tuple[()], x_t: Images, x_0: Images, row: Rows) -> tuple[tuple[()], Images]:
    """x_t_prev without its noise."""
    return carry, row.x_0_factor * x_0 + row.x_t_factor * x_t
