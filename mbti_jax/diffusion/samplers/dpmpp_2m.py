"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

With lambda = log(a / s), which grows from noise to image, the path of an x_t without fresh noise obeys

    d(x_t / s) / dlambda = e^lambda x_0(lambda),

x_0(lambda) being the estimate at x_t. (Proof: x_t / s = (a / s) x_0 + eps, and along the path
d(x_t / s) = d(a / s) x_0 in every process.) So a step from lambda to lambda' = lambda + h is exactly

    x_t_prev = (s' / s) x_t + s' int e^l x_0(l) dl,     l from lambda to lambda'.

An x_0 that stays as it is gives DDIM, (s' / s) x_t + A x_0 with A = s' (e^lambda' - e^lambda)
= a' - a s' / s. The method extends the line through the last two estimates, m at lambda and m' at
lambda - h', to the middle of the step:

    x_t_prev = (s' / s) x_t + A [m + c (m - m')],      c = h / (2 h').

One evaluation a step, second order. Two rows have c = 0:

- the first, which has no m';
- the last, where lambda' is infinite: no line can be extended that far. Its DDIM step ends at m.

Where the first row has a = 0 (a rectified flow, zero terminal SNR), h' of the second row is infinite
and c = 0 is the limit. It costs no order: near there x_0(lambda) = x_0(-inf) + O(e^lambda), so the slope
left out is O(a / s) and its weight A is O(a / s) too.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mbti_jax.diffusion.arrays import Images
from mbti_jax.diffusion.processes import Process

TAKES_ETA = False
EVALUATIONS = 1
SPACING = "cubic"
STEPS = 8


class Rows(NamedTuple):
    """x_t_prev = x_0_factor (x_0 + slope_factor (x_0 - x_0')) + x_t_factor x_t, x_0' of the row before.

    int32 `t`, float32 the others.
    """

    t: Any
    noise: Any
    x_0_factor: Any
    x_t_factor: Any
    slope_factor: Any


def table(process: Process, t: Int[np.ndarray, " n"], eta: float) -> Rows:
    """The rows from noise to the clean image."""
    t_prev = np.append(t[1:], -1)
    ratio = process.sigma(t_prev) / process.sigma(t)
    x_0_factor = process.alpha(t_prev) - process.alpha(t) * ratio
    slope = slope_factors(process, t)
    columns = np.zeros(len(t)), x_0_factor, ratio, slope
    return Rows(t.astype(np.int32), *map(np.float32, columns))


def slope_factors(process: Process, t: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """c of every row: the middle of its step, in lengths of the step before."""
    steps = np.diff(process.half_log_snr(t))
    factors = np.zeros(len(t))
    factors[1:-1] = steps[1:] / (2 * steps[:-1])
    return factors


def start(x_T: Images) -> Images:
    """x_0 of the row before."""
    return jnp.zeros_like(x_T)


def step(carry: Images, x_t: Images, x_0: Images, row: Rows) -> tuple[Images, Images]:
    """x_t_prev."""
    ahead = x_0 + row.slope_factor * (x_0 - carry)
    return x_0, row.x_0_factor * ahead + row.x_t_factor * x_t
