"""UniPC of order 2 in x_0 (Zhao et al. 2023, arXiv:2302.04867), with the paper's B_2(h) = e^h - 1.

As in `dpmpp_2m`, a step from lambda to lambda' = lambda + h is exactly

    x_t_prev = (s' / s) x_t + s' int e^l x_0(l) dl,     l from lambda to lambda'.

*Predictor.* The line through the last two estimates, taken at the middle of the step: DPM-Solver++(2M).

*Corrector.* The estimate m_p at the predicted point is asked for anyway, since the next step starts
there. It also mends the step that led there: instead of the line, the parabola through m_p, m (where the
step began) and m' (where the step before it began, lambda - h') is integrated. With u = (l - lambda) / h
they lie at u = 1, 0 and r = -h' / h; with A = a' - a s' / s and the moments of the weight e^l,

    b_k = int e^(h u) u^k du / int e^(h u) du,     u from 0 to 1,
    b_1 = 1 / (1 - e^-h) - 1 / h,     b_2 = 1 / (1 - e^-h) - 2 b_1 / h     (by parts),

    x_c = (s' / s) x_t + A [m + p (m' - m) / r + q (m_p - m)],     p + q = b_1,   r p + q = b_2,

which is exact for every x_0 that is a parabola in lambda. The next step starts at x_c, with m_p in the
place of the estimate at x_c, so there is one evaluation a step. What is predicted is of second order,
what is corrected of third, except at both ends:

- The first step has no m': its predictor is DDIM, and its corrector takes the mean of m and m_p
  (q = 1 / 2), the line in e^l instead of that in l. That is the paper's choice at order 1, and the right
  one where the first row has a = 0, lambda = -inf: x_0 is smooth in e^l = a / s there. For the step
  after it r = -inf, so p = 0, q = b_1, and the predictor has no slope, as in `dpmpp_2m`.
- The last has an infinite lambda' and is DDIM, which ends at its estimate.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from mbti_jax.diffusion.arrays import Images
from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.samplers import dpmpp_2m

TAKES_ETA = False
EVALUATIONS = 1
SPACING = "cubic"
STEPS = 8


class Rows(NamedTuple):
    """Where the step that led to a row should have ended, and the step that follows it.

        x_c      = keep x_t + x_c_factor x_c' + m_factor x_0 + m1_factor x_0' + m2_factor x_0''
        x_t_prev = x_0_factor (x_0 + slope_factor (x_0 - x_0')) + x_t_factor x_c

    with ' for the row before, and '' for the one before that. int32 `t`, float32 the others.
    """

    t: Any
    noise: Any
    x_0_factor: Any
    x_t_factor: Any
    slope_factor: Any
    keep: Any
    x_c_factor: Any
    m_factor: Any
    m1_factor: Any
    m2_factor: Any


class Carry(NamedTuple):
    """x_c and x_0 of the row before, and x_0 of the one before that."""

    x_c: Any
    m1: Any
    m2: Any


def table(process: Process, t: Int[np.ndarray, " n"], eta: float) -> Rows:
    """The rows from noise to the clean image."""
    predictor = dpmpp_2m.table(process, t, eta)
    ratio = process.sigma(t[1:]) / process.sigma(t[:-1])
    x_0_factor = process.alpha(t[1:]) - process.alpha(t[:-1]) * ratio
    q, p_over_r = np.full(len(ratio), 0.5), np.zeros(len(ratio))
    steps = np.diff(process.half_log_snr(t))
    h, r = steps[1:], -steps[:-1] / steps[1:]
    b_1 = 1 / -np.expm1(-h) - 1 / h
    b_2 = 1 / -np.expm1(-h) - 2 * b_1 / h
    p = (b_1 - b_2) / (1 - r)
    q[1:], p_over_r[1:] = b_1 - p, p / r
    corrector = ratio, x_0_factor * q, x_0_factor * (1 - q - p_over_r), x_0_factor * p_over_r
    # Nothing leads to the first row.
    columns = [np.append(0.0, column) for column in corrector]
    return Rows(*predictor, np.float32(t == t[0]), *map(np.float32, columns))


def start(x_T: Images) -> Carry:
    """Nothing to remember yet."""
    return Carry(*(jnp.zeros_like(x_T) for _ in Carry._fields))


def step(carry: Carry, x_t: Images, x_0: Images, row: Rows) -> tuple[Carry, Images]:
    """x_t_prev."""
    x_c, m1, m2 = carry
    x_c = row.keep * x_t + row.x_c_factor * x_c
    x_c += row.m_factor * x_0 + row.m1_factor * m1 + row.m2_factor * m2
    ahead = x_0 + row.slope_factor * (x_0 - m1)
    return Carry(x_c, x_0, m1), row.x_0_factor * ahead + row.x_t_factor * x_c
