"""Samplers: methods that lead from noise to an image, and the driver that runs them.

A method is a module with

    table(process, sampling) -> rows
        One row per network evaluation, a NamedTuple of numpy arrays [num_steps]. Every table has the
        columns `t`, the time at which the network is asked for x_0, and `noise`, the standard deviation
        of the fresh noise that the driver adds after the step.
    start(x_T) -> carry
        What the method remembers from row to row, a pytree of arrays; () for nothing.
    step(carry, x_t, x_0, row) -> (carry, x_t_prev)
        One row, on arrays [B, H, W, C]; `row` holds its numbers as scalars.
"""

from types import ModuleType

from mbti_jax.diffusion.samplers import ddim
from mbti_jax.fields import one_of

METHODS: dict[str, ModuleType] = {"ddim": ddim}


def method(name: str) -> ModuleType:
    """The method called `name`.

    Raises:
        FieldError: the name is unknown.
    """
    return METHODS[one_of("sampler", name, METHODS)]
