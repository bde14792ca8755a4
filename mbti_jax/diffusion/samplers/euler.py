"""Euler's method on the flow of the process.

Between images and noise a rectified flow goes straight, and any other process does after a change of
coordinates: with y = x_t / (a + s) and tau = s / (a + s),

    y = (1 - tau) x_0 + tau eps,      dy / dtau = eps - x_0 = (y - x_0) / tau,

where x_0 is the estimate at x_t. Euler's step from tau to tau' is

    y' = y + (tau' - tau) (y - x_0) / tau   =>   x_t_prev = (s' / s) x_t + (a' - a s' / s) x_0.

That is DDIM without noise, whatever the process. The method is of first order.
"""

import numpy as np
from jaxtyping import Int

from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.samplers import ddim
from mbti_jax.diffusion.samplers.ddim import Rows, start, step

__all__ = ["EVALUATIONS", "TAKES_ETA", "Rows", "start", "step", "table"]

TAKES_ETA = False
EVALUATIONS = 1
SPACING = "trailing"
STEPS = 50


def table(process: Process, t: Int[np.ndarray, " n"], eta: float) -> Rows:
    """The rows from noise to the clean image."""
    return ddim.table(process, t, 0.0)
