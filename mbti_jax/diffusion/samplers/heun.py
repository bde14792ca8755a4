"""Heun's method on the flow of the process (Karras et al. 2022, arXiv:2206.00364, algorithm 1).

In the coordinates of `euler`, y = x_t / g with g = a + s, and tau = s / g, the slope of the path is
d = (y - x_0) / tau. A step from tau to tau' is one of Euler, then one with the mean of the slopes at
both of its ends:

    y_e = y + (tau' - tau) d,                         d   at (y, tau), from x_0
    y'  = y + (tau' - tau) (d + d_e) / 2,             d_e at (y_e, tau'), from a second x_0, x_0_e

The last step ends at tau' = 0, where there is no slope, and is Euler's. So n steps take 2 n - 1
evaluations, a row each. Back in x_t, with e = (tau' - tau) / 2,

    x_e      = (s' / s) x_t + (a' - a s' / s) x_0
    x_t_prev = g' [(1 + e / tau) x_t / g - (e / tau) x_0] + (e / tau') (x_e - g' x_0_e).

The method is of second order. At tau = 1 everything is finite: noise alone (a = 0) is no special case.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from mbti_jax.diffusion.arrays import Images
from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.samplers import euler

TAKES_ETA = False
EVALUATIONS = 2
SPACING = "cubic"
STEPS = 8


class Rows(NamedTuple):
    """x_t_prev = x_0_factor x_0 + x_t_factor x_t + before_x_0_factor x_0' + before_x_t_factor x_t',

    x_0' and x_t' being those of the row before; int32 `t`, float32 the others.
    """

    t: Any
    noise: Any
    x_0_factor: Any
    x_t_factor: Any
    before_x_0_factor: Any
    before_x_t_factor: Any


def table(process: Process, t: Int[np.ndarray, " n"], eta: float) -> Rows:
    """The rows from noise to the clean image: Euler, correction, ..., Euler."""
    first = euler.table(process, t, 0.0)
    scale = process.alpha(t) + process.sigma(t)
    tau = process.sigma(t) / scale
    half = np.diff(tau) / 2
    # From the row of t[k] to its correction at t[k + 1].
    correction = (
        -scale[1:] * half / tau[1:],
        half / tau[1:],
        -scale[1:] * half / tau[:-1],
        scale[1:] / scale[:-1] * (1 + half / tau[:-1]),
    )
    none = np.zeros(len(t))
    columns = [
        _interleave(even, odd)
        for even, odd in zip(
            (first.x_0_factor, first.x_t_factor, none, none), correction, strict=True
        )
    ]
    times = _interleave(t, t[1:]).astype(np.int32)
    return Rows(times, np.zeros(len(times), np.float32), *map(np.float32, columns))


def start(x_T: Images) -> tuple[Images, Images]:
    """x_t and x_0 of the row before."""
    return jnp.zeros_like(x_T), jnp.zeros_like(x_T)


def step(
    carry: tuple[Images, Images], x_t: Images, x_0: Images, row: Rows
) -> tuple[tuple[Images, Images], Images]:
    """x_t_prev."""
    before_x_t, before_x_0 = carry
    x_t_prev = row.x_0_factor * x_0 + row.x_t_factor * x_t
    x_t_prev += row.before_x_0_factor * before_x_0 + row.before_x_t_factor * before_x_t
    return (x_t, x_0), x_t_prev


def _interleave(even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """[n] and [n - 1] -> [2 n - 1]: even[0], odd[0], even[1], ..."""
    out = np.empty(len(even) + len(odd), np.result_type(even, odd))
    out[0::2], out[1::2] = even, odd
    return out
