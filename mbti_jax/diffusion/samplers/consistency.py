"""Multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1).

A network tuned for consistency returns for x_t the image in which the path through x_t ends, instead of
the mean of all images that x_t may have come from. One evaluation makes an image; each further one draws
fresh noise, to the time of the next row, and maps again:

    x_t_prev = a' f(x_t, t) + s' z

The last row ends at its image.
"""

import numpy as np
from jaxtyping import Int

from mbti_jax.diffusion.processes import Process
from mbti_jax.diffusion.samplers.ddim import Rows, start, step

__all__ = ["EVALUATIONS", "TAKES_ETA", "Rows", "start", "step", "table"]

TAKES_ETA = False
EVALUATIONS = 1
SPACING = "trailing"
STEPS = 2


def table(process: Process, t: Int[np.ndarray, " n"], eta: float) -> Rows:
    """The rows from noise to the clean image."""
    t_prev = np.append(t[1:], -1)
    columns = process.sigma(t_prev), process.alpha(t_prev), np.zeros(len(t))
    return Rows(t.astype(np.int32), *map(np.float32, columns))
