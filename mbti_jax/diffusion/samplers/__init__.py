"""Samplers: methods that lead from noise to an image, and the driver that runs them.

A method is a module with

    table(process, t, eta) -> rows
        One row per evaluation of the denoiser, a NamedTuple of numpy arrays [evaluations]; `t` are the
        times int [num_steps] that the sampler visits, strictly descending, `eta` is the share of fresh
        noise. Every table has the columns `t`, the time at which the network is asked for x_0, and
        `noise`, the standard deviation of the fresh noise that the driver adds after the row.
    start(x_T) -> carry
        What the method remembers from row to row, a pytree of arrays; () for nothing.
    step(carry, x_t, x_0, row) -> (carry, x_t_prev)
        One row, on arrays [B, H, W, C]; `row` holds its numbers as scalars.
    TAKES_ETA
        Whether eta may be above 0.
    EVALUATIONS
        The most rows that a step has.
    SPACING
        Of the timesteps, where nothing else is asked for: a key of `schedule.SPACINGS`.
    STEPS
        How many, where nothing else is asked for.

All numbers of a row follow from alpha and sigma of the process, so every method runs on every path from
images to noise. What differs is what the network means by x_0, see `Process.samplers`.
"""

from types import ModuleType

from mbti_jax.diffusion.samplers import consistency, ddim, dpmpp_2m, euler, heun, unipc
from mbti_jax.fields import one_of

METHODS: dict[str, ModuleType] = {
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "unipc": unipc,
    "euler": euler,
    "heun": heun,
    "consistency": consistency,
}


def method(name: str) -> ModuleType:
    """The method called `name`.

    Raises:
        FieldError: the name is unknown.
    """
    return METHODS[one_of("sampler", name, METHODS)]
